"""Answers to queries from the files alone: the rows that the views of `views.sql` show.

Knows the meaning of changes, attempts and summaries; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa

from tachograph.backends.base import SPAN, Condition, Query
from tachograph.backends.parquet_arrays import from_list, to_list
from tachograph.backends.parquet_files import NO_ROOT, SCHEMAS, Folder
from tachograph.backends.parquet_merge import (
    CHANGE,
    hide_deleted,
    hide_replaced,
    is_deleted,
    latest_changes,
    merge_writers,
)
from tachograph.backends.parquet_scan import (
    REPEATED,
    filter_table,
    keep_rows,
    scan,
    sort_table,
)
from tachograph.errors import StoreError
from tachograph.records import TABLES, Row, TableSpec
from tachograph.table import Table

_TRIES = 5
Answer = TypeVar("Answer")


class Reader:
    """Reads one store.

    Parameters
    ----------
    folder : Folder
        The store.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Any, Any]] = {}

    def read(self, query: Query) -> Table:
        """The rows of a checked query."""
        for _ in range(_TRIES):
            try:
                return self._answer(query)
            except FileNotFoundError:  # merged into another file since it was listed
                continue
        raise StoreError(f"{self._folder.path}: files vanish while they are read")

    def _answer(self, query: Query) -> Table:
        columns = query.names if query.span is None else (*(query.columns or ()), query.span)
        if query.table == "cursors":
            table = self._cursors()
        else:
            used = [condition.column for condition in query.where]
            used += [name.removeprefix("-") for name in query.order]
            spec = TABLES["metrics" if query.table == "all_metrics" else query.table]
            find = self._growing if spec.grows else self._keyed
            table = find(spec, query, {*columns, *used})
        table = filter_table(table, query.where)
        if query.span is not None:
            table = _spans(table, query.columns or (), query.span)
        table = sort_table(table, query.order)
        if query.limit is not None:
            table = table.slice(0, max(0, query.limit))
        return Table({name: to_list(table[name]) for name in query.names})

    def _cursors(self) -> pa.Table:
        names = sorted(path.name for path in (self._folder.hidden / "cursors").iterdir())
        writers = [unquote(name) for name in names]
        following = [self._folder.read_cursor(writer).next for writer in writers]
        known = [(writer, next_) for writer, next_ in zip(writers, following, strict=True) if next_]
        columns = [
            from_list([w for w, _ in known], "text"),
            from_list([n for _, n in known], "int"),
        ]
        return pa.table(columns, names=["writer", "next"])

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
        return hide_replaced(hide_deleted(table, deleted), cuts)

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
        files = self.files("runs")

        def find() -> list[tuple[str, str]]:
            schema = _schema(TABLES["runs"], {"run_id", "root_id"})
            where = [Condition("run_id", "in", runs), Condition("root_id", "!=", None)]
            found = scan(files, schema, where)
            return list(zip(to_list(found["run_id"]), to_list(found["root_id"]), strict=True))

        return self._remembered("roots", (files, list(runs)), find)

    def deleted_runs(self, where: Sequence[Condition] = ()) -> set[str]:
        """Ids of the runs that are deleted."""

        def find() -> set[str]:
            runs = self.latest("runs", {"run_id", "deleted"}, where)
            return set(to_list(keep_rows(runs, is_deleted(runs))["run_id"]))

        asked = [(one.column, one.operator, _constant(one)) for one in where]
        return self._remembered("deleted", (self.files("runs"), asked), find)

    def _remembered(self, question: str, about: Any, find: Callable[[], Answer]) -> Answer:
        """The last answer to a question, while there are the same files, which never change.

        Each table of a run asks the same of its row, which may lie in any of a thousand segments.
        """
        known = self._known.get(question)
        if known is None or known[0] != about:
            known = self._known[question] = about, find()
        answer: Answer = known[1]
        return answer

    def _first_steps(self, where: Sequence[Condition]) -> dict[str, list[tuple[int, int]]]:
        """Attempt and first step of each attempt that may hide points, by run."""
        attempts = self.latest("attempts", {"run_id", "attempt", "first_step", "deleted"}, where)
        attempts = keep_rows(attempts, ~is_deleted(attempts))
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
            table = keep_rows(table, ~is_deleted(table))
            if "run_id" in spec.key and spec.name != "runs" and table.num_rows:
                table = hide_deleted(table, self.deleted_runs(_run_conditions(query.where)))
        if spec.name == "writers" and "heartbeat_at" in names:
            table = self._with_heartbeats(table)
        return merge_writers(table) if merged else table

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
        return table.set_column(position, "heartbeat_at", from_list(times, "int"))

    def summaries_of(self, writer: str, before: int, names: Collection[str]) -> list[Row]:
        """Rows of a writer's summaries of metrics, as they were at record `before`."""
        own = quote(writer, safe="") + "-"
        spec = TABLES["summaries"]
        files = [
            path
            for path in self.files(spec.name)
            if path.name.startswith(own) or self._folder.parse_segment(path.name) is None
        ]
        where = [Condition("writer", "=", writer), Condition("seq", "<", before)]
        where.append(Condition("name", "in", sorted(names)))
        found: list[Row] = latest_changes(spec, scan(files, SCHEMAS[spec.name], where)).to_pylist()
        return found


def _schema(spec: TableSpec, names: Iterable[str]) -> pa.Schema:
    schema = SCHEMAS[spec.name]
    wanted = {*names}
    return pa.schema([field for field in schema if field.name in wanted])


def _spans(table: pa.Table, columns: Sequence[str], span: str) -> pa.Table:
    """One row per combination of columns, with the columns `SPAN` about another column."""
    columns = [*dict.fromkeys(columns)]
    values = table[span]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    # Each segment has codes of its own, and a group is one code.
    chosen = table.select(columns).unify_dictionaries().append_column("", values)
    counted: list[Any] = [("", "min"), ("", "max"), ([], "count_all")]
    grouped = chosen.group_by(columns, use_threads=False).aggregate(counted)
    return grouped.select([*columns, "_min", "_max", "count_all"]).rename_columns([*columns, *SPAN])


def _constant(condition: Condition) -> Any:
    return tuple(condition.value) if condition.operator == "in" else condition.value


def _run_conditions(where: Iterable[Condition]) -> list[Condition]:
    return [condition for condition in where if condition.column == "run_id"]
