"""What files of code contain, with secrets taken out; each is read once per state of the file."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import time
from functools import lru_cache

from tachograph.provenance.contents import Content, content_of

FILE_BYTES = 4 << 20
"""Of a longer file the digest is recorded, and not the content."""

_CACHED_BYTES = 256 << 10  # a longer file is read again for each run
_HASHED_BYTES = 256 << 20
_MARGIN = 0.05  # seconds in which a new process has not imported anything yet


def read(file: str, facts: os.stat_result) -> Content:
    """Read a file.

    Raises
    ------
    OSError
        It cannot be read, or is no file.
    """
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("not a file")
    if facts.st_size <= _CACHED_BYTES:
        return _read_once(file, facts.st_mtime_ns, facts.st_size)
    if facts.st_size > FILE_BYTES:
        digest = _digest_once(file, facts.st_mtime_ns, facts.st_size)
        return Content(None, digest, facts.st_size, why=f"longer than {FILE_BYTES >> 20} MiB")
    return _read(file)


@lru_cache(maxsize=4096)
def _read_once(file: str, _changed: int, _size: int) -> Content:
    return _read(file)


def _read(file: str) -> Content:
    with open(file, "rb") as stream:
        return content_of(stream.read(FILE_BYTES))


@lru_cache(maxsize=1024)
def _digest_once(file: str, _changed: int, size: int) -> str | None:
    if size > _HASHED_BYTES:
        return None
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------------------- time


def is_newer_than_process(facts: os.stat_result) -> bool:
    """Whether a file was changed since this process began: it may have imported another content."""
    started = _process_started()
    return started is not None and facts.st_mtime > started + _MARGIN


@functools.cache
def _process_started() -> float | None:
    """When this process began (seconds since 1970); None where the system does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        since_boot = ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, ValueError, AttributeError):
        return None
