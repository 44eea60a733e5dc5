"""One flush to the disk for all requests that wait for one.

Knows when something was written and when it is safe, not what it is.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager


class GroupCommit:
    """Whoever comes first flushes for all who have written by then; the others wait for that.

    Parameters
    ----------
    lock : lock
        Held by whoever writes, while it writes and looks at `failures`.
    sync : callable
        Returns when everything that was written before is on the disk; OSError where it is not.
    written : callable
        The number behind the last record that was written.
    undo : callable
        Called after a failure, with the lock and the number before which everything is on the
        disk: what comes behind it may be lost, and is as if it had never been written.

    Attributes
    ----------
    durable : int
        Records before this number are on the disk.
    failures : int
        How many flushes have failed.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        sync: Callable[[], None],
        written: Callable[[], int],
        undo: Callable[[int], None],
    ) -> None:
        self.durable = 0
        self.failures = 0
        self._lock, self._sync = lock, sync
        self._written, self._undo = written, undo
        self._turn = threading.Lock()

    def wait(self, number: int, failures: int) -> None:
        """Return when the records before `number` are on the disk.

        Parameters
        ----------
        number : int
        failures : int
            What `failures` was when the last of them was written.

        Raises
        ------
        OSError
            A flush has failed since then.
        """
        if self._is_safe(number, failures):
            return
        with self._turn:
            if self._is_safe(number, failures):
                return
            with self._lock:
                written = self._written()
            try:
                self._sync()
            except OSError:
                # A later flush may succeed without these: the system has forgotten them.
                with self._lock:
                    self.failures += 1
                    self._undo(self.durable)
                raise
            self.durable = written

    def _is_safe(self, number: int, failures: int) -> bool:
        durable = self.durable  # read first: a failure after this does not matter
        if self.failures != failures:
            raise OSError(errno.EIO, "the disk has failed to take what was written")
        return number <= durable
