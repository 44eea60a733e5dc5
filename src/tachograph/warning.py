"""Saying something once, from inside a training."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable

from tachograph.errors import TachographWarning

_PACKAGE = __name__.partition(".")[0]
_lock = threading.RLock()  # a signal handler may warn in the middle of a warning
_said: set[str] = set()


def warn_once(message: str, *, key: str | None = None) -> None:
    """Warn with `message`, unless something with the same `key` was said in this process.

    The warning names the line outside this package from which it came to this.
    """
    with _lock:
        if (key or message) in _said:
            return
        _said.add(key or message)
    try:
        warnings.warn(f"Tachograph: {message}", TachographWarning, stacklevel=_outside())
    except TachographWarning:  # a filter made it an error: it must not reach the training
        say(message)


def _outside() -> int:
    """How many frames lie between `warn_once` and the first caller outside this package.

    A thread of ours has none: `threading` is left out as well, and `warnings` names no line then.
    """
    level, frame = 1, sys._getframe().f_back
    while frame is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_inside(module: str) -> bool:
    return module.startswith(_PACKAGE) or module == "threading"


def run_task(task: Callable[[], None]) -> None:
    """Run something beside the training: a failure is said once."""
    try:
        task()
    except Exception as error:
        warn_once(f"recording in the background failed: {type(error).__name__}: {error}")


def say(message: str) -> None:
    """Print a line to stderr, whatever state the interpreter is in."""
    try:
        os.write(2, f"tachograph: {message}\n".encode(errors="backslashreplace"))
    except OSError:
        return


def forget_warnings() -> None:
    """Let everything be said again; for tests and forked children."""
    global _lock
    _lock = threading.RLock()
    _said.clear()
