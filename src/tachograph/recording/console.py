"""What a run prints, kept as events while it still reaches the terminal.

Only what goes through ``sys.stdout`` and ``sys.stderr`` is seen; programs started from the run
write past it, and so do processes that are forked from it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

from tachograph.security.texts import REDACTED, redact_text

if TYPE_CHECKING:
    from tachograph.run import Run

_MAX_LINE = 4_000
_BATCH = 200
_KEY_LINE = re.compile(r"\s*(?:[A-Za-z0-9+/=]+|[A-Z][\w-]*: .*)\s*")


class _Tee:
    """A text stream that hands complete lines to a run as well."""

    def __init__(self, stream: TextIO, name: str, console: Console) -> None:
        self.stream = stream
        self._name = name
        self._console = console
        self._line = ""
        self._process = os.getpid()

    def write(self, text: str) -> int:
        written = self.stream.write(text)
        if os.getpid() != self._process:  # a fork prints for itself
            return written
        try:
            *lines, self._line = (self._line + text).split("\n")
            self._line = self._line.rpartition("\r")[2][: 2 * _MAX_LINE]  # progress bars redraw
            for line in lines:
                self._console.add(self._name, line.rpartition("\r")[2])
        except Exception:  # printing must work whatever happens to the record
            self._line = ""
        return written

    def end(self) -> None:
        """Hand over a last line that was not ended."""
        line, self._line = self._line, ""
        if os.getpid() == self._process:
            self._console.add(self._name, line.rpartition("\r")[2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Console:
    """Captures stdout and stderr of this process for a run, until closed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._closed = False
        self._lines: deque[tuple[str, str]] = deque()  # no lock: a fork could find it taken
        self._in_key = False
        self._tees = [
            _Tee(sys.stdout, "stdout", self),
            _Tee(sys.stderr, "stderr", self),
        ]
        sys.stdout, sys.stderr = self._tees

    def add(self, stream: str, line: str) -> None:
        """Take a line; it is recorded with the next flush."""
        if self._closed or not line.strip():
            return
        if self._is_key(line):  # in another event than its head no line would look like one
            line = REDACTED
        if len(line) > _MAX_LINE:  # half a secret would not be known for one
            line = redact_text(line[: 2 * _MAX_LINE])[:_MAX_LINE]
        self._lines.append((stream, line))
        if len(self._lines) >= _BATCH:
            self.flush()

    def _is_key(self, line: str) -> bool:
        """Whether a line is part of a private key, which goes over many."""
        before = self._in_key
        if "PRIVATE KEY" in line:
            self._in_key = "-----BEGIN " in line.rpartition("-----END ")[2]
        elif before and not _KEY_LINE.fullmatch(line):
            self._in_key = False
        return before and self._in_key

    def flush(self) -> None:
        """Record the lines so far, those of one stream in a row as one event."""
        lines: list[tuple[str, str]] = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._lines.popleft())
        while lines:
            stream = lines[0][0]
            count = next((i for i, (name, _) in enumerate(lines) if name != stream), len(lines))
            text = "\n".join(line for _, line in lines[:count])
            self._run.event("console", text, data={"stream": stream})
            lines = lines[count:]

    def close(self) -> None:
        """Give the streams back, unless somebody has put others there since."""
        if sys.stdout is self._tees[0]:
            sys.stdout = self._tees[0].stream
        if sys.stderr is self._tees[1]:
            sys.stderr = self._tees[1].stream
        for tee in self._tees:
            tee.end()
        self.flush()
        self._closed = True
