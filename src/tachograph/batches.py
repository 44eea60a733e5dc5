"""Cutting batches, putting them together, and completing their rows.

Knows batches; knows no journal, no store and no wire.
"""

from __future__ import annotations

from collections.abc import Sequence

from tachograph.records import TABLES, Batch, MetricBlock, Row, Series
from tachograph.tensors.records import TensorRows

_CELL_BYTES = 60  # a value in a row, without its text


def complete_row(table: str, row: Row, writer: str, seq: int) -> Row:
    """A row as a store wants it: every column, with writer and seq.

    `deleted` is 0 but in `runs`, where NULL means 'not changed': a run that was deleted while it
    ran stays deleted when it ends.
    """
    spec = TABLES[table]
    done = dict.fromkeys(spec.columns) | row | {"writer": writer, "seq": seq}
    if spec.key and table != "runs" and done["deleted"] is None:
        done["deleted"] = 0
    return done


def until(batch: Batch, seq: int) -> Batch:
    """The part of a batch that ends before record `seq`."""
    if seq >= batch.next:
        return batch
    blocks = []
    for block in batch.blocks:
        kept = len(block) - len(block.since(seq))
        if kept:
            blocks.append(MetricBlock(block.series, block.data[: kept * block.row_bytes]))
    rows: dict[str, Sequence[Row]] = {}
    for table, given in batch.rows.items():
        if isinstance(given, TensorRows):
            first: Sequence[Row] = given.until(seq)
        else:
            first = [row for row in given if row["seq"] < seq]
        if len(first):
            rows[table] = first
    return batch._replace(next=max(seq, batch.first), blocks=tuple(blocks), rows=rows)


def weight(batch: Batch) -> int:
    """About how many bytes a batch takes in memory."""
    total = sum(len(block.data) for block in batch.blocks)
    for given in batch.rows.values():
        loose: Sequence[Row] = given
        if isinstance(given, TensorRows):
            total += sum(len(frame.body) for frame in given.frames)
            loose = given.loose
        total += _CELL_BYTES * sum(map(len, loose))
        total += sum(len(text) for row in loose for text in row.values() if isinstance(text, str))
    return total


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of batches of one writer that follow each other without a gap."""
    if len(batches) == 1:
        return batches[0]
    points: dict[Series, list[bytes]] = {}
    rows: dict[str, list[Row]] = {}
    tensors = TensorRows()
    for batch in batches:
        for block in batch.blocks:
            points.setdefault(block.series, []).append(block.data)
        for table, given in batch.rows.items():
            if isinstance(given, TensorRows):
                tensors.extend(given)
            elif table == "tensors":
                for row in given:
                    tensors.add(row)
            else:
                rows.setdefault(table, []).extend(given)
    together: dict[str, Sequence[Row]] = {**rows}
    if len(tensors):
        together["tensors"] = tensors
    beats = [batch.heartbeat for batch in batches if batch.heartbeat is not None]
    return Batch(
        batches[0].writer,
        batches[0].first,
        batches[-1].next,
        tuple(MetricBlock(series, b"".join(parts)).ascending() for series, parts in points.items()),
        together,
        max(beats, default=None),
    )
