"""A store in the memory of this process, ``memory://name``: the plain reference of all others.

Knows no file. Stores of one name are one store until the process ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tachograph.backends.base import Backend, Query
from tachograph.errors import Gap, StoreNotFound
from tachograph.merge import SERIES, merge_changes, point_rows, select, view
from tachograph.records import TABLES, Batch, Row, Summary, join_special
from tachograph.table import Table


class _Store:
    """Everything that was written under one name."""

    def __init__(self) -> None:
        self.cursors: dict[str, int] = {}
        self.heartbeats: dict[str, int] = {}
        self.rows: dict[str, list[Row]] = {name: [] for name in TABLES}


_stores: dict[str, _Store] = {}


class MemoryBackend:
    """A store that ends with its process, for tests and as the model of what a store does.

    Parameters
    ----------
    url : str
        ``memory://name``.
    create : bool
        Make the store where there is none of that name.

    Raises
    ------
    StoreNotFound
        There is none of that name, and `create` is false.
    """

    first_interval = 0.0
    longest_interval = 0.0
    batch_bytes = 1 << 20

    def __init__(self, url: str, *, create: bool) -> None:
        if url not in _stores and not create:
            raise StoreNotFound(f"no store {url} in this process")
        self.url = url
        self._store = _stores.setdefault(url, _Store())

    def write(self, batch: Batch) -> int:
        """Store a batch and return the sequence number expected next from its writer."""
        store = self._store
        expected = store.cursors.get(batch.writer, 0)
        if batch.heartbeat is not None:
            seen = store.heartbeats.get(batch.writer, batch.heartbeat)
            store.heartbeats[batch.writer] = max(seen, batch.heartbeat)
        if batch.next <= max(expected, batch.first):
            return expected
        if batch.first > expected:
            raise Gap(batch.writer, expected, batch.first)
        batch = batch.since(expected)
        for block in batch.blocks:
            store.rows["metrics"].extend(point_rows(block, batch.writer))
        for table, rows in batch.rows.items():
            names = TABLES[table].columns
            store.rows[table].extend({name: row.get(name) for name in names} for row in rows)
        store.cursors[batch.writer] = batch.next
        return batch.next

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        query.check()
        return select(query, self._rows(query.table, query.raw))

    def close(self) -> None:
        """Nothing to release."""

    def _rows(self, table: str, raw: bool) -> list[Row]:
        store = self._store
        if table == "cursors":
            return [{"writer": writer, "next": next_} for writer, next_ in store.cursors.items()]
        written = dict(store.rows)
        if table == "summaries":
            written["summaries"] = _summaries(store.rows["metrics"])
        elif table == "writers":
            written["writers"] = self._writers()
        if not raw:
            return view(table, written)
        return list(written["metrics" if table == "all_metrics" else table])

    def _writers(self) -> list[Row]:
        rows = merge_changes(TABLES["writers"], self._store.rows["writers"])
        for row in rows:
            heartbeat = self._store.heartbeats.get(row["writer"])
            seen = [time for time in (row["heartbeat_at"], heartbeat) if time is not None]
            row["heartbeat_at"] = max(seen, default=None)
        return rows


def _summaries(points: list[Row]) -> list[Row]:
    """The summaries that these points have, one per series and writer."""
    summaries: dict[tuple[object, ...], Summary] = {}
    rows: dict[tuple[object, ...], Row] = {}
    for point in sorted(points, key=lambda row: (row["writer"], row["seq"])):
        key = {name: point[name] for name in (*SERIES, "writer")}
        series = tuple(key.values())
        value = join_special(point["value"], point["special"])
        summary = summaries.setdefault(series, Summary())
        summary.add([0.0 if value is None else value], point["step"], point["time"])
        rows[series] = key | {"changed_at": point["time"], "seq": point["seq"], "deleted": 0}
    return [rows[series] | summary.as_row() for series, summary in summaries.items()]


if TYPE_CHECKING:
    _: Backend = MemoryBackend("memory://", create=True)
