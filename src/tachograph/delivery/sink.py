"""One store that a journal is drained into: exactly once, at its own pace, with its own troubles.

Knows backends by their interface, opened through the registry; no threads.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tachograph import registry
from tachograph.errors import AccessDenied, Busy, Gap, Locked, TachographError
from tachograph.records import Batch
from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.backends.base import Backend
    from tachograph.journal_reader import JournalReader

HEARTBEAT_SECONDS = 10.0
PATIENCE = 3  # failures in a row, after which nobody waits for a store
LOCKED_SECONDS = 30.0  # for which others may write to a store, before that is a failure
_TURN_SECONDS = 1.0  # of waiting for them, between two looks at the safety of the journal
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0


class Backoff:
    """When to try again what has failed: after a second, then twice as long, up to a minute.

    Each delay is random between half of that and all of it, so that the clients of a server that
    was away do not all come back at the same moment.

    Attributes
    ----------
    failures : int
        How many there were in a row.
    asked_until : float
        Up to when the other side asked to be left alone (`time.monotonic`); 0 where it did not.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.asked_until = 0.0
        self._until = 0.0
        self._seconds = _FIRST_RETRY

    def failed(self, error: Exception) -> None:
        """Wait, longer than the last time; as long as the error asks for, where it does."""
        now = time.monotonic()
        self.failures += 1
        self.asked_until = 0.0
        if isinstance(error, AccessDenied):  # only a person can change that
            self.failures, self._seconds = max(self.failures, PATIENCE), _LONGEST_RETRY
        if isinstance(error, Busy):
            self.asked_until = now + error.retry_after * (1.0 + _chance() / 2)
        self._until = max(now + self._seconds * (1.0 + _chance()) / 2, self.asked_until)
        self._seconds = min(self._seconds * 2, _LONGEST_RETRY)

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures, self.asked_until, self._until = 0, 0.0, 0.0
        self._seconds = _FIRST_RETRY

    def holds(self, *, urgent: bool = False) -> bool:
        """Whether to wait still; what is urgent waits only where it was asked to."""
        return time.monotonic() < (self.asked_until if urgent else self._until)


def _chance() -> float:
    """A random number from 0 to 1; `random` would disturb the seeds of the training."""
    return os.urandom(1)[0] / 255


class Sink:
    """One store that a journal is drained into, with its own pace and its own troubles.

    Parameters
    ----------
    url : str
        The store.
    folder, writer
        The journal.
    now : callable
        The journal's clock, µs; None where the writer is gone and gets no heartbeat.
    is_copy : bool, default False
        Another store has the same; see `leaves_out`.

    Attributes
    ----------
    confirmed : int
        Number of the record that the store expects next.
    problem : str or None
        What went wrong the last time.
    silent : bool
        Whether problems are no longer said: nobody waits any more.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        writer: str,
        now: Callable[[], int] | None = None,
        *,
        is_copy: bool = False,
    ) -> None:
        self.url = url
        self.confirmed = 0
        self.problem: str | None = None
        self.silent = False
        self._given_up = 0
        self._folder = folder
        self._writer = writer
        self._now = now
        self._is_copy = is_copy
        self._backend: Backend | None = None
        self._reader: JournalReader | None = None
        self._unsent: Batch | None = None
        self._went_back_to = -1
        self._locked_since: float | None = None
        self._backoff = Backoff()
        self._turn_seconds = _TURN_SECONDS
        self._next_write = 0.0
        self._interval = 0.0
        self._heartbeat_due = 0.0

    def step(self, *, seal: bool = False, last: bool = False) -> None:
        """Move what is due into the store. Never raises; problems are said once.

        `seal` moves everything now, also what a store of large files would still gather. Where
        others write to the store it is left for the next step after a while, unless this is the
        `last` one, which is worth waiting for.
        """
        if self._backoff.holds(urgent=seal):
            return
        self._turn_seconds = LOCKED_SECONDS if last else _TURN_SECONDS
        try:
            self._move(seal)
        except Locked as error:
            self._wait_for_others(error)
        except Exception as error:  # a store of another package may raise anything
            self._fail(error)

    @property
    def is_up(self) -> bool:
        """Whether the store has answered the last time."""
        return self.confirmed > 0 and self.problem is None

    def is_down(self, until: float = float("inf")) -> bool:
        """Whether waiting for it up to `until` (`time.monotonic`) would only hold up the training.

        It has failed again and again, somebody has waited in vain already, or it has asked to be
        left alone for longer.
        """
        waited = self.confirmed < self._given_up
        return waited or self._backoff.failures >= PATIENCE or self._backoff.asked_until > until

    @property
    def asked_pause(self) -> float:
        """Seconds for which it still asks to be left alone; 0 where it does not."""
        return max(0.0, self._backoff.asked_until - time.monotonic())

    def give_up(self, seq: int) -> None:
        """Wait no more for the store, until it has all records before this one."""
        self._given_up = seq

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the journal that the store does not have yet."""
        return (self._reader or self._new_reader(0)).waiting_bytes()

    def close(self) -> None:
        """Let go of the store."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with contextlib.suppress(TachographError, OSError):
                backend.close()

    # ------------------------------------------------------------------ inside

    def _move(self, seal: bool) -> None:
        backend, reader = self._open()
        if self._interval == 0.0:
            self._interval = backend.first_interval
            self._next_write = time.monotonic() + self._interval
        due = seal or self._unsent is not None or time.monotonic() >= self._next_write
        if due or reader.waiting_bytes() >= backend.batch_bytes:
            self._send_all(backend)
            self._interval = min(self._interval * 2, backend.longest_interval)
            self._next_write = time.monotonic() + self._interval
        if self._now is not None and time.monotonic() >= self._heartbeat_due:
            self._deliver(backend, Batch(self._writer, self.confirmed, self.confirmed))

    def _open(self) -> tuple[Backend, JournalReader]:
        from tachograph.backends.base import SupportsTurns  # a start does without

        if self._backend is None:
            self._backend = registry.open_backend(self.url, create=True)
        if isinstance(self._backend, SupportsTurns):
            self._backend.turn_seconds = self._turn_seconds
        if self._reader is None:
            self._read_from(self._backend.write(Batch(self._writer, 0, 0)))
        assert self._reader is not None
        return self._backend, self._reader

    def _read_from(self, seq: int) -> None:
        self.confirmed, self._unsent = seq, None
        self._reader = self._new_reader(seq)

    def _new_reader(self, seq: int) -> JournalReader:
        from tachograph.journal_reader import JournalReader  # a start does without

        return JournalReader(self._folder, self._writer, seq)

    def _send_all(self, backend: Backend) -> None:
        while (batch := self._next(backend.batch_bytes)) is not None:
            if self._deliver(backend, batch):
                self._unsent = None

    def _next(self, max_bytes: int) -> Batch | None:
        if self._unsent is None and self._reader is not None:
            self._unsent = self._reader.read(max_bytes)
        return self._unsent

    def _deliver(self, backend: Backend, batch: Batch) -> bool:
        """Write a batch; False where something before it has to be written again."""
        own = batch.writer == self._writer
        if self._now is not None and own:
            batch = batch._replace(heartbeat=self._now())
        try:
            expected = backend.write(batch)
            if own and expected < self.confirmed:
                raise Gap(self._writer, expected, self.confirmed)
        except Gap:
            if self._is_copy and not own and not self._comes_first():
                leaves_out(self.url)
                return True
            if not self._go_back(backend):
                raise
            return False
        if own and expected > self.confirmed:
            self.confirmed, self._went_back_to = expected, -1
        self._heartbeat_due = time.monotonic() + HEARTBEAT_SECONDS
        self._locked_since = None
        self.problem = None  # already now: who waits for the rest sees that it is on its way
        self._backoff.succeeded()
        return True

    def _comes_first(self) -> bool:
        """Whether other journals lie here, which may hold what this one goes on from."""
        from tachograph.journal_reader import list_journals

        return any(writer != self._writer for writer in list_journals(self._folder))

    def _go_back(self, backend: Backend) -> bool:
        """Read again what a store has lost that was put back from a backup.

        False where the journal does not have it any more, or where that did not help.
        """
        from tachograph.journal_reader import first_record

        expected = backend.write(Batch(self._writer, 0, 0))
        first = first_record(self._folder, self._writer)
        if expected == self._went_back_to or first is None or first > expected:
            return False
        self._went_back_to = expected
        self._read_from(expected)
        return True

    def _wait_for_others(self, error: Locked) -> None:
        """Many processes that share a file are no trouble; one that keeps it for long is."""
        now = time.monotonic()
        self._locked_since = self._locked_since or now
        if now - self._locked_since < LOCKED_SECONDS - self._turn_seconds:
            self.problem = str(error)
        else:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._backoff.failed(error)
        self.problem = f"{type(error).__name__}: {error}"
        self.close()
        if not self.silent:
            kind, hint = _advice(error)
            warn_once(
                f"{self.url} cannot be written ({self.problem}); {hint}", key=f"{self.url} {kind}"
            )


def leaves_out(url: str) -> None:
    """Say that a copy lacks the beginning of what a server received from some writers.

    It was added later. It must not keep the first store, or the records of others, waiting for what
    only a copy of the first store can bring.
    """
    warn_once(
        f"{url} was added later: it lacks earlier records of some writers, and leaves out their"
        " later ones; `tachograph copy` from the first store brings all of them",
        key=f"{url} leaves out",
    )


def _advice(error: Exception) -> tuple[str, str]:
    """The kind of trouble, of which each is said once, and what becomes of the record."""
    if isinstance(error, Gap):
        return (
            "gap",
            "the store was deleted or replaced while it was written; this run is not in it",
        )
    if isinstance(error, AccessDenied):
        return "denied", (
            "the record waits in the journal, and is sent once the token is right: by this process,"
            " the next one, or `tachograph sync`"
        )
    return "down", "the record waits in the journal and is sent later"
