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
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
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
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def others_may_read(path: Path) -> bool:
    """Whether anyone but its owner may read or change a file."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
