"""Calls that differ between operating systems: locks, flushing, who runs on this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED = "Tachograph records on Linux and macOS; on this system nothing is recorded."


def can_record() -> bool:
    """Whether this system has the file locks that a journal needs."""
    return fcntl is not None and hasattr(os, "register_at_fork")


def lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file; False where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def wait_for_lock(descriptor: int) -> None:
    """Take the exclusive lock of an open file when others gave it up; OSError where none is."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def unlock(descriptor: int) -> None:
    """Give up the lock of an open file, also for forks that have a copy of the descriptor."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def sync_data(descriptor: int) -> None:
    """Return when the written bytes of a file are on the disk."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Return when what was written to a file by anyone is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_data(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def host_name() -> str:
    """The name of this machine."""
    if hasattr(os, "uname"):  # the module socket costs milliseconds at the start of a run
        return os.uname().nodename
    import platform

    return platform.node()


@functools.cache
def boot_id() -> str:
    """An id that changes when this machine starts anew."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return _run("sysctl", "-n", "kern.bootsessionuuid")


def process_started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks or as text; None where it is gone.

    A pid is used again after a while; together with this it is not.
    """
    if os.path.isdir("/proc/self"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    return _run("ps", "-o", "lstart=", "-p", str(pid)) or None


def is_alive(writer: Mapping[str, Any]) -> bool | None:
    """Whether a process still runs; None where it is on another machine.

    Parameters
    ----------
    writer : mapping
        host, boot_id, pid and pid_started, as a journal's header and the table `writers` have
        them.
    """
    if (writer.get("host") or "") != host_name():
        return None
    boot = writer.get("boot_id")
    if boot and boot != boot_id():
        return False
    now, started = process_started(writer.get("pid") or 0), writer.get("pid_started")
    return now is not None and (started is None or now == started)


def _run(*command: str) -> str:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def started_with(variable: str) -> str | None:
    """The value of an environment variable as the process was started, whatever it is now.

    Where the system does not tell (all but Linux), as it is now.
    """
    try:
        with open("/proc/self/environ", "rb") as stream:
            entries = stream.read().split(b"\0")
    except OSError:
        return os.environ.get(variable)
    head = f"{variable}=".encode()
    return next((os.fsdecode(e[len(head) :]) for e in entries if e.startswith(head)), None)
