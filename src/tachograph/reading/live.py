"""Reads a store as if what reachable journals still hold were in it already.

Knows how rows merge; knows no journal: whoever makes a reader says where the tails come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tachograph.backends.base import Backend, Condition, Query, table_columns
from tachograph.merge import (
    SERIES,
    matches,
    merge_changes,
    point_rows,
    select,
    spanned,
    view,
    visible_points,
)
from tachograph.records import NO_STEP, TABLES, Batch, MetricBlock, Row, Summary
from tachograph.table import Table

Tails = Callable[["Cursors"], Iterable[Batch]]
"""From what a store expects next of each writer to the batches that it does not have yet."""

KEEP_SECONDS = 0.5
"""How long tails that were read once are good for; drained in the meantime, they do no harm."""

_TRIES = 3
_AGAIN = "+"  # sorts behind the writer itself, so its last value wins a tie


class LiveReader:
    """Answers `read` as a backend does, with the tails of journals merged in.

    Parameters
    ----------
    backend : Backend
        The store; raw rows and cursors are read from it alone.
    tails : callable, optional
        Gives the batches that the store does not have yet. Without it the store is read as is.
    """

    def __init__(self, backend: Backend, tails: Tails | None = None) -> None:
        self.backend = backend
        self._tails = tails
        self._tail = _Tail([], {})
        self._read_at = float("-inf")

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        query.check()
        if query.raw or query.table == "cursors" or not self.has_tail():
            return self.backend.read(query)
        if query.span is not None:
            return spanned(self.read, query)
        for _ in range(_TRIES):
            merged = self._merged(query, self._tail)
            if merged is None or not self._has_moved():
                break
        return self.backend.read(query) if merged is None else merged

    def changes(self, table: str, run_ids: Sequence[str]) -> list[Row]:
        """Every change of a keyed table to these runs, raw, from the store and the tails."""
        rows = list(self.backend.read(Query(table, [_any_of(run_ids)], raw=True)))
        if self.has_tail():
            rows += [row for row in self._tail.rows(table) if row["run_id"] in set(run_ids)]
        return rows

    def writers_of(self, run_id: str) -> set[str]:
        """Who recorded points or events of a run."""
        where = [Condition("run_id", "=", run_id)]
        found: set[str] = set()
        for table in ("summaries", "events"):
            found |= {*self.backend.read(Query(table, where, ["writer"], raw=True))["writer"]}
        return found | self._tail.writers_of(run_id) if self.has_tail() else found

    def has_tail(self) -> bool:
        """Whether reachable journals hold what the store does not have yet.

        Where they do not, the store may answer by itself what it can.
        """
        if self._tails is None:
            return False
        if time.monotonic() - self._read_at > KEEP_SECONDS:
            cursors = Cursors(self.backend)
            batches = list(self._tails(cursors))
            self._tail = _Tail(batches, cursors.of({batch.writer for batch in batches}))
            self._read_at = time.monotonic()
        return bool(self._tail.batches)

    def forget(self) -> None:
        """Read tails anew with the next question, because the store was changed."""
        self._read_at = float("-inf")

    # ------------------------------------------------------------------ inside

    def _has_moved(self) -> bool:
        """Whether a drain came since the tail was cut, so that it does not fit what was read."""
        tail = _Tail(self._tail.batches, Cursors(self.backend).of(self._tail.cursors))
        has_moved = tail.cursors != self._tail.cursors
        if has_moved:
            self._tail = tail
        return has_moved

    def _merged(self, query: Query, tail: _Tail) -> Table | None:
        """The answer with the tail merged in; None where the tail has nothing to say to it."""
        if query.table in ("metrics", "all_metrics", "tensors", "events"):
            return self._grown(query, tail)
        return self._keyed(query, tail)

    def _grown(self, query: Query, tail: _Tail) -> Table | None:
        name = "metrics" if query.table == "all_metrics" else query.table
        fitting = tail.rows(name, query)
        added = [row for row in fitting if _fits(row, query.where)]
        same_run = [condition for condition in query.where if condition.column == "run_id"]
        gone = {one for one in self._gone(tail) if _fits({"run_id": one}, same_run)}
        # A first attempt replaces nothing.
        begun = query.table == "metrics" and any(
            row["attempt"] != 1 and _fits(row, same_run) for row in tail.rows("attempts")
        )
        if not added and not gone and not begun:
            return None
        spare = None if gone or begun else 0
        columns = ("run_id", "attempt", "step", "writer", "seq")
        stored = self.backend.read(_wider(query, *columns, spare=spare))
        # A store of files may show rows a moment before their cursor.
        known = set(zip(stored["writer"], stored["seq"], strict=True))
        added = [row for row in added if (row["writer"], row["seq"]) not in known]
        if query.table == "metrics":
            attempts = list(self._attempts(tail))
            added = visible_points(added, attempts)
        if not gone and not begun and not query.order and query.limit is None:
            names = query.columns or table_columns(query.table)  # long series: no row is built
            return Table({name: [*stored[name], *(row[name] for row in added)] for name in names})
        rows = [*stored, *added]
        if begun:
            rows = visible_points(rows, attempts)
        return select(query, [row for row in rows if row["run_id"] not in gone])

    def _attempts(self, tail: _Tail) -> Table:
        query = Query("attempts", [_any_of(tail.run_ids)])
        merged = self._keyed(query, tail)
        return self.backend.read(query) if merged is None else merged

    def _keyed(self, query: Query, tail: _Tail) -> Table | None:
        spec = TABLES[query.table]
        owner = spec.key[0]
        same_key = [condition for condition in query.where if condition.column in spec.key]
        changed = tail.summaries(query) if spec.name == "summaries" else tail.rows(spec.name)
        by_run = owner == "run_id"  # then a tombstone in the tail hides rows of this table too
        more = {row["run_id"] for row in tail.rows("runs")} if by_run else set(tail.heartbeats)
        touched = sorted({row[owner] for row in changed} | more)
        same_owner = [condition for condition in query.where if condition.column == owner]
        touched = [one for one in touched if _fits({owner: one}, same_owner)]
        if not touched:
            return None
        wanted = [Condition(owner, "in", touched), *same_key]
        raw = list(self.backend.read(Query(spec.name, wanted, raw=True)))
        spare = len(raw)
        raw += changed
        runs = self._changed_runs(tail) if by_run else []
        merged = view(spec.name, {"runs": runs, "attempts": [], spec.name: raw})
        for row in merged:
            row["writer"] = row["writer"].removesuffix(_AGAIN)
        if spec.name == "writers":
            merged = [row | tail.heartbeat(row) for row in merged]
        stored = self.backend.read(_wider(query, owner, spare=spare))
        again = set(touched)
        rows = [row for row in stored if row[owner] not in again]
        return select(query, [*rows, *merged])

    def _gone(self, tail: _Tail) -> set[str]:
        merged = merge_changes(TABLES["runs"], self._changed_runs(tail))
        return {row["run_id"] for row in merged if row["deleted"]}

    def _changed_runs(self, tail: _Tail) -> list[Row]:
        """Every change to the runs of the tail, read once for all questions that meet it."""
        if tail.changed_runs is None:
            stored = self.backend.read(Query("runs", [_any_of(tail.run_ids)], raw=True))
            tail.changed_runs = [*stored, *tail.rows("runs")]
        return tail.changed_runs


class Cursors(Mapping[str, int]):
    """What a store expects next from each writer, looked up when asked for and remembered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[str, int | None] = {}

    def of(self, writers: Iterable[str]) -> dict[str, int]:
        """Those of these writers, looked up together; without writers that it does not know."""
        missing = sorted(set(writers) - self._known.keys())
        if missing:
            self._known |= dict.fromkeys(missing)
            found = self._backend.read(Query("cursors", [Condition("writer", "in", missing)]))
            self._known |= zip(found["writer"], found["next"], strict=True)
        return {one: at for one in writers if (at := self._known[one]) is not None}

    def __getitem__(self, writer: str) -> int:
        return self.of([writer])[writer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._backend.read(Query("cursors", columns=["writer"]))["writer"])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Tail:
    """The rows of batches from the cursors of a store on."""

    def __init__(self, batches: Sequence[Batch], cursors: Mapping[str, int]) -> None:
        self.batches = batches
        self.cursors = {batch.writer: cursors.get(batch.writer, 0) for batch in batches}
        self._batches = [
            batch.since(self.cursors[batch.writer])
            for batch in batches
            if batch.next > self.cursors[batch.writer]
        ]
        beats = sorted((b.heartbeat, b.writer) for b in batches if b.heartbeat is not None)
        self.heartbeats = {writer: beat for beat, writer in beats}  # the latest of each
        self.run_ids = self._run_ids()
        self.changed_runs: list[Row] | None = None

    def rows(self, table: str, query: Query | None = None) -> list[Row]:
        """Complete rows of a table; of points only those whose series fits the query."""
        names = TABLES[table].columns
        rows = [
            {name: row.get(name) for name in names}
            for batch in self._batches
            for row in batch.rows.get(table, ())
        ]
        if table == "metrics":
            for batch, block in self._blocks(query):
                rows += point_rows(block, batch.writer)
        return rows

    def _run_ids(self) -> list[str]:
        """Every run that the tails say something about."""
        found = {block.series.run_id for batch in self._batches for block in batch.blocks}
        for batch in self._batches:
            for rows in batch.rows.values():
                found |= {row["run_id"] for row in rows if row.get("run_id")}
        return sorted(found)

    def writers_of(self, run_id: str) -> set[str]:
        """Whose points or events of a run there are."""
        return {
            batch.writer
            for batch in self._batches
            if any(block.series.run_id == run_id for block in batch.blocks)
            or any(row["run_id"] == run_id for row in batch.rows.get("events", ()))
        }

    def heartbeat(self, row: Row) -> Row:
        """The later of what the row and the batches say about when its writer was last seen."""
        seen = [row["heartbeat_at"], self.heartbeats.get(row["writer"])]
        return {"heartbeat_at": max((at for at in seen if at is not None), default=None)}

    def summaries(self, query: Query) -> list[Row]:
        """Raw summaries of the points.

        They are named as of another writer, so that merging the writers of a series adds them to
        what the store has of the real one.
        """
        points: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        for batch, block in self._blocks(query):
            series = block.series
            head = (series.context, series.rank, series.attempt, batch.writer + _AGAIN)
            columns = list(zip(*block.unpack(), strict=True))
            for name, values in zip(series.names, columns[4:], strict=True):
                rows = zip(*columns[:3], values, strict=True)
                points.setdefault((series.run_id, name, *head), []).extend(rows)
        return [_summary_row(key, sorted(rows)) for key, rows in points.items()]

    def _blocks(self, query: Query | None) -> Iterator[tuple[Batch, MetricBlock]]:
        conditions = [c for c in query.where if c.column in ("run_id", "name")] if query else []
        for batch in self._batches:
            for block in batch.blocks:
                run_id = block.series.run_id
                rows = [{"run_id": run_id, "name": name} for name in block.series.names]
                if any(_fits(row, conditions) for row in rows):
                    yield batch, block


def _summary_row(key: tuple[Any, ...], points: list[tuple[Any, ...]]) -> Row:
    seq, time_ns, step, _ = points[-1]
    summary = Summary()
    last_step = None if step == NO_STEP else step
    summary.add([point[3] for point in points], last_step, time_ns // 1000)
    change = {"changed_at": time_ns // 1000, "seq": seq, "deleted": 0}
    return dict(zip((*SERIES, "writer"), key, strict=True)) | summary.as_row() | change


def _any_of(run_ids: Sequence[str]) -> Condition:
    return Condition("run_id", "in", list(run_ids))


def _fits(row: Row, conditions: Iterable[Condition]) -> bool:
    return all(matches(row, condition) for condition in conditions)


def _wider(query: Query, *columns: str, spare: int | None = None) -> Query:
    """The query with these columns and those it sorts and filters by, for more rows.

    `spare` is how many of the rows may turn out not to count, None where that is not known: then
    all rows that fit are asked for.
    """
    if query.columns is not None:
        used = [*query.columns, *(condition.column for condition in query.where), *columns]
        used += [name.removeprefix("-") for name in query.order]
        known = table_columns(query.table)
        query = replace(query, columns=[name for name in dict.fromkeys(used) if name in known])
    if spare is None or query.limit is None:
        return replace(query, order=(), limit=None)
    return replace(query, limit=query.limit + spare)
