"""Files on their way in: what has come of each, on the disk, and the digest of it.

A part outlives its connection and the server. Knows digests and a folder; knows no store.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tachograph.errors import Busy

KEPT_SECONDS = 7 * 86_400.0
"""How long a part waits for the rest."""

_IDLE = 100  # parts whose digest goes on from where it is; of others it is made again
_SWEEP_SECONDS = 3600.0
_CHUNK = 1 << 20


class Part:
    """The first bytes of a file. It is one request's at a time.

    Attributes
    ----------
    path : Path
    size : int
        How many bytes there are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def open(self, *, anew: bool = False) -> None:
        """Take up what is on the disk; throw it away where the file comes `anew`."""
        mode = "w+b" if anew or not self.path.exists() else "r+b"
        self._file = self.path.open(mode, buffering=0)
        if self.size != self._file.seek(0, 2):  # of an earlier server, or a write that failed
            self._file.seek(0)
            self.size, self._digest = 0, hashlib.sha256()
            while chunk := self._file.read(_CHUNK):
                self._digest.update(chunk)
                self.size += len(chunk)

    def append(self, data: bytes) -> None:
        """Add bytes; OSError where there is no room."""
        assert self._file is not None
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Let go of the file."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    @property
    def sha256(self) -> str:
        """The digest of what there is."""
        return self._digest.hexdigest()


class Parts:
    """The parts in a folder, by the digests that their files should have.

    Parameters
    ----------
    folder : Path
        Made when the first part comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._busy: set[str] = set()
        self._idle: OrderedDict[str, Part] = OrderedDict()
        self._lock = threading.Lock()
        self._sweep_due = 0.0

    def size(self, sha256: str) -> int:
        """How many bytes have come; 0 where none has."""
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def taken(self, sha256: str) -> Iterator[Part]:
        """A part, for one request alone.

        Raises
        ------
        Busy
            Another request has it.
        """
        self._sweep()
        with self._lock:
            if sha256 in self._busy:
                raise Busy(f"{sha256} comes in another request already", 2.0)
            self._busy.add(sha256)
            part = self._idle.pop(sha256, None) or Part(self._path(sha256))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            yield part
        finally:
            part.close()
            with self._lock:
                self._busy.discard(sha256)
                if part.size:
                    self._idle[sha256] = part
                if len(self._idle) > _IDLE:
                    self._idle.popitem(last=False)

    def remove(self, part: Part) -> None:
        """Throw a part away."""
        part.close()
        part.path.unlink(missing_ok=True)
        part.size = 0

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.part"

    def _sweep(self) -> None:
        """Remove parts whose rest did not come, once an hour."""
        now = time.time()
        if now < self._sweep_due:
            return
        self._sweep_due = now + _SWEEP_SECONDS
        for path in self._folder.glob("*.part"):
            with self._lock, contextlib.suppress(OSError):
                if path.stem not in self._busy and now - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()
