"""How many clients are at work, and how often they should send because of that.

Knows no batch and no route.
"""

from __future__ import annotations

import time

_WINDOW = 30.0  # seconds
_A_SECOND = 200  # requests that a server answers without trouble
_LONGEST = 30.0


class Activity:
    """Counts the writers that were heard of in the last half minute. Its owner has the lock."""

    def __init__(self) -> None:
        self._now: set[str] = set()
        self._before = 0
        self._began = time.monotonic()

    def note(self, writer: str) -> None:
        """A writer has sent something."""
        self._turn()
        self._now.add(writer)

    @property
    def writers(self) -> int:
        """How many writers were heard of lately."""
        self._turn()
        return max(len(self._now), self._before)

    @property
    def interval(self) -> float:
        """Seconds that a client should wait until it sends again, from 1 to 30."""
        return min(max(self.writers / _A_SECOND, 1.0), _LONGEST)

    def _turn(self) -> None:
        passed = time.monotonic() - self._began
        if passed >= _WINDOW:
            self._before = len(self._now) if passed < 2 * _WINDOW else 0
            self._now, self._began = set(), time.monotonic()
