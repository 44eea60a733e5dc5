"""Stores that may be slow or away are served by threads of their own, one for each.

What they do holds up neither the training nor the thread that keeps its record safe. Knows sinks
and threads; knows no store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tachograph.delivery.sink import Sink

QUICK_SECONDS = 1.0
"""What one more attempt may take at the end, on a store that is down."""


class Courier:
    """Steps a sink in a thread of its own; used as the sink itself is.

    The thread is made by the first step, and is a daemon: the interpreter ends without it.

    Parameters
    ----------
    sink : Sink
        Only that thread touches it from then on; others read its attributes.
    notify : callable
        Called by the thread after each step.
    afterwards : callable
        Called by the thread with the URL, when the store has all records and it is about to end.
    """

    def __init__(
        self, sink: Sink, notify: Callable[[], None], afterwards: Callable[[str], None]
    ) -> None:
        self.url = sink.url
        self._sink = sink
        self._notify = notify
        self._afterwards = afterwards
        self._wake = threading.Event()
        self._seal = False
        self._stop = False
        self._began: float | None = None  # when the step that goes on now was begun
        self._closed_at = 0.0
        self._thread: threading.Thread | None = None

    def step(self, *, seal: bool = False) -> None:
        """Have the sink step soon; returns at once."""
        self._seal = self._seal or seal
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name=f"tachograph {self.url}", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is about to end; who steps has a deadline
                self._thread = None
                self._step()

    @property
    def confirmed(self) -> int:
        """Number of the record that the store expects next."""
        return self._sink.confirmed

    @property
    def problem(self) -> str | None:
        """What went wrong the last time."""
        return self._sink.problem

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the journal that the store does not have yet."""
        return self._sink.waiting_bytes

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_up(self) -> bool:
        """Whether the store has answered the last time."""
        return self._sink.is_up

    def is_down(self, until: float = float("inf")) -> bool:
        """Whether waiting for it up to `until` (`time.monotonic`) would only hold things up."""
        return self._sink.is_down(until)

    def give_up(self, seq: int) -> None:
        """Wait no more for the store, until it has all records before this one."""
        self._sink.give_up(seq)

    def close(self) -> None:
        """Move what is left as soon as possible, and end the thread; returns at once."""
        self._stop = True
        self._closed_at = time.monotonic()
        self.step(seal=True)

    def join(self, until: float) -> None:
        """After `close`: wait for the end of the thread, at most up to `until`.

        A store that is down gets the one attempt that `close` has asked for, and no more; once
        something gets through it is waited for.
        """
        while self._thread is not None and self._thread.is_alive():
            left = self._patience(until) - time.monotonic()
            if left <= 0:
                self._sink.silent = True
                return
            self._thread.join(min(left, 0.1))

    # ------------------------------------------------------------------ inside

    def _patience(self, until: float) -> float:
        if not self.is_down(until):
            return until
        began = self._began
        stuck = began is not None and began < self._closed_at
        return min(until, self._closed_at + (0.0 if stuck else QUICK_SECONDS))

    def _work(self) -> None:
        stop = False
        while not stop:
            self._wake.wait()
            self._wake.clear()
            stop = self._stop  # before the step: what was recorded before `close` is moved
            self._step()
        while (pause := self._sink.asked_pause) and not self.is_down():
            time.sleep(pause)  # who waits for this thread knows of it, and for how long to wait
            self._seal = True
            self._step()
        self._sink.close()
        if self.is_up:
            self._afterwards(self.url)

    def _step(self) -> None:
        self._began = time.monotonic()
        seal, self._seal = self._seal, False
        self._sink.step(seal=seal)
        self._began = None
        self._notify()
