"""The thread of a recorder: it keeps the record safe, works off what waits, and fills the stores.

Stores that may be slow or away have threads of their own, see `courier` and `freight`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from tachograph import registry
from tachograph.delivery.courier import Courier
from tachograph.delivery.freight import Freight
from tachograph.delivery.sink import Sink
from tachograph.journal import PART_BYTES, JournalWriter
from tachograph.warning import run_task, say, warn_once

if TYPE_CHECKING:
    from tachograph.health.monitor import Monitor
    from tachograph.recorder import Recorder

THREAD_NAME = "tachograph"
"""What the names of all threads of a recorder begin with."""

TICK_SECONDS = 1.0
_MUCH_WAITING = 10 << 30
_MOST_MARKS = 10_000


class DrainThread:
    """Works once a second; it holds no lock while it does.

    Parameters
    ----------
    recorder : Recorder
        Whose background tasks it runs.
    journal : JournalWriter
        What it brings into the stores.
    """

    def __init__(self, recorder: Recorder, journal: JournalWriter) -> None:
        self.wake = threading.Event()
        self.seal_wanted = False
        self._recorder = recorder
        self._journal = journal
        self.freight = Freight(recorder.folder)
        self._near: list[Sink] = []
        self._far: list[Courier] = []
        for number, url in enumerate(recorder.config.backend):
            sink = Sink(url, recorder.folder, journal.writer, journal.now_us, is_copy=number > 0)
            if registry.is_far(url):
                self._far.append(Courier(sink, self._tell, self.freight.finish))
            else:
                self._near.append(sink)
        self._sinks: list[Sink | Courier] = [*self._near, *self._far]
        self._monitor: Monitor | None = None  # made by the thread, which alone uses it
        self._stop = False
        self._progress = threading.Condition()
        self._synced_seq = 0
        self._marks: deque[tuple[float, int]] = deque()  # when was what the next number
        self._orphans_drained = False
        self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is about to end
            warn_once(f"{error}; the record waits in {recorder.folder}", key="no thread")

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    @property
    def sending(self) -> bool:
        """Whether it, or a courier, may still be sending from the journal."""
        return self.alive or any(courier.alive for courier in self._far)

    # ------------------------------------------------------------------ waiting for it

    def flush(self, timeout: float | None) -> bool:
        """Wait until every store that is up has all that was recorded and gathered so far.

        A store that was waited for in vain for as long as an exit may take is not waited for
        again until it has caught up.
        """
        allowed = math.inf if timeout is None else timeout
        deadline = time.monotonic() + allowed
        self.gather(allowed)
        target = self._journal.next_seq  # what others go on recording is not waited for
        with self._progress:
            while self.alive and self._lags(target, deadline):
                left = deadline - time.monotonic()
                if left <= 0:
                    if allowed >= self._recorder.config.record.exit_deadline:
                        for sink in self._sinks:
                            sink.give_up(target)
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

    def finish(self, deadline: float) -> bool:
        """Drain everything, stop the threads; False where a store has not all records in time."""
        until = time.monotonic() + deadline
        self._stop = True
        self.freight.stop()
        self.wake.set()
        if self.alive:
            self._thread.join(deadline)
        for courier in self._far:
            courier.join(until)
        if late := self._late():
            say(
                f"not everything has reached {', '.join(late)} yet; it is safe in "
                f"{self._recorder.folder} and sent by the next run there, or by `{self._command()}`"
            )
        return all(sink.confirmed >= self._journal.next_seq for sink in self._sinks)

    def _late(self) -> list[str]:
        """The stores that do not have everything, and why."""
        late = []
        for sink in self._sinks:
            if sink.confirmed < self._journal.next_seq:
                late.append(f"{sink.url} ({sink.problem or 'not in time'})")
            elif files := self.freight.waiting(sink.url):
                late.append(f"{sink.url} ({files} files)")
        return late

    def _command(self) -> str:
        """What sends the rest, also from another folder than the one with the config file."""
        import shlex  # a start does without

        urls, folder = self._recorder.config.backend, self._recorder.folder
        first = next(filter(registry.local_path, urls), urls[0])  # whose folder has the journals
        command = f"tachograph sync --store {shlex.quote(first)}"
        if folder == registry.journal_folder((first,)):
            return command
        return f"TACHOGRAPH_JOURNAL={shlex.quote(str(folder))} {command}"

    def _lags(self, target: int, deadline: float) -> bool:
        return any(sink.confirmed < target and not sink.is_down(deadline) for sink in self._sinks)

    def _tell(self) -> None:
        with self._progress:
            self._progress.notify_all()

    # ------------------------------------------------------------------ how far it is

    def backlog(self) -> tuple[float, int]:
        """Seconds and bytes that the slowest store is behind the journal."""
        confirmed = self._confirmed()
        waiting = next((since for since, seq in tuple(self._marks) if seq > confirmed), None)
        late = 0.0 if waiting is None else time.monotonic() - waiting
        return late, max((sink.waiting_bytes for sink in self._sinks), default=0)

    def confirmed(self, url: str) -> int:
        """Up to which record a store has everything."""
        return min((sink.confirmed for sink in self._sinks if sink.url == url), default=0)

    def _mark(self, journal: JournalWriter) -> None:
        """Note when the journal got as far as it is; forget what all stores have by now."""
        if not self._marks or self._marks[-1][1] < journal.next_seq:
            if len(self._marks) >= _MOST_MARKS:  # after hours a rough answer will do
                self._marks = deque(tuple(self._marks)[::2])
            self._marks.append((time.monotonic(), journal.next_seq))
        confirmed = self._confirmed()
        while self._marks and self._marks[0][1] <= confirmed:
            self._marks.popleft()

    def _confirmed(self) -> int:
        return min((sink.confirmed for sink in self._sinks), default=0)

    def _read_by_all(self) -> int:
        """Up to which record nobody needs the journal any more."""
        read = self._confirmed()
        return read if self._monitor is None else int(min(read, self._monitor.seen))

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            self.wake.wait(TICK_SECONDS)
            self.wake.clear()
            stop = self._stop
            run_task(functools.partial(self._tick, stop))
            self._tell()
            if stop:
                for sink in self._near:
                    sink.close()
                return

    def _tick(self, stop: bool) -> None:
        journal, recorder = self._journal, self._recorder
        recorder.work_off_background()
        if not stop:
            for task in tuple(recorder.each_tick):
                run_task(task)
            self._look_after(journal)
            run_task(self._examine)
        self._sync(journal)
        self._mark(journal)
        seal, self.seal_wanted = self.seal_wanted or stop, False
        for courier in self._far:  # before the others, which take their time here
            if stop:
                courier.close()
            else:
                courier.step(seal=seal)
        for sink in self._near:
            sink.step(seal=seal, last=stop and not sink.is_down())
        if journal.waiting_parts:
            journal.delete_parts(self._read_by_all())
        if not stop:
            self._send_what_others_left()

    def _send_what_others_left(self) -> None:
        if self._near and not self._orphans_drained:
            from tachograph.delivery.drain import drain_orphans  # a start does without

            self._orphans_drained = True
            near = tuple(sink.url for sink in self._near)
            drain_orphans(self._recorder.folder, near, wait=0.0)
        self.freight.step(tuple(sink.url for sink in self._sinks if sink.is_up))

    def _examine(self) -> None:
        """Look at the health of what was recorded; what is found goes into the same journal."""
        settings = self._recorder.config.health
        if not settings.enabled or self._stop:  # the journal has ended
            return
        if self._monitor is None:
            from tachograph.health.monitor import Monitor  # a start does without

            self._monitor = Monitor(self._journal, settings)
        self._monitor.step()

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
