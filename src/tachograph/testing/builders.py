"""Batches in few words, and the whole content of a store in a form that can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tachograph.backends.base import Backend, Condition, Query, table_columns
from tachograph.records import TABLES, Batch, MetricBlock, Row, Series

START = 1_700_000_000_000_000
"""Time (µs) of record 0 of every writer; record n is n milliseconds later."""


def make_block(
    run_id: str,
    values: Mapping[str, Sequence[float]],
    *,
    seqs: Sequence[int] | None = None,
    steps: Sequence[int | None] | None = None,
    epochs: Sequence[float | None] | None = None,
    **series: Any,
) -> MetricBlock:
    """Points of one series of calls: per metric one value per call.

    Parameters
    ----------
    run_id : str
        The run they belong to.
    values : mapping of str to sequence of float
        Metric name to its values.
    seqs : sequence of int, optional
        Sequence numbers of the calls; 0, 1, … by default.
    steps, epochs : sequence, optional
        Step and epoch of each call; the sequence number and none by default.
    **series
        `context`, `rank` and `attempt`, as in `records.Series`.
    """
    columns = list(values.values())
    count = len(columns[0])
    seqs = range(count) if seqs is None else seqs
    steps = seqs if steps is None else steps
    epochs = [None] * count if epochs is None else epochs
    times = [START + seq * 1000 for seq in seqs]
    rows = zip(seqs, times, steps, epochs, zip(*columns, strict=True), strict=True)
    return MetricBlock.pack(Series(run_id, tuple(values), **series), rows)


def make_row(table: str, writer: str, seq: int, **columns: Any) -> Row:
    """A complete row of a table: columns that are not given are NULL, changed at record `seq`."""
    defaults = {"writer": writer, "seq": seq, "changed_at": START + seq * 1000, "deleted": 0}
    return {name: columns.get(name, defaults.get(name)) for name in TABLES[table].columns}


def make_batch(
    writer: str,
    first: int,
    next: int | None = None,
    *,
    blocks: Sequence[MetricBlock] = (),
    heartbeat: int | None = None,
    **tables: Sequence[Mapping[str, Any]],
) -> Batch:
    """A batch of one writer.

    Parameters
    ----------
    writer : str
        Whose records they are.
    first, next : int
        Sequence range; `next` is by default just behind the last record.
    blocks : sequence of MetricBlock
        Points, as from `make_block`.
    heartbeat : int, optional
        When the writer was last seen (µs).
    **tables
        Table name to rows in few words: columns that are not given are NULL, `seq` is by
        default `first` plus the row's position.
    """
    rows = {
        table: [
            make_row(table, writer, **{"seq": first + position, **row})
            for position, row in enumerate(given)
        ]
        for table, given in tables.items()
    }
    seqs = [row["seq"] for table in rows.values() for row in table]
    seqs += [row[0] for block in blocks for row in block.unpack()]
    if next is None:
        next = max(seqs, default=first - 1) + 1
    return Batch(writer, first, next, tuple(blocks), rows, heartbeat)


_CHANGE = ("changed_at", "writer", "seq", "deleted")


def dump(backend: Backend, run_ids: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """All rows that users see of a store, in an order of their own, ready for ``==``.

    Left out is what a store may choose: of summaries when and by whom they were changed, and
    digits of a mean beyond the twelfth.

    Parameters
    ----------
    backend : Backend
        The store.
    run_ids : sequence of str, optional
        Only rows of these runs; the table `writers` is then left out.
    """
    if run_ids is None:
        return {table: _canonical(backend, Query(table)) for table in (*TABLES, "all_metrics")}
    tables = [name for name in (*TABLES, "all_metrics") if "run_id" in table_columns(name)]
    where = (Condition("run_id", "in", run_ids),)
    return {table: _canonical(backend, Query(table, where)) for table in tables}


def _canonical(backend: Backend, query: Query) -> list[Row]:
    rows = backend.read(query).to_pylist()
    if query.table == "summaries":
        rows = [
            {name: value for name, value in row.items() if name not in _CHANGE}
            | {"mean": _round(row["mean"])}
            for row in rows
        ]
    return sorted(rows, key=repr)


def _round(value: float | None) -> float | None:
    return value if value is None or not math.isfinite(value) else float(f"{value:.12g}")
