"""Looks whether stores and journals are sound, and mends what can be mended."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tachograph import filesystems, host, registry
from tachograph.backends.base import Backend, Condition, Query, SupportsAbout
from tachograph.config import Config
from tachograph.delivery import drain, outbox
from tachograph.errors import StoreNotFound, TachographError
from tachograph.journal import part_path
from tachograph.journal_reader import JournalReader, list_journals, read_header
from tachograph.reading.portions import chunks
from tachograph.records import FORMAT_VERSION, now_us
from tachograph.security.credentials import locate_token

_LITTLE_SPACE = 1 << 30
_CLOCKS_APART = 5.0  # seconds; what a request takes, and the second to which a server says it


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
    findings = [*_journals(folder, repair), *_files(folder)]
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


def _files(folder: Path) -> list[Finding]:
    """What waits in the outbox, per store."""
    waiting: dict[str, list[int]] = {}
    for parcel in outbox.waiting(folder):
        for url in parcel.urls:
            waiting.setdefault(url, []).append(parcel.bytes)
    return [
        Finding(
            "warning",
            f"files that wait in {folder} for {url}: {len(sizes)} ({sum(sizes)} bytes)",
            "a process that records sends them, and `tachograph sync`",
        )
        for url, sizes in sorted(waiting.items())
    ]


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
        advice = "what is recorded waits in journals meanwhile" if registry.is_far(url) else ""
        return [Finding("problem", f"{url} cannot be opened: {error}", advice)]
    try:
        if isinstance(backend, SupportsAbout):
            return [*_server(backend, url), *_lost(backend, url, repair)]
        count = len(backend.read(Query("runs", columns=["run_id"])))
        return [Finding("ok", f"{url} opens and holds {count} runs"), *_lost(backend, url, repair)]
    except TachographError as error:
        return [Finding("problem", f"{url} cannot be read: {error}")]
    finally:
        backend.close()


def _server(backend: SupportsAbout, url: str) -> list[Finding]:
    """Versions, token and clock of a server."""
    started = time.monotonic()
    about = backend.about()
    milliseconds = (time.monotonic() - started) * 1000
    found = locate_token(url)
    token = about.get("token") or {}
    rights, projects = token.get("rights") or [], token.get("projects")
    where = "in all projects" if projects is None else f"in {', '.join(projects)}"
    findings = [
        Finding(
            "ok",
            f"{url} answers in {milliseconds:.0f} ms: version {about.get('version')}, protocol "
            f"{', '.join(map(str, about.get('protocols', ())))}",
        ),
        Finding(
            "ok",
            f"the token {token.get('name')!r}, from {found[1] if found else 'nowhere'}, has the "
            f"right to {', '.join(rights) or 'nothing'} {where}",
        ),
    ]
    if about.get("format", FORMAT_VERSION) < FORMAT_VERSION:
        message = f"{url} has an older version of the tables than this machine records"
        findings.append(Finding("problem", message, "update the server"))
    if not {"write", "admin"} & set(rights):
        message = f"the token for {url} may not write: what is recorded stays in journals"
        findings.append(Finding("warning", message, "ask for a token with the right to write"))
    said = about.get("time")
    ahead = 0.0 if said is None else (said - now_us()) / 1e6
    if abs(ahead) > _CLOCKS_APART:
        findings.append(
            Finding(
                "warning",
                f"the clock of {url} is {abs(ahead):.0f} s "
                f"{'ahead of' if ahead > 0 else 'behind'} that of this machine",
                "let both keep time (NTP): times of runs of several machines are compared",
            )
        )
    return findings


def _lost(backend: Backend, url: str, repair: bool) -> list[Finding]:
    running = backend.read(Query("attempts", [Condition("status", "=", "running")], ["writer"]))
    owners = sorted(set(running["writer"]))
    gone = [
        row["writer"]
        for some in chunks(owners)
        for row in backend.read(Query("writers", [Condition("writer", "in", some)]))
        if host.is_alive(row) is False
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
