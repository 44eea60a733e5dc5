"""What is bulky goes to stores beside the records, which must not wait for it.

Files, and journals that processes left behind which are gone. Knows threads and folders; knows no
store and no run.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from pathlib import Path

from tachograph import registry
from tachograph.delivery.sink import Backoff
from tachograph.warning import run_task, warn_once

_END_SECONDS = 2.0
"""How long the end of a process waits for others that send to the same store."""


class Freight:
    """Sends in a thread of its own, with connections of its own, while the process records.

    A file of gigabytes takes minutes, in which points have to go on arriving each second. The
    thread is made where there is something to send, and ends with it.

    Parameters
    ----------
    folder : Path
        Where journals lie, and the outbox beside them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: set[str] = set()
        self._visited: set[str] = set()  # stores that have got what others left here
        self._backoff = Backoff()
        self._stop = False
        self._thread: threading.Thread | None = None

    def add(self, sha256: str) -> None:
        """Count a file of the outbox as one of this process, whose end waits for it."""
        self._own.add(sha256)

    def waiting(self, url: str) -> int:
        """How many files of this process a store does not have yet."""
        if not self._own:
            return 0
        from tachograph.delivery import outbox  # a start does without

        return sum(parcel.sha256 in self._own for parcel in outbox.waiting(self._folder, (url,)))

    def step(self, urls: tuple[str, ...]) -> None:
        """Send what waits for these stores, which are up; returns at once."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or self._stop or not urls or self._backoff.holds():
            return
        from tachograph.delivery import outbox

        new = tuple(filter(registry.is_far, set(urls) - self._visited))  # the others have theirs
        self._visited |= set(urls)
        if new or outbox.waiting(self._folder, urls):
            self._thread = threading.Thread(
                target=run_task,
                args=(functools.partial(self._work, urls, new),),
                name="tachograph freight",
                daemon=True,
            )
            with contextlib.suppress(RuntimeError):  # the interpreter is about to end
                self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; what is being sent may still arrive."""
        self._stop = True

    def finish(self, url: str) -> None:
        """Send the files of this process to a store, in the thread that calls.

        And what its workers have left: forked ones end without sending.
        """
        run_task(functools.partial(self._finish, url))

    # ------------------------------------------------------------------ inside

    def _finish(self, url: str) -> None:
        from tachograph.delivery.drain import drain_orphans  # a start does without

        drain_orphans(self._folder, (url,), wait=_END_SECONDS)
        if self.waiting(url):  # those of others may take longer than the end of this one may
            self._send((url,), wait=math.inf)

    def _work(self, urls: tuple[str, ...], new: tuple[str, ...]) -> None:
        if new:
            from tachograph.delivery.drain import drain_orphans  # a start does without
            from tachograph.delivery.patience import LONGEST

            drain_orphans(self._folder, new, wait=0.0, patience=LONGEST)
        self._send(urls)

    def _send(self, urls: tuple[str, ...], wait: float = 0.0) -> None:
        from tachograph.delivery import outbox

        problems = outbox.send(self._folder, urls, wait=wait)
        for url, error in problems.items():
            self._backoff.failed(error)
            warn_once(
                f"files cannot be sent to {url} ({error}); they wait in {self._folder}",
                key=f"{url} down",
            )
        if not problems:
            self._backoff.succeeded()
