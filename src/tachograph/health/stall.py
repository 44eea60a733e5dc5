"""A run from which nothing comes any more, although it used to."""

from __future__ import annotations

from tachograph.health.findings import Finding

_IDLE = 0.05  # processors; the threads of an interpreter that waits use less
_BUSY_PATIENCE = 6.0
_OF_USUAL = 20.0
_OF_LONGEST = 3.0
_FEWEST = 20


class Stall:
    """Nothing has been recorded of a run for far longer than usual.

    It must be silent for `seconds`, for twenty times its usual pause and for three times the
    longest one so far, so that an evaluation at each epoch does not count. A process that
    computes may be in its first long evaluation, and gets six times as long; one that waits for
    something that does not come (a worker, a lock, a network) has nothing to do.

    Parameters
    ----------
    seconds : float
        Of silence at least.
    """

    name = "stalled"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: float | None = None
        self._last = 0.0
        self._longest = 0.0
        self._times = 0
        self._processor = 0.0

    def heard(self, now: float, processor: float) -> None:
        """Say that something was recorded; both in seconds, `processor` of the process."""
        if self._first is None:
            self._first = now
        elif now > self._last:
            self._longest = max(self._longest, now - self._last)
        if now > self._last or not self._times:
            self._times += 1
        self._last, self._processor = now, processor

    def look(self, now: float, processor: float) -> Finding | None:
        """Whether it has been silent for too long."""
        if self._first is None or self._times < _FEWEST:
            return None
        silence = now - self._last
        usual = (self._last - self._first) / (self._times - 1)
        if silence < max(self._seconds, _OF_USUAL * usual, _OF_LONGEST * self._longest):
            return None
        load = (processor - self._processor) / silence
        if load > _IDLE and silence < _BUSY_PATIENCE * self._seconds:
            return None
        message = (
            f"nothing new for {silence / 60:.0f} min, usually something each {usual:.2g} s; "
            f"the process uses {load:.1f} processors"
        )
        evidence = {
            "value": silence,
            "usual": usual,
            "longest": self._longest,
            "processors": load,
            "threshold": self._seconds,
        }
        return Finding(self.name, "warning", message, None, evidence)
