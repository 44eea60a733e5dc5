"""The journal: an append-only file per process that survives whatever happens to the process.

A record is one frame, handed to the kernel in one ``os.write``; what was written stays when
the process is killed. Files are cut into parts of 64 MiB. This module writes; `journal_reader`
reads. It knows records, not runs or stores.

Format (all little-endian)
--------------------------
A part starts with the eight bytes ``TACHOJ01``. Then frames follow::

    length u32 | kind u8 | series u32 | seq i64 | body | crc32 u32

``length`` counts from ``kind`` to the end of the body, ``crc32`` covers everything before it.
``seq`` is the ordinal of the record over all parts of the writer; a number may be missing where
a call was interrupted between taking it and writing.

======  ======  ==============================================================================
kind    name    body
======  ======  ==============================================================================
1       HEADER  JSON: writer, part, first (seq), sinks, host, pid, pid_started, boot_id;
                first frame of each part
2       SERIES  JSON: run_id, names, context, rank, attempt of the series id; written twice,
                because points cannot be read without it
3       POINTS  time i64 (ns), step i64, epoch f64, then one f64 per name: with seq before it
                a row of `records.MetricBlock`
4       ROWS    JSON: table, rows
5       CLOCK   JSON: the wall clock moved against the monotonic one
6       END     nothing; the writer ended and nothing follows
7       DERIVED JSON: writer, run_id, names, context, rank, attempt, rows: points of a writer
                whose id and numbers any process derives alike; a row is seq, time (µs), step,
                epoch, values
8       TENSOR_ JSON: run_id, rank, attempt and tensors of the series id; written twice
        SERIES
9       TENSORS statistics of these tensors at one step; `tensor_records.pack` says how
10      RECEIVED a batch of another writer as it came over the wire, see `wire`
======  ======  ==============================================================================
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from tachograph import host
from tachograph.errors import RecordError
from tachograph.records import NO_STEP, Row, Series
from tachograph.tensors.records import Pairs, TensorSeries, pack

MAGIC = b"TACHOJ01"
HEADER, SERIES, POINTS, ROWS, CLOCK, END = range(1, 7)
DERIVED, TENSOR_SERIES, TENSORS, RECEIVED = range(7, 11)
PART_BYTES = 64 << 20
MAX_FRAME = 64 << 20
PREFIX = struct.Struct("<IBIq")
CRC = struct.Struct("<I")
NO_EPOCH = float("nan")
_BACKLOG = 10_000
_ROWS = 10_000  # of a record: what a server refuses as too large can be sent in smaller pieces

DerivedRow = tuple[int, int, int | None, float | None, Sequence[float]]
"""A point under a number of its own: seq, time (µs), step, epoch, a value per name."""
_LONE_SURROGATE = re.compile(rb"(\\\\|\\ud[89ab]..\\ud[c-f]..)|\\ud[89a-f]..", re.IGNORECASE)


def _json(value: Any) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    if b"\\ud" in body:  # half of a character, which no store takes, may be among them
        body = _LONE_SURROGATE.sub(_replacement, body)
    return body


def _replacement(match: re.Match[bytes]) -> bytes:
    whole: bytes | None = match[1]  # a backslash, or both halves
    return b"\\ufffd" if whole is None else whole


def part_path(folder: Path, writer: str, part: int) -> Path:
    """Where a part of a writer's journal lies."""
    return folder / f"{writer}-{part:06d}.journal"


class SeriesHandle:
    """A series that points can be appended to: its id, and the packing of its rows."""

    __slots__ = ("id", "length", "pack", "part", "series")

    def __init__(self, number: int, series: Series) -> None:
        layout = struct.Struct(f"<IBIqqqd{len(series.names)}d")
        self.id = number
        self.series = series
        self.pack: Callable[..., bytes] = layout.pack
        self.length = layout.size - 4
        self.part = -1  # the part that has its SERIES record


class TensorHandle:
    """Tensors whose statistics can be appended."""

    __slots__ = ("id", "part", "series")

    def __init__(self, number: int, series: TensorSeries) -> None:
        self.id = number
        self.series = series
        self.part = -1  # the part that has its TENSOR_SERIES record


class JournalWriter:
    """The journal of one process, open for appending.

    Parameters
    ----------
    folder : Path
        Made if absent.
    writer : str
        Id of the writer, unique to this process.
    facts : mapping
        What a reader must know if this process dies: sinks, host, pid, pid_started, boot_id.
    sync_each : bool
        Flush each record to the disk before `append_*` returns.
    limit_bytes : int
        What may wait for the stores at most; records beyond are dropped and counted.

    Attributes
    ----------
    dropped : int
        Records that could not be written.
    problem : str or None
        Why records are being dropped now.
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        facts: Mapping[str, Any],
        *,
        sync_each: bool = False,
        limit_bytes: int = 100 << 30,
    ) -> None:
        self.folder = folder
        self.writer = writer
        self.lock = threading.RLock()
        self.part = 0
        self.next_seq = 0
        self.dropped = 0
        self.problem: str | None = None
        self.first_seqs: list[int] = []  # first seq of each part, from part 0
        self.waiting_parts = 0  # parts before the current one that still exist
        self._synced_part = -1  # the part that was the last one at the last sync
        self._full_bytes = 0  # of the parts before the current one
        self._facts = dict(facts)
        self._sync_each = sync_each
        self._limit_bytes = limit_bytes
        self._series_count = 0
        self._backlog: list[tuple[int, bytes]] = []
        self._attention = sync_each  # there is more to do after the next record
        self._closed = False
        self._held_descriptor = -1  # of a part that takes no more; it keeps the lock
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self.descriptor = -1
        self.size = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._open_part(0)

    # ------------------------------------------------------------------ appending

    def series(self, series: Series) -> SeriesHandle:
        """Announce a series; points are appended through the handle."""
        with self.lock:
            self._series_count += 1
            return SeriesHandle(self._series_count, series)

    def tensors(self, series: TensorSeries) -> TensorHandle:
        """Announce tensors; their statistics are appended through the handle."""
        with self.lock:
            self._series_count += 1
            return TensorHandle(self._series_count, series)

    def append_tensors(
        self,
        handle: TensorHandle,
        step: int | None,
        epoch: float | None,
        statistics: bytes,
        histogram_pairs: Sequence[Pairs | None] | None = None,
    ) -> None:
        """Append the statistics of all tensors of the handle at one step.

        Parameters
        ----------
        statistics : bytes
            Per tensor one little-endian float64 for each of `tensor_records.STATISTICS`.
        histogram_pairs : sequence, optional
            Per tensor pairs of bin and count, or None.
        """
        series = handle.series
        if len(statistics) != series.statistics_bytes:
            raise RecordError(
                f"{series.statistics_bytes} bytes of statistics are expected, not {len(statistics)}"
            )
        if histogram_pairs is not None and len(histogram_pairs) != len(series.tensors):
            raise RecordError(
                f"{len(histogram_pairs)} histograms for {len(series.tensors)} tensors"
            )
        now = time.monotonic_ns() + self._offset_ns
        body = pack(now, step, epoch, statistics, histogram_pairs)
        if len(body) > MAX_FRAME // 2:
            raise RecordError(f"{len(body)} bytes of statistics are too many for a record")
        with self.lock:
            announced = handle.part == self.part or self._announce(handle)
            if not announced or not self._append(TENSORS, handle.id, self._take_seq(), body):
                self.dropped += 1
            elif self.size >= PART_BYTES or self._attention:
                self._after_write()

    def append_points(
        self,
        handle: SeriesHandle,
        step: int | None,
        epoch: float | None,
        values: Collection[float],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        write: Callable[[int, bytes], int] = os.write,
        checksum: Callable[[bytes], int] = crc32,
    ) -> None:
        """Append one point per name of the series, at this step and the present time.

        Raises `struct.error` or whatever ``float()`` raises where a value is not a number;
        never for a full disk.
        """
        with self.lock:
            if handle.part != self.part and not self._announce(handle):
                self.dropped += 1
                return
            # The number is taken first: a signal handler that logs gets the next one.
            seq = self.next_seq
            self.next_seq = seq + 1
            frame = handle.pack(
                handle.length,
                POINTS,
                handle.id,
                seq,
                clock() + self._offset_ns,
                NO_STEP if step is None else step,
                NO_EPOCH if epoch is None else epoch,
                *values,
            )
            frame += checksum(frame).to_bytes(4, "little")
            try:
                written = write(self.descriptor, frame)
            except OSError as error:
                self.dropped += 1
                self._fail(error)
                return
            if written != len(frame):
                self.dropped += 1
                self._cut_short(written)
                return
            self.size += written
            if self.size >= PART_BYTES or self._attention:
                self._after_write()

    def append_rows(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows of a table other than metrics. Writer and seq are added when read."""
        parts = (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
        bodies = [_json({"table": table, "rows": part}) for part in parts]
        if (largest := max(map(len, bodies), default=0)) > MAX_FRAME // 2:
            raise RecordError(f"{largest} bytes for table {table!r} are too many for a record")
        for body in bodies:
            self._append_body(ROWS, body)

    def append_derived(self, writer: str, series: Series, rows: Sequence[DerivedRow]) -> None:
        """Append points of another writer, which stores take once, whoever sends them.

        Parameters
        ----------
        writer : str
            An id that every process derives alike, such as a trial's.
        series : Series
        rows : sequence of tuples
            Seq, time (µs), step, epoch, values. The numbers ascend over all calls; what a
            store has of this writer up to a number, it takes no more.
        """
        for start in range(0, len(rows), _ROWS):
            record = series.facts() | {"rows": rows[start : start + _ROWS]}
            self._append_body(DERIVED, _json({"writer": writer} | record))

    def append_received(self, body: bytes) -> int:
        """Append a batch of another writer, compressed as `wire` has it.

        Returns
        -------
        int
            The sequence number after it. It is on the disk after the next `sync`.

        Raises
        ------
        OSError
            It could not be written; nothing of it is there.
        """
        with self.lock:
            if not self._append(RECEIVED, 0, self._take_seq(), body):
                self._attention = True
                raise OSError(errno.ENOSPC, self.problem or "the journal takes no more")
            after = self.next_seq
            if self.size >= PART_BYTES or self._attention:
                self._after_write()
            return after

    @property
    def written_bytes(self) -> int:
        """Bytes that were written so far, over all parts."""
        return self._full_bytes + self.size

    def now_us(self) -> int:
        """The journal's clock: wall time taken once, advanced by the monotonic clock."""
        return (time.monotonic_ns() + self._offset_ns) // 1000

    def check_clock(self) -> None:
        """Follow the wall clock where it left the journal's by over a second."""
        offset = time.time_ns() - time.monotonic_ns()
        moved = offset - self._offset_ns
        if abs(moved) > 1_000_000_000:
            with self.lock:
                self._offset_ns = offset
                body = json.dumps({"moved_ns": moved}).encode()
                self._append(CLOCK, 0, self._take_seq(), body)

    def sync(self) -> None:
        """Return when all records so far are on the disk."""
        with self.lock:
            part, descriptor = self.part, os.dup(self.descriptor) if self.descriptor >= 0 else -1
        try:  # outside the lock: a flush can take long
            for closed in range(max(0, self._synced_part), part):
                with contextlib.suppress(FileNotFoundError):  # all stores have it
                    host.sync_file(part_path(self.folder, self.writer, closed))
            if self._synced_part < part:
                host.sync_folder(str(self.folder))
            if descriptor >= 0:
                host.sync_data(descriptor)
            self._synced_part = part
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def is_unlinked(self) -> bool:
        """Whether somebody deleted the journal under us."""
        with self.lock:
            return self.descriptor >= 0 and os.fstat(self.descriptor).st_nlink == 0

    def recover(self) -> None:
        """Open a new part where there was no room for one, and write the rows that wait."""
        with self.lock:
            if self.descriptor < 0 and not self._closed and self._may_open(self.waiting_parts):
                self._open_part(self.part)
                self._let_go()
            waiting, self._backlog = self._backlog, []
            for position, (kind, body) in enumerate(waiting):
                if not self._append(kind, 0, self._take_seq(), body):
                    self._backlog = waiting[position:] + self._backlog
                    self._attention = True
                    return

    def end(self) -> None:
        """Say that nothing follows. The file stays locked, so that no other process drains it."""
        with self.lock:
            if self._closed:
                return
            self._append(END, 0, self._take_seq(), b"")
            self._closed = True
            self.dropped += len(self._backlog)
            if self.descriptor >= 0:
                self._held_descriptor, self.descriptor = self.descriptor, -1

    def close(self) -> None:
        """End the journal if it has not ended, and let go of its file."""
        self.end()
        with self.lock:
            self._let_go()

    def discard(self, problem: str) -> None:
        """Write no more: from here on records are dropped and counted."""
        with self.lock:
            self._closed = True
            self.problem = problem
            self._let_go()
            if self.descriptor >= 0:
                os.close(self.descriptor)
                self.descriptor = -1

    def forget(self) -> None:
        """In a forked child: let go of the parent's file without a trace."""
        self._closed = True
        self._let_go()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def delete_parts(self, confirmed: int) -> None:
        """Delete closed parts whose records all come before seq `confirmed`."""
        with self.lock:
            starts = [*self.first_seqs, self.next_seq]  # of the part that could not be opened
            first = self.part - self.waiting_parts
            done = [part for part in range(first, self.part) if starts[part + 1] <= confirmed]
            self.waiting_parts -= len(done)
        for part in done:  # outside the lock: a large file takes its time
            part_path(self.folder, self.writer, part).unlink(missing_ok=True)

    # ------------------------------------------------------------------ inside

    def _take_seq(self) -> int:
        seq = self.next_seq
        self.next_seq = seq + 1
        return seq

    def _append_body(self, kind: int, body: bytes) -> None:
        with self.lock:
            if not self._append(kind, 0, self._take_seq(), body):
                if len(self._backlog) < _BACKLOG:  # rows are few and dear: try again later
                    self._backlog.append((kind, body))
                    self._attention = True
                else:
                    self.dropped += 1
                return
            if self.size >= PART_BYTES or self._attention:
                self._after_write()

    def _announce(self, handle: SeriesHandle | TensorHandle) -> bool:
        of_points = isinstance(handle.series, Series)
        kind = SERIES if of_points else TENSOR_SERIES
        body = _json(handle.series.facts())
        part, seq = self.part, self._take_seq()
        for _ in range(2):
            if not self._append(kind, handle.id, seq, body):
                return False
        handle.part = part
        return True

    def _append(self, kind: int, series: int, seq: int, body: bytes) -> bool:
        frame = _frame(kind, series, seq, body)
        try:
            written = os.write(self.descriptor, frame)
        except OSError as error:
            self._fail(error)
            return False
        if written != len(frame):
            self._cut_short(written)
            return False
        self.size += written
        return True

    def _after_write(self) -> None:
        if self._sync_each:
            host.sync_data(self.descriptor)
        self.problem, self._attention = None, self._sync_each
        if self._backlog:
            self.recover()
        if self.size >= PART_BYTES:
            self._rotate()

    def _fail(self, error: OSError) -> None:
        if self.problem is None or self.descriptor >= 0:
            self.problem = f"{error.strerror or error} ({self.folder})"

    def _cut_short(self, written: int) -> None:
        """Undo half a frame, as a full disk leaves it."""
        try:
            os.ftruncate(self.descriptor, self.size)
        except OSError:
            self.size += written  # the reader skips it as damaged
        self._fail(OSError(errno.ENOSPC, "no space left on the disk"))

    def _rotate(self) -> None:
        """Go on in a new part; old and new one are never mixed up within a record."""
        if _is_nested():
            return
        old, part = self.descriptor, self.part + 1
        try:
            if self._may_open(self.waiting_parts + 1):
                self._open_part(part)
        except OSError as error:
            self._fail(error)
        self.waiting_parts += 1
        if self.part == part:
            os.close(old)
        else:  # no room now: the lock of the last part goes on saying that this process lives
            self.part, self.descriptor, self._held_descriptor = part, -1, old

    def _let_go(self) -> None:
        if self._held_descriptor >= 0:
            os.close(self._held_descriptor)
            self._held_descriptor = -1

    def _may_open(self, waiting_parts: int) -> bool:
        if waiting_parts * PART_BYTES < self._limit_bytes:
            return True
        self.problem = f"more than {self._limit_bytes >> 20} MiB wait for the store"
        return False

    def _open_part(self, part: int) -> None:
        """Write into a new part from here on; where OSError is raised nothing has changed."""
        path = part_path(self.folder, self.writer, part)
        temporary = path.with_suffix(".new")
        first, before = self._take_seq(), (self.part, self.descriptor, self.size)
        header = self._facts | {"writer": self.writer, "part": part, "first": first}
        start = MAGIC + _frame(HEADER, 0, first, json.dumps(header).encode())
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o644)
        try:
            host.lock(descriptor)
            if os.write(descriptor, start) != len(start):
                raise OSError(errno.ENOSPC, "no space left on the disk")
            # A signal handler may have logged into the old part since the number was taken.
            first = first if self.next_seq == first + 1 else self.next_seq
            self.part, self.descriptor, self.size = part, descriptor, len(start)
            os.rename(temporary, path)
        except OSError:
            self.part, self.descriptor, self.size = before
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        self._full_bytes += before[2]
        while len(self.first_seqs) <= part:
            self.first_seqs.append(first)


def _is_nested() -> bool:
    """Whether a signal handler appends in the middle of another append."""
    frame, depth = sys._getframe(1), 0
    while frame is not None:
        depth += frame.f_code in _APPENDING
        frame = frame.f_back  # type: ignore[assignment]
    return depth > 1


_APPENDING = {
    JournalWriter.append_points.__code__,
    JournalWriter.append_tensors.__code__,
    JournalWriter._append_body.__code__,
    JournalWriter.append_received.__code__,
}


def _frame(kind: int, series: int, seq: int, body: bytes) -> bytes:
    frame = PREFIX.pack(len(body) + 13, kind, series, seq) + body
    return frame + CRC.pack(crc32(frame))
