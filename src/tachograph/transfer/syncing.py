"""Sends what waits on this machine: journals and files to their stores, a store's runs to another.

Each part may be interrupted and repeated: what was sent is known to the store that has it. Shows
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tachograph import host, registry
from tachograph.backends.base import Query
from tachograph.delivery import drain, outbox, patience
from tachograph.errors import ConfigError, StoreError
from tachograph.journal import part_path
from tachograph.journal_reader import list_journals
from tachograph.transfer.copying import CopyReport, copy_store

Progress = Callable[[str, int, int], None]
"""Told of 'journals' and 'files' (in bytes) and of 'records' how many were sent, of how many."""

LOCK_SECONDS = 10.0
"""How long to wait for another process that sends the same."""

Outcome = Literal["sent", "waiting", "running", "elsewhere"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a journal.

    Attributes
    ----------
    writer : str
        Whose it is.
    outcome : 'sent', 'waiting', 'running' or 'elsewhere'
        'waiting' is what could not be sent, for the reason in `problem`; journals of processes
        that run, here or on another machine, are theirs to send.
    stores : tuple of str
        Where it goes.
    bytes : int
        Of the journal.
    records : int
        How many were sent that a store did not have.
    problem : str
    """

    writer: str
    outcome: Outcome
    stores: tuple[str, ...]
    bytes: int
    records: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FilesReport:
    """What became of the files that waited.

    Attributes
    ----------
    sent, bytes : int
        How many were sent, each counted once a store.
    waiting, waiting_bytes : int
        How many are still there.
    problems : tuple of (str, str)
        Stores that did not take all, and why.
    """

    sent: int = 0
    bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    problems: tuple[tuple[str, str], ...] = ()


# ---------------------------------------------------------------------------- journals


def send_journals(folder: Path, progress: Progress | None = None) -> list[Verdict]:
    """Send the journals of processes that are gone to their stores; a bad one stops no other.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    progress : callable, optional
    """
    journals = [_Journal(folder, writer, parts) for writer, parts in list_journals(folder).items()]
    meter = _Meter(sum(one.size * len(one.sinks) for one in journals if one.is_left), progress)
    lanes: dict[Path, set[str]] = {}
    for url in sorted({url for one in journals if one.is_left for url in one.sinks}):
        lanes.setdefault(drain.lane(folder, url), set()).add(url)
    with drain.Stores(patience.LONGEST) as stores:
        for lane, urls in lanes.items():
            with drain.alone(lane, LOCK_SECONDS) as is_alone:
                for one in journals:
                    one.send(urls, stores if is_alone else None, meter)
    return [one.end() for one in journals]


class _Journal:
    """A journal, and what has become of it so far."""

    def __init__(self, folder: Path, writer: str, parts: list[int]) -> None:
        self._folder = folder
        self._writer = writer
        self._parts = parts
        self._facts = drain.facts_of(folder, writer, parts)
        self._records = 0
        self._problems: list[str] = []
        self.size = sum(_size(part_path(folder, writer, part)) for part in parts)
        self.sinks = set(drain.sinks_of(self._facts))
        with drain.orphan(folder, writer, parts) as facts:
            self.is_left = facts is not None
        if self.is_left and not self.sinks:
            self._problems.append(
                f"the journal of {writer} cannot be sent: its header is damaged and does not say"
                " where it goes"
            )

    def send(self, urls: set[str], stores: drain.Stores | None, meter: _Meter) -> None:
        """Send it to those of its stores that are among these; None is what is sent by others."""
        sinks = sorted(self.sinks & urls)
        if not self.is_left or not sinks:
            return
        if stores is None:
            self._problems.append(f"another process sends to {', '.join(sinks)} now")
            return
        before = meter.records
        with drain.orphan(self._folder, self._writer, self._parts) as facts:
            if facts is not None:  # else another process has sent it
                try:
                    drain.bring(self._folder, self._writer, sinks, stores, meter.add)
                except StoreError as error:
                    self._problems.append(str(error))
        self._records += meter.records - before

    def end(self) -> Verdict:
        """What became of it; one that all its stores have is removed."""
        if not self.is_left:
            is_elsewhere = bool(self._facts) and host.is_alive(self._facts) is None
            return self._verdict("elsewhere" if is_elsewhere else "running")
        if self._problems:
            return self._verdict("waiting")
        with drain.orphan(self._folder, self._writer, self._parts) as facts:
            if facts is not None:
                drain.delete_journal(self._folder, self._writer)
        return self._verdict("sent")

    def _verdict(self, outcome: Outcome) -> Verdict:
        sinks, problem = tuple(sorted(self.sinks)), "; ".join(self._problems)
        return Verdict(self._writer, outcome, sinks, self.size, self._records, problem)


class _Meter:
    """Counts what is sent of several journals, in bytes of `total` and in records."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self.records = 0

    def add(self, records: int, count: int) -> None:
        """Note that so many records and bytes more are in a store."""
        self.records += records
        self._done += count
        if self._progress:
            self._progress("journals", self._done, max(self._total, self._done))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---------------------------------------------------------------------------- files


def send_files(folder: Path, progress: Progress | None = None) -> FilesReport:
    """Send the files that wait beside the journals to the stores that need them."""
    waiting = outbox.waiting(folder)
    total = sum(parcel.bytes * len(parcel.urls) for parcel in waiting)
    sizes: list[int] = []

    def note(count: int) -> None:
        sizes.append(count)
        if progress:
            progress("files", sum(sizes), total)

    problems = outbox.send(folder, wait=LOCK_SECONDS, progress=note) if waiting else {}
    left = outbox.waiting(folder)
    return FilesReport(
        len(sizes),
        sum(sizes),
        len(left),
        sum(parcel.bytes for parcel in left),
        tuple((url, str(error)) for url, error in problems.items()),
    )


# ---------------------------------------------------------------------------- stores


def local_store(urls: tuple[str, ...], destination: str) -> str:
    """The first of these stores that lies on this machine.

    Raises
    ------
    ConfigError
        None does, or it is the destination.
    """
    for url in urls:
        if registry.local_path(url) is not None:
            if url == destination:
                raise ConfigError(f"{url} cannot be sent to itself")
            return url
    raise ConfigError(
        f"{', '.join(urls)} is not on this machine: name a local store with --store, or use "
        "`tachograph copy` between any two stores"
    )


def send_store(source: str, destination: str, progress: Progress | None = None) -> CopyReport:
    """Send the runs of one store that another does not have yet, with their files.

    Parameters
    ----------
    source, destination : str
        Absolute URLs.
    progress : callable, optional

    Raises
    ------
    StoreNotFound
        There is no such source.
    StoreError
        The destination does not take it; the message says how much waits.
    """
    with closing(registry.open_backend(source)) as here:
        try:
            with closing(registry.open_backend(destination, create=True)) as there:
                # Not proven: a source that is being recorded into, and a run that was edited
                # there, are no mistakes.
                return copy_store(here, there, progress=progress, proven=False)
        except StoreError as error:
            runs = len(here.read(Query("runs", columns=["run_id"])))
            raise StoreError(
                f"{error}; the {runs} runs in {source} stay there, and the same command sends "
                "later what is missing"
            ) from error
