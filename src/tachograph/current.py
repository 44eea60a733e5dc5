"""Which run is current: by context, and across threads that inherit none.

A thread pool does not copy its submitter's context, and joblib pickles in a thread of its own;
both find the run that this process activated last.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tachograph.run import Run

_context: contextvars.ContextVar[Run | None] = contextvars.ContextVar("tachograph", default=None)
_process: list[Run] = []


def current_run() -> Run | None:
    """The run that is open here, or None.

    The innermost of this context; where the context has none, as in a worker thread, the one
    that this process activated last.
    """
    run = _context.get()
    if run is not None and run.is_open:
        return run
    for run in reversed(_process):
        if run.is_open:
            return run
    return None


def activate(run: Run) -> None:
    """Make a run current from here on, until it is deactivated."""
    _context.set(run)
    _process.append(run)


def deactivate(run: Run) -> None:
    """Let the run's nearest open ancestor be current again."""
    if run in _process:
        _process.remove(run)
    if _context.get() is run:
        outer = run.parent
        while outer is not None and not outer.is_open:
            outer = outer.parent
        _context.set(outer)


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
