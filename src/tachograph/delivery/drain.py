"""What processes that are gone left in journals: brought into stores, or read from there.

Knows backends by their interface, opened through the registry, and no frameworks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tachograph import host, registry
from tachograph.batches import complete_row
from tachograph.delivery.patience import write_patiently
from tachograph.delivery.sink import leaves_out
from tachograph.errors import AccessDenied, Gap, StoreError, TachographError
from tachograph.journal import part_path
from tachograph.journal_reader import (
    JournalReader,
    list_journals,
    list_parts,
    read_header,
)
from tachograph.records import Batch, now_us, uuid7
from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.backends.base import Backend
    from tachograph.reading.live import Cursors


def drain_orphans(
    folder: Path, urls: tuple[str, ...] = (), *, wait: float = 10.0, patience: float = 0.0
) -> list[str]:
    """Bring the journals of dead processes into their stores; return the writers that are done.

    A run that such a process left as running becomes 'lost'. Journals of live processes, and
    of processes on other machines, are left alone.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    urls : tuple of str
        Only journals that go to one of these stores; empty is all. Of their other stores those
        are served too that are near; one that may be away has to be asked for.
    wait : float, default 10.0
        Seconds to wait for another process that does this here already.
    patience : float, default 0.0
        Seconds to wait for a store that is busy.
    """
    done: list[str] = []
    with Stores(patience) as stores:
        left = _LeftBehind(folder, urls, stores)
        for lane, chosen in left.lanes():
            with alone(lane, wait) as here:
                done += left.send_to(chosen) if here else []
    return done


class _LeftBehind:
    """The journals of dead processes in a folder, and the stores that they are sent to now."""

    def __init__(self, folder: Path, urls: tuple[str, ...], stores: Stores) -> None:
        self._folder = folder
        self._urls = urls
        self._stores = stores
        found = {
            url
            for writer, parts in list_journals(folder).items()
            for url in sinks_of(facts_of(folder, writer, parts), urls)
        }
        self._far = {url for url in found if registry.is_far(url) and (not urls or url in urls)}
        self._near = {url for url in found if not registry.is_far(url)}

    def lanes(self) -> Iterator[tuple[Path, set[str]]]:
        """What to lock, and the stores to send to meanwhile.

        Each that may be away has a lane of its own, so that it holds up no reader of the others.
        """
        for url in sorted(self._far):
            yield lane(self._folder, url), {url}
        if self._near:
            yield self._folder, self._near

    def send_to(self, chosen: set[str]) -> list[str]:
        """Send each journal to those of its stores that are chosen; return what is done."""
        done = []
        for writer, parts in list_journals(self._folder).items():
            with orphan(self._folder, writer, parts) as facts:
                sinks = set(sinks_of(facts, self._urls)) if facts is not None else set()
                if not sinks & chosen:
                    continue
                try:
                    end = bring(self._folder, writer, sinks & chosen, self._stores)
                    if self._all_have(writer, sinks - chosen, end):
                        delete_journal(self._folder, writer)
                        done.append(writer)
                except StoreError as error:  # it must not keep anyone from opening the store
                    down = self._stores.down & chosen  # that is said once, as by sinks and freight
                    warn_once(str(error), key=f"{min(down)} down" if down else None)
        return done

    def _all_have(self, writer: str, others: set[str], end: int) -> bool:
        """Whether the other stores of a journal have it as well; what may not be asked has not."""
        if not others <= self._far | self._near:
            return False
        return all(self._stores.ask(url, writer)[1] >= end for url in others)


def lane(folder: Path, url: str) -> Path:
    """What is locked while journals are sent to a store."""
    is_near = not registry.is_far(url) or registry.local_path(url)
    return folder if is_near else lock_file(folder, url)


def lock_file(folder: Path, url: str) -> Path:
    """What is locked by the one process that sends to a store what waits in a folder."""
    import hashlib  # a start does without

    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.lock"


@contextlib.contextmanager
def alone(path: Path, wait: float) -> Iterator[bool]:
    """Whether no other process has this now.

    Two that sent one journal would do so in vain, or double points.

    Parameters
    ----------
    path : Path
        A folder, or a file that is made.
    wait : float
        Seconds to wait for another process.
    """
    make = 0 if path.is_dir() else os.O_CREAT
    try:
        descriptor = os.open(path, os.O_RDONLY | make, 0o644)
    except OSError:  # there are no journals
        yield False
        return
    try:
        deadline = time.monotonic() + wait
        while not (locked := host.lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield locked
    finally:
        host.unlock(descriptor)  # a fork may have a copy
        os.close(descriptor)


@contextlib.contextmanager
def orphan(folder: Path, writer: str, parts: list[int]) -> Iterator[Mapping[str, Any] | None]:
    """The facts of a journal whose writer is gone, locked against others; else None."""
    path = part_path(folder, writer, parts[-1])
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        yield None
        return
    try:
        locked = host.lock(descriptor)
        facts = facts_of(folder, writer, parts)
        if not locked:  # a child of the dead process may have kept the lock
            locked = host.is_alive(facts) is False
        # A live writer that has gone on in another part meanwhile has let go of this one.
        yield facts if locked and list_parts(folder, writer)[-1:] == parts[-1:] else None
    finally:
        host.unlock(descriptor)
        os.close(descriptor)


def sinks_of(facts: Mapping[str, Any], urls: Sequence[str] = ()) -> Sequence[str]:
    """The stores of a journal; none where it goes to none of `urls`, unless these are empty.

    A damaged header says nothing. A journal that lies beside a store belongs to it; one in the
    folder that all servers share is sent to none by a guess.
    """
    sinks: Sequence[str] = facts.get("sinks") or [url for url in urls if not registry.is_far(url)]
    return sinks if not urls or set(urls) & set(sinks) else ()


def facts_of(folder: Path, writer: str, parts: list[int]) -> dict[str, Any]:
    """What the header of a journal says, of the latest part whose header is whole."""
    for part in reversed(parts):
        if facts := read_header(part_path(folder, writer, part)):
            return facts
    return {}


class Stores:
    """Stores that one pass over journals writes into, each opened once.

    One that cannot be used is not tried again: with many journals and a server that does not
    answer that would take minutes.

    Parameters
    ----------
    patience : float, default 0
        Seconds to wait for a store that is busy.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self._patience = patience
        self._open: dict[str, Backend] = {}
        self._failed: dict[str, Exception] = {}

    @property
    def down(self) -> set[str]:
        """Those that cannot be used."""
        return set(self._failed)

    def ask(self, url: str, writer: str) -> tuple[Backend, int]:
        """A store, and the number of the record that it expects next."""
        if url in self._failed:
            raise self._failed[url]
        try:
            if url not in self._open:
                self._open[url] = registry.open_backend(url, create=True)
            return self._open[url], self.write(url, Batch(writer, 0, 0))
        except (TachographError, OSError, ImportError) as error:
            self._failed[url] = error
            raise

    def write(self, url: str, batch: Batch) -> int:
        """Write to a store that was asked before."""
        return write_patiently(self._open[url], batch, self._patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for backend in self._open.values():
            backend.close()


Progress = Callable[[int, int], None]
"""Told how many records and bytes of a journal were sent."""


def send_journal(
    folder: Path,
    writer: str,
    sinks: Iterable[str],
    stores: Stores,
    progress: Progress | None = None,
) -> None:
    """Bring a locked journal whose writer is gone into all its stores, and delete it.

    Raises
    ------
    StoreError
        It is not in each of them, and stays; the message says in which not, and why.
    """
    bring(folder, writer, sinks, stores, progress)
    delete_journal(folder, writer)


def bring(
    folder: Path,
    writer: str,
    sinks: Iterable[str],
    stores: Stores,
    progress: Progress | None = None,
) -> int:
    """Bring a locked journal whose writer is gone into stores; return the number after its last.

    Raises
    ------
    StoreError
        It is not in each of them; the message says in which not, and why.
    """
    problems, end = [], 0
    for place, url in enumerate(sinks):
        try:
            end = _send_to(folder, writer, stores, url, progress, is_copy=place > 0)
        except Exception as error:  # the others get it all the same
            problems.append(f"the journal of {writer} cannot be sent to {url} yet: {error}")
    if problems:
        raise StoreError("; ".join(problems))
    return end


def delete_journal(folder: Path, writer: str) -> None:
    """Remove a journal that all its stores have."""
    for part in list_parts(folder, writer):
        part_path(folder, writer, part).unlink(missing_ok=True)
    for unfinished in folder.glob(f"{writer}-*.new"):  # killed as it opened a part
        unfinished.unlink(missing_ok=True)


def _send_to(
    folder: Path,
    writer: str,
    stores: Stores,
    url: str,
    progress: Progress | None,
    *,
    is_copy: bool,
) -> int:
    backend, expected = stores.ask(url, writer)
    reader = JournalReader(folder, writer, expected)
    waiting = reader.waiting_bytes()
    while (batch := reader.read(backend.batch_bytes, whole=True)) is not None:
        try:
            stores.write(url, batch)
        except Gap:
            if batch.writer == writer or not is_copy:
                raise
            leaves_out(url)
        if progress:
            left = reader.waiting_bytes()
            progress(batch.next - batch.first, waiting - left)
            waiting = left
    if progress:
        progress(0, waiting)
    if reader.damage.bytes:
        warn_once(
            f"{reader.damage.bytes} damaged bytes in {reader.damage.places} places of the "
            f"journal of {writer} could not be read"
        )
    with contextlib.suppress(AccessDenied):  # who may write may not always read
        mark_lost(backend, writer)
    return reader.next


def mark_lost(backend: Backend, writer: str) -> list[str]:
    """Mark the runs that a dead writer left as running; return their ids."""
    from tachograph.backends.base import Condition, Query  # start_run does without

    where = [Condition("status", "=", "running"), Condition("writer", "=", writer)]
    owned = list(backend.read(Query("attempts", where)))
    if not owned:
        return []
    at = max(now_us(), *(row["changed_at"] + 1 for row in owned))
    change = {"changed_at": at, "status": "lost"}
    marker = uuid7()
    attempts = [complete_row("attempts", row | change, marker, 0) for row in owned]
    runs = [complete_row("runs", {"run_id": row["run_id"]} | change, marker, 0) for row in owned]
    backend.write(Batch(marker, 0, 1, rows={"attempts": attempts, "runs": runs}))
    return [row["run_id"] for row in runs]


def writers_for(folder: Path, url: str) -> list[str]:
    """Writers whose journals in `folder` go to that store."""
    return [
        writer
        for writer, parts in list_journals(folder).items()
        if url in sinks_of(facts_of(folder, writer, parts))
    ]


def pending_batches(folder: Path, url: str, cursors: Cursors) -> Iterator[Batch]:
    """What the journals of live processes hold for a store that it does not have yet.

    Parameters
    ----------
    folder : Path
        Where journals lie.
    url : str
        The store.
    cursors : Cursors
        What the store expects next from each writer.
    """
    derived: dict[str, int] = {}  # several journals may carry the points of one
    writers = writers_for(folder, url)
    cursors.of(writers)  # looked up together
    for writer in writers:
        reader = JournalReader(folder, writer, cursors.get(writer, 0))
        with contextlib.suppress(StoreError):
            while (batch := reader.read(8 << 20)) is not None:
                if batch.writer != writer:
                    batch = batch.since(derived.get(batch.writer, 0))
                    derived[batch.writer] = max(derived.get(batch.writer, 0), batch.next)
                yield batch
