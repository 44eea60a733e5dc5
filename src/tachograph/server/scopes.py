"""What a token for some projects may see: every question to a store is narrowed to it.

Knows tables and what a run's project is; knows no HTTP and no route. Because it stands under
everything that reads, a filter, a count, a name in an error message or a digest says nothing of
other projects either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tachograph.backends.base import Condition, Query, table_columns
from tachograph.merge import matches, merge_changes, spanned
from tachograph.records import TABLES
from tachograph.table import Table

Read = Callable[[Query], Table]

_OF_RUNS = (
    # What nearly every writer has comes first, what may be long last.
    *("attempts", "summaries", "runs", "params", "tags", "provenance", "artifacts", "events"),
    "tensors",
)
_CHANGE = ("changed_at", "writer", "seq")


def covered_runs(rows: Iterable[Mapping[str, Any]], projects: Collection[str]) -> set[str]:
    """The runs that belong to projects: trials, folds and other parts are where their root is.

    Parameters
    ----------
    rows : iterable of mapping
        run_id, root_id and project of all runs; where the root of a run is not among them, its own
        project counts.
    projects : collection of str
    """
    known = {row["run_id"]: row for row in rows}
    return {
        run_id
        for run_id, row in known.items()
        if known.get(row["root_id"] or run_id, row)["project"] in projects
    }


class Narrowed:
    """Reads as if there were only the runs of some projects.

    Of the tables without runs, `writers` and `cursors`, there are the writers that recorded into
    such a run.

    Parameters
    ----------
    read : callable
        Reads everything.
    projects : collection of str
        Whose runs there are.
    """

    def __init__(self, read: Read, projects: Collection[str]) -> None:
        self._read = read
        self._projects = projects
        self._covered: dict[bool, set[str]] = {}

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        query.check()
        if "run_id" in table_columns(query.table):
            return self._of_runs(query)
        return self._of_writers(query)

    # ------------------------------------------------------------------ inside

    def _of_runs(self, query: Query) -> Table:
        named = [condition for condition in query.where if condition.column == "run_id"]
        others = [condition for condition in query.where if condition.column != "run_id"]
        wanted = [
            run_id
            for run_id in sorted(self._runs(query.raw))
            if all(matches({"run_id": run_id}, condition) for condition in named)
        ]
        return self._read(replace(query, where=[Condition("run_id", "in", wanted), *others]))

    def _runs(self, raw: bool) -> set[str]:
        """Runs that are covered; raw questions are about deleted ones as well."""
        if raw not in self._covered:
            columns = ["run_id", "root_id", "project", *(_CHANGE if raw else ())]
            found: Iterable[Any] = self._read(Query("runs", columns=columns, raw=raw))
            if raw:
                found = merge_changes(TABLES["runs"], found)
            self._covered[raw] = covered_runs(found, self._projects)
        return self._covered[raw]

    def _of_writers(self, query: Query) -> Table:
        if query.span is not None:
            return spanned(self._of_writers, query)
        names = query.columns or table_columns(query.table)
        columns = [*dict.fromkeys([*names, "writer"])]
        found = self._read(replace(query, columns=columns, limit=None))
        raw = query.raw or query.table == "cursors"
        shown = self._writers({*found["writer"]}, raw)
        kept = [at for at, writer in enumerate(found["writer"]) if writer in shown]
        return found.take(kept[: query.limit]).select(names)

    def _writers(self, candidates: set[str], raw: bool) -> set[str]:
        """Those of some writers that recorded into a run that is covered."""
        shown: set[str] = set()
        for table in _OF_RUNS:
            hidden = candidates - shown
            if not hidden:
                break
            where = [Condition("writer", "in", sorted(hidden))]
            shown |= {*self.read(Query(table, where, ["writer"], raw=raw))["writer"]}
        return shown
