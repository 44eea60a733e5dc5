"""Stores around stores: try again after a failure, write to several at once.

Knows stores by their interface only. A wrapper writes and reads; for other abilities ask the
store inside.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from tachograph.backends.base import Backend, Query
from tachograph.errors import Gap, StoreError, StoreNotFound, StoreTooNew
from tachograph.records import Batch
from tachograph.table import Table

Result = TypeVar("Result")
_FINAL = (Gap, StoreNotFound, StoreTooNew)  # another attempt would end the same way


class Retry:
    """A store that is asked again when it fails, after a delay that doubles.

    Writing is idempotent, so a batch whose first attempt was stored, but not confirmed, is
    stored once.

    Parameters
    ----------
    backend : Backend
        The store inside.
    attempts : int, default 5
        How often one call is tried in all.
    first_delay : float, default 0.1
        Longest wait before the second attempt, in seconds; the wait is random between half of
        that and all of it, so that many writers do not come back at the same moment.
    """

    def __init__(self, backend: Backend, attempts: int = 5, first_delay: float = 0.1) -> None:
        self.backend = backend
        self.url = backend.url
        self.first_interval = backend.first_interval
        self.longest_interval = backend.longest_interval
        self.batch_bytes = backend.batch_bytes
        self._attempts = attempts
        self._first_delay = first_delay

    def write(self, batch: Batch) -> int:
        """Store a batch; StoreError of the last attempt where all of them fail."""
        return self._try(lambda: self.backend.write(batch))

    def read(self, query: Query) -> Table:
        """Read rows; StoreError of the last attempt where all of them fail."""
        return self._try(lambda: self.backend.read(query))

    def close(self) -> None:
        """Close the store inside."""
        self.backend.close()

    def _try(self, call: Callable[[], Result]) -> Result:
        for attempt in range(self._attempts - 1):
            try:
                return call()
            except StoreError as error:
                if isinstance(error, _FINAL):
                    raise
            time.sleep(self._first_delay * 2**attempt * random.uniform(0.5, 1.0))
        return call()


class Mirror:
    """Several stores that hold the same, each with its own cursors.

    A store that lags behind, because it was added later or failed in between, makes `write`
    raise Gap with the record that it needs; sent again from there, it catches up, and the
    others leave out what they have. Reading asks the first one.

    Parameters
    ----------
    first, *others : Backend
        The stores. Times and sizes of batches are the largest that one of them likes.
    """

    def __init__(self, first: Backend, *others: Backend) -> None:
        self.backends = (first, *others)
        self.url = first.url
        self.first_interval = max(backend.first_interval for backend in self.backends)
        self.longest_interval = max(backend.longest_interval for backend in self.backends)
        self.batch_bytes = max(backend.batch_bytes for backend in self.backends)

    def write(self, batch: Batch) -> int:
        """Store a batch in all of them; after a StoreError the same batch may be tried again.

        Raises
        ------
        Gap
            One of them expects an earlier record; nothing was written to any.
        """
        question = batch._replace(next=batch.first, blocks=(), rows={}, heartbeat=None)
        expected = min(backend.write(question) for backend in self.backends)
        if expected < batch.first < batch.next:
            raise Gap(batch.writer, expected, batch.first)
        return min(backend.write(batch) for backend in self.backends)

    def read(self, query: Query) -> Table:
        """Read rows from the first store."""
        return self.backends[0].read(query)

    def close(self) -> None:
        """Close all of them."""
        with ExitStack() as stack:
            for backend in self.backends:
                stack.callback(backend.close)


if TYPE_CHECKING:

    def _conforms(backend: Backend) -> tuple[Backend, Backend]:
        return Retry(backend), Mirror(backend)
