"""What a reader sees of the rows that writers wrote: merged changes, visible points, one answer.

Pure functions over rows. Knows no store; a store that can do the same in its own engine does.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tachograph.backends.base import SPAN, Condition, Query
from tachograph.errors import QueryError
from tachograph.records import NO_STEP, TABLES, MetricBlock, Row, TableSpec, split_special
from tachograph.table import Table

# ---------------------------------------------------------------------------- raw rows


def point_rows(block: MetricBlock, writer: str) -> Iterator[Row]:
    """The points of a block as rows of the table `metrics`."""
    series = block.series
    for seq, time_ns, step, epoch, *values in block.unpack():
        shared = {
            "run_id": series.run_id,
            "context": series.context,
            "rank": series.rank,
            "attempt": series.attempt,
            "step": None if step == NO_STEP else step,
            "epoch": epoch if epoch == epoch else None,
            "time": time_ns // 1000,
            "writer": writer,
            "seq": seq,
        }
        for name, number in zip(series.names, values, strict=True):
            value, special = split_special(number)
            yield shared | {"name": name, "value": value, "special": special}


# ---------------------------------------------------------------------------- views


def view(table: str, raw: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The rows of `table` that users see.

    Parameters
    ----------
    table : str
        A name in `records.TABLES`, or `all_metrics`.
    raw : mapping of table name to rows
        Everything that was written: at least this table, `runs` and `attempts`.
    """
    spec = TABLES["metrics" if table == "all_metrics" else table]
    rows = raw[spec.name] if spec.grows else merge_changes(spec, raw[spec.name])
    gone = {row["run_id"] for row in merge_changes(TABLES["runs"], raw["runs"]) if row["deleted"]}
    seen = [row for row in rows if not row.get("deleted") and row.get("run_id") not in gone]
    if table == "metrics":
        return visible_points(seen, view("attempts", raw))
    return merge_summaries(seen) if table == "summaries" else seen


def change_order(row: Row) -> tuple[int, str, int]:
    """Sort key of changes: the last one wins."""
    return row["changed_at"], row["writer"], row["seq"]


def merge_changes(spec: TableSpec, rows: Iterable[Row]) -> list[Row]:
    """The latest row of each key, tombstones included; in `runs` the latest value per column."""
    latest: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=change_order):
        key = tuple(row[column] for column in spec.key)
        older = latest.get(key, {}) if spec.name == "runs" else {}
        latest[key] = row | {name: value for name, value in older.items() if row[name] is None}
    return list(latest.values())


def visible_points(points: Iterable[Row], attempts: Iterable[Row]) -> list[Row]:
    """Leave out the points of an attempt from the step on where a later attempt began.

    A point without a step, or a later attempt whose first step is not known, hides nothing.
    """
    begun: dict[str, list[tuple[int, int]]] = {}
    for row in attempts:
        if row["first_step"] is not None:
            begun.setdefault(row["run_id"], []).append((row["attempt"], row["first_step"]))

    def replaced(point: Row) -> bool:
        step = point["step"]
        return step is not None and any(
            attempt > point["attempt"] and first_step <= step
            for attempt, first_step in begun.get(point["run_id"], ())
        )

    return [point for point in points if not replaced(point)]


SERIES = ("run_id", "name", "context", "rank", "attempt")
"""What makes points one series, and a row of the summaries that users see."""


def merge_summaries(rows: Iterable[Row]) -> list[Row]:
    """One row per series from one per writer; `last` is the latest by time, then by writer."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in SERIES), []).append(row)
    return [_merge_series(group) for group in groups.values()]


def _merge_series(rows: list[Row]) -> Row:
    last = max(rows, key=lambda row: (row["last_time"], row["writer"]))
    finite = [row for row in rows if row["finite"]]
    total = sum(row["finite"] for row in finite)
    means = [row["mean"] * (row["finite"] / total) for row in finite if row["mean"] is not None]
    return last | {
        "min": min((row["min"] for row in finite), default=None),
        "max": max((row["max"] for row in finite), default=None),
        "mean": sum(means) if finite and len(means) == len(finite) else None,
        "count": sum(row["count"] for row in rows),
        "finite": total,
    }


# ---------------------------------------------------------------------------- queries


def select(query: Query, rows: Iterable[Row]) -> Table:
    """Filter, sort, cut and project rows as a query says."""
    query.check()
    chosen = [row for row in rows if all(matches(row, test) for test in query.where)]
    if query.span is not None:
        chosen = spans(chosen, query.columns or (), query.span)
    for name in reversed(query.order):
        column, descending = name.removeprefix("-"), name.startswith("-")
        known = [row for row in chosen if row[column] is not None]
        known.sort(key=operator.itemgetter(column), reverse=descending)
        chosen = known + [row for row in chosen if row[column] is None]
    if query.limit is not None:
        chosen = chosen[: query.limit]
    return Table.from_rows(chosen, query.names)


def spanned(read: Callable[[Query], Table], query: Query) -> Table:
    """The answer to a query with a span, from the rows that it is about."""
    names = dict.fromkeys([*(query.columns or ()), query.span or ""])
    rows = read(replace(query, columns=[*names], span=None, order=(), limit=None))
    return select(replace(query, where=()), rows)


def spans(rows: Iterable[Row], columns: Sequence[str], span: str) -> list[Row]:
    """One row per combination of columns, with the columns `SPAN` about another column."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in columns), []).append(row[span])
    answer = []
    for key, values in found.items():
        known = [value for value in values if value is not None]
        ends = (min(known, default=None), max(known, default=None), len(values))
        answer.append(dict(zip((*columns, *SPAN), (*key, *ends), strict=True)))
    return answer


@lru_cache
def like_pattern(pattern: str) -> re.Pattern[str]:
    """What SQL's LIKE accepts, case-sensitive: `%` is any text, `_` any character."""
    if not isinstance(pattern, str):
        raise TypeError("'like' takes a text")
    first, *parts = (
        "".join("." if c == "_" else re.escape(c) for c in part) for part in pattern.split("%")
    )
    # Each part but the last at the first place where it fits, for good: to try all places takes
    # for ever with many of them.
    middle = "".join(f"(?>.*?{part})" for part in parts[:-1])
    return re.compile(first + middle + "".join(f".*{part}" for part in parts[-1:]), re.DOTALL)


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, wanted: value in wanted,
    "like": lambda value, wanted: like_pattern(wanted).fullmatch(value) is not None,
}


def matches(row: Row, condition: Condition) -> bool:
    """Whether a row satisfies a condition; NULL is as `Condition` says.

    Raises
    ------
    QueryError
        The two have no order between them.
    """
    value, wanted = row[condition.column], condition.value
    if value is None:
        return condition.operator == "=" and wanted is None
    if wanted is None:
        return condition.operator == "!="
    try:
        return _COMPARE[condition.operator](value, wanted)
    except TypeError as error:
        raise QueryError(f"cannot compare {condition.column!r} with {wanted!r}: {error}") from error
