"""Runs side by side, for a person or a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tachograph.cli.render import (
    console,
    context_label,
    counted,
    is_of_the_user,
    print_table,
    section,
    short_digest,
)
from tachograph.comparing.comparison import Comparison, Difference
from tachograph.records import Row
from tachograph.table import Table

_SPARE = ("ended_at", "project", "started_at")  # of the runs, on a narrow terminal


def plain_comparison(result: Comparison | Difference) -> dict[str, Any]:
    """The tables of a comparison, for a program."""
    tables = {name: getattr(result, name) for name in result.__dataclass_fields__}
    return {
        name: value.to_pylist() if isinstance(value, Table) else value
        for name, value in tables.items()
    }


def print_comparison(result: Comparison, everything: bool) -> None:
    """Print runs side by side; what is the same only with `everything`."""
    _side_by_side("Runs", result.runs, everything=True)
    _metrics_side_by_side(result.metrics, everything=everything)
    for title, table in (
        ("Parameters", result.params),
        ("Tags", result.tags),
        ("Code and environment", result.facts),
    ):
        _side_by_side(title, table, everything=everything)


def _metrics_side_by_side(metrics: Table, *, everything: bool = False) -> None:
    """Metrics with contexts as a person reads them; use of the machine only with `everything`."""
    rows = [
        row | {"context": context_label(row["context"])}
        for row in metrics
        if everything or is_of_the_user(row["name"])
    ]
    rows = rows if everything else _curves_first(rows, metrics.columns[3:])
    _side_by_side("Metrics", Table.from_rows(rows, metrics.columns), everything=True)


def _curves_first(rows: Sequence[Row], runs: Sequence[str]) -> list[Row]:
    """Metrics that have only one value behind the others, and in one row instead of three."""
    values: dict[tuple[str, str], set[tuple[Any, ...]]] = {}
    for row in rows:
        known = tuple(repr(row[run]) for run in runs)
        values.setdefault((row["name"], row["context"]), set()).add(known)

    def moves(row: Row) -> bool:
        return len(values[row["name"], row["context"]]) > 1

    return sorted(
        (row for row in rows if moves(row) or row["statistic"] == "last"),
        key=lambda row: not moves(row),
    )


def _side_by_side(title: str, table: Table, *, everything: bool) -> None:
    rows = list(table)
    shown_rows = [
        {name: short_digest(value) for name, value in row.items()}
        for row in rows
        if everything or row.get("differs", True)
    ]
    if not shown_rows:
        if rows:
            section(title)
            console().print(f"the same in all ({counted(len(rows), 'value')})", style="dim")
        return
    section(title)
    columns = [name for name in table.columns if name != "differs"]
    print_table(shown_rows, columns, spare=_SPARE)
    same = len(rows) - len(shown_rows)
    if same:
        console().print(f"{same} more the same; --all shows them", style="dim")


def print_difference(result: Difference) -> None:
    """Print how two runs differ, most likely explanations first."""
    _side_by_side("Runs", result.runs, everything=True)
    if len(result.changes):
        _side_by_side("What differs, the likeliest cause first", result.changes, everything=True)
    else:
        console().print("\nnothing that is recorded differs but the results", style="dim")
    _metrics_side_by_side(result.metrics)
