"""The recording side of a process: one writer, one journal, what drains it.

Knows journals, sinks and the life of the process (threads, forks, exit); not what a run is.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tachograph import host, registry
from tachograph.config import Config
from tachograph.delivery.drain_thread import THREAD_NAME, DrainThread
from tachograph.identity import Identity, read_identity
from tachograph.journal import JournalWriter, SeriesHandle
from tachograph.records import RELAY, Row, Series, uuid7
from tachograph.warning import forget_warnings, run_task, say, warn_once

_LONGEST_IMPORT = 2.0


class Recorder:
    """Records rows and points of this process for the stores of one configuration.

    Opens its journal with the first record, in whichever process that is: a forked child gets
    a writer and a journal of its own.

    Parameters
    ----------
    config : Config
        Stores, journal and durability.
    relay : bool, default False
        It passes on what others recorded: it is no writer that readers are told of.
    """

    def __init__(self, config: Config, *, relay: bool = False) -> None:
        self.config = config
        self._relay = relay
        self.folder: Path = registry.journal_folder(config.backend, config.journal)
        self.identity: Identity = read_identity()
        self._lock = threading.RLock()
        self._journal: JournalWriter | None = None
        self._drain: DrainThread | None = None
        self._last_change = 0
        self._background: list[Callable[[], None]] = []
        self.each_tick: list[Callable[[], None]] = []
        self.dependents: weakref.WeakSet[Any] = weakref.WeakSet()
        _recorders.add(self)

    # ------------------------------------------------------------------ recording

    @property
    def journal(self) -> JournalWriter:
        """The journal of this process, opened on first use; OSError where it cannot be."""
        return self._journal or self._open()

    @property
    def writer(self) -> str:
        """Id of this process as a writer."""
        return self.journal.writer

    def series(self, series: Series) -> SeriesHandle:
        """Announce a series of points."""
        return self.journal.series(series)

    def rows(self, table: str, rows: Sequence[Row]) -> None:
        """Record rows of a table other than metrics; keyed ones have their `changed_at`."""
        self.journal.append_rows(table, rows)

    def now_us(self) -> int:
        """The clock of the record, µs since 1970."""
        return self.journal.now_us()

    def change_us(self) -> int:
        """The time of a change: later than any before, also where the clock was set back."""
        self._last_change = max(self.now_us(), self._last_change + 1)
        return self._last_change

    def in_background(self, task: Callable[[], None]) -> None:
        """Run `task` on the drain thread, within a second, and before this process ends.

        It is not woken for that: it would take turns with whoever is starting a run.
        """
        self._background.append(task)

    def keep_content(self, path: Path, sha256: str, urls: Sequence[str]) -> None:
        """Keep a file's content for stores that get it later, from another process if need be.

        Raises
        ------
        OSError
            There is no room, or the file has another digest by now.
        """
        from tachograph.delivery import outbox

        room = self.config.journal_limit - int(self.backlog()["waiting_bytes"])
        outbox.keep(self.folder, path, sha256, urls, room)
        if self._drain is not None:
            self._drain.freight.add(sha256)

    def set_rank(self, rank: int, local_rank: int, world_size: int) -> None:
        """Say which rank this process is, where a framework and not a launcher knows it."""
        identity = self.identity.with_rank(rank, local_rank, world_size)
        if identity != self.identity:
            self.identity = identity
            if self._journal is not None:
                self._record_writer(self._journal)

    # ------------------------------------------------------------------ draining

    def backlog(self) -> dict[str, float]:
        """What was written to the journal, and how far the slowest store is behind it.

        Returns
        -------
        dict
            `bytes` written by this process, `lag_seconds` and `waiting_bytes` of the slowest
            store, and records that were `dropped`.
        """
        drain, journal = self._drain, self.journal
        late, waiting = (0.0, 0) if drain is None else drain.backlog()
        return {
            "bytes": journal.written_bytes,
            "lag_seconds": late,
            "waiting_bytes": waiting,
            "dropped": journal.dropped,
        }

    def confirmed(self, url: str) -> int:
        """Up to which record of the journal a store of the configuration has everything."""
        drain = self._drain
        return 0 if drain is None else drain.confirmed(url)

    def seal(self) -> None:
        """Ask the drain thread to bring everything into the stores now; returns at once."""
        drain = self._drain
        if drain is not None:
            drain.seal_wanted = True
            drain.wake.set()

    def flush(self, timeout: float | None = None) -> bool:
        """Return when all records so far are in all stores; False after `timeout` seconds."""
        drain = self._drain
        if drain is None or self._journal is None:
            return True
        return drain.flush(timeout)

    def close(self, deadline: float | None = None) -> bool:
        """Drain what is left and end this writer; False where something had to stay behind."""
        if deadline is None:
            deadline = self.config.record.exit_deadline
        started = time.monotonic()
        if self._drain is not None:  # what it gathers still goes into this journal
            self._drain.gather(deadline)
            deadline = max(0.0, deadline - (time.monotonic() - started))
        with self._lock:
            journal, drain = self._journal, self._drain
            self._journal = self._drain = None
        for dependent in list(self.dependents):
            dependent.rebind()
        if journal is None or drain is None:
            return True
        journal.end()
        done = drain.finish(self.config.record.exit_deadline if deadline is None else deadline)
        if journal.dropped:
            say(f"{journal.dropped} records were dropped: {journal.problem}")
        if done:
            from tachograph.delivery.drain import delete_journal  # a start does without

            delete_journal(self.folder, journal.writer)
        elif drain.sending:  # the lock keeps other processes from sending it too
            return False
        journal.close()
        return done

    def forget(self) -> None:
        """In a forked child: start anew as another writer."""
        self._lock = threading.RLock()
        journal, self._journal, self._drain = self._journal, None, None
        self._background, self.each_tick = [], []
        if journal is not None:
            journal.forget()
        for dependent in list(self.dependents):
            dependent.rebind()

    # ------------------------------------------------------------------ inside

    def _open(self) -> JournalWriter:
        with self._lock:
            if self._journal is None:
                facts = {
                    "sinks": list(self.config.backend),
                    "host": host.host_name(),
                    "pid": os.getpid(),
                    "pid_started": host.process_started(os.getpid()),
                    "boot_id": host.boot_id(),
                }
                journal = self._new_journal(facts)
                if not self._relay:
                    self._record_writer(journal)
                self._drain = DrainThread(self, journal)
                self._journal = journal
            return self._journal

    def _new_journal(self, facts: dict[str, Any]) -> JournalWriter:
        def make() -> JournalWriter:
            return JournalWriter(
                self.folder,
                f"{RELAY}{uuid7()}" if self._relay else uuid7(),
                facts,
                sync_each=self.config.record.durability == "call",
                limit_bytes=self.config.journal_limit,
            )

        try:
            return make()
        except OSError as error:
            refused, self.folder = self.folder, registry.journal_folder(())
            if self.folder == refused:
                raise
            journal = make()
            warn_once(f"no journal can be kept in {refused} ({error}); it is in {self.folder}")
            return journal

    def _record_writer(self, journal: JournalWriter) -> None:
        identity, now = self.identity, journal.now_us()
        row: Row = {
            "writer": journal.writer,
            "host": host.host_name(),
            "pid": os.getpid(),
            "pid_started": host.process_started(os.getpid()),
            "boot_id": host.boot_id(),
            "rank": identity.rank,
            "local_rank": identity.local_rank,
            "world_size": identity.world_size,
            "attempt": identity.restarts + 1,
            "started_at": now,
            "heartbeat_at": now,
            "changed_at": max(now, self._last_change),
        }
        journal.append_rows("writers", [row])

    def work_off_background(self) -> None:
        """Run the tasks that wait; for the drain thread."""
        while self._background:
            run_task(self._background[0])
            self._background.pop(0)

    @property
    def has_background(self) -> bool:
        """Whether a task waits or runs."""
        return bool(self._background)


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
_by_destination: dict[tuple[Any, ...], Recorder] = {}
_lock = threading.RLock()  # a signal handler may start a run in the middle of a start


def get_recorder(config: Config) -> Recorder:
    """The recorder of this process for a configuration's stores; made on first use."""
    key = (config.backend, config.journal, config.record.durability, config.health)
    with _lock:
        recorder = _by_destination.get(key)
        if recorder is None:
            recorder = _by_destination[key] = Recorder(config)
        return recorder


def close_all() -> None:
    """Drain and end every recorder of this process; it opens anew when used again."""
    for recorder in list(_recorders):
        recorder.close()


def _before_fork() -> None:
    """Wait while a thread of ours loads a module, at most `_LONGEST_IMPORT` seconds.

    A child has no such thread, but finds the lock of that module taken: it would wait for ever
    where it loads the same one.
    """
    until = time.monotonic() + _LONGEST_IMPORT
    while _imports() and time.monotonic() < until:
        time.sleep(0.001)


def _imports() -> bool:
    """Whether a thread of ours is loading a module."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME) and thread is not threading.current_thread():
            frame = frames.get(thread.ident or 0)
            while frame is not None:
                if frame.f_code.co_filename.startswith("<frozen importlib"):
                    return True
                frame = frame.f_back
    return False


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    forget_warnings()
    for recorder in list(_recorders):
        recorder.forget()


if host.can_record():
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
atexit.register(close_all)
