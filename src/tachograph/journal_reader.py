"""Reading journals: frames back into batches, past torn tails and damaged bytes.

Knows the format of `journal`, and nothing of stores.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from tachograph.journal import (
    CRC,
    END,
    HEADER,
    MAGIC,
    MAX_FRAME,
    POINTS,
    PREFIX,
    ROWS,
    SERIES,
    part_path,
)
from tachograph.records import TABLES, Batch, MetricBlock, Row, Series

_PART = re.compile(r"(?P<writer>[0-9a-f-]{36})-(?P<part>\d{6})\.journal")
_NOT_ZERO = re.compile(rb"[^\0]")
_SMALLEST = 13


@dataclass(slots=True)
class Damage:
    """Bytes of a journal that cannot be read, and whether they are merely a torn end."""

    bytes: int = 0
    places: int = 0
    torn_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.bytes or self.torn_bytes)


@dataclass(slots=True)
class _Pending:
    """What a batch is being built from."""

    points: dict[int, list[memoryview]] = field(default_factory=dict)
    last_seq: dict[int, int] = field(default_factory=dict)
    unsorted: set[int] = field(default_factory=set)
    rows: dict[str, list[Row]] = field(default_factory=dict)


class JournalReader:
    """Reads one writer's journal from its first part on, batch by batch.

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
        self._pending = _Pending()

    def read(self, max_bytes: int, *, whole: bool = False) -> Batch | None:
        """The next batch of about `max_bytes` of journal; None where nothing is there yet.

        With `whole` the writer is gone: an incomplete end is damage, not a record on its way.
        """
        first, budget = self.next, max_bytes
        while budget > 0:
            read = self._read_part(budget, whole)
            budget -= read
            if not read and not self._next_part():
                break
        if self.next == first:
            return None
        return self._build(first)

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
        self._series = {}
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
        while offset < len(buffer):
            end = self._frame(memoryview(buffer), offset)
            if end is None:
                claimed = _claimed_end(buffer, offset)
                if len(buffer) < claimed <= size - self._offset:  # the buffer cut it
                    if offset > len(MAGIC):
                        break
                    buffer = self._load(claimed)
                    continue
                at_end = self._offset + len(buffer) >= size
                end = self._skip_damage(buffer, offset, at_end=at_end, whole=whole)
                if end is None:
                    break
            offset = end
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
                self._take_points(number, seq, view[offset + 9 : end])
        else:
            self._take_other(kind, number, seq, bytes(view[offset + 17 : end]))
        return int(end + 4)

    def _take_points(self, number: int, seq: int, row: memoryview) -> None:
        pending = self._pending
        rows = pending.points.get(number)
        if rows is None:
            if number not in self._series:
                self.damage.places += 1
                self.damage.bytes += len(row)
                return
            rows = pending.points[number] = []
        elif seq < pending.last_seq[number]:
            pending.unsorted.add(number)
        rows.append(row)
        pending.last_seq[number] = seq

    def _take_other(self, kind: int, number: int, seq: int, body: bytes) -> None:
        if kind == SERIES:  # needed also where its own seq was read before
            self._flush_series(number)
            facts = json.loads(body)
            self._series[number] = Series(
                facts["run_id"],
                tuple(facts["names"]),
                facts["context"],
                facts["rank"],
                facts["attempt"],
            )
        elif kind == HEADER:
            self.header = json.loads(body)
        elif kind == END:
            self.ended = True
        elif kind == ROWS and seq >= self._start:
            record = json.loads(body)
            rows = self._pending.rows.setdefault(record["table"], [])
            rows.extend(complete_row(record["table"], r, self.writer, seq) for r in record["rows"])
        self.next = max(self.next, seq + 1)

    def _flush_series(self, number: int) -> None:
        """A part starts its series anew, under ids that may mean others than before."""
        if number in self._pending.points:
            done = -1 - len(self._pending.points)
            self._pending.points[done] = self._pending.points.pop(number)
            self._pending.last_seq[done] = self._pending.last_seq.pop(number)
            self._series[done] = self._series[number]
            if number in self._pending.unsorted:
                self._pending.unsorted.add(done)

    def _build(self, first: int) -> Batch:
        pending, self._pending = self._pending, _Pending()
        blocks = []
        for number, rows in pending.points.items():
            if number in pending.unsorted:
                rows.sort(key=lambda row: int.from_bytes(row[:8], "little"))
            blocks.append(MetricBlock(self._series[number], b"".join(rows)))
        self._series = {n: s for n, s in self._series.items() if n >= 0}
        return Batch(self.writer, first, self.next, tuple(blocks), pending.rows)


def complete_row(table: str, row: Row, writer: str, seq: int) -> Row:
    """A row as a store wants it: with writer and seq, and 0 for `deleted` in keyed tables."""
    done = row | {"writer": writer, "seq": seq}
    if TABLES[table].key:
        done.setdefault("deleted", 0)
    return done


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
    if not (_SMALLEST <= length <= MAX_FRAME and HEADER <= kind <= END and seq >= 0):
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
