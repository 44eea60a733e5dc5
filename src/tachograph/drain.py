"""From journals into stores: one cursor per store, exactly once, beside the training.

Knows backends by their interface, opened through the registry, and no frameworks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph import host, registry
from tachograph.batches import complete_row
from tachograph.errors import Gap, StoreError, TachographError
from tachograph.journal import part_path
from tachograph.journal_reader import (
    JournalReader,
    list_journals,
    list_parts,
    read_header,
)
from tachograph.records import Batch, now_us, uuid7
from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.backends.base import Backend

HEARTBEAT_SECONDS = 10.0
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0
_PATIENCE = 3  # failures in a row, after which nobody waits for a store


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
    """

    def __init__(
        self, url: str, folder: Path, writer: str, now: Callable[[], int] | None = None
    ) -> None:
        self.url = url
        self.confirmed = 0
        self.problem: str | None = None
        self._folder = folder
        self._writer = writer
        self._now = now
        self._backend: Backend | None = None
        self._reader: JournalReader | None = None
        self._unsent: Batch | None = None
        self._next_write = 0.0
        self._next_retry = 0.0
        self._retry_seconds = _FIRST_RETRY
        self._failures = 0
        self._interval = 0.0
        self._heartbeat_due = 0.0

    def step(self, *, seal: bool = False) -> None:
        """Move what is due into the store. Never raises; problems are said once.

        `seal` moves everything now, also what a store of large files would still gather.
        """
        clock = time.monotonic()
        if clock < self._next_retry and not seal:
            return
        try:
            self._move(clock, seal)
        except (TachographError, OSError, ImportError) as error:
            self._fail(error, clock)
        else:
            if self.problem is not None:
                self.problem, self._retry_seconds, self._failures = None, _FIRST_RETRY, 0

    @property
    def is_down(self) -> bool:
        """Whether it has failed so often that waiting for it would only hold up the training."""
        return self._failures >= _PATIENCE

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the journal that the store does not have yet."""
        reader = self._reader
        return 0 if reader is None else reader.waiting_bytes()

    def close(self) -> None:
        """Let go of the store."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with contextlib.suppress(TachographError, OSError):
                backend.close()

    # ------------------------------------------------------------------ inside

    def _move(self, clock: float, seal: bool) -> None:
        backend, reader = self._open()
        if self._interval == 0.0:
            self._interval = backend.first_interval
            self._next_write = clock + self._interval
        full = backend.batch_bytes
        if seal or clock >= self._next_write or reader.waiting_bytes() >= full:
            while (batch := self._unsent or reader.read(full)) is not None:
                self._send(backend, batch)
            self._interval = min(self._interval * 2, backend.longest_interval)
            self._next_write = clock + self._interval
        if self._now is not None and clock >= self._heartbeat_due:
            self._send(backend, Batch(self._writer, self.confirmed, self.confirmed))

    def _open(self) -> tuple[Backend, JournalReader]:
        if self._backend is None:
            self._backend = registry.open_backend(self.url, create=True)
        if self._reader is None:
            self.confirmed = self._backend.write(Batch(self._writer, 0, 0))
            self._reader = JournalReader(self._folder, self._writer, self.confirmed)
        return self._backend, self._reader

    def _send(self, backend: Backend, batch: Batch) -> None:
        self._unsent = batch if batch.next > batch.first else None
        own = batch.writer == self._writer
        if self._now is not None and own:
            batch = replace(batch, heartbeat=self._now())
        expected = backend.write(batch)
        self._unsent = None
        if own:
            self.confirmed = expected
        self._heartbeat_due = time.monotonic() + HEARTBEAT_SECONDS

    def _fail(self, error: Exception, clock: float) -> None:
        self._failures += 1
        self._next_retry = clock + self._retry_seconds
        self._retry_seconds = min(self._retry_seconds * 2, _LONGEST_RETRY)
        self.problem = f"{type(error).__name__}: {error}"
        hint = "the record waits in the journal and is sent later"
        if isinstance(error, Gap):
            hint = "the store was deleted or replaced while it was written; this run is not in it"
        warn_once(f"{self.url} cannot be written ({self.problem}); {hint}", key=self.url)
        self.close()


def drain_orphans(folder: Path, urls: tuple[str, ...] = (), *, wait: float = 10.0) -> list[str]:
    """Bring the journals of dead processes into their stores; return their writers.

    A run that such a process left as running becomes 'lost'. Journals of live processes, and
    of processes on other machines, are left alone.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    urls : tuple of str
        Only journals that go to one of these stores; empty is all.
    wait : float, default 10.0
        Seconds to wait for another process that does this here already.
    """
    with _alone(folder, wait) as alone:
        return _drain_each(folder, urls) if alone else []


@contextlib.contextmanager
def _alone(folder: Path, wait: float) -> Iterator[bool]:
    """Whether no other process drains here: two that sent one journal would double points."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # there are no journals
        yield False
        return
    try:
        deadline = time.monotonic() + wait
        while not (locked := host.lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield locked
    finally:
        host.unlock(descriptor)  # a fork may have a copy
        os.close(descriptor)


def _drain_each(folder: Path, urls: tuple[str, ...]) -> list[str]:
    drained = []
    for writer, parts in list_journals(folder).items():
        with _orphan(folder, writer, parts) as facts:
            if facts is None:
                continue
            sinks = facts.get("sinks") or urls  # a damaged header says nothing
            if urls and not set(urls) & set(sinks):
                continue
            if sinks and _drain_orphan(folder, writer, sinks):
                drained.append(writer)
    return drained


@contextlib.contextmanager
def _orphan(folder: Path, writer: str, parts: list[int]) -> Iterator[Mapping[str, Any] | None]:
    """The facts of a journal whose writer is gone, locked against others; else None."""
    path = part_path(folder, writer, parts[-1])
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        yield None
        return
    try:
        locked = host.lock(descriptor)
        facts = _facts(folder, writer, parts)
        if not locked:  # a child of the dead process may have kept the lock
            locked = host.is_alive(facts) is False
        # A live writer that has gone on in another part meanwhile has let go of this one.
        yield facts if locked and list_parts(folder, writer)[-1:] == parts[-1:] else None
    finally:
        host.unlock(descriptor)
        os.close(descriptor)


def _facts(folder: Path, writer: str, parts: list[int]) -> dict[str, Any]:
    """What the header of a journal says, of the latest part whose header is whole."""
    for part in reversed(parts):
        if facts := read_header(part_path(folder, writer, part)):
            return facts
    return {}


def _drain_orphan(folder: Path, writer: str, sinks: Iterable[str]) -> bool:
    done = True
    for url in sinks:
        try:
            done = _drain_whole(folder, writer, url) and done
        except Exception as error:  # it must not keep anyone from opening the store
            warn_once(f"the journal of {writer} cannot be sent to {url} yet: {error}")
            done = False
    if done:
        for part in list_parts(folder, writer):
            part_path(folder, writer, part).unlink(missing_ok=True)
        for unfinished in folder.glob(f"{writer}-*.new"):  # killed as it opened a part
            unfinished.unlink(missing_ok=True)
    return done


def _drain_whole(folder: Path, writer: str, url: str) -> bool:
    backend = registry.open_backend(url, create=True)
    try:
        reader = JournalReader(folder, writer, backend.write(Batch(writer, 0, 0)))
        while (batch := reader.read(backend.batch_bytes, whole=True)) is not None:
            backend.write(batch)
        if reader.damage.bytes:
            warn_once(
                f"{reader.damage.bytes} damaged bytes in {reader.damage.places} places of the "
                f"journal of {writer} could not be read"
            )
        mark_lost(backend, writer)
    finally:
        backend.close()
    return True


def mark_lost(backend: Backend, writer: str) -> list[str]:
    """Mark the runs that a dead writer left as running; return their ids."""
    from tachograph.backends.base import Condition, Query  # start_run does without

    owned = [
        row
        for row in backend.read(Query("attempts", [Condition("status", "=", "running")]))
        if row["writer"] == writer
    ]
    if not owned:
        return []
    at = max(now_us(), *(row["changed_at"] + 1 for row in owned))
    change = {"changed_at": at, "status": "lost"}
    marker = uuid7()
    attempts = [complete_row("attempts", row | change, marker, 0) for row in owned]
    runs = [complete_row("runs", {"run_id": row["run_id"]} | change, marker, 0) for row in owned]
    backend.write(Batch(marker, 0, 1, rows={"attempts": attempts, "runs": runs}))
    return [row["run_id"] for row in runs]


def has_journal(folder: Path, url: str) -> bool:
    """Whether a journal in `folder` goes to that store."""
    return any(
        url in _facts(folder, writer, parts).get("sinks", ())
        for writer, parts in list_journals(folder).items()
    )


def pending_batches(folder: Path, url: str, cursors: Mapping[str, int]) -> Iterator[Batch]:
    """What the journals of live processes hold for a store that it does not have yet.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    url : str
        The store.
    cursors : mapping of writer to int
        What the store expects next from each writer.
    """
    derived: dict[str, int] = {}  # several journals may carry the points of one
    for writer, parts in list_journals(folder).items():
        if url not in _facts(folder, writer, parts).get("sinks", ()):
            continue
        reader = JournalReader(folder, writer, cursors.get(writer, 0))
        with contextlib.suppress(StoreError):
            while (batch := reader.read(8 << 20)) is not None:
                if batch.writer != writer:
                    batch = batch.since(derived.get(batch.writer, 0))
                    derived[batch.writer] = max(derived.get(batch.writer, 0), batch.next)
                yield batch
