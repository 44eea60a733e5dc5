"""The receiving side of a server: a batch is taken once, acknowledged when safe, and passed on.

It goes into a journal, as a training's records do, and the same thread brings it into the stores.
So an acknowledgement waits for one flush to the disk, which it shares with all others that wait,
and never for a store. Knows journals and stores; knows no route.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph import registry
from tachograph.config import Config, load_config
from tachograph.errors import Busy, Full, Gap, StoreError, TachographError, TooLarge
from tachograph.journal import MAX_FRAME, PART_BYTES, JournalWriter
from tachograph.recorder import Recorder
from tachograph.records import Batch
from tachograph.server.activity import Activity
from tachograph.server.commit import GroupCommit
from tachograph.server.leftovers import bring_in, take_folder
from tachograph.server.marks import Mark, Marks
from tachograph.server.tails import Tails
from tachograph.warning import warn_once
from tachograph.wire.encoding import compress, encode

if TYPE_CHECKING:
    from tachograph.backends.base import Backend

_START_SECONDS = 5.0  # how long a start waits for what an earlier server left
_LONGEST_RETRY = 60.0
_BEAT_SECONDS = 30.0
_WAIT_SECONDS = 2.0  # for clients of a server that is not ready
_FULL_SECONDS = 15.0


class Inbox:
    """Receives batches for some stores.

    Takes nothing before what an earlier server has acknowledged is in the first store, which is
    the one whose cursors count. Several threads may use it at once.

    Parameters
    ----------
    stores : sequence of str
        Absolute URLs. The others are copies of the first: what they lack does not stop it.
    folder : Path
        Of this server alone; the journal lies in it.
    journal_limit : int, optional
        Bytes that may wait for a store; by default as for a training.

    Raises
    ------
    StoreError
        Another server has the folder.
    """

    def __init__(
        self, stores: Sequence[str], folder: Path, *, journal_limit: int | None = None
    ) -> None:
        self.stores = tuple(stores)
        self._folder = folder / "journal"
        self._config = _config(self.stores, self._folder, journal_limit)
        self._held = take_folder(folder)
        self._lock = threading.Lock()
        self._marks = Marks()
        self._activity = Activity()
        self._heartbeats: dict[str, int] = {}  # of writers that had nothing else to say
        self._beat_due = 0.0
        self._version = 0
        self._store: Backend | None = None
        self._journal: JournalWriter | None = None
        self._recorder: Recorder | None = None
        self._tails: Tails | None = None
        self._commit = GroupCommit(self._lock, self._sync, self._written, self._marks.go_back)
        self._closing = False
        self._problem = "the server is still bringing in what an earlier one received"
        self._begun, self._ended = threading.Event(), threading.Event()
        self._starter = threading.Thread(target=self._begin, name="tachograph-inbox", daemon=True)
        self._starter.start()
        self._begun.wait(_START_SECONDS)

    # ------------------------------------------------------------------ receiving

    def receive(self, body: bytes, batch: Batch) -> int:
        """Take a batch; return the record that is expected next when it is on the disk.

        What was received before is left out. An empty batch is a heartbeat, and a question.

        Parameters
        ----------
        body : bytes
            The batch as `wire.encode` and `wire.compress` have it.
        batch : Batch
            The same, checked.

        Raises
        ------
        Gap
            It starts behind the record expected next; nothing was taken.
        Busy
            Nothing is taken now; Full where that is for want of space.
        StoreError
            The store does not say what it has of this writer.
        """
        with self._lock:
            self._ready()
            if batch.first < batch.next or batch.heartbeat is not None:
                self._activity.note(batch.writer)
            mark = self._marks.find(batch.writer) or Mark(self._cursor(batch.writer))
            gap = mark.next < batch.first < batch.next
            if not gap and mark.next < batch.next and batch.first < batch.next:
                self._take(body, batch, mark)
            elif batch.heartbeat is not None and mark.next:
                seen = self._heartbeats.get(batch.writer, 0)
                self._heartbeats[batch.writer] = max(seen, batch.heartbeat)
            expected, position, failures = mark.next, mark.position, self._commit.failures
        try:
            self._commit.wait(position, failures)
        except OSError as error:
            raise Full(f"the disk of the server fails: {error}", _FULL_SECONDS) from error
        if gap:
            raise Gap(batch.writer, expected, batch.first)
        return expected

    def expected(self, writer: str) -> int:
        """The record expected next from a writer; all before it are on the disk."""
        return self.receive(b"", Batch(writer, 0, 0))

    def known(self) -> Mapping[str, int]:
        """The record expected next of the writers whose last ones may not be in the store yet."""
        with self._lock:
            return self._marks.ahead(self._commit.durable, self._confirmed())

    @property
    def writers(self) -> int:
        """How many writers were heard of in the last half minute."""
        with self._lock:
            return self._activity.writers

    @property
    def interval(self) -> float:
        """Seconds that clients should wait until they send again."""
        with self._lock:
            return self._activity.interval

    # ------------------------------------------------------------------ reading

    @property
    def version(self) -> int:
        """A number that changes with each batch that is taken."""
        return self._version

    def tails(self, cursors: Mapping[str, int]) -> Iterable[Batch]:
        """What the first store does not have yet, as `live.LiveReader` asks for it."""
        tails = self._tails
        return tails.read() if tails is not None else ()

    def heartbeats(self) -> list[Batch]:
        """Signs of life that are not on their way to the stores yet, as empty batches."""
        with self._lock:
            return [Batch(writer, 0, 0, heartbeat=at) for writer, at in self._heartbeats.items()]

    @property
    def behind(self) -> bool:
        """Whether the first store lacks more than `tails` holds, which then gives nothing."""
        return self._tails is None or self._tails.behind

    def backlog(self) -> Mapping[str, float]:
        """What waits for the slowest store, as `Recorder.backlog` says it."""
        return {} if self._recorder is None else self._recorder.backlog()

    def flush(self, timeout: float | None = None) -> bool:
        """Bring what was received into the stores; False where `timeout` is over before that."""
        return self._recorder is not None and self._recorder.flush(timeout)

    def close(self) -> None:
        """Take nothing more, bring what was received into the stores, let go of the folder."""
        self._ended.set()
        self._starter.join(_START_SECONDS)
        with self._lock:
            self._closing, self._problem = True, "the server ends"
            number, failures = (
                0 if self._journal is None else self._written(),
                self._commit.failures,
            )
        with contextlib.suppress(OSError):  # whoever waits is told so
            self._commit.wait(number, failures)
        if self._recorder is not None:
            self._recorder.close()
        if self._store is not None:
            self._store.close()
        os.close(self._held)

    # ------------------------------------------------------------------ inside, with the lock

    def _ready(self) -> JournalWriter:
        if self._journal is None or self._closing:
            raise Busy(self._problem, _WAIT_SECONDS)
        return self._journal

    def _cursor(self, writer: str) -> int:
        """What the store expects of a writer that has no mark."""
        try:
            if self._store is None:
                self._store = registry.open_backend(self.stores[0], create=True)
            return self._store.write(Batch(writer, 0, 0))
        except StoreError:
            store, self._store = self._store, None
            if store is not None:
                store.close()
            raise

    def _take(self, body: bytes, batch: Batch, mark: Mark) -> None:
        self._marks.drop(min(self._commit.durable, self._confirmed()))
        if batch.first < mark.next:
            body = compress(encode(batch.since(mark.next)))
        position = self._append(body)
        self._marks.advance(batch.writer, mark, batch.next, position, self._commit.durable)
        self._heartbeats.pop(batch.writer, None)
        self._version += 1

    def _append(self, body: bytes) -> int:
        journal = self._ready()
        if len(body) > MAX_FRAME // 2:
            raise TooLarge(f"a batch of {len(body)} bytes, compressed, is too large; send less")
        if journal.waiting_parts * PART_BYTES >= self._config.journal_limit:
            raise Busy(
                f"{self._config.journal_limit >> 20} MiB wait for a store already", _FULL_SECONDS
            )
        try:
            return journal.append_received(body)
        except OSError as error:
            raise Full(f"the server can keep nothing: {error.strerror}", _FULL_SECONDS) from error

    def _sync(self) -> None:
        assert self._journal is not None  # else nobody waits
        self._journal.sync()

    def _written(self) -> int:
        assert self._journal is not None
        return self._journal.next_seq

    def _confirmed(self) -> int:
        return 0 if self._recorder is None else self._recorder.confirmed(self.stores[0])

    # ------------------------------------------------------------------ threads of its own

    def _begin(self) -> None:
        """Bring in what earlier servers left, then open; go on until each store has it."""
        delay = 1.0
        while not self._ended.is_set():
            try:
                lacking = bring_in(self._folder, self.stores)
                if self.stores[0] not in lacking and self._journal is None:
                    self._open()
                if not lacking:
                    return
            except (TachographError, OSError) as error:
                self._problem = f"the server cannot begin yet: {error}"
                warn_once(self._problem, key=f"begin {self._folder}")
            self._ended.wait(delay)
            delay = min(2 * delay, _LONGEST_RETRY)

    def _open(self) -> None:
        recorder = Recorder(self._config, relay=True)
        journal = recorder.journal
        if recorder.folder != self._folder:  # a recorder of a training takes another one
            recorder.close()
            raise StoreError(f"no journal can be kept in {self._folder}")
        recorder.each_tick.append(self._pass_on_heartbeats)
        with self._lock:
            self._recorder, self._journal = recorder, journal
            self._tails = Tails(self._folder, journal.writer, self._confirmed, self._written)
        self._begun.set()

    def _pass_on_heartbeats(self) -> None:
        """Send the heartbeats of quiet writers the way of batches, now and then."""
        if time.monotonic() < self._beat_due:
            return
        self._beat_due = time.monotonic() + _BEAT_SECONDS
        with self._lock, contextlib.suppress(Busy):
            while self._heartbeats:
                writer, at = self._heartbeats.popitem()
                self._append(compress(encode(Batch(writer, 0, 0, heartbeat=at))))


def _config(stores: tuple[str, ...], folder: Path, journal_limit: int | None) -> Config:
    settings: dict[str, Any] = {
        "backend": [*stores],
        "journal": str(folder),
        "record": {"durability": "process"},  # it is flushed by those who wait for it
        "health": {"enabled": False},
    }
    if journal_limit is not None:
        settings["journal_limit"] = journal_limit
    return load_config(settings, environ={}, cwd=folder.parent)
