"""What was received and is not in the store yet, for those who read.

Knows the journal of the server; knows no store and no route.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tachograph.batches import weight
from tachograph.journal_reader import JournalReader
from tachograph.records import Batch

MOST_BYTES = 64 << 20
"""What is held in memory at most; a store that is that far behind is read as it is."""

_READ_BYTES = 1 << 20  # of the journal at a time


@dataclass(slots=True)
class _Group:
    """Batches that were read from the journal together, up to its record `next`."""

    next: int
    batches: list[Batch]
    bytes: int


class Tails:
    """Follows the journal from where it was left, and keeps what the store does not have.

    Parameters
    ----------
    folder, writer
        The journal.
    confirmed : callable
        The record of the journal that the store expects next.
    written : callable
        The number behind the last record of the journal.
    """

    def __init__(
        self, folder: Path, writer: str, confirmed: Callable[[], int], written: Callable[[], int]
    ) -> None:
        self._writer = writer
        self._confirmed, self._written = confirmed, written
        self._reader = JournalReader(folder, writer)
        self._groups: list[_Group] = []
        self._bytes = 0
        self._resume_at = 0
        self._lock = threading.Lock()

    @property
    def behind(self) -> bool:
        """Whether the store lags so far that its tail is not held: readers see it as it is."""
        return self._confirmed() < self._resume_at

    def read(self) -> list[Batch]:
        """The batches that the store does not have; also some that it has got meanwhile."""
        with self._lock:
            if self.behind:
                return []
            self._drop(self._confirmed())
            self._read_on()
            return [batch for group in self._groups for batch in group.batches]

    def _drop(self, confirmed: int) -> None:
        self._reader.skip(confirmed)
        self._groups = [group for group in self._groups if group.next > confirmed]
        self._bytes = sum(group.bytes for group in self._groups)

    def _read_on(self) -> None:
        batches: list[Batch] = []
        while (batch := self._reader.read(_READ_BYTES)) is not None:
            batches.append(batch)
            if batch.writer == self._writer:  # the last one of those that were read together
                size = sum(map(weight, batches))
                self._groups.append(_Group(batch.next, batches, size))
                self._bytes += size
                batches = []
            if self._bytes > MOST_BYTES:
                self._groups, self._bytes = [], 0
                self._resume_at = self._written()
                return
