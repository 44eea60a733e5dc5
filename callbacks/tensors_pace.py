"""When tensors are recorded: at each n-th step, or as often as a share of the time allows.

Knows steps and seconds, nothing of tensors and frameworks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

FREE_SECONDS = 0.01
"""What a first record may cost before any of its share has been earned."""

Every = int | str | Sequence[int]

_SHARES = {"moments": 0.65, "histograms": 0.25, "snapshots": 0.1}
"""How the budget is divided."""


class Pace:
    """Decides at which steps something is recorded that takes time.

    With ``every=n`` at the steps that n divides. With ``every='auto'`` no more often than the
    budget allows: after a record that took c seconds there is none for c / budget seconds. The
    number of steps that this takes is rounded up to a power of two, and a step that it divides
    is waited for, so that ranks and runs of different speed have steps in common.

    Where steps are left out, as by a framework that says where it is only now and then, the
    first step behind a wanted one stands for it.

    Parameters
    ----------
    every : int, sequence of int, 'auto' or 'off'
        A sequence names the steps.
    budget : float
        Share of the time that the records may take, where `every` is 'auto'.
    estimate : float, default 0.0
        Seconds that the first record will take about.
    clock : callable
        Seconds.

    Attributes
    ----------
    every : int, sequence of int, 'auto' or 'off'
        As given.
    spent_seconds : float
        What all records took so far.
    late_seconds : float
        How much of that a device told later.
    records : int
        How many there were.
    """

    def __init__(
        self,
        every: Every,
        budget: float,
        *,
        estimate: float = 0.0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.every = every
        self.spent_seconds = self.late_seconds = 0.0
        self.records = 0
        self.is_auto = every in ("auto", "off")
        self._interval = every if isinstance(every, int) else 0  # 0: not known yet
        self._steps = () if isinstance(every, int | str) else tuple(sorted(set(every)))
        self._budget = budget
        self._clock = clock
        self._asked: int | None = None  # the latest step, and the one before it
        self._before = -1
        self._last_step: int | None = None
        self._next = clock() + max(0.0, estimate - FREE_SECONDS) / budget
        if every == "off":
            self._next = math.inf

    def due(self, step: int) -> bool:
        """Whether this step is to be recorded. Asked in ascending order of steps."""
        if step != self._asked:
            self._before = step - 1 if self._asked is None else min(self._asked, step - 1)
            self._asked = step
        if self.is_auto:
            if self._last_step is None:
                self._last_step = step - 1
            if self._clock() < self._next:
                return False
            if not self._interval:
                passed = max(1, step - self._last_step)
                self._interval = 1 << (passed - 1).bit_length()
        elif not self._interval:
            return bisect_right(self._steps, step) > bisect_right(self._steps, self._before)
        return step // self._interval > self._before // self._interval

    def spent(self, step: int, seconds: float) -> None:
        """Say what a record at this step took."""
        self.spent_seconds += seconds
        self.records += 1
        if self.is_auto:
            self._last_step, self._interval = step, 0
            begun = self._clock() - seconds
            self._next = max(self._next, begun) + seconds / self._budget

    def late(self, seconds: float, host_seconds: float = 0.0) -> None:
        """Say what the last record took besides: of a device, which tells later, and here."""
        self.spent_seconds += seconds + host_seconds
        self.late_seconds += seconds
        if self.is_auto:
            self._next += (seconds + host_seconds) / self._budget


@dataclass(frozen=True, slots=True)
class Plan:
    """What is recorded at a step beside the moments."""

    histograms: bool
    snapshot: bool


class Schedule:
    """The paces of moments, histograms and snapshots of one fit, within one budget.

    Parameters
    ----------
    every, histograms, snapshots : int, sequence of int, 'auto' or 'off'
        Steps between records of each; a sequence names the steps. A histogram is taken of what
        is recorded anyway, at the first such step from the wanted one on. At the steps of a
        snapshot, where they are given, everything is recorded.
    budget : float
        Share of the time that those with 'auto' may take together.
    estimate : float, default 0.0
        Seconds that the first record of moments will take about.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        *,
        every: Every = "auto",
        histograms: Every = "auto",
        snapshots: Every = "off",
        budget: float = 0.02,
        estimate: float = 0.0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        wanted = {"moments": every, "histograms": histograms, "snapshots": snapshots}
        shares = {name: _SHARES[name] for name, value in wanted.items() if value == "auto"}
        total = sum(shares.values())

        def pace(name: str, estimate: float) -> Pace:
            share = shares[name] / total if name in shares else 1.0
            return Pace(wanted[name], budget * share, estimate=estimate, clock=clock)

        self.moments = pace("moments", estimate)
        self.histograms = pace("histograms", 3 * estimate)
        self.snapshots = pace("snapshots", 2 * estimate)
        self._unit = every if isinstance(every, int) else 1

    def plan(self, step: int) -> Plan | None:
        """What to record at this step; None where nothing is. Asked in ascending order."""
        # A snapshot that was asked for is due at its step, whatever the pace of the rest.
        wanted = not self.snapshots.is_auto and self.snapshots.due(step)
        if not self.moments.due(step) and not wanted:
            return None
        return Plan(
            self.histograms.due(self._counted(self.histograms, step)),
            wanted or (self.snapshots.is_auto and self.snapshots.due(step // self._unit)),
        )

    def spent(
        self, step: int, moments: float, histograms: float = 0.0, snapshot: float = 0.0
    ) -> None:
        """Say what the record of a step took, in seconds; 0 for what was not part of it."""
        self.moments.spent(step, moments)
        if histograms:
            self.histograms.spent(self._counted(self.histograms, step), histograms)
        if snapshot:
            self.snapshots.spent(self._counted(self.snapshots, step), snapshot)

    def late(self, seconds: float, host_seconds: float = 0.0) -> None:
        """Say what the last record took besides: of a device, which tells later, and here."""
        self.moments.late(seconds, host_seconds)

    @property
    def paces(self) -> tuple[Pace, Pace, Pace]:
        """Those of moments, histograms and snapshots."""
        return self.moments, self.histograms, self.snapshots

    @property
    def spent_seconds(self) -> float:
        """What all records took so far."""
        return sum(pace.spent_seconds for pace in self.paces)

    def _counted(self, pace: Pace, step: int) -> int:
        """An interval that is found out is one of records, a given one is of steps."""
        return step // self._unit if pace.is_auto else step
