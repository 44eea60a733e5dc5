"""How a batch becomes rows of an SQLite store, inside a transaction that its caller owns."""

from __future__ import annotations

import functools
import hashlib
import math
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from tachograph.backends.sqlite_schema import (
    CHANGE,
    HIDDEN_FROM,
    KEYED,
    NULL,
    SEQ_BITS,
    SERIES_KEY,
    SUMMARY,
    merge_run,
    names,
    own_columns,
    upsert,
)
from tachograph.backends.sqlite_tensors import SeriesIds, TensorWriter
from tachograph.errors import Gap, StoreError
from tachograph.records import (
    NO_STEP,
    TABLES,
    Batch,
    MetricBlock,
    Row,
    Summary,
    split_special,
    words,
)

MANY = 100
"""Points per INSERT statement: a third less time than one each."""

REMEMBERED_WRITERS = 16
REMEMBERED_SERIES = 10_000
REMEMBERED_RUNS = 10_000

_Value = int | float | str
_INSERT_POINT = "INSERT OR REPLACE INTO _points (series, seq, value, special) VALUES (?, ?, ?, ?)"
_INSERT_POINTS = _INSERT_POINT + ", (?, ?, ?, ?)" * (MANY - 1)
_INSERT_CALL = "INSERT OR REPLACE INTO _calls (id, step, epoch, time) VALUES (?, ?, ?, ?)"
_FIND_SERIES = f"""SELECT id, {names(SUMMARY)} FROM _series
    WHERE {" AND ".join(f"{name} = ?" for name in SERIES_KEY)}"""
_INSERT_SERIES = f"INSERT INTO _series ({names(SERIES_KEY)}, count) VALUES (?, ?, ?, ?, ?, ?, 0)"
_UPDATE_SERIES = f"""UPDATE _series SET {", ".join(f"{name} = ?" for name in SUMMARY)},
    last_seq = ? WHERE id = ?"""
_UPSERT = {name: upsert(TABLES[name]) for name in (*KEYED, "writers")}
_MERGE_RUN = merge_run()


@dataclass(slots=True)
class _Series:
    """A row of `_series`: its id and the summary of its points."""

    id: int
    summary: Summary
    last_seq: int = -1


_Key = tuple[int, str, str, int, int]  # run, name, context, rank, attempt


@dataclass(slots=True)
class _Known:
    """What is remembered of a writer, as long as nobody else changes its rows."""

    id: int
    version: int
    series: dict[_Key, _Series] = field(default_factory=dict)
    tensors: SeriesIds = field(default_factory=dict)


@dataclass(slots=True)
class _Piece:
    """The points that one block adds to one series."""

    seqs: Sequence[int]
    values: Sequence[float]
    last_step: int | None
    last_time: int


class BatchWriter:
    """Writes batches through a connection, and remembers the ids of writers, runs and series."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._writers: dict[str, _Known] = {}
        self._runs: dict[str, int] = {}

    def forget(self) -> None:
        """Forget all ids: the transaction that made them may have been undone."""
        self._writers.clear()
        self._runs.clear()

    def expected(self, writer: str) -> int:
        """The record expected next from a writer."""
        found = self._connection.execute("SELECT next FROM _writers WHERE writer = ?", (writer,))
        return int((found.fetchone() or (0,))[0])

    def write(self, batch: Batch) -> int:
        """Write what is new in a batch and return the record expected next."""
        expected = self.expected(batch.writer)
        if batch.first < batch.next and batch.first > expected:
            raise Gap(batch.writer, expected, batch.first)
        if batch.heartbeat is not None:
            self._connection.execute(
                "UPDATE _writers SET heartbeat_at = max(coalesce(heartbeat_at, 0), ?) WHERE id = ?",
                (batch.heartbeat, self._writer_id(batch.writer)),
            )
        if batch.next <= max(expected, batch.first):
            return expected
        if batch.next >> SEQ_BITS:
            raise StoreError(f"writer {batch.writer} has more records than this store numbers")
        batch = batch.since(expected)
        known = self._known(batch.writer)
        self._write_rows(known, batch)
        self._write_points(known, batch.blocks)
        known.version += 1
        self._connection.execute(
            "UPDATE _writers SET next = ?, version = ? WHERE id = ?",
            (batch.next, known.version, known.id),
        )
        return batch.next

    # ------------------------------------------------------------------------ ids

    def _writer_id(self, writer: str) -> int:
        self._connection.execute("INSERT OR IGNORE INTO _writers (writer) VALUES (?)", (writer,))
        found = self._connection.execute("SELECT id FROM _writers WHERE writer = ?", (writer,))
        return int(found.fetchone()[0])

    def _known(self, writer: str) -> _Known:
        """What is known of a writer: what is remembered, if nobody changed its rows since."""
        id_ = self._writer_id(writer)
        found = self._connection.execute("SELECT version FROM _writers WHERE id = ?", (id_,))
        version = found.fetchone()[0]
        known = self._writers.pop(writer, None)
        if known is None or (known.id, known.version) != (id_, version):
            known = _Known(id_, version)
        self._writers[writer] = known  # last in order: the first one is forgotten first
        if len(self._writers) > REMEMBERED_WRITERS:
            del self._writers[next(iter(self._writers))]
        return known

    def _run(self, run_id: str) -> int:
        id_ = self._runs.get(run_id)
        if id_ is None:
            execute = self._connection.execute
            execute("INSERT OR IGNORE INTO _runs (run_id, deleted) VALUES (?, 0)", (run_id,))
            id_ = execute("SELECT id FROM _runs WHERE run_id = ?", (run_id,)).fetchone()[0]
            if len(self._runs) >= REMEMBERED_RUNS:
                self._runs.clear()
            self._runs[run_id] = id_
        return id_

    def _find_series(self, known: _Known, key: _Key) -> _Series:
        series = known.series.get(key)
        if series is None:
            series = known.series[key] = self._load_series((*key, known.id))
        return series

    def _load_series(self, key: tuple[object, ...]) -> _Series:
        found = self._connection.execute(_FIND_SERIES, key).fetchone()
        if found is None:
            id_ = self._connection.execute(_INSERT_SERIES, key).lastrowid
            assert id_ is not None
            hidden = f"UPDATE _series SET hidden_from = {HIDDEN_FROM} WHERE id = ?"
            self._connection.execute(hidden, (id_,))
            return _Series(id_, Summary())
        id_, *values = found
        row = dict(zip(SUMMARY, values, strict=True))
        return _Series(id_, Summary.from_row(row) if row["count"] else Summary())

    # ------------------------------------------------------------------------ rows

    def _write_rows(self, known: _Known, batch: Batch) -> None:
        for table, rows in batch.rows.items():
            if table == "runs":
                self._write_runs(rows)
            elif table == "writers":
                columns = tuple(TABLES[table].columns)
                self._connection.executemany(_UPSERT[table], _values(map(_settled, rows), columns))
            elif table in KEYED:
                self._write_keyed(table, rows)
            elif table == "tensors":
                self._write_tensors(known, rows)
            elif table == "events":  # points and summaries come from the blocks
                self._write_events(rows)

    def _write_runs(self, rows: Sequence[Row]) -> None:
        columns = own_columns(TABLES["runs"])
        places = ", ".join("?" * (1 + len(columns)))
        self._connection.executemany(
            f"INSERT OR REPLACE INTO _run_changes (run, {names(columns)}) VALUES ({places})",
            self._values_of_run(rows, columns),
        )
        changed = {self._run(row["run_id"]) for row in rows}
        self._connection.executemany(_MERGE_RUN, ({"run": id_} for id_ in changed))

    def _write_keyed(self, table: str, rows: Sequence[Row]) -> None:
        settled: Iterable[Row] = map(_settled, rows)
        if table == "provenance":
            settled = (row | {"document": self._document(row["document"])} for row in settled)
        columns = own_columns(TABLES[table])
        self._connection.executemany(_UPSERT[table], self._values_of_run(settled, columns))
        if table == "attempts":
            changed = {self._run(row["run_id"]) for row in rows}
            hidden = f"UPDATE _series SET hidden_from = {HIDDEN_FROM} WHERE run = ?"
            self._connection.executemany(hidden, ((id_,) for id_ in changed))

    def _write_tensors(self, known: _Known, rows: Sequence[Row]) -> None:
        if len(known.tensors) > REMEMBERED_SERIES:
            known.tensors.clear()
        numbers = functools.cache(self._writer_id)
        TensorWriter(self._connection, self._run, numbers, known.tensors).write(rows)

    def _write_events(self, rows: Sequence[Row]) -> None:
        columns = own_columns(TABLES["events"])
        places = ", ".join("?" * (1 + len(columns)))
        writers = {name: self._writer_id(name) for name in {row["writer"] for row in rows}}
        numbered = (row | {"writer": writers[row["writer"]]} for row in rows)
        self._connection.executemany(
            f"INSERT INTO _events (run, {names(columns)}) VALUES ({places})",
            self._values_of_run(numbered, columns),
        )

    def _values_of_run(self, rows: Iterable[Row], columns: Sequence[str]) -> Iterator[list[object]]:
        for row in rows:
            yield [self._run(row["run_id"]), *(row.get(name) for name in columns)]

    def _document(self, text: str | None) -> int | None:
        if text is None:
            return None
        execute = self._connection.execute
        digest = hashlib.sha256(text.encode()).hexdigest()
        execute("INSERT OR IGNORE INTO _documents (sha256, text) VALUES (?, ?)", (digest, text))
        found = execute("SELECT id FROM _documents WHERE sha256 = ?", (digest,))
        return int(found.fetchone()[0])

    # ------------------------------------------------------------------------ points

    def _write_points(self, known: _Known, blocks: Iterable[MetricBlock]) -> None:
        pieces: dict[_Key, list[_Piece]] = {}
        for block in blocks:
            if len(block):
                self._write_calls(known, block, pieces)
        touched = {key: self._find_series(known, key) for key in pieces}
        in_order = sorted(pieces, key=lambda key: touched[key].id)  # neighbours on the disk
        self._insert_points(
            chain.from_iterable(
                _point_values(touched[key].id, piece) for key in in_order for piece in pieces[key]
            )
        )
        for key, parts in pieces.items():
            _summarise(touched[key], parts)
        self._connection.executemany(_UPDATE_SERIES, map(_summary_values, touched.values()))
        if len(known.series) > REMEMBERED_SERIES:
            known.series = touched if len(touched) <= REMEMBERED_SERIES else {}

    def _write_calls(
        self, known: _Known, block: MetricBlock, pieces: dict[_Key, list[_Piece]]
    ) -> None:
        """Write what the points of a call share, and add their values to `pieces`."""
        series, width = block.series, 4 + len(block.series.names)
        integers: array[int] = words("q", block.data)
        floats: array[float] = words("d", block.data)
        seqs = integers[0::width].tolist()
        times = [time // 1000 for time in integers[1::width]]
        steps = [NULL if step == NO_STEP else step for step in integers[2::width]]
        epochs = floats[3::width]  # NaN where there is none
        ids = [(known.id << SEQ_BITS) + seq for seq in seqs]
        self._connection.executemany(_INSERT_CALL, zip(ids, steps, epochs, times, strict=True))
        run, last = self._run(series.run_id), integers[-width + 2]
        last_step = None if last == NO_STEP else last
        for column, name in enumerate(series.names, start=4):
            key = (run, name, series.context, series.rank, series.attempt)
            values = floats[column::width].tolist()
            pieces.setdefault(key, []).append(_Piece(seqs, values, last_step, times[-1]))

    def _insert_points(self, values: Iterator[_Value]) -> None:
        while chunk := list(islice(values, 100 * MANY * 4)):
            whole = len(chunk) - len(chunk) % (MANY * 4)
            many, single = iter(chunk[:whole]), iter(chunk[whole:])
            execute = self._connection.executemany
            execute(_INSERT_POINTS, zip(*[many] * (MANY * 4), strict=True))
            execute(_INSERT_POINT, zip(*[single] * 4, strict=True))


def _values(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[list[object]]:
    for row in rows:
        yield [row.get(name) for name in columns]


def _settled(row: Row) -> Row:
    """A change with the columns that order it and tell whether it deletes."""
    return row | {name: row.get(name) or ("" if name == "writer" else 0) for name in CHANGE}


def _point_values(series: int, piece: _Piece) -> list[_Value]:
    """The values of rows of `_points` one after the other; a tuple each would cost more."""
    count, values = len(piece.seqs), piece.values
    rows: list[_Value] = [NULL] * (4 * count)
    rows[0::4], rows[1::4], rows[2::4] = [series] * count, piece.seqs, values
    if not math.isfinite(sum(values)) or 0.0 in values:  # seldom
        rows[2::4], rows[3::4] = zip(*map(_stored, values), strict=True)
    return rows


def _stored(value: float) -> tuple[float, float | str]:
    """The columns `value` and `special`."""
    number, special = split_special(value)
    return NULL if number is None else number, special or NULL


def _summarise(series: _Series, pieces: list[_Piece]) -> None:
    for piece in sorted(pieces, key=lambda piece: piece.seqs[-1]):
        series.summary.add(piece.values, piece.last_step, piece.last_time)
        series.last_seq = piece.seqs[-1]


def _summary_values(series: _Series) -> tuple[object, ...]:
    row = series.summary.as_row()
    return (*(row[name] for name in SUMMARY), series.last_seq, series.id)
