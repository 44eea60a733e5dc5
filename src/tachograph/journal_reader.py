"""Reading journals: frames back into batches, past torn tails and damaged bytes.

Knows the format of `journal`, and nothing of stores.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from tachograph.batches import complete_row, join, weight
from tachograph.journal import (
    CRC,
    DERIVED,
    END,
    HEADER,
    MAGIC,
    MAX_FRAME,
    POINTS,
    PREFIX,
    RECEIVED,
    ROWS,
    SERIES,
    TENSOR_SERIES,
    TENSORS,
    DerivedRow,
    part_path,
)
from tachograph.records import RELAY, Batch, MetricBlock, Row, Series
from tachograph.tensors.records import TensorFrame, TensorRows, TensorSeries
from tachograph.wire.encoding import decode, decompress

_PART = re.compile(rf"(?P<writer>(?:{RELAY})?[0-9a-f-]{{36}})-(?P<part>\d{{6}})\.journal")
_NOT_ZERO = re.compile(rb"[^\0]")
_SMALLEST = 13
_LEAST_READ = 256
_MOST_READ = 1 << 20
_UNPACKED = 8  # times the size of a batch: what received ones may take when they are unpacked
_ROW_AT = 9  # of a frame: behind length, kind and series


@dataclass(slots=True)
class Damage:
    """Bytes of a journal that cannot be read, and whether they are merely a torn end."""

    bytes: int = 0
    places: int = 0
    torn_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.bytes or self.torn_bytes)


class _Points:
    """Rows of one series that the next batch will have.

    Frames of a series are alike but for the row and its checksum; so one that is known is taken
    without looking at what comes before the row.
    """

    __slots__ = ("_rows", "_series", "append", "checked_head", "frame_bytes", "unpack")

    def __init__(self, series: Series, head: bytes) -> None:
        row_bytes = int.from_bytes(head[:4], "little") - _ROW_AT + 4
        row_and_checksum = struct.Struct(f"<{row_bytes}sI")
        self._series = series
        self._rows = bytearray()
        self.append = self._rows.extend
        self.unpack = row_and_checksum.unpack_from
        self.frame_bytes = _ROW_AT + row_and_checksum.size
        self.checked_head = crc32(head)

    def block(self, start: int) -> tuple[MetricBlock, int]:
        """The rows from record `start` on, in order, and the number after the last of them."""
        # A signal handler that logged inside a log call has written before that call.
        block = MetricBlock(self._series, bytes(self._rows)).ascending()
        return block.since(start), block.seqs()[-1] + 1


def _seq_of(row: bytes) -> int:
    return int.from_bytes(row[:8], "little")


@dataclass(slots=True)
class _Derived:
    """Points of a derived writer that the journal carries."""

    next: int = 0
    rows: dict[Series, list[DerivedRow]] = field(default_factory=dict)

    def add(self, series: Series, rows: list[DerivedRow]) -> None:
        new = [row for row in rows if row[0] >= self.next]  # live ones come again at the end
        if new:
            self.rows.setdefault(series, []).extend(new)
            self.next = new[-1][0] + 1

    def batch(self, writer: str) -> Batch:
        blocks = (MetricBlock.pack(series, rows) for series, rows in self.rows.items())
        # From 0: numbers may be missing, and what a store has of them it leaves out.
        return Batch(writer, 0, self.next, tuple(blocks))


@dataclass(slots=True)
class _Received:
    """What the journal carries of a writer whose batches were received."""

    parts: list[Batch] = field(default_factory=list)
    heartbeat: int | None = None

    def add(self, batch: Batch) -> None:
        if batch.heartbeat is not None:
            self.heartbeat = max(self.heartbeat or 0, batch.heartbeat)
        if self.parts:  # one that was not acknowledged has come again
            batch = batch.since(self.parts[-1].next)
        if batch.first < batch.next:
            self.parts.append(batch)

    def batch(self, writer: str) -> Batch:
        whole = join(self.parts) if self.parts else Batch(writer, 0, 0)
        return whole._replace(heartbeat=self.heartbeat)


class JournalReader:
    """Reads one writer's journal from its first part on, batch by batch.

    Points of derived writers that it carries, and batches that were received from other
    writers, come as batches of these writers, before the batch of the writer itself: when a
    store has that one, it has them too.

    Parameters
    ----------
    folder, writer
        Which journal.
    start : int
        Records before this sequence number are passed over.

    Attributes
    ----------
    next : int
        Sequence number after the last record that was read.
    header : dict
        Facts of the writer, of the latest part that was read.
    damage : Damage
        What could not be read so far.
    ended : bool
        Whether the writer said that nothing follows.
    """

    def __init__(self, folder: Path, writer: str, start: int = 0) -> None:
        self.folder = folder
        self.writer = writer
        self.next = start
        self._start = start
        self.header: dict[str, Any] = {}
        self.damage = Damage()
        self.ended = False
        self._part = -1
        self._offset = 0
        self._series: dict[int, Series] = {}
        self._tensors: dict[int, TensorSeries] = {}
        self._points: dict[bytes, _Points] = {}  # by what their frames of this part begin with
        self._batch: list[_Points] = []
        self._rows: dict[str, list[Row]] = {}
        self._statistics = TensorRows()
        self._derived: dict[str, _Derived] = {}
        self._received: dict[str, _Received] = {}
        self._ready: list[Batch] = []
        self._room = 0

    def read(self, max_bytes: int, *, whole: bool = False) -> Batch | None:
        """The next batch of about `max_bytes` of journal; None where nothing is there yet.

        With `whole` the writer is gone: an incomplete end is damage, not a record on its way.
        """
        if self._ready:
            return self._ready.pop(0)
        first, budget = self.next, max_bytes
        self._room = _UNPACKED * max_bytes
        while (budget > 0 and self._room > 0) or self.next == first:
            read = self._read_part(min(max(budget, _LEAST_READ), _MOST_READ), whole)
            budget -= read
            if not read and not self._next_part():
                break
        if self.next == first:
            return None
        self._ready = self._build(first)
        return self._ready.pop(0)

    def skip(self, seq: int) -> None:
        """Pass over records before this sequence number, of those that are not read yet."""
        self._start = max(self._start, seq)

    def waiting_bytes(self) -> int:
        """Bytes that are not read yet."""
        total = 0
        for part in list_parts(self.folder, self.writer):
            if part >= self._part:
                try:
                    size = part_path(self.folder, self.writer, part).stat().st_size
                except OSError:
                    continue
                total += size - (self._offset if part == self._part else 0)
        return total

    # ------------------------------------------------------------------ inside

    def _next_part(self) -> bool:
        later = [part for part in list_parts(self.folder, self.writer) if part > self._part]
        if not later:
            return False
        self._part, self._offset = min(later), 0
        self._series.clear()
        self._tensors.clear()
        self._points.clear()
        return True

    def _read_part(self, budget: int, whole: bool) -> int:
        """Read frames of the current part; return how many bytes were passed."""
        if self._part < 0:
            return 0
        # A later part is opened before the current one gets its last byte, so a part with a
        # successor is complete; look for the successor before reading.
        whole = whole or any(p > self._part for p in list_parts(self.folder, self.writer))
        size = self._size()
        buffer = self._load(budget)
        offset = len(MAGIC) if self._offset == 0 and buffer.startswith(MAGIC) else 0
        while (offset := self._known_points(buffer, offset)) < len(buffer):
            end = self._frame(memoryview(buffer), offset)
            if end is None:
                claimed = _claimed_end(buffer, offset)
                at_end = self._offset + len(buffer) >= size
                cut = not claimed and len(buffer) - offset < PREFIX.size and not at_end
                if cut or len(buffer) < claimed <= size - self._offset:  # cut by the budget
                    if offset > len(MAGIC):
                        break
                    buffer = self._load(claimed)
                    continue
                end = self._skip_damage(buffer, offset, at_end=at_end, whole=whole)
                if end is None:
                    break
            offset = end
            if self._room <= 0:
                break
        self._offset += offset
        return offset

    def _skip_damage(self, buffer: bytes, offset: int, *, at_end: bool, whole: bool) -> int | None:
        """Where to read on behind damaged bytes; None where they may be a frame on its way."""
        found = _find_frame(buffer, offset + 1)
        if found is None and at_end and not whole:
            return None
        if found is None and at_end:
            self.damage.torn_bytes += len(buffer) - offset
            return len(buffer)
        end = len(buffer) if found is None else found
        self.damage.places += 1
        self.damage.bytes += end - offset
        return end

    def _load(self, budget: int) -> bytes:
        try:
            with open(part_path(self.folder, self.writer, self._part), "rb") as file:
                file.seek(self._offset)
                return file.read(budget)
        except FileNotFoundError:
            return b""

    def _size(self) -> int:
        try:
            return os.stat(part_path(self.folder, self.writer, self._part)).st_size
        except OSError:
            return 0

    def _frame(self, view: memoryview, offset: int) -> int | None:
        """Take the frame at `offset` and return where it ends; None where there is none."""
        if offset + PREFIX.size > len(view):
            return None
        length, kind, number, seq = PREFIX.unpack_from(view, offset)
        end = offset + 4 + length
        if length < _SMALLEST or end + 4 > len(view):
            return None
        if crc32(view[offset:end]) != CRC.unpack_from(view, end)[0]:
            return None
        if kind == POINTS:
            if seq >= self._start:
                self.next = max(self.next, seq + 1)
                row = offset + _ROW_AT
                self._take_points(number, bytes(view[offset:row]), view[row:end])
        else:
            self._take_other(kind, number, seq, bytes(view[offset + 17 : end]))
        return int(end + 4)

    def _take_points(self, number: int, head: bytes, row: memoryview) -> None:
        """Take the first row of a series in this batch; its others are known points."""
        series = self._series.get(number)
        if series is None:  # both copies of its record are damaged
            self.damage.places += 1
            self.damage.bytes += len(row)
            return
        points = self._points[head] = _Points(series, head)
        self._batch.append(points)
        points.append(row)

    def _known_points(self, buffer: bytes, offset: int) -> int:
        """Take points of series that this batch has already; return where something else is."""
        begin, size, row = offset, len(buffer), b""
        find, checksum = self._points.get, crc32
        while (points := find(buffer[offset : offset + _ROW_AT])) is not None:
            end = offset + points.frame_bytes
            if end > size:
                break
            row, stated = points.unpack(buffer, offset + _ROW_AT)
            if checksum(row, points.checked_head) != stated:
                break
            points.append(row)
            offset = end
        if offset > begin:  # close enough until the batch is built
            self.next = max(self.next, _seq_of(row) + 1)
        return offset

    def _take_other(self, kind: int, number: int, seq: int, body: bytes) -> None:
        if kind == SERIES:  # needed also where its own seq was read before
            self._series[number] = Series.from_facts(json.loads(body))
        elif kind == TENSOR_SERIES:
            self._tensors[number] = TensorSeries.from_facts(json.loads(body))
        elif kind == TENSORS:
            self._take_tensors(number, seq, body)
        elif kind == HEADER:
            self.header = json.loads(body)
        elif kind == END:
            self.ended = True
        elif kind == ROWS and seq >= self._start:
            record = json.loads(body)
            rows = (complete_row(record["table"], r, self.writer, seq) for r in record["rows"])
            self._take_rows(record["table"], rows)
        elif kind == DERIVED and seq >= self._start:
            record = json.loads(body)
            derived = self._derived.setdefault(record["writer"], _Derived())
            derived.add(Series.from_facts(record), record["rows"])
        elif kind == RECEIVED and seq >= self._start:
            batch = decode(decompress(body, MAX_FRAME * 16), trusted=True)
            self._received.setdefault(batch.writer, _Received()).add(batch)
            self._room -= weight(batch)
        self.next = max(self.next, seq + 1)

    def _take_rows(self, table: str, rows: Iterable[Row]) -> None:
        if table == "tensors":
            for row in rows:
                self._statistics.add(row)
        else:
            self._rows.setdefault(table, []).extend(rows)

    def _take_tensors(self, number: int, seq: int, body: bytes) -> None:
        series = self._tensors.get(number)
        if series is None:  # both copies of its record are damaged
            self.damage.places += 1
            self.damage.bytes += len(body)
        elif seq >= self._start:
            self._statistics.add(TensorFrame(series, self.writer, seq, body))

    def _build(self, first: int) -> list[Batch]:
        blocks = []
        for points in self._batch:
            block, after = points.block(self._start)
            blocks.append(block)
            self.next = max(self.next, after)
        batches = [derived.batch(writer) for writer, derived in self._derived.items()]
        batches += [received.batch(writer) for writer, received in self._received.items()]
        rows: dict[str, Sequence[Row]] = {**self._rows}
        if len(self._statistics):
            rows["tensors"] = self._statistics
        batches.append(Batch(self.writer, first, self.next, tuple(blocks), rows))
        self._points.clear()
        self._batch, self._rows, self._derived, self._received = [], {}, {}, {}
        self._statistics = TensorRows()
        return batches


def _claimed_end(buffer: bytes, offset: int) -> int:
    """Where the frame at `offset` ends if its length is right; 0 where it cannot be."""
    if offset + 4 > len(buffer):
        return 0
    length = int(CRC.unpack_from(buffer, offset)[0])
    return offset + 8 + length if _SMALLEST <= length <= MAX_FRAME else 0


def _find_frame(buffer: bytes, position: int) -> int | None:
    """The first whole frame at or behind `position`."""
    view, first = memoryview(buffer), position
    while match := _NOT_ZERO.search(buffer, position):
        position = match.start()
        # the lower bytes of the length may be zero: try the frames that could hold this byte
        for start in range(max(first, position - 3), position + 1):
            if _is_frame(view, start):
                return start
        position += 1
    return None


def _is_frame(view: memoryview, offset: int) -> bool:
    if offset + PREFIX.size > len(view):
        return False
    length, kind, _, seq = PREFIX.unpack_from(view, offset)
    end = offset + 4 + length
    if not (_SMALLEST <= length <= MAX_FRAME and HEADER <= kind <= RECEIVED and seq >= 0):
        return False
    if end + 4 > len(view):
        return False
    return bool(crc32(view[offset:end]) == CRC.unpack_from(view, end)[0])


def list_parts(folder: Path, writer: str) -> list[int]:
    """Numbers of the parts of a writer's journal, in order."""
    return list_journals(folder).get(writer, [])


def list_journals(folder: Path) -> dict[str, list[int]]:
    """Writers that have a journal in a folder, with the numbers of its parts in order."""
    found: dict[str, list[int]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return found
    for name in names:
        if match := _PART.fullmatch(name):
            found.setdefault(match["writer"], []).append(int(match["part"]))
    return found


def first_record(folder: Path, writer: str) -> int | None:
    """Number of the first record that a journal has, with all behind it; None where it is gone.

    Parts are deleted from the front, when all stores have them.
    """
    parts = list_parts(folder, writer)
    if not parts or parts[-1] - parts[0] >= len(parts):
        return None
    first: int | None = read_header(part_path(folder, writer, parts[0])).get("first")
    return first


def read_header(path: Path) -> dict[str, Any]:
    """Facts in the first frame of a part; empty where it is not readable."""
    try:
        with open(path, "rb") as file:
            start = file.read(1 << 16)
    except OSError:
        return {}
    view = memoryview(start)[len(MAGIC) :]
    if not start.startswith(MAGIC) or not _is_frame(view, 0):
        return {}
    length = CRC.unpack_from(view, 0)[0]
    facts: dict[str, Any] = json.loads(bytes(view[17 : 4 + length]))
    return facts


def read_batches(folder: Path, writer: str, start: int, max_bytes: int) -> Iterator[Batch]:
    """All batches of a journal from record `start` on, as far as it is written by now."""
    reader = JournalReader(folder, writer, start)
    while (batch := reader.read(max_bytes)) is not None:
        yield batch
