"""The first store, lent to those who read it, each to one thread at a time.

Knows stores by their interface; `served.py` knows what a reader sees of one, and no route is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, TypeVar

from tachograph import registry
from tachograph.backends.base import Backend
from tachograph.errors import Busy, QueryError, StoreError, TooLarge
from tachograph.query import Store
from tachograph.server.served import Served

if TYPE_CHECKING:
    from tachograph.server.inbox import Inbox
    from tachograph.server.tokens import Grant

Result = TypeVar("Result")

THREADS = 4
"""How many read at the same time: as many as leave the rest of the server its share."""

LONGEST_QUEUE = 100
"""So many more may wait for their turn; others are told to come again."""

SECONDS = 30.0
"""After which reading is cut short."""

FLUSH_SECONDS = 20.0
"""How long to wait until what was received is in the store."""

_PATIENCE = 10.0  # seconds to wait for a store that others read


class Readers:
    """Lends the first store of a server to threads that read it.

    Parameters
    ----------
    inbox : Inbox
        What was received, and is not in the store yet.
    url : str
        The store.
    rows : int
        Most rows of one answer.
    """

    def __init__(self, inbox: Inbox, url: str, rows: int = 1_000_000) -> None:
        self.url = url
        self._inbox = inbox
        self._rows = rows
        self._idle: list[Backend] = []
        self._lock = Lock()
        self._reading: set[Served] = set()
        self._closed = False
        self._lent = BoundedSemaphore(2 * THREADS)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
        self._turns = asyncio.Semaphore(THREADS)
        self._heavy_turns = asyncio.Semaphore(THREADS // 2)
        self._waiting = 0
        self._flushed = float("-inf")

    async def ask(
        self, work: Callable[[Served], Result], grant: Grant | None = None, *, heavy: bool = False
    ) -> Result:
        """Do something with the store in a thread of its own.

        Parameters
        ----------
        work : callable
        grant : Grant, optional
            Whose runs there are; all by default.
        heavy : bool, default False
            It may take long: others must not wait for several of these.

        Raises
        ------
        Busy
            Too many wait for their turn.
        TooLarge
            It takes too long, or has too many rows.
        """
        if self._waiting >= LONGEST_QUEUE:
            raise Busy("too many others read from this server", 2.0)
        self._waiting += 1
        try:
            async with contextlib.AsyncExitStack() as turns:
                if heavy:
                    await turns.enter_async_context(self._heavy_turns)
                await turns.enter_async_context(self._turns)
                return await self._within(SECONDS, work, grant)
        finally:
            self._waiting -= 1

    async def _within(
        self, seconds: float, work: Callable[[Served], Result], grant: Grant | None
    ) -> Result:
        loop = asyncio.get_running_loop()
        lent: list[Served] = []
        timer: asyncio.TimerHandle

        def run() -> Result:
            with self.lend(grant) as served:
                lent.append(served)
                return work(served)

        def cut_short() -> None:
            nonlocal timer
            for served in lent:
                served.cut_short()
            timer = loop.call_later(0.5, cut_short)  # it may have been between two questions

        timer = loop.call_later(seconds, cut_short)
        try:
            return await loop.run_in_executor(self._threads, run)
        except (StoreError, QueryError) as error:
            if not any(served.is_late for served in lent):
                raise
            raise TooLarge(f"this takes longer than {seconds:g} s; ask for less") from error
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def store(self, grant: Grant | None = None) -> Iterator[Store]:
        """Lend the store to a thread; with a grant it has only the runs that this one covers."""
        with self.lend(grant) as served:
            yield served.store

    @contextlib.contextmanager
    def lend(self, grant: Grant | None = None) -> Iterator[Served]:
        """Lend the store together with what the server alone knows of it."""
        if not self._lent.acquire(timeout=_PATIENCE):
            raise Busy("too many others read from this server", 2.0)
        try:
            backend = self._take()
            healthy = True
            served = Served(backend, self._inbox, self.flush, self._rows, grant)
            self._reading.add(served)
            try:
                yield served
            except StoreError as error:
                healthy = isinstance(error, Busy)
                raise
            finally:
                self._reading.discard(served)
                self._give_back(backend, healthy)
        finally:
            self._lent.release()

    def flush(self, age: float = 0.0) -> None:
        """Bring what was received into the store, unless that was done `age` seconds ago.

        Raises
        ------
        Busy
            The store does not take it now.
        """
        started = time.monotonic()
        if started - self._flushed < age:
            return
        if not self._inbox.flush(FLUSH_SECONDS):
            raise Busy("what was received is not in the store yet; the server says why", 5.0)
        self._flushed = started

    def close(self) -> None:
        """Cut short what is being read, and close the stores."""
        self._closed = True
        while self._reading:
            for served in list(self._reading):
                served.cut_short()
            time.sleep(0.02)
        self._threads.shutdown()
        with self._lock:
            idle, self._idle = self._idle, []
        for backend in idle:
            backend.close()

    # ------------------------------------------------------------------ inside

    def _take(self) -> Backend:
        if self._closed:
            raise Busy("the server ends", 5.0)
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return registry.open_backend(self.url, create=True)

    def _give_back(self, backend: Backend, healthy: bool) -> None:
        if healthy:
            with self._lock:
                self._idle.append(backend)
        else:
            with contextlib.suppress(StoreError):
                backend.close()
