"""Copies runs between any two stores, and proves by digests that nothing changed.

Knows the interface of a backend and nothing of media. What is copied keeps its writer and its
sequence, so a copy that was cut short goes on where it was, and a second one changes nothing.

A copy of chosen runs cannot claim all records of a writer that also recorded others. It goes
under a writer of its own per run, derived from the real one, and every copy leaves out what the
destination has under either.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tachograph.backends.base import Backend, Condition, Query, SupportsArtifacts
from tachograph.digests import DIGESTED, add_digests, digest_table
from tachograph.errors import RunNotFound, StoreError
from tachograph.identity import derived_id
from tachograph.records import TABLES, Batch, MetricBlock, Row, Series, join_special
from tachograph.table import Table

PAGE = 100_000
"""About so many points and records are in memory at once."""

_CHUNK = 2000  # run ids in one condition
_OF_RUNS = tuple(n for n in TABLES if n not in ("metrics", "summaries", "writers"))
_POINT = (
    *("writer", "seq", "run_id", "name", "context", "rank", "attempt"),
    *("time", "step", "epoch", "value", "special"),
)

Progress = Callable[[int, int], None]
_Point = tuple[Any, ...]


@dataclass(slots=True)
class CopyReport:
    """What a copy did.

    Attributes
    ----------
    runs : int
        Runs that are now equal in both stores.
    records, points, rows : int
        How many were sent; what the destination had before is not counted.
    artifacts, artifact_bytes : int
        Files that were sent.
    digests : Table
        table, source, destination: equal in each row.
    """

    runs: int = 0
    records: int = 0
    points: int = 0
    rows: int = 0
    artifacts: int = 0
    artifact_bytes: int = 0
    digests: Table = field(default_factory=lambda: Table({}))


@dataclass(frozen=True, slots=True)
class _Page:
    """Records of some writers: from a sequence number each, to one for all where it is given."""

    first: Mapping[str, int]
    next: Mapping[str, int]

    @property
    def records(self) -> int:
        """How many records it has."""
        return sum(self.next[writer] - self.first[writer] for writer in self.next)

    def conditions(self) -> list[Condition]:
        """What selects its rows; of small writers also those that were sent already."""
        writers = sorted(self.next)
        if len(writers) > 1:
            return [Condition("writer", "in", writers)]
        writer = writers[0]
        return [
            Condition("writer", "=", writer),
            Condition("seq", ">=", self.first[writer]),
            Condition("seq", "<", self.next[writer]),
        ]


def copy_store(
    source: Backend,
    destination: Backend,
    *,
    run_ids: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy runs with everything that belongs to them.

    Parameters
    ----------
    source, destination : Backend
        From where to where. The destination may hold other runs.
    run_ids : iterable of str, optional
        These runs and their descendants; all by default.
    progress : callable, optional
        Called with the records done and the records to do.

    Raises
    ------
    RunNotFound
        The source has no such run.
    StoreError
        A store cannot be read or written, or the digests differ: then the source was written
        meanwhile, or the destination holds the same runs with other content.
    """
    chosen = None if run_ids is None else _families(source, list(run_ids))
    copy = _Copy(source, destination, chosen)
    copy.send_artifacts()
    copy.send_records(progress)
    return copy.prove()


class _Copy:
    """One copy under way: what both stores had of each writer when it began, and what was sent."""

    def __init__(self, source: Backend, destination: Backend, chosen: list[str] | None) -> None:
        self.source = source
        self.destination = destination
        self.chosen = chosen
        self.report = CopyReport()
        self._ends = _cursors(source)
        self._had = _cursors(destination)
        self._sent = dict(self._had)
        self._targets: dict[tuple[str, str], str] = {}
        if chosen is not None:
            writers = _writers_of(source, chosen)
            self._ends = {writer: end for writer, end in self._ends.items() if writer in writers}

    # ------------------------------------------------------------------ records

    def send_records(self, progress: Progress | None) -> None:
        """Send what the destination does not have, page by page."""
        pages = list(self._pages())
        total = sum(page.records for page in pages)
        for page in pages:
            for batch in self._batches(page):
                self.destination.write(batch)
                self._sent[batch.writer] = batch.next
                self.report.points += batch.points
                self.report.rows += sum(map(len, batch.rows.values()))
            self.report.records += page.records
            if progress:
                progress(self.report.records, total)

    def _pages(self) -> Iterator[_Page]:
        """Ranges of records that fit into memory: many small writers at once, or part of one."""
        points = _points_per(self.source, "writer")
        group: dict[str, int] = {}
        room = PAGE
        for writer, end in sorted(self._ends.items()):
            start = self._had.get(writer, 0)
            if start >= end:
                continue
            per_record = 1 + points[writer] / end
            if (weight := round(per_record * (end - start))) > PAGE:
                size = max(1, round(PAGE / per_record))
                for first in range(start, end, size):
                    yield _Page({writer: first}, {writer: min(first + size, end)})
                continue
            if weight > room:
                yield self._page(group)
                group, room = {}, PAGE
            group[writer] = start
            room -= weight
        if group:
            yield self._page(group)

    def _page(self, first: Mapping[str, int]) -> _Page:
        return _Page(first, {writer: self._ends[writer] for writer in first})

    def _batches(self, page: _Page) -> Iterator[Batch]:
        points: dict[str, list[_Point]] = {}
        for point in self._points(page):
            if target := self._target(*point[:3]):
                points.setdefault(target, []).append(point)
        rows: dict[str, dict[str, list[Row]]] = {}
        for table, row in self._rows(page):
            if target := self._target(row["writer"], row["seq"], row["run_id"]):
                changed = row | {"writer": target}
                rows.setdefault(target, {}).setdefault(table, []).append(changed)
        for row in self._writers(page):
            for target in self._names(row["writer"], points.keys() | rows.keys()):
                if introduced := self._introduction(row, target, page):
                    rows.setdefault(target, {})["writers"] = [introduced]
        for writer, end in page.next.items():
            for target in self._names(writer, points.keys() | rows.keys()):
                yield self._batch(target, end, points.get(target, ()), rows.get(target, {}))

    def _batch(
        self, target: str, end: int, points: Iterable[_Point], rows: Mapping[str, list[Row]]
    ) -> Batch:
        ordered = {table: sorted(found, key=_seq) for table, found in rows.items()}
        beats = [row["heartbeat_at"] for row in rows.get("writers", ()) if row["heartbeat_at"]]
        first = self._sent.get(target, 0)
        return Batch(target, first, end, _blocks(points), ordered, max(beats, default=None))

    def _introduction(self, row: Row, target: str, page: _Page) -> Row | None:
        """The row about a writer for the batch of a page, where it belongs into it."""
        sent, writer = self._sent.get(target, 0), row["writer"]
        if target != writer:  # one that stands for it begins with the row
            return None if sent else row | {"writer": target, "seq": 0}
        return row if sent <= row["seq"] < page.next[writer] else None

    def _target(self, writer: str, seq: int, run_id: str) -> str | None:
        """Under which writer a record goes; None where the destination has it."""
        derived = self._targets.get((writer, run_id))
        if derived is None:
            derived = self._targets[writer, run_id] = derived_id(writer, run_id)
        if seq < max(self._had.get(writer, 0), self._had.get(derived, 0)):
            return None
        return writer if self.chosen is None else derived

    def _names(self, writer: str, used: Collection[str]) -> list[str]:
        """The writers that stand for one of the source in a page."""
        if self.chosen is None:
            return [writer]
        return sorted({self._targets.get((writer, run), "") for run in self.chosen} & set(used))

    # ------------------------------------------------------------------ reading

    def _points(self, page: _Page) -> Iterator[_Point]:
        yield from self._read("all_metrics", page, _POINT)

    def _rows(self, page: _Page) -> Iterator[tuple[str, Row]]:
        for table in _OF_RUNS:
            columns = tuple(TABLES[table].columns)
            for values in self._read(table, page, columns):
                yield table, dict(zip(columns, values, strict=True))

    def _read(self, table: str, page: _Page, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for runs in [None] if self.chosen is None else _chunks(self.chosen):
            where = page.conditions()
            if runs is not None:
                where.append(_any_of(runs))
            found = self.source.read(Query(table, where, columns, raw=True))
            yield from zip(*(found[name] for name in columns), strict=True)

    def _writers(self, page: _Page) -> Table:
        # Read whole, whatever the page: a writer's row is changed while it records, and each
        # writer that stands for it needs one.
        where = [Condition("writer", "in", sorted(page.next))]
        return self.source.read(Query("writers", where, raw=True))

    # ------------------------------------------------------------------ files

    def send_artifacts(self) -> None:
        """Send the files that the destination does not keep."""
        source, destination = self.source, self.destination
        if not isinstance(source, SupportsArtifacts):
            return
        kept = dict(source.list_artifacts())
        if self.chosen is not None:
            kept = {sha256: size for sha256, size in kept.items() if sha256 in self._files()}
        if not kept:
            return
        if not isinstance(destination, SupportsArtifacts):
            raise StoreError(
                f"{destination.url} keeps no files, and {len(kept)} belong to the runs"
            )
        there = {sha256 for sha256, _ in destination.list_artifacts()}
        with tempfile.TemporaryDirectory() as folder:
            for sha256 in sorted(kept.keys() - there):
                path = Path(folder, sha256)
                with source.open_artifact(sha256) as content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
                destination.put_artifact(path, sha256)
                path.unlink()
                self.report.artifacts += 1
                self.report.artifact_bytes += kept[sha256]

    def _files(self) -> set[str]:
        found: set[str] = set()
        for runs in _chunks(self.chosen or []):
            where = [_any_of(runs)]
            found |= set(self.source.read(Query("artifacts", where, ["sha256"]))["sha256"])
        return found

    # ------------------------------------------------------------------ proof

    def prove(self) -> CopyReport:
        """Compare both stores, table by table."""
        runs = _run_ids(self.source) if self.chosen is None else self.chosen
        self.report.runs = len(runs)
        keyed = [[_any_of(some)] for some in _chunks(runs)]
        growing = list(self._parts(runs))

        def digest(store: Backend, table: str) -> str:
            parts = keyed if table in TABLES and not TABLES[table].grows else growing
            # A copy of chosen runs has writers of its own, so they are left out.
            return add_digests(
                digest_table(store, table, part, without=["writer"]) for part in parts
            )

        here = [digest(self.source, table) for table in DIGESTED]
        there = [digest(self.destination, table) for table in DIGESTED]
        self.report.digests = Table({"table": DIGESTED, "source": here, "destination": there})
        differing = [
            row["table"] for row in self.report.digests if row["source"] != row["destination"]
        ]
        if differing:
            raise StoreError(
                f"{self.destination.url} differs from {self.source.url} in {', '.join(differing)}:"
                " either the source was written meanwhile (copy again), or the destination had"
                " changes of its own to the same runs"
            )
        return self.report

    def _parts(self, runs: Sequence[str]) -> Iterator[list[Condition]]:
        """Conditions that cut the points of these runs into pieces that fit into memory."""
        points = _points_per(self.source, "run_id")
        last = max(self._ends.values(), default=0)
        small: list[str] = []
        room = PAGE
        for run_id in runs:
            if (count := points[run_id]) > PAGE:
                size = -(-last * PAGE // count)
                for first in range(0, last, size):
                    seqs = [Condition("seq", ">=", first), Condition("seq", "<", first + size)]
                    yield [_any_of([run_id]), *seqs]
                continue
            if count > room or len(small) == _CHUNK:
                yield [_any_of(small)]
                small, room = [], PAGE
            small.append(run_id)
            room -= count
        if small:
            yield [_any_of(small)]


# ---------------------------------------------------------------------------- helpers


def _blocks(points: Iterable[_Point]) -> tuple[MetricBlock, ...]:
    """Put the points of each call together again, and the calls of one kind into a block."""
    calls: dict[tuple[Any, ...], list[tuple[str, float]]] = {}
    for _, seq, run_id, name, context, rank, attempt, time, step, epoch, value, special in points:
        number = join_special(value, special)
        call = (seq, time, step, epoch, run_id, context, rank, attempt)
        calls.setdefault(call, []).append((name, 0.0 if number is None else number))
    kinds: dict[Series, list[tuple[Any, ...]]] = {}
    for (seq, time, step, epoch, *series), named in sorted(calls.items(), key=_first):
        names, values = zip(*sorted(named, key=_first), strict=True)
        run_id, context, rank, attempt = series
        kind = Series(run_id, names, context, rank, attempt)
        kinds.setdefault(kind, []).append((seq, time, step, epoch, values))
    return tuple(MetricBlock.pack(series, rows) for series, rows in kinds.items())


def _seq(row: Row) -> int:
    return int(row["seq"])


def _first(pair: tuple[Any, Any]) -> Any:
    first = pair[0]
    return first[0] if isinstance(first, tuple) else first


def _chunks(run_ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(run_ids), _CHUNK):
        yield list(run_ids[start : start + _CHUNK])


def _cursors(backend: Backend) -> dict[str, int]:
    found = backend.read(Query("cursors"))
    return dict(zip(found["writer"], found["next"], strict=True))


def _run_ids(backend: Backend) -> list[str]:
    return list(backend.read(Query("runs", columns=["run_id"]))["run_id"])


def _points_per(backend: Backend, column: str) -> Counter[str]:
    """How many points each writer or run has, and rows of tensors, which are as many."""
    found = backend.read(Query("summaries", columns=[column, "count"], raw=True))
    points: Counter[str] = Counter()
    for one, count in zip(found[column], found["count"], strict=True):
        points[one] += count
    points.update(backend.read(Query("tensors", columns=[column], raw=True))[column])
    return points


def _any_of(run_ids: Sequence[str]) -> Condition:
    return Condition("run_id", "in", list(run_ids))


def _writers_of(backend: Backend, run_ids: Sequence[str]) -> set[str]:
    writers: set[str] = set()
    for runs in _chunks(run_ids):
        for table in (*_OF_RUNS, "summaries"):
            where = [_any_of(runs)]
            writers |= set(backend.read(Query(table, where, ["writer"], raw=True))["writer"])
    return writers


def _families(backend: Backend, run_ids: Sequence[str]) -> list[str]:
    """The runs and all their descendants; RunNotFound where one is not there."""
    found = backend.read(Query("runs", columns=["run_id", "parent_id"]))
    children: dict[str | None, list[str]] = {}
    for run_id, parent in zip(found["run_id"], found["parent_id"], strict=True):
        children.setdefault(parent, []).append(run_id)
    missing = set(run_ids) - set(found["run_id"])
    if missing:
        raise RunNotFound(f"{backend.url} has no run {', '.join(sorted(missing))}")
    family = dict.fromkeys(run_ids)
    waiting = list(family)
    while waiting:
        born = [run for run in children.get(waiting.pop(), []) if run not in family]
        family |= dict.fromkeys(born)
        waiting += born
    return list(family)
