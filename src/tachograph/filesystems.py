"""What kind of file system a path lies on: asked by the registry and by stores, knows neither."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Not 9p and virtiofs: local sandboxes and virtual machines show them for disks of their own host.
# fmt: off
NETWORK_TYPES = frozenset({
    "afpfs", "afs", "alluxio", "beegfs", "blobfuse", "blobfuse2", "ceph", "cifs", "coda", "davfs",
    "gcsfuse", "glusterfs", "goofys", "gpfs", "hdfs", "juicefs", "lustre", "mfs", "moosefs",
    "mount-s3", "ncpfs", "nfs", "nfs3", "nfs4", "orangefs", "panfs", "pvfs2", "quobyte", "rclone",
    "s3fs", "seaweedfs", "smb2", "smb3", "smbfs", "sshfs", "webdav", "wekafs",
})
# fmt: on
_OCTAL = re.compile(r"\\([0-7]{3})")
_BSD_LINE = re.compile(r"^.* on (?P<point>/.*) \((?P<type>[^,)]+)[^()]*\)$")


def is_network_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path, which need not exist yet, lies on a network file system.

    False where the platform does not tell.
    """
    return file_system_type(path).removeprefix("fuse.") in NETWORK_TYPES


def file_system_type(path: str | os.PathLike[str]) -> str:
    """Type of the mount that holds a path, as the platform names it; '' where it does not tell."""
    real = os.path.realpath(path)
    found, longest = "", -1
    for point, kind in _mounts():
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # of two mounts at one point the later one shows
            found, longest = kind, len(point)
    return found


def _mounts() -> Iterator[tuple[str, str]]:
    """Mount points and their types, in the order of mounting."""
    try:
        table = Path("/proc/self/mounts").read_bytes()
    except OSError:
        yield from _parse_bsd(_ask_mount())
    else:
        yield from _parse_proc(os.fsdecode(table))


def _ask_mount() -> str:
    if sys.platform != "darwin":
        return ""
    import subprocess

    try:  # lists the kernel's table; does not touch the mounts, so a dead server cannot block it
        return subprocess.check_output(["/sbin/mount"], text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""


def _parse_proc(table: str) -> Iterator[tuple[str, str]]:
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) > 2:
            yield _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[1]), fields[2]


def _parse_bsd(listing: str) -> Iterator[tuple[str, str]]:
    for line in listing.splitlines():
        if match := _BSD_LINE.match(line):
            yield match["point"], match["type"]
