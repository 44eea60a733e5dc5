"""Lists runs: filters, sorts and adds columns, reading only what these refer to.

Knows how facts about a run are gathered from the tables; knows no store.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tachograph.backends.base import Condition, Query
from tachograph.errors import QueryError
from tachograph.reading.facts import RUN_COLUMNS, Facts, Needs, Path, nearest, package_versions
from tachograph.reading.filters import Filter, compile_filter, compile_path
from tachograph.records import Row, now_us
from tachograph.table import Table

IsAlive = Callable[[Row], bool | None]
"""From a row of `writers` to whether its process still runs; None where nobody can tell."""

BOOKKEEPING = ("changed_at", "writer", "seq", "deleted")
DEFAULT_COLUMNS = tuple(name for name in RUN_COLUMNS if name not in BOOKKEEPING)
SILENT_US = 300_000_000
"""A writer on another machine counts as gone after so many µs without a sign of life."""

_FEW = 200  # so many runs are asked for by name; more are cheaper to read with all others


class Reader(Protocol):
    """What answers queries: a backend, or a store with the tails of its journals."""

    def read(self, query: Query) -> Table:
        """Read rows."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """Which runs to list, and how.

    Attributes
    ----------
    where : str, optional
        A filter, see `tachograph.reading.filters`.
    sort : str or sequence of str
        Names of the filter language; a leading '-' sorts descending. Runs without that value
        come last either way.
    columns : sequence of str, optional
        Names of the filter language; by default all columns of a run.
    children : bool
        Also trials, folds, steps and other runs that have a parent.
    limit : int, optional
        At most this many.
    lost : bool
        Show runs as lost whose process is gone although they never ended.
    """

    where: str | None = None
    sort: str | Sequence[str] = "-started_at"
    columns: Sequence[str] | None = None
    children: bool = False
    limit: int | None = None
    lost: bool = True


@dataclass(frozen=True, slots=True)
class _Plan:
    columns: list[Path]
    order: list[tuple[Path, bool]]
    filter: Filter | None = None
    needs: Needs = field(default_factory=Needs)

    @property
    def is_plain(self) -> bool:
        """Whether the store can sort and cut by itself."""
        by_status = any(path.text == "status" for path, _ in self.order)
        return self.filter is None and self.needs.only_columns and not by_status


def list_runs(reader: Reader, listing: Listing, is_alive: IsAlive | None = None) -> Table:
    """The runs, one row each.

    Raises
    ------
    QueryError
        A name or filter that cannot be, or a filter that finds nothing and names a metric,
        parameter or tag that no run has, though some have one spelled nearly like it.
    """
    plan = _compile(listing)
    names = sorted(plan.needs.columns | {"run_id", "root_id", "status", "started_at"})
    asked = (
        [("-" if down else "") + path.text for path, down in plan.order] if plan.is_plain else []
    )
    query = Query(
        "runs",
        where=[] if listing.children else [Condition("parent_id", "=", None)],
        columns=names,
        # What is equal otherwise comes newest first, from whatever store.
        order=[*dict.fromkeys([*asked, "-started_at", "run_id"])],
        limit=listing.limit if plan.is_plain else None,
    )
    table = reader.read(query)
    if listing.lost and "status" in plan.needs.columns:
        table = show_lost(reader, table, is_alive)
    if plan.is_plain:
        return table.select([path.text for path in plan.columns])
    chosen = _choose(reader, plan, list(table))[: listing.limit]
    return Table({path.text: [path.value(facts) for facts in chosen] for path in plan.columns})


def _compile(listing: Listing) -> _Plan:
    sort = [listing.sort] if isinstance(listing.sort, str) else listing.sort
    order = [(compile_path(name.removeprefix("-")), name.startswith("-")) for name in sort]
    columns = [compile_path(name) for name in listing.columns or DEFAULT_COLUMNS]
    test = compile_filter(listing.where) if listing.where else None
    parts = [path.needs for path in columns] + [path.needs for path, _ in order]
    parts += [test.needs] if test else []
    return _Plan(columns, order, test, functools.reduce(operator.or_, parts, Needs()))


def _choose(reader: Reader, plan: _Plan, rows: list[Row]) -> list[Facts]:
    every = gather(reader, rows, plan.needs)
    chosen = [facts for facts in every if plan.filter is None or plan.filter.matches(facts)]
    if plan.filter and every and not chosen:
        _refuse_misspelled(reader, plan.filter, every)
    for path, down in reversed(plan.order):
        known = [(value, facts) for facts in chosen if (value := path.value(facts)) is not None]
        known.sort(key=lambda pair: _sortable(pair[0]), reverse=down)
        chosen = [pair[1] for pair in known] + [f for f in chosen if path.value(f) is None]
    return chosen


def _sortable(value: Any) -> tuple[int, Any]:
    """Numbers before texts before the rest, because values of one parameter may differ in kind."""
    if isinstance(value, int | float):
        return (0, value) if value == value else (1, 0)
    return (2, value) if isinstance(value, str) else (3, str(value))


# ---------------------------------------------------------------------------- facts


def gather(reader: Reader, rows: Sequence[Row], needs: Needs) -> list[Facts]:
    """The facts that `needs` names about runs given by their rows."""
    run_ids = [row["run_id"] for row in rows]
    few = [Condition("run_id", "in", run_ids)] if len(run_ids) <= _FEW else []

    def read(table: str, column: str, wanted: Iterable[str], *more: str) -> Iterable[Any]:
        if not wanted or not run_ids:
            return ()
        where = [Condition(column, "in", sorted(wanted)), *few]
        columns = ("run_id", column, *more)
        found = reader.read(Query(table, where, columns=columns))
        return zip(*(found[name] for name in columns), strict=True)

    metrics = _newest(read("summaries", "name", needs.metrics, *_SUMMARY[2:]))
    params: dict[str, dict[str, Any]] = {}
    for run_id, path, value in read("params", "path", needs.params, "value"):
        params.setdefault(run_id, {})[path] = None if value is None else json.loads(value)
    tags: dict[str, dict[str, str | None]] = {}
    for run_id, key, text in read("tags", "key", needs.tags, "value"):
        tags.setdefault(run_id, {})[key] = text
    packages = _packages(reader, rows, bool(few)) if needs.packages else {}
    nothing: dict[str, Any] = {}
    return [
        Facts(
            row,
            metrics.get(row["run_id"], nothing),
            params.get(row["run_id"], nothing),
            tags.get(row["run_id"], nothing),
            packages.get(row["run_id"]) or packages.get(row["root_id"], nothing),
        )
        for row in rows
    ]


_SUMMARY = (
    *("run_id", "name", "context", "rank", "attempt"),
    *("last", "special", "min", "max", "mean", "count"),
)


def _newest(summaries: Iterable[Any]) -> dict[str, dict[str, dict[str, Row]]]:
    """Run, name and context to the summary of the latest attempt on the lowest rank."""
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for values in summaries:
        run_id, name, context, rank, attempt, *_ = values
        contexts = found.setdefault(run_id, {}).setdefault(name, {})
        older = contexts.get(context)
        if older is None or (older["attempt"], -older["rank"]) < (attempt, -rank):
            contexts[context] = dict(zip(_SUMMARY, values, strict=True))
    return found


def _packages(reader: Reader, rows: Sequence[Row], few: bool) -> dict[str, dict[str, str]]:
    """Installed packages per run; a child without a document of its own has its root's."""
    where = [Condition("section", "=", "packages")]
    if few:
        ids = {row["run_id"] for row in rows} | {row["root_id"] for row in rows} - {None}
        where.append(Condition("run_id", "in", sorted(ids)))
    found = reader.read(Query("provenance", where, columns=["run_id", "digest", "document"]))
    read: dict[str, dict[str, str]] = {}  # runs of one environment share one document
    for text in set(found["document"]):
        read[text] = package_versions(json.loads(text))
    return {
        run_id: read[text] for run_id, text in zip(found["run_id"], found["document"], strict=True)
    }


def _refuse_misspelled(reader: Reader, test: Filter, every: Sequence[Facts]) -> None:
    for root, table, column in (
        ("metrics", "summaries", "name"),
        ("params", "params", "path"),
        ("tags", "tags", "key"),
    ):
        had = {name for facts in every for name in getattr(facts, root)}
        missing = getattr(test.needs, root) - had
        known = set(reader.read(Query(table, columns=[column]))[column]) if missing else set()
        for name in sorted(missing - known):
            if hint := nearest(name, known):
                raise QueryError(f"no run has {root}.{name}{hint}\n  {test.text}")


# ---------------------------------------------------------------------------- lost runs


def show_lost(reader: Reader, table: Table, is_alive: IsAlive | None = None) -> Table:
    """The runs with the status 'lost' where the process that recorded a run is gone.

    `is_alive` decides; where it cannot tell, a writer is gone after `SILENT_US` without a sign
    of life.
    """
    status = table["status"]
    if "running" not in status:
        return table
    running = [
        run_id for run_id, one in zip(table["run_id"], status, strict=True) if one == "running"
    ]
    lost = _lost(reader, running, is_alive)
    shown = [
        "lost" if run_id in lost else one
        for run_id, one in zip(table["run_id"], status, strict=True)
    ]
    return Table({name: shown if name == "status" else table[name] for name in table.columns})


def _lost(reader: Reader, run_ids: Sequence[str], is_alive: IsAlive | None) -> set[str]:
    where = [Condition("status", "=", "running")]
    where += [Condition("run_id", "in", run_ids)] if len(run_ids) <= _FEW else []
    # The attempt, unlike the run, is never changed by an edit: its writer is the one to look for.
    tries = reader.read(Query("attempts", where, ["run_id", "writer"]))
    writers = sorted(set(tries["writer"]))
    rows = reader.read(Query("writers", [Condition("writer", "in", writers)]))
    gone = {row["writer"] for row in rows if not _lives(row, is_alive)}
    pairs = list(zip(tries["run_id"], tries["writer"], strict=True))
    alive = {run_id for run_id, writer in pairs if writer not in gone}
    return {run_id for run_id, writer in pairs if writer in gone} - alive


def _lives(writer: Mapping[str, Any], is_alive: IsAlive | None) -> bool:
    known = is_alive(dict(writer)) if is_alive else None
    if known is not None:
        return known
    seen = writer["heartbeat_at"] or writer["started_at"]
    return seen is None or now_us() - int(seen) < SILENT_US
