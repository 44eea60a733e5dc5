"""Which runs a token for some projects may write to.

Knows the table `runs` and what was said of it lately; knows no route. A run belongs to the project
of its root, as `scopes` has it; one that nobody has written about belongs to whoever begins it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tachograph.errors import AccessDenied, Busy
from tachograph.merge import change_order, merge_changes
from tachograph.reading.live import LiveReader
from tachograph.records import TABLES, Batch, Row
from tachograph.server.scopes import covered_runs
from tachograph.tensors.records import TensorRows

if TYPE_CHECKING:
    from tachograph.server.inbox import Inbox
    from tachograph.server.readers import Readers
    from tachograph.server.tokens import Grant

_KEPT = 50_000  # runs
_MANY = 8  # changes of one run
_FRESH_SECONDS = 60.0  # others may write to the store as well
_COLUMNS = ("run_id", "root_id", "project", "changed_at", "writer", "seq")


@dataclass(slots=True)
class _Said:
    """Changes of a run that say something of its root or project, and when the store was asked."""

    rows: list[Row] = field(default_factory=list)
    asked_at: float = float("-inf")


class Ownership:
    """Decides whether a batch may be taken, by the runs that it names.

    Parameters
    ----------
    inbox : Inbox
    readers : Readers
        Of the store that the inbox fills.
    """

    def __init__(self, inbox: Inbox, readers: Readers) -> None:
        self._inbox = inbox
        self._readers = readers
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def admit(self, batch: Batch, grant: Grant) -> Iterator[None]:
        """Let a batch be taken; what it says of runs counts from here on, unless that fails.

        Raises
        ------
        AccessDenied
            It names a run that the token does not cover.
        Busy
            It cannot be told now.
        """
        stated = [
            {name: row[name] for name in _COLUMNS}
            for row in batch.rows.get("runs", ())
            if row["root_id"] is not None or row["project"] is not None
        ]
        named: set[str] = set()
        relatives: set[str] = set()
        if not grant.covers_all:
            named, relatives = _runs(batch)
            self._ask_about(named | relatives)
        with self._lock:
            self._check(named, relatives, stated, grant)
            added = [row for row in stated if self._add(row)]
        try:
            yield
        except BaseException:
            with self._lock:
                self._take_back(added)
            raise

    # ------------------------------------------------------------------ inside

    def _ask_about(self, run_ids: Collection[str]) -> None:
        """Ask the store about runs, and about their roots."""
        for _ in range(2):
            due = time.monotonic() - _FRESH_SECONDS
            with self._lock:
                roots = {row["root_id"] for row in self._rows(run_ids)} - {None}
                wanted = [
                    run_id
                    for run_id in sorted(roots.union(run_ids))
                    if (said := self._said.get(run_id)) is None or said.asked_at < due
                ]
            if wanted:
                self._read(wanted)

    def _read(self, run_ids: Sequence[str]) -> None:
        with self._readers.lend() as served:
            rows = LiveReader(served.backend, self._inbox.tails).changes("runs", run_ids)
        if self._inbox.behind:
            raise Busy("the store lags too far behind to tell whose runs these are", 15.0)
        with self._lock:
            for row in rows:
                self._add({name: row[name] for name in _COLUMNS})
                self._said[row["run_id"]].asked_at = time.monotonic()

    def _check(
        self, named: set[str], relatives: set[str], stated: Sequence[Row], grant: Grant
    ) -> None:
        if grant.covers_all:
            return
        known = self._rows(named | relatives)
        before = merge_changes(TABLES["runs"], known)
        after = merge_changes(TABLES["runs"], [*known, *stated])
        projects = grant.projects or ()
        refused = {row["run_id"] for row in before} - covered_runs(before, projects)
        refused |= {row["run_id"] for row in after} - covered_runs(after, projects)
        refused &= named | relatives
        refused |= named - {row["run_id"] for row in after}
        if refused:
            raise AccessDenied(
                f"the token {grant.name!r} may not write to run {min(refused)}:"
                f" it is for the projects {', '.join(projects)}"
            )

    def _rows(self, run_ids: Iterable[str]) -> list[Row]:
        """What is known of runs and of their roots."""
        rows = [
            row for run_id in run_ids if run_id in self._said for row in self._said[run_id].rows
        ]
        roots = {row["root_id"] for row in rows}.intersection(self._said).difference(run_ids)
        return rows + [row for root in roots for row in self._said[root].rows]

    def _add(self, row: Row) -> bool:
        said = self._said.setdefault(row["run_id"], _Said())
        self._said.move_to_end(row["run_id"])
        if len(self._said) > _KEPT:
            self._said.popitem(last=False)
        if row in said.rows:
            return False
        said.rows.append(row)
        if len(said.rows) > _MANY:
            said.rows = _decisive(said.rows)
        return True

    def _take_back(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if (said := self._said.get(row["run_id"])) and row in said.rows:
                said.rows.remove(row)
                said.asked_at = float("-inf")  # what it had outdone may be forgotten


def _decisive(rows: Iterable[Row]) -> list[Row]:
    """The latest row that says something of the root, and the latest of the project."""
    latest = sorted(rows, key=change_order, reverse=True)
    found: list[Row] = []
    for column in ("root_id", "project"):
        row = next((row for row in latest if row[column] is not None), None)
        if row is not None and row not in found:
            found.append(row)
    return found


def _runs(batch: Batch) -> tuple[set[str], set[str]]:
    """The runs that a batch writes to, and those that it calls their parents and roots."""
    named = {block.series.run_id for block in batch.blocks}
    relatives: set[str] = set()
    for table, rows in batch.rows.items():
        if isinstance(rows, TensorRows):
            named |= {run_id for run_id in rows.run_ids() if run_id is not None}
        elif "run_id" in TABLES[table].columns:
            named |= {row["run_id"] for row in rows}
        if table == "runs":
            relatives |= {row[name] for row in rows for name in ("root_id", "parent_id")}
    return named, relatives - {None}
