"""The command that follows a run: tail."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from tachograph.backends.base import Condition, Query, SupportsFollow
from tachograph.cli.options import (
    JsonOption,
    RunArgument,
    StoreOption,
    check_metrics,
    open_for_reading,
)
from tachograph.cli.render import (
    console,
    context_label,
    is_of_the_user,
    json_text,
    local_time,
    shown,
    visible,
)
from tachograph.errors import RunNotFound
from tachograph.query import Store
from tachograph.reading.run_record import RunRecord
from tachograph.records import Row, join_special
from tachograph.values import plain

_SECONDS = 1.0  # between two looks at a store that does not tell by itself
_SHOWN = ("name", "context", "step", "epoch", "time", "value")
_SERIES = ("name", "context", "rank", "attempt")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(tail)


def tail(
    run: RunArgument,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            metavar="NAME",
            help="Only these metrics; by default all but those of the machine and of recording.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Go on until the run ends.")
    ] = True,
    lines: Annotated[
        int,
        typer.Option("--lines", "-n", metavar="N", min=0, max=1000, help="Points to begin with."),
    ] = 10,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the points of a run as they are recorded."""
    names = metric or []
    with open_for_reading(store) as opened:
        record = opened.run(run)
        if record.status != "running":
            check_metrics(record, names, {row["name"] for row in record.metrics})
        is_told = follow and record.status == "running"
        status = _listen(opened, record.run_id, names, lines, as_json=as_json) if is_told else None
        if status is None:
            status = _look_again(opened, record, names, lines, as_json=as_json, follow=follow)
    if not as_json:
        console().print(status, style="dim")


def _listen(
    store: Store, run_id: str, names: Sequence[str], lines: int, *, as_json: bool
) -> str | None:
    """Print what a server tells until the run has ended: its status; None where none tells."""
    if not isinstance(store.backend, SupportsFollow):
        return None
    status = "running"
    try:
        for _, kind, row in store.backend.follow(run_id, names=names, last=lines):
            if kind == "point" and _is_wanted(row["name"], names):
                _print_point(row, as_json)
            elif kind == "status":
                status = row["status"]
    except RunNotFound:  # it is recorded on this machine, and has not been sent yet
        return None
    return status


def _look_again(
    store: Store,
    record: RunRecord,
    names: Sequence[str],
    lines: int,
    *,
    as_json: bool,
    follow: bool,
) -> str:
    """Print the last points, and each second what is new, until the run has ended: its status."""
    fresh = _Fresh(store, record.run_id, names)
    points = fresh.last(lines)
    status = record.status
    while True:
        for point in points:
            _print_point(point, as_json)
        if not follow or status != "running":
            return status
        time.sleep(_SECONDS)
        status = str(store.row(record.run_id)["status"])  # before the points: the last ones count
        points = fresh.new()


class _Fresh:
    """The points of a run that come after those that were seen."""

    def __init__(self, store: Store, run_id: str, names: Sequence[str]) -> None:
        self._store = store
        self._names = names
        self._where = [Condition("run_id", "=", run_id)]
        self._seen: dict[tuple[Any, ...], int] = {}  # of each series the time of its last point

    def last(self, count: int) -> list[Row]:
        """The last points, in order of their time; from here on only others are new."""
        found = self._store.read(Query("summaries", self._where, [*_SERIES, "last_time"]))
        points = self._read(found, [], ("-time", "-name", "-context"), count)
        for row in [*found, *points]:
            self._note(row, row.get("last_time", row.get("time")) or 0)
        return points[::-1]

    def new(self) -> list[Row]:
        """What has come since, in order of its time."""
        found = self._store.read(Query("summaries", self._where, [*_SERIES, "last_time"]))
        changed = [row for row in found if (row["last_time"] or 0) > self._seen.get(_key(row), -1)]
        if not changed:
            return []
        since = min(self._seen.get(_key(row), -1) for row in changed)
        points = [
            row
            for row in self._read(
                changed, [Condition("time", ">", since)], ("time", "name", "context")
            )
            if row["time"] > self._seen.get(_key(row), -1)
        ]
        for row in points:
            self._note(row, row["time"])
        return points

    def _read(
        self,
        series: Iterable[Row],
        where: Sequence[Condition],
        order: Sequence[str],
        limit: int | None = None,
    ) -> list[Row]:
        wanted = {row["name"] for row in series if _is_wanted(row["name"], self._names)}
        names = Condition("name", "in", sorted(wanted))
        columns = dict.fromkeys([*_SHOWN, *_SERIES, "special"])
        query = Query("metrics", [*self._where, names, *where], [*columns], order, limit)
        return list(self._store.read(query))

    def _note(self, row: Row, at: int) -> None:
        self._seen[_key(row)] = max(at, self._seen.get(_key(row), -1))


def _is_wanted(metric: str, names: Sequence[str]) -> bool:
    return metric in names if names else is_of_the_user(metric)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SERIES)


def _print_point(row: Row, as_json: bool) -> None:
    value = join_special(row["value"], row["special"])
    if as_json:
        shown_row = {name: row[name] for name in _SHOWN} | {"value": value}
        print(json_text(plain(shown_row)), flush=True)
        return
    place = context_label(row["context"])
    step = "" if row["step"] is None else f"step {row['step']}"
    name = f"{row['name']} ({place})" if place else row["name"]
    text = f"{local_time(row['time'])}  {step:>12}  {name} = {shown(value)}"
    print(visible(text, keep=""), flush=True)
