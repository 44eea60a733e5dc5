"""How statistics of tensors become rows of an SQLite store; what is the same in many, once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator

from tachograph.backends.sqlite_schema import NULL, TENSOR_CALL, TENSOR_SERIES, TENSOR_VALUES, names
from tachograph.records import Row
from tachograph.tensors.records import TensorFrame, TensorRows, TensorSeries

SeriesIds = dict[tuple[object, ...], int]
"""What is remembered of `_tensor_series`, by its columns."""

_FIND_SERIES = f"""SELECT id FROM _tensor_series
    WHERE {" AND ".join(f'"{name}" IS ?' for name in TENSOR_SERIES)}"""
_INSERT_SERIES = f"""INSERT INTO _tensor_series ({names(TENSOR_SERIES)})
    VALUES ({", ".join("?" * len(TENSOR_SERIES))})"""
_INSERT_CALL = f"""INSERT INTO _tensor_calls ({names(TENSOR_CALL)})
    VALUES ({", ".join("?" * len(TENSOR_CALL))})"""
_INSERT_VALUES = f"""INSERT INTO _tensors (series, call, {names(TENSOR_VALUES)})
    VALUES ({", ".join("?" * (2 + len(TENSOR_VALUES)))})"""

_Values = tuple[object, ...]


class TensorWriter:
    """Writes the statistics of one batch.

    Parameters
    ----------
    connection : sqlite3.Connection
        In a transaction.
    run_number, writer_number : callable
        From the id of a run or writer to its number in this store.
    ids : dict
        What is remembered of the numbers of series; filled here.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        run_number: Callable[[str], int],
        writer_number: Callable[[str], int],
        ids: SeriesIds,
    ) -> None:
        self._execute = connection.execute
        self._run_number = run_number
        self._writer_number = writer_number
        self._ids = ids
        self._of_frames: dict[int, list[int]] = {}  # by the identity of what frames share
        self._insert = connection.executemany

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows, those that are packed in frames without unpacking them one by one."""
        if isinstance(rows, TensorRows):
            for frame in rows.frames:
                self._insert(_INSERT_VALUES, self._frame_values(frame))
            rows = rows.loose
        self._insert(_INSERT_VALUES, self._loose_values(rows))

    # ------------------------------------------------------------------ frames

    def _frame_values(self, frame: TensorFrame) -> Iterator[_Values]:
        run = self._run_number(frame.series.run_id)
        writer = self._writer_number(frame.writer)
        call = self._new_call((writer, frame.seq, frame.step, frame.epoch, frame.time))
        for series, values in zip(self._series_of(frame.series, run), frame.values(), strict=True):
            *statistics, histogram = values
            yield series, call, *statistics, histogram or NULL

    def _series_of(self, series: TensorSeries, run: int) -> list[int]:
        ids = self._of_frames.get(id(series))
        if ids is None:
            ids = [self._series_id(row, run) for row in series.rows]
            self._of_frames[id(series)] = ids
        return ids

    # ------------------------------------------------------------------ rows

    def _loose_values(self, rows: Iterable[Row]) -> Iterator[_Values]:
        calls: dict[_Values, int] = {}
        for row in rows:
            run, writer = self._run_number(row["run_id"]), self._writer_number(row["writer"])
            key = (run, writer, *(row.get(name) for name in TENSOR_CALL[1:]))
            if key not in calls:
                calls[key] = self._new_call(key[1:])
            series = self._series_id(row, run)
            yield series, calls[key], *(row.get(name) for name in TENSOR_VALUES)

    def _series_id(self, row: Row, run: int) -> int:
        key = (run, *(row.get(name) for name in TENSOR_SERIES[1:]))
        id_ = self._ids.get(key)
        if id_ is None:
            found = self._execute(_FIND_SERIES, key).fetchone()
            id_ = found[0] if found else self._execute(_INSERT_SERIES, key).lastrowid
            assert id_ is not None
            self._ids[key] = id_
        return id_

    def _new_call(self, values: _Values) -> int:
        id_ = self._execute(_INSERT_CALL, values).lastrowid
        assert id_ is not None
        return id_
