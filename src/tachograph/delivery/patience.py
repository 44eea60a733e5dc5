"""Writing to a store that may say that it is busy, by someone who has time to wait.

A training never does: its journal waits instead (see `sink`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tachograph.errors import Busy, Full

if TYPE_CHECKING:
    from tachograph.backends.base import Backend
    from tachograph.records import Batch

LONGEST = 300.0
"""Seconds that a person who sends what was left behind waits for a server in a row."""


def write_patiently(backend: Backend, batch: Batch, longest: float = LONGEST) -> int:
    """Write a batch as `Backend.write`, again whenever a busy store said to come back.

    Raises
    ------
    Busy
        It would take more than `longest` seconds in all, or the disk of the server is full.
    """
    deadline = time.monotonic() + longest
    while True:
        try:
            return backend.write(batch)
        except Full:  # which a person has to see to
            raise
        except Busy as error:
            if time.monotonic() + error.retry_after > deadline:
                raise
            time.sleep(error.retry_after)
