"""Saying something once, from inside a training."""

from __future__ import annotations

import os
import sys
import threading
import warnings

from tachograph.errors import TachographWarning

_lock = threading.Lock()
_said: set[str] = set()


def warn_once(message: str, *, key: str | None = None) -> None:
    """Warn with `message`, unless something with the same `key` was said in this process."""
    with _lock:
        if (key or message) in _said:
            return
        _said.add(key or message)
    try:
        warnings.warn(f"Tachograph: {message}", TachographWarning, stacklevel=3)
    except TachographWarning:  # a filter made it an error: it must not reach the training
        say(message)


def say(message: str) -> None:
    """Print a line to stderr, whatever state the interpreter is in."""
    try:
        os.write(2, f"tachograph: {message}\n".encode(errors="backslashreplace"))
    except OSError:
        sys.stderr = sys.__stderr__


def forget_warnings() -> None:
    """Let everything be said again; for tests and forked children."""
    with _lock:
        _said.clear()
