"""A server's folder: held by one server at a time, and cleared of what an earlier one left there.

Knows journals and stores; knows no route.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from tachograph import host
from tachograph.delivery.drain import Stores, alone, orphan, send_journal
from tachograph.errors import StoreError
from tachograph.journal_reader import JournalReader, list_journals
from tachograph.warning import warn_once


def take_folder(folder: Path) -> int:
    """Take a folder for one server, and return the descriptor that holds it until it is closed.

    Raises
    ------
    StoreError
        Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not host.lock(descriptor):
        other = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreError(
            f"{folder} belongs to a server that runs ({other or 'unknown process'}); stop that one,"
            " or give this one another store and folder"
        )
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {host.host_name()}\n".encode())
    return descriptor


def bring_in(folder: Path, stores: Sequence[str]) -> list[str]:
    """Bring the journals that earlier servers left in a folder into the stores.

    They go into the stores of today, whatever their names were then: a store may have been moved
    together with them.

    Returns
    -------
    list of str
        The stores that do not have everything yet.
    """
    lacking: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, wait=10.0) as is_alone:
        if not is_alone:
            return [*stores]
        for writer, parts in list_journals(folder).items():
            with orphan(folder, writer, parts) as facts, Stores() as opened:
                if facts is None:
                    continue
                try:
                    send_journal(folder, writer, stores, opened)
                except StoreError as error:
                    warn_once(str(error), key=f"leftover {writer}")
                    lacking |= {url for url in stores if not _has_all(folder, writer, opened, url)}
    return sorted(lacking, key=stores.index)


def _has_all(folder: Path, writer: str, stores: Stores, url: str) -> bool:
    """Whether a store has everything that a journal holds."""
    with contextlib.suppress(Exception):
        reader = JournalReader(folder, writer, stores.ask(url, writer)[1])
        return reader.read(1, whole=True) is None
    return False
