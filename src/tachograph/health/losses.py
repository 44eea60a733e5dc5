"""The loss of a training: it diverges, or has never improved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from tachograph.health.findings import Finding, middle

WINDOW = 5
"""Values of which the median counts, so that no single batch does."""


class Window(NamedTuple):
    """Some values of a loss in a row: the last one's step, and the middle one of them."""

    step: int | None
    middle: float


class LossRule(Protocol):
    """Looks at one loss, window by window."""

    name: str

    def add(self, window: Window) -> Finding | None:
        """Take the next window."""


class Loss:
    """The values of one loss on their way to its rules.

    Parameters
    ----------
    rules : iterable of LossRule
    """

    def __init__(self, rules: Iterable[LossRule]) -> None:
        self.rules = list(rules)
        self._waiting: list[tuple[int | None, float]] = []

    def add(self, points: Sequence[tuple[int | None, float]]) -> list[Finding]:
        """Take points in order, all of them finite."""
        found: list[Finding] = []
        waiting = self._waiting
        waiting += points
        whole = len(waiting) - len(waiting) % WINDOW
        for start in range(0, whole, WINDOW):
            part = waiting[start : start + WINDOW]
            window = Window(part[-1][0], middle([value for _, value in part]))
            for rule in self.rules:
                if finding := rule.add(window):
                    found.append(finding)
        del waiting[:whole]
        return found


class Beginning:
    """Where a loss began: the highest of its first windows, whose single values say little."""

    _WINDOWS = 3

    def __init__(self) -> None:
        self.level = -math.inf
        self._windows = 0

    def takes(self, window: Window) -> bool:
        """Whether a window still belongs to it."""
        if self._windows == self._WINDOWS:
            return False
        self._windows += 1
        self.level = max(self.level, window.middle)
        return True


class Divergence:
    """The loss is far above where it began, and stays there.

    Parameters
    ----------
    metric, context : str
        Which loss.
    factor : float
        Times its beginning, where that is above zero; as far above it where it is below.
    """

    name = "divergence"
    _IN_A_ROW = 5  # windows

    def __init__(self, metric: str, context: str, factor: float) -> None:
        self._metric, self._context = metric, context
        self._factor = factor
        self._beginning = Beginning()
        self._limit = math.inf
        self._windows = 0

    def add(self, window: Window) -> Finding | None:
        """Take the next window."""
        if self._beginning.takes(window):
            level = self._beginning.level
            self._limit = level + (self._factor - 1) * abs(level)
            return None
        if window.middle <= self._limit:
            self._windows = 0
            return None
        self._windows += 1
        if self._windows != self._IN_A_ROW:
            return None
        level = self._beginning.level
        message = (
            f"'{self._metric}' diverges: {window.middle:.4g} at step {window.step}, "
            f"{level:.4g} at the beginning"
        )
        evidence = {
            "metric": self._metric,
            "context": self._context,
            "value": window.middle,
            "beginning": level,
            "threshold": self._factor,
        }
        return Finding(self.name, "warning", message, window.step, evidence)


class Plateau:
    """The loss has not improved since the beginning.

    After so many values their second half is compared with the first, and with the beginning: it
    is a plateau where neither differs by more than chance (two standard errors of a difference of
    means; three standard deviations of a window). Once a loss has improved, a plateau is what a
    converged training looks like, and nothing is said of it.

    Parameters
    ----------
    metric, context : str
        Which loss.
    count : int
        Values to look at.
    """

    name = "plateau"

    def __init__(self, metric: str, context: str, count: int) -> None:
        self._metric, self._context = metric, context
        self._wanted = max(1, count // (2 * WINDOW))  # windows of each half
        self._beginning = Beginning()
        self._halves: tuple[list[float], list[float]] = ([], [])
        self._is_done = False

    def add(self, window: Window) -> Finding | None:
        """Take the next window."""
        if self._is_done:
            return None
        self._beginning.takes(window)
        first, second = self._halves
        half = first if len(first) < self._wanted else second
        half.append(window.middle)
        if len(second) < self._wanted:
            return None
        self._is_done = True
        finding = self._judge(window.step)
        self._halves = ([], [])
        return finding

    def _judge(self, step: int | None) -> Finding | None:
        (before, before_square), (after, after_square) = map(_mean_and_variance, self._halves)
        error = math.sqrt((before_square + after_square) / self._wanted)
        beginning, deviation = self._beginning.level, math.sqrt(after_square)
        if before - after > 2 * error or beginning - after > 3 * deviation:
            return None
        count = 2 * self._wanted * WINDOW
        message = (
            f"'{self._metric}' has not improved over its first {count:,} values: "
            f"{after:.4g} at step {step}, {beginning:.4g} at the beginning"
        )
        evidence = {
            "metric": self._metric,
            "context": self._context,
            "value": after,
            "beginning": beginning,
            "threshold": count,
        }
        return Finding(self.name, "warning", message, step, evidence)


def _mean_and_variance(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)
