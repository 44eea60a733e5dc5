"""Which run is current: by context, and across threads that inherit none.

A thread pool does not copy its submitter's context, and joblib pickles in a thread of its own;
both find the run that this process activated last on its main thread. What another worker
thread or another task of an event loop activated is not theirs.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tachograph.run import Run

_context: contextvars.ContextVar[Run | None] = contextvars.ContextVar("tachograph", default=None)


class _Activation(NamedTuple):
    """A run, and the thread and task that made it current."""

    run: Run
    thread: threading.Thread
    task: Any

    def reaches(self, thread: threading.Thread, task: Any) -> bool:
        """Whether it is current for that thread and task too, which inherited no context."""
        if task is not None and self.task not in (None, task) and not self.task.done():
            return False  # tasks beside each other
        return self.thread in (thread, threading.main_thread()) or not self.thread.is_alive()


_process: list[_Activation] = []


def current_run() -> Run | None:
    """The run that is open here, or None.

    The innermost of this context; where the context has none, as in a worker thread, the one
    that this process activated last on its main thread.
    """
    run = _context.get()
    if run is not None and run.is_open:
        return run
    if not _process:
        return None
    here = threading.current_thread(), _current_task()
    reaching = (one.run for one in reversed(_process) if one.run.is_open and one.reaches(*here))
    return next(reaching, None)


def activate(run: Run) -> None:
    """Make a run current from here on, until it is deactivated."""
    _context.set(run)
    _process.append(_Activation(run, threading.current_thread(), _current_task()))


def deactivate(run: Run) -> None:
    """Let the run's nearest open ancestor be current again."""
    for activation in tuple(_process):
        if activation.run is run:
            with contextlib.suppress(ValueError):  # another thread did it just now
                _process.remove(activation)
    if _context.get() is run:
        outer = run.parent
        while outer is not None and not outer.is_open:
            outer = outer.parent
        _context.set(outer)


def _current_task() -> Any:
    """The task of an event loop that runs here, or None; asyncio is not imported for it."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return None


@contextlib.contextmanager
def using(run: Run) -> Iterator[Run]:
    """Make a run current inside a ``with`` block, in this context only.

    For runs of which several are open side by side in threads: trials, folds, candidates.
    """
    token = _context.set(run)
    try:
        yield run
    finally:
        try:
            _context.reset(token)
        except ValueError:  # the block was left in another context than it was entered in
            _context.set(None)
