"""Commands that read: runs, show, compare, diff, sql."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tachograph.cli import comparing, page, provenance_page
from tachograph.cli.options import JsonOption, RunArgument, StoreOption, open_for_reading
from tachograph.cli.render import (
    cell,
    console,
    duration,
    print_json,
    print_table,
)
from tachograph.comparing import comparison
from tachograph.errors import QueryError
from tachograph.levels.kin import kin_of
from tachograph.levels.level import assess, documents_of
from tachograph.query import Store
from tachograph.records import now_us

DEFAULT = ("run_id", "name", "kind", "status", "project", "framework", "started_at", "duration")
SPARE = ("project", "framework", "kind")  # on a narrow terminal


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (runs, show, compare, diff, sql):
        app.command()(command)


def runs(
    where: Annotated[
        str | None,
        typer.Option("--where", "-w", metavar="FILTER", help='Such as "metrics.val_loss < 0.1".'),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="NAME", help="Name to sort by; a leading '-' sorts descending.")
    ] = "-started_at",
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            "-c",
            metavar="NAMES",
            help="Names to show, with commas: name,params.lr,metrics.loss.min",
        ),
    ] = None,
    children: Annotated[
        bool, typer.Option("--children", help="Also trials, folds, steps and other parts.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    chosen = _split(columns)
    with open_for_reading(store) as opened:
        if as_json:
            asked = [name for name in chosen or () if name != "duration"]
            print_json(opened.runs(where, sort, asked or None, children, limit))
        else:
            print_runs(opened, where, sort, chosen, children=children, limit=limit)


def print_runs(
    store: Store,
    where: str | None = None,
    sort: str = "-started_at",
    columns: list[str] | None = None,
    *,
    children: bool = False,
    limit: int | None = None,
) -> None:
    """Print a list of runs for a person."""
    asked = None
    if columns is not None:
        needed = ["started_at", "ended_at", "status"] if "duration" in columns else []
        asked = list(dict.fromkeys([*(c for c in columns if c != "duration"), *needed]))
    rows = [_with_duration(row) for row in store.runs(where, sort, asked, children, limit)]
    if not rows:
        console().print("no runs" if where is None else f"no run fits {where!r}")
        return
    names = {"run_id": "run"}
    print_table(rows, columns or _useful(rows), names=names, spare=() if columns else SPARE)
    if limit is not None and len(rows) == limit:
        console().print(f"the first {limit}; more with --limit", style="dim")


def _split(columns: str | None) -> list[str] | None:
    if columns is None:
        return None
    names, depth, start = [], 0, 0
    for position, letter in enumerate(columns):  # commas inside metrics['a', phase='b'] stay
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            names.append(columns[start:position].strip())
            start = position + 1
    names.append(columns[start:].strip())
    return [name for name in names if name]


def _useful(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in DEFAULT if any(row.get(name) not in (None, "") for row in rows)]


def _with_duration(row: dict[str, Any]) -> dict[str, Any]:
    start, end = row.get("started_at"), row.get("ended_at")
    if end is None and row.get("status") == "running":
        end = now_us()
    return row | {"duration": duration(end - start) if start and end else None}


def show(
    run: RunArgument,
    provenance: Annotated[
        bool,
        typer.Option(
            "--provenance", help="Where it comes from in full, and how far it can be reproduced."
        ),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one run: parameters, metrics with their curves, events, files, where it comes from."""
    with open_for_reading(store) as opened:
        record = opened.run(run)
        if provenance:
            kin = kin_of(record, opened)
            facts = (record, documents_of(record, kin), assess(record, opened, kin))
            if as_json:
                print_json(provenance_page.document(*facts))
            else:
                provenance_page.print_provenance(*facts)
        elif as_json:
            print_json(page.document(opened, record))
        else:
            page.print_page(opened, record)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN [RUN...]", help="Runs to compare.")],
    everything: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side: metrics, parameters, tags, code and environment."""
    with open_for_reading(store) as opened:
        result = comparison.compare(opened, [opened.resolve(name) for name in runs])
        if as_json:
            print_json(comparing.plain_comparison(result))
        else:
            comparing.print_comparison(result, everything)


def diff(
    first: RunArgument,
    second: RunArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how two runs differ, in the order of what most likely explains it."""
    with open_for_reading(store) as opened:
        result = comparison.diff(opened, opened.resolve(first), opened.resolve(second))
        if as_json:
            print_json(comparing.plain_comparison(result))
        else:
            comparing.print_difference(result)


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the process: an engine that works on a query hears of it only afterwards."""
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and before is signal.default_int_handler):  # such as one that ignores them
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def sql(
    query: Annotated[str, typer.Argument(metavar="SELECT", help="One SELECT over the tables.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a query over the tables, read only."""
    with open_for_reading(store) as opened:
        with _ended_by_interrupts():
            table = opened.sql(query)
        if as_json:
            print_json(table)
        elif not table.columns:
            raise QueryError("the query gives no columns")
        else:
            rows = [{name: cell("", value).plain for name, value in row.items()} for row in table]
            print_table(rows, table.columns)
