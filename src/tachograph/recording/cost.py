"""What recording costs the training that it watches: measured, recorded, and warned about once.

Knows seconds and a run's recorder; no framework and no store.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.recorder import Recorder
    from tachograph.run import Run

PATIENCE_SECONDS = 10.0
"""How long a training has gone on before its budget is looked at."""

_FREE_SECONDS = 0.05  # first records, before any of their share has been earned
_SLACK = 1.25


class Spent(NamedTuple):
    """What the hooks of a callback took so far.

    Attributes
    ----------
    seconds : float
        Of the training's time.
    at : float
        When the last of them ended, as `time.perf_counter` says it.
    tensor_seconds : float
        What measuring tensors took: part of `seconds`, and what a device worked on it.
    device_seconds : float
        What a device worked on it, beside the training's own thread.
    records : int
        How many steps have been recorded.
    every : int or None
        Steps between records where that was given.
    fixed : bool
        Whether histograms or snapshots have an interval that was given.
    """

    seconds: float
    at: float
    tensor_seconds: float = 0.0
    device_seconds: float = 0.0
    records: int = 0
    every: int | None = None
    fixed: bool = False


class RecordingCost:
    """The cost of recording one fit, from now until it is closed.

    Parameters
    ----------
    run : Run
        Where it is recorded, if the configuration has `record.system`.
    recorder : Recorder
    spent : callable
        Says what was spent so far, also before this fit.
    """

    def __init__(self, run: Run, recorder: Recorder, spent: Callable[[], Spent]) -> None:
        self._run = run
        self._recorder = recorder
        self._spent = spent
        self._settings = run.config.record
        self._before = spent().seconds
        self._began = perf_counter()
        self._first_step = run.last_step
        self._due = time.monotonic() + self._settings.system_interval
        self._known = self._before  # what was spent when it was recorded last
        self._lock = threading.RLock()  # the end of a fit may meet a tick, or a signal handler
        self._process = os.getpid()
        self._closed = False
        recorder.each_tick.append(self.tick)

    def tick(self) -> None:
        """Record what is due; called each second on the recorder's thread."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._settings.system_interval
            self._record()

    def close(self) -> None:
        """Record the end, and watch no longer. A second call does nothing."""
        if self.tick in self._recorder.each_tick:
            self._recorder.each_tick.remove(self.tick)
        self._record()
        self._closed = True

    def _record(self) -> None:
        if os.getpid() != self._process:  # a fork; the lock may be held in it for ever
            return
        with self._lock:
            spent = self._spent()
            if self._closed or spent.seconds <= self._known:  # nothing has happened since
                return
            self._known = spent.seconds
        elapsed = max(spent.at - self._began, 1e-9)
        self._warn(spent, elapsed)
        if self._settings.system:
            self._run.log_cost(self._values(spent, elapsed))

    def _values(self, spent: Spent, elapsed: float) -> dict[str, float]:
        took = spent.seconds - self._before + spent.device_seconds
        values = {"share": min(1.0, took / elapsed)}
        steps = self._run.last_step - max(self._first_step, self._run.first_step - 1)
        if steps > 0:
            values["milliseconds"] = 1e3 * took / steps
        if spent.records:
            values["tensor_milliseconds"] = 1e3 * spent.tensor_seconds / spent.records
        values |= self._recorder.backlog()
        return {f"recording/{name}": value for name, value in values.items()}

    def _warn(self, spent: Spent, elapsed: float) -> None:
        budget = self._settings.budget
        beyond = spent.tensor_seconds - _FREE_SECONDS > _SLACK * budget * elapsed
        if elapsed >= PATIENCE_SECONDS and beyond:
            share = spent.tensor_seconds / elapsed
            warn_once(
                f"recording weights and gradients takes {_short(100 * share)} % of the training"
                f" (budget {_short(100 * budget)} %); {_advice(spent, share / budget)}",
                key="budget of recording",
            )


def _advice(spent: Spent, times: float) -> str:
    if spent.every is not None:
        enough = math.ceil(spent.every * times)
        return f"every='auto' or every={enough} would keep to it"
    if spent.fixed:
        return "histograms and snapshots that are 'auto' would keep to it"
    one = 1e3 * spent.tensor_seconds / max(1, spent.records)
    return (
        f"one record takes {_short(one)} ms; weights='off' or gradients='off' would save some of it"
    )


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
