"""What changes, attempts and summaries mean, on Arrow tables; the same as `tachograph.merge`.

Pure functions. Knows no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tachograph.backends.parquet_arrays import (
    Integers,
    Mask,
    column_numbers,
    column_valid,
    from_numpy,
)
from tachograph.backends.parquet_scan import codes, keep_rows
from tachograph.records import TableSpec

CHANGE = ("changed_at", "writer", "seq")
SERIES = ("run_id", "name", "context", "rank", "attempt")

_NEVER = np.iinfo(np.int64).max


def is_deleted(table: pa.Table) -> Mask:
    deleted: Mask = column_numbers(table["deleted"]) != 0
    return deleted


def hide_deleted(table: pa.Table, deleted: set[str]) -> pa.Table:
    if not deleted:
        return table
    numbers, runs = codes(table["run_id"])
    gone = np.array([run in deleted for run in runs], np.bool_)
    return keep_rows(table, ~gone[numbers])


def hide_replaced(table: pa.Table, first_steps: dict[str, list[tuple[int, int]]]) -> pa.Table:
    """Leave out points of an attempt from the step on where a later attempt began."""
    if not first_steps or not table.num_rows:
        return table
    runs, run_ids = codes(table["run_id"])
    attempts, attempt_ids = codes(table["attempt"])
    pairs, pair_of = np.unique(runs * len(attempt_ids) + attempts, return_inverse=True)
    cuts = np.full(len(pairs), _NEVER)
    for i, pair in enumerate(pairs.tolist()):
        run, attempt = divmod(pair, len(attempt_ids))
        begun = first_steps.get(run_ids[run], ())
        own = attempt_ids[attempt]
        cuts[i] = min(
            (step for later, step in begun if own is not None and later > own), default=_NEVER
        )
    step = table["step"]
    seen = column_numbers(step) < cuts[pair_of]
    return keep_rows(table, seen | ~column_valid(step))


def _group(table: pa.Table, key: Sequence[str]) -> Integers:
    """Number the rows so that rows of one key have one number."""
    group: Integers = np.zeros(table.num_rows, np.int64)
    for name in key:
        numbers, values = codes(table[name])
        joined = pa.chunked_array([from_numpy(group * max(1, len(values)) + numbers)])
        group = codes(joined)[0]
    return group


def _ranks(column: pa.ChunkedArray) -> Integers:
    """Numbers that sort as the texts of a column."""
    numbers, texts = codes(column)
    ranks = np.empty(len(texts), np.int64)
    ranks[sorted(range(len(texts)), key=lambda i: texts[i] or "")] = np.arange(len(texts))
    return ranks[numbers]


def latest_changes(spec: TableSpec, table: pa.Table) -> pa.Table:
    """The last row of each key by (changed_at, writer, seq); in `runs` per column."""
    if not table.num_rows:
        return table
    order, starts, ends = _sorted_by_change(table, spec.key)
    if spec.name != "runs":
        return table.take(from_numpy(order[ends]))
    columns = [_last_known(column, order, starts) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def deciding_rows(spec: TableSpec, table: pa.Table) -> pa.Array:
    """Integers of the rows without which `latest_changes` would not be what it is.

    Whatever arrives later, and with whatever time, these rows say all that the table says. Of
    `runs` these are several rows of a run, and its last row of each root, where points lie.
    """
    if not table.num_rows:
        return from_numpy(np.zeros(0, np.int64))
    order, starts, ends = _sorted_by_change(table, spec.key)
    kept = [order[ends]]
    if spec.name == "runs":
        by_root = _sorted_by_change(table, ("run_id", "root_id"))
        kept.append(by_root[0][by_root[2]])
        for column in table.columns:
            last = _last_position(column, order, starts)
            kept.append(order[last[last >= 0]])
    return from_numpy(np.unique(np.concatenate(kept)))


def _sorted_by_change(table: pa.Table, key: Sequence[str]) -> tuple[Integers, Integers, Integers]:
    return _sorted_groups(
        _group(table, key),
        column_numbers(table["changed_at"]),
        _ranks(table["writer"]),
        column_numbers(table["seq"]),
    )


def _sorted_groups(group: Integers, *order_by: Integers) -> tuple[Integers, Integers, Integers]:
    """Integers sorted by group and these keys; first and last place of each group in them."""
    order = np.lexsort((*reversed(order_by), group))
    sorted_group = group[order]
    differs = sorted_group[1:] != sorted_group[:-1]
    return order, np.flatnonzero(np.append(True, differs)), np.flatnonzero(np.append(differs, True))


def _last_known(column: pa.ChunkedArray, order: Integers, starts: Integers) -> pa.ChunkedArray:
    """The last value of each group that is not NULL."""
    last = _last_position(column, order, starts)
    return column.take(from_numpy(order[last], last >= 0))


def _last_position(column: pa.ChunkedArray, order: Integers, starts: Integers) -> Integers:
    """Place in `order` of the last value of each group that is not NULL; -1 where all are."""
    known = column_valid(column)[order]
    last: Integers = np.maximum.reduceat(np.where(known, np.arange(len(order)), -1), starts)
    return last


def merge_writers(table: pa.Table) -> pa.Table:
    """One summary per series: `last` of the writer that was last, extremes and counts of all."""
    if not table.num_rows:
        return table
    order, starts, ends = _sorted_groups(
        _group(table, SERIES), column_numbers(table["last_time"]), _ranks(table["writer"])
    )
    merged = table.take(from_numpy(order[ends]))
    finite = column_numbers(table["finite"])[order]
    total = np.add.reduceat(finite, starts)
    counts = np.add.reduceat(column_numbers(table["count"])[order], starts)
    mean = column_numbers(table["mean"], np.nan)[order]  # NaN where the sum was no float any more
    share = finite / np.maximum(np.repeat(total, ends - starts + 1), 1)
    replaced: dict[str, Any] = {
        "min": np.minimum.reduceat(column_numbers(table["min"], np.inf)[order], starts),
        "max": np.maximum.reduceat(column_numbers(table["max"], -np.inf)[order], starts),
        "mean": np.add.reduceat(np.where(finite > 0, mean * share, 0.0), starts),
    }
    columns = {
        name: from_numpy(values, (total > 0) & ~np.isnan(values))
        for name, values in replaced.items()
    }
    columns |= {"count": from_numpy(counts), "finite": from_numpy(total)}
    for name, values in columns.items():
        merged = merged.set_column(merged.column_names.index(name), name, values)
    return merged
