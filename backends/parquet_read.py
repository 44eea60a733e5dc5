"""Answers to queries from the files alone: the rows that the views of `views.sql` show.

Knows the meaning of changes, attempts and summaries; writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from tachograph.backends.base import Condition, Query, table_columns
from tachograph.backends.parquet_files import NO_ROOT, SCHEMAS, Folder
from tachograph.backends.parquet_scan import (
    REPEATED,
    Mask,
    Positions,
    codes,
    filter_table,
    scan,
    sort_table,
    to_list,
)
from tachograph.errors import StoreError
from tachograph.records import TABLES, Row, TableSpec
from tachograph.table import Table

CHANGE = ("changed_at", "writer", "seq")
SERIES = ("run_id", "name", "context", "rank", "attempt")

_TRIES = 5
_NEVER = np.iinfo(np.int64).max


class Reader:
    """Reads one store.

    Parameters
    ----------
    folder : Folder
        The store.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def read(self, query: Query) -> Table:
        """The rows of a checked query."""
        for _ in range(_TRIES):
            try:
                return self._answer(query)
            except FileNotFoundError:  # merged into another file since it was listed
                continue
        raise StoreError(f"{self._folder.path}: files vanish while they are read")

    def _answer(self, query: Query) -> Table:
        columns = table_columns(query.table) if query.columns is None else query.columns
        if query.table == "cursors":
            table = self._cursors()
        else:
            used = [condition.column for condition in query.where]
            used += [name.removeprefix("-") for name in query.order]
            spec = TABLES["metrics" if query.table == "all_metrics" else query.table]
            find = self._growing if spec.grows else self._keyed
            table = find(spec, query, {*columns, *used})
        table = sort_table(filter_table(table, query.where), query.order)
        if query.limit is not None:
            table = table.slice(0, max(0, query.limit))
        return Table({name: to_list(table[name]) for name in columns})

    def _cursors(self) -> pa.Table:
        names = sorted(path.name for path in (self._folder.hidden / "cursors").iterdir())
        writers = [unquote(name) for name in names]
        following = [self._folder.read_cursor(writer)[0] for writer in writers]
        known = [(writer, next_) for writer, next_ in zip(writers, following, strict=True) if next_]
        schema = pa.schema([("writer", pa.string()), ("next", pa.int64())])
        return pa.Table.from_pylist([{"writer": w, "next": n} for w, n in known], schema)

    # ------------------------------------------------------------------ tables that grow

    def _growing(self, spec: TableSpec, query: Query, names: set[str]) -> pa.Table:
        deleted: set[str] = set()
        cuts: dict[str, list[tuple[int, int]]] = {}
        if not query.raw:
            runs = _run_conditions(query.where)
            deleted = self.deleted_runs(runs)
            cuts = self._first_steps(runs) if query.table == "metrics" else {}
            names = names | ({"run_id"} if deleted else set())
            names = names | ({"run_id", "attempt", "step"} if cuts else set())
        files = self._folder.segments(spec.name, self._roots_of(query.where))
        table = scan(files, _schema(spec, names), query.where, REPEATED)
        return _hide_replaced(_hide_deleted(table, deleted), cuts)

    def _roots_of(self, where: Sequence[Condition]) -> list[str] | None:
        """Partitions that can hold the runs of a query; None for all."""
        for condition in where:
            if condition.column == "run_id" and condition.operator in ("=", "in"):
                exact = condition.operator == "="
                wanted = [condition.value] if exact else list(condition.value)
                runs = [run for run in wanted if isinstance(run, str)]
                return [NO_ROOT, *runs, *(root for _, root in self.roots(runs))]
        return None

    def roots(self, runs: Sequence[str]) -> list[tuple[str, str]]:
        """Run and root of those runs whose root is known."""
        found = scan(
            self.files("runs"),
            _schema(TABLES["runs"], {"run_id", "root_id"}),
            [Condition("run_id", "in", runs), Condition("root_id", "!=", None)],
        )
        return list(zip(to_list(found["run_id"]), to_list(found["root_id"]), strict=True))

    def deleted_runs(self, where: Sequence[Condition] = ()) -> set[str]:
        """Ids of the runs that are deleted."""
        runs = self.latest("runs", {"run_id", "deleted"}, where)
        return set(to_list(runs.filter(pa.array(_is_deleted(runs)))["run_id"]))

    def _first_steps(self, where: Sequence[Condition]) -> dict[str, list[tuple[int, int]]]:
        """Attempt and first step of each attempt that may hide points, by run."""
        attempts = self.latest("attempts", {"run_id", "attempt", "first_step", "deleted"}, where)
        attempts = attempts.filter(pa.array(~_is_deleted(attempts)))
        found: dict[str, list[tuple[int, int]]] = {}
        for row in attempts.to_pylist():
            if row["first_step"] is not None and row["attempt"] is not None:
                found.setdefault(row["run_id"], []).append((row["attempt"], row["first_step"]))
        return found

    # ------------------------------------------------------------------ keyed tables

    def _keyed(self, spec: TableSpec, query: Query, names: set[str]) -> pa.Table:
        merged = spec.name == "summaries" and not query.raw
        if merged:
            names = {*spec.columns}
        if query.raw and spec.name != "summaries":
            table = scan(self.files(spec.name), _schema(spec, names | {"writer"}), ())
        else:
            keys = [key for key in spec.key if not (merged and key == "writer")]
            exact = [condition for condition in query.where if condition.column in keys]
            table = self.latest(spec.name, names | {"deleted"}, exact)
        if not query.raw:
            table = table.filter(pa.array(~_is_deleted(table)))
            if "run_id" in names and spec.name != "runs" and table.num_rows:
                table = _hide_deleted(table, self.deleted_runs(_run_conditions(query.where)))
        if spec.name == "writers" and "heartbeat_at" in names:
            table = self._with_heartbeats(table)
        return _merge_writers(table) if merged else table

    def latest(
        self, name: str, columns: Iterable[str], where: Sequence[Condition] = ()
    ) -> pa.Table:
        """The latest change of each key, tombstones too; in `runs` the latest value per column.

        Conditions may only be on columns of the key.
        """
        spec = TABLES[name]
        needed = {*columns, *spec.key, *CHANGE}
        return latest_changes(spec, scan(self.files(name), _schema(spec, needed), where))

    def files(self, table: str) -> list[Path]:
        """Segments of a keyed table without those that a merged one replaces."""
        replaced = self._folder.replaced(table)  # first: then the merged file is in the listing
        return [path for path in self._folder.segments(table) if path.name not in replaced]

    def _with_heartbeats(self, table: pa.Table) -> pa.Table:
        times = []
        rows = zip(to_list(table["writer"]), to_list(table["heartbeat_at"]), strict=True)
        for writer, recorded in rows:
            seen = self._folder.heartbeat(writer)
            known = [time for time in (recorded, seen) if time is not None]
            times.append(max(known, default=None))
        position = table.column_names.index("heartbeat_at")
        return table.set_column(position, "heartbeat_at", pa.array(times, pa.int64()))

    def summaries_of(self, writer: str, before: int) -> list[Row]:
        """Rows of a writer's summaries, as they were at record `before`."""
        own = quote(writer, safe="") + "-"
        spec = TABLES["summaries"]
        files = [
            path
            for path in self.files(spec.name)
            if path.name.startswith(own) or self._folder.parse_segment(path.name) is None
        ]
        where = [Condition("writer", "=", writer), Condition("seq", "<", before)]
        found: list[Row] = latest_changes(spec, scan(files, SCHEMAS[spec.name], where)).to_pylist()
        return found


# ---------------------------------------------------------------------------- pure functions


def _schema(spec: TableSpec, names: Iterable[str]) -> pa.Schema:
    schema = SCHEMAS[spec.name]
    wanted = {*names}
    return pa.schema([field for field in schema if field.name in wanted])


def _run_conditions(where: Iterable[Condition]) -> list[Condition]:
    return [condition for condition in where if condition.column == "run_id"]


def _is_deleted(table: pa.Table) -> Mask:
    return np.array([bool(value) for value in to_list(table["deleted"])], np.bool_)


def _hide_deleted(table: pa.Table, deleted: set[str]) -> pa.Table:
    if not deleted:
        return table
    numbers, runs = codes(table["run_id"])
    gone = np.array([run in deleted for run in runs], np.bool_)
    return table.filter(pa.array(~gone[numbers])) if gone.any() else table


def _hide_replaced(table: pa.Table, first_steps: dict[str, list[tuple[int, int]]]) -> pa.Table:
    """Leave out points of an attempt from the step on where a later attempt began."""
    if not first_steps or not table.num_rows:
        return table
    runs, run_ids = codes(table["run_id"])
    attempts, attempt_ids = codes(table["attempt"])
    pairs, pair_of = np.unique(runs * len(attempt_ids) + attempts, return_inverse=True)
    cuts = np.full(len(pairs), _NEVER)
    for i, pair in enumerate(pairs.tolist()):
        run, attempt = divmod(pair, len(attempt_ids))
        begun = first_steps.get(run_ids[run], ())
        own = attempt_ids[attempt]
        cuts[i] = min((step for later, step in begun if own is not None and later > own), default=_NEVER)
    step = table["step"]
    seen = step.fill_null(0).to_numpy() < cuts[pair_of]
    return table.filter(pa.array(seen | step.is_null().to_numpy()))


def _group(table: pa.Table, key: Sequence[str]) -> Positions:
    """Number the rows so that rows of one key have one number."""
    group: Positions = np.zeros(table.num_rows, np.int64)
    for name in key:
        numbers, values = codes(table[name])
        joined = pa.chunked_array([pa.array(group * max(1, len(values)) + numbers)])
        group = codes(joined)[0]
    return group


def _ranks(column: pa.ChunkedArray) -> Positions:
    """Numbers that sort as the texts of a column."""
    numbers, texts = codes(column)
    ranks = np.empty(len(texts), np.int64)
    ranks[sorted(range(len(texts)), key=lambda i: texts[i] or "")] = np.arange(len(texts))
    return ranks[numbers]


def _integers(column: pa.ChunkedArray) -> Positions:
    numbers: Positions = column.fill_null(0).to_numpy()
    return numbers


def latest_changes(spec: TableSpec, table: pa.Table) -> pa.Table:
    """The last row of each key by (changed_at, writer, seq); in `runs` per column."""
    if not table.num_rows:
        return table
    order, starts, ends = _sorted_by_change(table, spec.key)
    if spec.name != "runs":
        return table.take(pa.array(order[ends]))
    columns = [_last_known(column, order, starts) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def deciding_rows(spec: TableSpec, table: pa.Table) -> pa.Array:
    """Positions of the rows without which `latest_changes` would not be what it is.

    Whatever arrives later, and with whatever time, these rows say all that the table says. Of
    `runs` these are several rows of a run, and its last row of each root, where points lie.
    """
    if not table.num_rows:
        return pa.array([], pa.int64())
    order, starts, ends = _sorted_by_change(table, spec.key)
    kept = [order[ends]]
    if spec.name == "runs":
        by_root = _sorted_by_change(table, ("run_id", "root_id"))
        kept.append(by_root[0][by_root[2]])
        for column in table.columns:
            last = _last_position(column, order, starts)
            kept.append(order[last[last >= 0]])
    return pa.array(np.unique(np.concatenate(kept)))


def _sorted_by_change(
    table: pa.Table, key: Sequence[str]
) -> tuple[Positions, Positions, Positions]:
    return _sorted_groups(
        _group(table, key),
        _integers(table["changed_at"]),
        _ranks(table["writer"]),
        _integers(table["seq"]),
    )


def _sorted_groups(
    group: Positions, *order_by: Positions
) -> tuple[Positions, Positions, Positions]:
    """Positions sorted by group and these keys; first and last place of each group in them."""
    order = np.lexsort((*reversed(order_by), group))
    sorted_group = group[order]
    differs = sorted_group[1:] != sorted_group[:-1]
    return order, np.flatnonzero(np.append(True, differs)), np.flatnonzero(np.append(differs, True))


def _last_known(column: pa.ChunkedArray, order: Positions, starts: Positions) -> pa.ChunkedArray:
    """The last value of each group that is not NULL."""
    last = _last_position(column, order, starts)
    return column.take(pa.array(order[last], mask=last < 0))


def _last_position(column: pa.ChunkedArray, order: Positions, starts: Positions) -> Positions:
    """Place in `order` of the last value of each group that is not NULL; -1 where all are."""
    known = column.is_valid().to_numpy()[order]
    last: Positions = np.maximum.reduceat(np.where(known, np.arange(len(order)), -1), starts)
    return last


def _merge_writers(table: pa.Table) -> pa.Table:
    """One summary per series: `last` of the writer that was last, extremes and counts of all."""
    if not table.num_rows:
        return table
    order, starts, ends = _sorted_groups(
        _group(table, SERIES), _integers(table["last_time"]), _ranks(table["writer"])
    )
    merged = table.take(pa.array(order[ends]))
    finite = _integers(table["finite"])[order]
    total = np.add.reduceat(finite, starts)
    counts = np.add.reduceat(_integers(table["count"])[order], starts)
    share = finite / np.maximum(np.repeat(total, ends - starts + 1), 1)
    replaced: dict[str, Any] = {
        "min": np.minimum.reduceat(_floats(table["min"], np.inf)[order], starts),
        "max": np.maximum.reduceat(_floats(table["max"], -np.inf)[order], starts),
        "mean": np.add.reduceat(_floats(table["mean"], 0.0)[order] * share, starts),
    }
    columns = {name: pa.array(values, mask=total == 0) for name, values in replaced.items()}
    columns |= {"count": pa.array(counts), "finite": pa.array(total)}
    for name, values in columns.items():
        merged = merged.set_column(merged.column_names.index(name), name, values)
    return merged


def _floats(column: pa.ChunkedArray, missing: float) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = column.fill_null(missing).to_numpy()
    return values
