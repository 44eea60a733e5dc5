"""Looks whether stores and journals are sound, and mends what can be mended."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tachograph import drain, filesystems, host, registry
from tachograph.backends.base import Backend, Condition, Query
from tachograph.config import Config
from tachograph.errors import StoreNotFound, TachographError
from tachograph.journal import part_path
from tachograph.journal_reader import JournalReader, list_journals, read_header

_LITTLE_SPACE = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    level : {'ok', 'repaired', 'warning', 'problem'}
    message : str
        What was found.
    advice : str
        What to do about it.
    """

    level: Literal["ok", "repaired", "warning", "problem"]
    message: str
    advice: str = ""

    def as_row(self) -> dict[str, Any]:
        """As columns."""
        return asdict(self)


def examine(config: Config, *, repair: bool = False) -> list[Finding]:
    """Examine the configured stores and their journals.

    Parameters
    ----------
    config : Config
        Which stores.
    repair : bool, default False
        Send orphaned journals to their stores, and mark runs as lost whose process is gone.
    """
    folder = registry.journal_folder(config.backend, config.journal)
    findings = _journals(folder, repair)
    for url in config.backend:
        findings += _store(url, repair)
    findings.append(_space(folder))
    return findings


def _journals(folder: Path, repair: bool) -> list[Finding]:
    findings = []
    sent = set(drain.drain_orphans(folder)) if repair else set()
    for writer in sorted(sent):
        findings.append(Finding("repaired", f"the journal of {writer} was sent to its stores"))
    for writer, parts in list_journals(folder).items():
        header = read_header(part_path(folder, writer, parts[-1]))
        alive = host.is_alive(header)
        findings.append(_journal(folder, writer, alive))
    if not findings:
        findings.append(Finding("ok", f"no journals wait in {folder}"))
    return findings


def _journal(folder: Path, writer: str, alive: bool | None) -> Finding:
    reader = JournalReader(folder, writer)
    waiting = reader.waiting_bytes()
    while reader.read(8 << 20, whole=alive is False) is not None:
        pass
    damage = reader.damage
    if damage.bytes:
        return Finding(
            "problem",
            f"the journal of {writer} has {damage.bytes} damaged bytes in {damage.places} places",
            "what is whole is read; the damaged records are gone",
        )
    if alive:
        return Finding("ok", f"the journal of {writer} is being written ({waiting} bytes)")
    where = "a process that is gone" if alive is False else "a process on another machine"
    return Finding(
        "warning",
        f"the journal of {writer}, of {where}, holds {waiting} bytes",
        "add --repair, or run `tachograph sync`, to send it",
    )


def _store(url: str, repair: bool) -> list[Finding]:
    try:
        backend = registry.open_backend(url)
    except StoreNotFound:
        return [Finding("ok", f"{url} is not made yet")]
    except TachographError as error:
        return [Finding("problem", f"{url} cannot be opened: {error}")]
    try:
        count = len(backend.read(Query("runs", columns=["run_id"])))
        return [Finding("ok", f"{url} opens and holds {count} runs"), *_lost(backend, url, repair)]
    except TachographError as error:
        return [Finding("problem", f"{url} cannot be read: {error}")]
    finally:
        backend.close()


def _lost(backend: Backend, url: str, repair: bool) -> list[Finding]:
    running = backend.read(Query("attempts", [Condition("status", "=", "running")]))
    owners = {row["writer"] for row in running}
    gone = [
        row["writer"]
        for row in backend.read(Query("writers"))
        if row["writer"] in owners and host.is_alive(row) is False
    ]
    if not gone:
        return []
    if repair:
        lost = [run for writer in gone for run in drain.mark_lost(backend, writer)]
        return [Finding("repaired", f"{len(lost)} runs in {url} are marked as lost")]
    return [
        Finding(
            "warning",
            f"{len(gone)} processes left runs in {url} as running",
            "add --repair to mark these as lost",
        )
    ]


def _space(folder: Path) -> Finding:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < _LITTLE_SPACE:
        return Finding("problem", f"only {free >> 20} MiB are free in {place}", "make room")
    if filesystems.is_network_path(place):
        return Finding(
            "problem",
            f"journals in {place} lie on a network file system, where locks cannot be trusted",
            "set journal = to a local folder in the config file",
        )
    return Finding("ok", f"{free >> 30} GiB are free in {place}")
