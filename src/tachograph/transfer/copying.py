"""Copies runs between any two stores, and proves by digests that nothing changed.

Knows the interface of a backend and nothing of media. What is copied keeps its writer and its
sequence, so a copy that was cut short goes on where it was, and a second one changes nothing.

A copy of chosen runs cannot claim all records of a writer that also recorded others. It goes
under a writer of its own per run, derived from the real one, and every copy leaves out what the
destination has under either. What a token for some projects shows are chosen runs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tachograph.backends.base import Backend, Condition, Query, SupportsAbout
from tachograph.delivery.patience import write_patiently
from tachograph.errors import RunNotFound
from tachograph.identity import derived_id
from tachograph.reading import portions
from tachograph.reading.lookup import family_of
from tachograph.records import RELAY, TABLES, Batch, MetricBlock, Row, Series, join_special
from tachograph.table import Table
from tachograph.transfer.copying_files import send_files
from tachograph.transfer.proving import prove

_OF_RUNS = tuple(n for n in TABLES if n not in ("metrics", "summaries", "writers"))
_POINT = (
    *("writer", "seq", "run_id", "name", "context", "rank", "attempt"),
    *("time", "step", "epoch", "value", "special"),
)

Progress = Callable[[str, int, int], None]
"""Told of 'records' and of 'files' (in bytes) how many were sent, of how many."""

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
        table, source, destination: equal in each row; empty where nothing was proven.
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
    proven: bool = True,
) -> CopyReport:
    """Copy runs with everything that belongs to them.

    Parameters
    ----------
    source, destination : Backend
        From where to where. The destination may hold other runs.
    run_ids : iterable of str, optional
        These runs and their descendants; all by default.
    progress : callable, optional
        Called with what is sent, 'records' or 'files', how much was, and how much there is.
    proven : bool, default True
        Compare digests of both afterwards. A source that is being written, or a destination
        where the runs were edited, would not pass.

    Raises
    ------
    RunNotFound
        The source has no such run.
    StoreError
        A store cannot be read or written, or the digests differ: then the source was written
        meanwhile, or the destination holds the same runs with other content.
    """
    chosen = _chosen(source, run_ids)
    copy = _Copy(source, destination, chosen, progress or _nobody)
    sizes = send_files(source, destination, chosen, copy.progress)
    copy.report.artifacts, copy.report.artifact_bytes = len(sizes), sum(sizes)
    copy.send_records()
    runs = _run_ids(source) if chosen is None else chosen
    copy.report.runs = len(runs)
    if proven:
        copy.report.digests = prove(source, destination, runs, copy.longest)
    return copy.report


class _Routes(dict[tuple[str, str], tuple[int, str]]):
    """From a writer and a run to the first record that is missing, and the writer it goes under.

    Parameters
    ----------
    had : mapping of str to int
        What the destination had of each writer.
    is_derived : bool
        Records go under a writer per run that stands for the real one.
    """

    def __init__(self, had: Mapping[str, int], *, is_derived: bool) -> None:
        super().__init__()
        self._had = had
        self._is_derived = is_derived

    def __missing__(self, pair: tuple[str, str]) -> tuple[int, str]:
        writer, derived = pair[0], derived_id(*pair)
        first = max(self._had.get(writer, 0), self._had.get(derived, 0))
        self[pair] = first, derived if self._is_derived else writer
        return self[pair]


class _Copy:
    """One copy under way: what both stores had of each writer when it began, and what was sent."""

    def __init__(
        self,
        source: Backend,
        destination: Backend,
        chosen: list[str] | None,
        progress: Progress,
    ) -> None:
        self.source = source
        self.destination = destination
        self.chosen = chosen
        self.report = CopyReport()
        self.progress = progress
        self._ends = _cursors(source)
        self._had = _cursors(destination)
        self._sent = dict(self._had)
        self._routes = _Routes(self._had, is_derived=chosen is not None)
        self._runs_of: dict[str, set[str]] = {}
        self._choice = "\n".join(sorted(chosen or ()))
        if chosen is not None:
            self._runs_of = _runs_by_writer(source, chosen)
            self._ends = {one: end for one, end in self._ends.items() if one in self._runs_of}

    @property
    def longest(self) -> int:
        """How many records the longest writer has."""
        return max(self._ends.values(), default=0)

    # ------------------------------------------------------------------ records

    def send_records(self) -> None:
        """Send what the destination does not have, page by page."""
        pages = list(self._pages())
        total = sum(page.records for page in pages)
        for page in pages:
            for batch in self._batches(page):
                write_patiently(self.destination, batch)
                self._sent[batch.writer] = batch.next
                self.report.points += batch.points
                self.report.rows += sum(map(len, batch.rows.values()))
            self.report.records += page.records
            self.progress("records", self.report.records, total)

    def _pages(self) -> Iterator[_Page]:
        """Ranges of records that fit into memory: many small writers at once, or part of one."""
        starts = {
            writer: start
            for writer, end in sorted(self._ends.items())
            if (start := self._start(writer)) < end
        }
        points = portions.weights(self.source, "writer", list(starts))
        group: dict[str, int] = {}
        room = portions.PAGE
        for writer, start in starts.items():
            end = self._ends[writer]
            per_record = 1 + points[writer] / end
            if (weight := round(per_record * (end - start))) > portions.PAGE:
                size = max(1, round(portions.PAGE / per_record))
                for first in range(start, end, size):
                    yield _Page({writer: first}, {writer: min(first + size, end)})
                continue
            if weight > room:
                yield self._page(group)
                group, room = {}, portions.PAGE
            group[writer] = start
            room -= weight
        if group:
            yield self._page(group)

    def _start(self, writer: str) -> int:
        """The first record of a writer that the destination may not have."""
        had = self._had.get(writer, 0)
        return had if self.chosen is None else max(had, self._had.get(self._marker(writer), 0))

    def _marker(self, writer: str) -> str:
        """A writer without rows, whose cursor says how far a copy of these runs has got."""
        return derived_id(writer, self._choice)

    def _page(self, first: Mapping[str, int]) -> _Page:
        return _Page(first, {writer: self._ends[writer] for writer in first})

    def _batches(self, page: _Page) -> Iterator[Batch]:
        points = self._points_by_target(page)
        rows = self._rows_by_target(page)
        used = points.keys() | rows.keys()
        for row in self._writers(page):
            for target in self._names(row["writer"], used):
                if introduced := self._introduction(row, target, page):
                    rows.setdefault(target, {})["writers"] = [introduced]
        for writer, end in page.next.items():
            for target in self._names(writer, used):
                yield self._batch(target, end, points.get(target, ()), rows.get(target, {}))
            if self.chosen is not None:  # last: it says that the others have all of the page
                yield self._batch(self._marker(writer), end, (), {})

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

    def _names(self, writer: str, used: Collection[str]) -> list[str]:
        """The writers that stand for one of the source in a page."""
        if self.chosen is None:
            return [writer]
        names = (self._routes[writer, run_id][1] for run_id in self._runs_of[writer])
        return sorted(one for one in names if one in used)

    # ------------------------------------------------------------------ reading

    def _points_by_target(self, page: _Page) -> dict[str, list[_Point]]:
        points: dict[str, list[_Point]] = {}
        for point in self._read("all_metrics", page, _POINT):
            first, target = self._routes[point[0], point[2]]
            if point[1] >= first:
                points.setdefault(target, []).append(point)
        return points

    def _rows_by_target(self, page: _Page) -> dict[str, dict[str, list[Row]]]:
        rows: dict[str, dict[str, list[Row]]] = {}
        for table in _OF_RUNS:
            columns = tuple(TABLES[table].columns)
            for values in self._read(table, page, columns):
                row = dict(zip(columns, values, strict=True))
                first, target = self._routes[row["writer"], row["run_id"]]
                if row["seq"] >= first:
                    row["writer"] = target
                    rows.setdefault(target, {}).setdefault(table, []).append(row)
        return rows

    def _read(self, table: str, page: _Page, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for runs in [None] if self.chosen is None else portions.chunks(self.chosen):
            where = page.conditions()
            if runs is not None:
                where.append(portions.one_of("run_id", runs))
            found = self.source.read(Query(table, where, columns, raw=True))
            yield from zip(*(found[name] for name in columns), strict=True)

    def _writers(self, page: _Page) -> Table:
        # Read whole, whatever the page: a writer's row is changed while it records, and each
        # writer that stands for it needs one.
        where = [Condition("writer", "in", sorted(page.next))]
        return self.source.read(Query("writers", where, raw=True))


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


def _nobody(what: str, done: int, total: int) -> None:
    """Whom progress is told where nobody asked for it."""


def _cursors(backend: Backend) -> dict[str, int]:
    """How far a store is with each writer; the journal of a server holds no records of its own."""
    found = backend.read(Query("cursors"))
    pairs = zip(found["writer"], found["next"], strict=True)
    return {writer: after for writer, after in pairs if not writer.startswith(RELAY)}


def _run_ids(backend: Backend) -> list[str]:
    return list(backend.read(Query("runs", columns=["run_id"]))["run_id"])


def _chosen(source: Backend, run_ids: Iterable[str] | None) -> list[str] | None:
    """The runs to copy; None where these are all that there are."""
    if run_ids is not None:
        return _families(source, list(run_ids))
    return _run_ids(source) if _shows_a_part(source) else None


def _shows_a_part(source: Backend) -> bool:
    """Whether it is a server that keeps the runs of some projects from us."""
    if not isinstance(source, SupportsAbout):
        return False
    token = source.about().get("token") or {}
    return token.get("projects") is not None


def _runs_by_writer(backend: Backend, run_ids: Sequence[str]) -> dict[str, set[str]]:
    """Writers that recorded something about these runs, each with those it did."""
    pairs: dict[str, set[str]] = {}
    for runs in portions.chunks(run_ids):
        where = [portions.one_of("run_id", runs)]
        for table in (*_OF_RUNS, "summaries"):
            found = backend.read(Query(table, where, ["writer", "run_id"], raw=True))
            for writer, run_id in set(zip(found["writer"], found["run_id"], strict=True)):
                pairs.setdefault(writer, set()).add(run_id)
    return pairs


def _families(backend: Backend, run_ids: Sequence[str]) -> list[str]:
    """The runs and all their descendants; RunNotFound where one is not there."""
    missing = set(run_ids)
    for some in portions.chunks(run_ids):
        where = [portions.one_of("run_id", some)]
        missing -= set(backend.read(Query("runs", where, ["run_id"]))["run_id"])
    if missing:
        raise RunNotFound(f"{backend.url} has no run {', '.join(sorted(missing))}")
    return family_of(backend, run_ids)
