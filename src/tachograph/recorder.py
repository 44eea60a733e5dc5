"""The recording side of a process: one writer, one journal, one thread that drains it.

Knows journals, sinks and the life of the process (threads, forks, exit); not what a run is.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph import host, registry
from tachograph.config import Config
from tachograph.drain import Sink, drain_orphans
from tachograph.identity import Identity, read_identity
from tachograph.journal import PART_BYTES, JournalWriter, SeriesHandle, part_path
from tachograph.journal_reader import list_parts
from tachograph.records import Row, Series, uuid7
from tachograph.warning import forget_warnings, say, warn_once

if TYPE_CHECKING:
    from tachograph.health.monitor import Monitor

TICK_SECONDS = 1.0
_MUCH_WAITING = 10 << 30


class Recorder:
    """Records rows and points of this process for the stores of one configuration.

    Opens its journal with the first record, in whichever process that is: a forked child gets
    a writer and a journal of its own.

    Parameters
    ----------
    config : Config
        Stores, journal and durability.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder: Path = registry.journal_folder(config.backend, config.journal)
        self.identity: Identity = read_identity()
        self._lock = threading.RLock()
        self._journal: JournalWriter | None = None
        self._drain: _Drain | None = None
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
        if drain.alive:  # still sending: the lock keeps other processes from sending it too
            return done
        if done:
            for part in list_parts(self.folder, journal.writer):
                part_path(self.folder, journal.writer, part).unlink(missing_ok=True)
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
                self._record_writer(journal)
                self._drain = _Drain(self, journal)
                self._journal = journal
            return self._journal

    def _new_journal(self, facts: dict[str, Any]) -> JournalWriter:
        def make() -> JournalWriter:
            return JournalWriter(
                self.folder,
                uuid7(),
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
            _run_task(self._background[0])
            self._background.pop(0)

    @property
    def has_background(self) -> bool:
        """Whether a task waits or runs."""
        return bool(self._background)


class _Drain:
    """The thread of a recorder; it holds no lock while it works."""

    def __init__(self, recorder: Recorder, journal: JournalWriter) -> None:
        self.wake = threading.Event()
        self.seal_wanted = False
        self._recorder = recorder
        self._journal = journal
        self._sinks = [
            Sink(url, recorder.folder, journal.writer, journal.now_us)
            for url in recorder.config.backend
        ]
        self._monitor: Monitor | None = None  # made by the thread, which alone uses it
        self._stop = False
        self._progress = threading.Condition()
        self._synced_seq = 0
        self._marks: deque[tuple[float, int]] = deque()  # when was what the next number
        self._orphans_drained = False
        self._thread = threading.Thread(target=self._work, name="tachograph", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is about to end
            warn_once(f"{error}; the record waits in {recorder.folder}", key="no thread")

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def flush(self, timeout: float | None) -> bool:
        """Wait until every store that is up has all that was recorded and gathered so far."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        self.gather(deadline - time.monotonic())
        target = self._journal.next_seq  # what others go on recording is not waited for
        with self._progress:
            while self.alive and self._lags(target):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.seal_wanted = True
                self.wake.set()
                self._progress.wait(min(left, 0.1))
        return all(sink.confirmed >= target for sink in self._sinks)

    def gather(self, timeout: float) -> None:
        """Wait until nothing waits in the background, at most `timeout` seconds.

        What is wrong with the runs by then is recorded too.
        """
        deadline = time.monotonic() + timeout
        if self.alive:
            self._recorder.in_background(self._examine)
        with self._progress:
            while self.alive and self._recorder.has_background:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self.wake.set()
                self._progress.wait(min(left, 0.05))

    def backlog(self) -> tuple[float, int]:
        """Seconds and bytes that the slowest store is behind the journal."""
        confirmed = min((sink.confirmed for sink in self._sinks), default=0)
        waiting = next((since for since, seq in tuple(self._marks) if seq > confirmed), None)
        late = 0.0 if waiting is None else time.monotonic() - waiting
        return late, max((sink.waiting_bytes for sink in self._sinks), default=0)

    def _mark(self, journal: JournalWriter) -> None:
        """Note when the journal got as far as it is; forget what all stores have by now."""
        if not self._marks or self._marks[-1][1] < journal.next_seq:
            self._marks.append((time.monotonic(), journal.next_seq))
        confirmed = min((sink.confirmed for sink in self._sinks), default=0)
        while self._marks and self._marks[0][1] <= confirmed:
            self._marks.popleft()

    def _lags(self, target: int) -> bool:
        return any(sink.confirmed < target and not sink.is_down for sink in self._sinks)

    def finish(self, deadline: float) -> bool:
        """Drain everything, stop the thread; False where a store did not take all in time."""
        self._stop = True
        self.wake.set()
        if self.alive:
            self._thread.join(deadline)
        done = all(sink.confirmed >= self._journal.next_seq for sink in self._sinks)
        if not done:
            waiting = [
                f"{sink.url} ({sink.problem or 'not in time'})"
                for sink in self._sinks
                if sink.confirmed < self._journal.next_seq
            ]
            say(
                f"not everything has reached {', '.join(waiting)} yet; it is safe in "
                f"{self._recorder.folder} and sent by the next run there, or by `tachograph sync`"
            )
        return done

    def _work(self) -> None:
        while True:
            self.wake.wait(TICK_SECONDS)
            self.wake.clear()
            stop = self._stop
            try:
                self._tick(stop)
            except Exception as error:
                warn_once(f"recording in the background failed: {type(error).__name__}: {error}")
            with self._progress:
                self._progress.notify_all()
            if stop:
                for sink in self._sinks:
                    sink.close()
                return

    def _tick(self, stop: bool) -> None:
        journal, recorder = self._journal, self._recorder
        recorder.work_off_background()
        if not stop:
            for task in tuple(recorder.each_tick):
                _run_task(task)
            self._look_after(journal)
            _run_task(self._examine)
        self._sync(journal)
        self._mark(journal)
        seal, self.seal_wanted = self.seal_wanted or stop, False
        for sink in self._sinks:
            sink.step(seal=seal)
        if journal.waiting_parts:
            journal.delete_parts(self._read_by_all())
        if not self._orphans_drained and not stop:
            self._orphans_drained = True
            drain_orphans(recorder.folder, recorder.config.backend, wait=0.0)

    def _examine(self) -> None:
        """Look at the health of what was recorded; what is found goes into the same journal."""
        settings = self._recorder.config.health
        if not settings.enabled or self._stop:  # the journal has ended
            return
        if self._monitor is None:
            from tachograph.health.monitor import Monitor  # a start does without

            self._monitor = Monitor(self._journal, settings)
        self._monitor.step()

    def _read_by_all(self) -> int:
        """Up to which record nobody needs the journal any more."""
        read = min((sink.confirmed for sink in self._sinks), default=0)
        return read if self._monitor is None else int(min(read, self._monitor.seen))

    def _look_after(self, journal: JournalWriter) -> None:
        journal.check_clock()
        if journal.dropped:
            warn_once(f"records are dropped: {journal.problem}", key=f"drop {journal.folder}")
        if journal.waiting_parts * PART_BYTES > _MUCH_WAITING:
            warn_once(
                f"over {_MUCH_WAITING >> 30} GiB wait in {journal.folder} for a store",
                key=f"waiting {journal.folder}",
            )
        with contextlib.suppress(OSError):
            journal.recover()
        if journal.is_unlinked():
            warn_once(
                f"the journal in {journal.folder} was deleted; this run is no longer recorded",
                key=f"unlinked {journal.folder}",
            )
            journal.discard("the journal was deleted")

    def _sync(self, journal: JournalWriter) -> None:
        if self._recorder.config.record.durability == "1s" and journal.next_seq > self._synced_seq:
            seq = journal.next_seq
            with contextlib.suppress(OSError):
                journal.sync()
                self._synced_seq = seq


def _run_task(task: Callable[[], None]) -> None:
    try:
        task()
    except Exception as error:
        warn_once(f"recording in the background failed: {type(error).__name__}: {error}")


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


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    forget_warnings()
    for recorder in list(_recorders):
        recorder.forget()


if host.can_record():
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(close_all)
