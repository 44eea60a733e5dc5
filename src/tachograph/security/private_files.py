"""Small files that hold secrets: their owner's alone, replaced whole, edited by one at a time.

Knows no secret.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tachograph.host import sync_data, sync_folder, wait_for_lock


def write_private(path: Path, text: str) -> None:
    """Replace a file, readable by its owner alone; others see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        # With its final mode from the start: there is no moment at which others could open it.
        with open(_create(temporary, os.O_EXCL), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            sync_data(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(str(path.parent))


@contextmanager
def edited(path: Path) -> Iterator[None]:
    """Keep other processes from editing a file meanwhile; makes its folder, its owner's alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = _create(path.with_name(f".{path.name}.lock"))
    try:
        wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _create(path: Path, flags: int = 0) -> int:
    # Through no link: whoever owns the folder could have root give another file away.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)
    if os.geteuid() == 0:  # it belongs to whom the folder does, as to a server that is no root
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def others_may_read(path: Path) -> bool:
    """Whether anyone but its owner may read or change a file."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
