"""How a batch becomes segments, exactly once."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from tachograph.backends.parquet_files import NO_ROOT, Cursor, Folder, rows_table
from tachograph.backends.parquet_points import POINTS, WriterSummaries, row_groups
from tachograph.backends.parquet_read import Reader
from tachograph.backends.parquet_tensors import STATISTICS_SCHEMA, tensor_by_tensor
from tachograph.backends.parquet_tensors import row_groups as row_groups_of_tensors
from tachograph.errors import Gap
from tachograph.records import TABLES, Batch, MetricBlock, Row
from tachograph.tensors.records import TensorRows

_KEPT_WRITERS = 1000
_KEPT_SERIES = 100_000
"""Writers and series whose summaries are held in memory; others are read again."""


class BatchWriter:
    """Writes batches into one store.

    A batch becomes one segment per keyed table, and one per root run in the tables that only
    grow. Before the first segment the writer's cursor file notes in which partition each run
    goes, after the last one it moves on. A batch that is sent again after a crash finds there
    what the first try may have left, and leaves it out; of keyed rows a duplicate is harmless.

    Parameters
    ----------
    folder : Folder
        The store.
    reader : Reader
        Reads the same store.
    """

    def __init__(self, folder: Folder, reader: Reader) -> None:
        self._folder = folder
        self._reader = reader
        self._roots: dict[str, str] = {}
        self._summaries: OrderedDict[str, WriterSummaries] = OrderedDict()

    def write(self, batch: Batch) -> int:
        """Store a batch and return the sequence number expected next from its writer."""
        if batch.heartbeat is not None:  # the writer itself, and a live one is alone
            self._folder.touch_heartbeat(batch.writer, batch.heartbeat)
            return self._write(batch)
        with self._folder.alone(batch.writer):
            return self._write(batch)

    def _write(self, batch: Batch) -> int:
        cursor = self._folder.read_cursor(batch.writer)
        if batch.next <= max(cursor.next, batch.first):
            return cursor.next
        if batch.first > cursor.next:
            raise Gap(batch.writer, cursor.next, batch.first)
        self._store(batch.since(cursor.next), cursor)
        pa.default_memory_pool().release_unused()  # the next batch may be minutes away
        return batch.next

    def _store(self, batch: Batch, cursor: Cursor) -> None:
        roots = self._place(batch, cursor)
        until = max(batch.next, cursor.until)
        if roots:
            self._folder.write_cursor(batch.writer, Cursor(batch.first, until, roots))
        for table in TABLES:
            if not TABLES[table].grows:
                self._write_rows(batch, table, NO_ROOT, batch.rows.get(table, ()))
        self._write_growing(batch, roots, resent=cursor.unfinished)
        summaries = self._write_summaries(batch)
        self._folder.write_cursor(batch.writer, Cursor(batch.next, until, roots))
        if summaries is not None:  # only now: a batch that failed is counted again
            summaries.next = batch.next
            self._summaries[batch.writer] = summaries
        while len(self._summaries) > _KEPT_WRITERS or self._series() > _KEPT_SERIES:
            self._summaries.popitem(last=False)

    def _series(self) -> int:
        return sum(map(len, self._summaries.values()))

    # ------------------------------------------------------------------ partitions

    def _place(self, batch: Batch, cursor: Cursor) -> dict[str, str]:
        """The partition of each run that has rows in a table that grows.

        A run stays where an unfinished try put it. Otherwise it goes to its root, or to itself
        where no root is known: readers look in both.
        """
        placed = dict(cursor.roots) if cursor.unfinished else {}
        for row in batch.rows.get("runs", ()):
            if row["root_id"] is not None:
                self._roots[row["run_id"]] = row["root_id"]
        runs: set[str] = {block.series.run_id for block in batch.blocks}
        for table, rows in batch.rows.items():
            if TABLES[table].grows:
                found = rows.run_ids() if isinstance(rows, TensorRows) else _run_ids(rows)
                runs.update(run for run in found if run is not None)
        unknown = runs - placed.keys() - self._roots.keys()
        if unknown:
            known = dict(self._reader.roots(sorted(unknown)))
            self._roots |= {run: known.get(run, run) for run in unknown}
        return {run: self._roots.get(run, run) for run in sorted(runs)} | placed

    # ------------------------------------------------------------------ segments

    def _write_growing(self, batch: Batch, roots: dict[str, str], *, resent: bool) -> None:
        blocks: dict[str, list[MetricBlock]] = defaultdict(list)
        for block in batch.blocks:
            if len(block):
                blocks[roots[block.series.run_id]].append(block)
        for root, part in sorted(blocks.items()):
            first = self._first(batch, "metrics", root, resent)
            self._write_points(batch, root, first, [block.since(first) for block in part])
        for table in ("tensors", "events"):
            for root, rows in sorted(_by_root(batch.rows.get(table, ()), roots).items()):
                first = self._first(batch, table, root, resent)
                if isinstance(rows, TensorRows):
                    self._write_tensors(batch, root, first, rows.since(first))
                else:
                    kept = [row for row in rows if row["seq"] >= first]
                    self._write_rows(batch, table, root, kept, first)

    def _first(self, batch: Batch, table: str, root: str, resent: bool) -> int:
        """First record of the batch that is not in this partition yet."""
        return max(batch.first, self._folder.covered(table, root, batch.writer) if resent else 0)

    def _write_points(
        self, batch: Batch, root: str, first: int, blocks: Iterable[MetricBlock]
    ) -> None:
        kept = [block for block in blocks if len(block)]
        if kept:
            path = self._path(batch, "metrics", root, first)
            with self._folder.segment(path, TABLES["metrics"], POINTS) as file:
                for group in row_groups(kept, batch.writer):
                    file.write_table(group)
                    # Else it keeps what a group took while the next one takes as much again.
                    pa.default_memory_pool().release_unused()

    def _write_tensors(self, batch: Batch, root: str, first: int, rows: TensorRows) -> None:
        if len(rows):
            path = self._path(batch, "tensors", root, first)
            with self._folder.segment(path, TABLES["tensors"], STATISTICS_SCHEMA) as file:
                for group in row_groups_of_tensors(rows):
                    file.write_table(group)

    def _write_rows(
        self, batch: Batch, table: str, root: str, rows: Sequence[Row], first: int | None = None
    ) -> None:
        if not rows:
            return
        if table == "tensors":
            rows = tensor_by_tensor(rows)
        path = self._path(batch, table, root, batch.first if first is None else first)
        with self._folder.segment(path, TABLES[table]) as file:
            file.write_table(rows_table(TABLES[table], rows))

    def _path(self, batch: Batch, table: str, root: str, first: int) -> Path:
        name = self._folder.segment_name(batch.writer, first, batch.next - 1)
        return self._folder.partition(table, root) / name

    # ------------------------------------------------------------------ summaries

    def _write_summaries(self, batch: Batch) -> WriterSummaries | None:
        summaries = self._summaries.pop(batch.writer, None)
        if summaries is not None and summaries.next != batch.first:
            summaries = None  # another process wrote for this writer meanwhile
        if not batch.blocks:
            return summaries
        if summaries is None:
            summaries = WriterSummaries(batch.first, complete=not batch.first)
        if names := summaries.unknown(batch.blocks):
            summaries.learn(self._reader.summaries_of(batch.writer, batch.first, names))
        rows = [
            key._asdict() | {"writer": batch.writer} | row
            for key, row in summaries.add(batch.blocks)
        ]
        self._write_rows(batch, "summaries", NO_ROOT, rows)
        return summaries


def _run_ids(rows: Iterable[Row]) -> set[str | None]:
    return {row["run_id"] for row in rows}


def _by_root(rows: Sequence[Row], roots: Mapping[str, str]) -> Mapping[str, Sequence[Row]]:
    """Rows by the partition that they go into."""
    if isinstance(rows, TensorRows):
        return rows.split(lambda run: NO_ROOT if run is None else roots[run])
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[NO_ROOT if row["run_id"] is None else roots[row["run_id"]]].append(row)
    return found
