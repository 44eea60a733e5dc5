"""One run with everything that is known about it, read when asked for.

Knows the tables that belong to a run; everything is read through the store.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import Condition, Query
from tachograph.reading.documents import is_of_splits
from tachograph.reading.lookup import RunId, family_of
from tachograph.records import Row
from tachograph.table import Table

if TYPE_CHECKING:
    from tachograph.query import Store


class RunRecord:
    """A recorded run. Each attribute is read once, when it is first asked for.

    Parameters
    ----------
    store : Store
        Where the run is.
    run_id : str
        Its id.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self.run_id = run_id

    @functools.cached_property
    def row(self) -> Row:
        """The run's columns: status, project, started_at (µs), …"""
        return self._store.row(self.run_id)

    @property
    def status(self) -> str:
        """running, finished, failed, interrupted, pruned or lost."""
        return str(self.row["status"])

    @property
    def name(self) -> str | None:
        """The run's name."""
        name = self.row["name"]
        return None if name is None else str(name)

    @functools.cached_property
    def given(self) -> Table:
        """Parameters with where they come from: path, value, source."""
        return self._store.params(self.run_id)

    @property
    def params(self) -> dict[str, Any]:
        """Dotted path to value."""
        return dict(zip(self.given["path"], self.given["value"], strict=True))

    @functools.cached_property
    def tags(self) -> dict[str, str | None]:
        """Key to value."""
        found = self._store.tags(self.run_id)
        return dict(zip(found["key"], found["value"], strict=True))

    @functools.cached_property
    def metrics(self) -> Table:
        """What series there are, with their summaries."""
        return self._store.metrics_of(self.run_id)

    @functools.cached_property
    def attempts(self) -> Table:
        """Tries at the run."""
        return self._store.attempts(self.run_id)

    @functools.cached_property
    def events(self) -> Table:
        """What happened."""
        return self._store.events(self.run_id)

    @functools.cached_property
    def artifacts(self) -> Table:
        """Files and references to files."""
        return self._store.artifacts(self.run_id)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """Section to document, with the root's where the run has none of its own."""
        root, own = self.row["root_id"], self._documents(self.run_id)
        of_root = self._documents(root) if root and root != self.run_id else {}
        if any(map(is_of_splits, own)):  # the folds of the root are not parts of its data
            of_root = {name: of_root[name] for name in of_root if not is_of_splits(name)}
        return of_root | own

    def _documents(self, run_id: str) -> dict[str, Any]:
        found = self._store.provenance(RunId(run_id))
        return dict(zip(found["section"], found["document"], strict=True))

    @functools.cached_property
    def children(self) -> Table:
        """The runs whose parent this is."""
        return self._store.children(self.run_id)

    @functools.cached_property
    def parts(self) -> list[str]:
        """The ids of its parts, then of theirs; each generation in order of its start."""
        return family_of(self._store, [self.run_id])[1:]

    @functools.cached_property
    def writers(self) -> Table:
        """The processes that recorded the attempts."""
        writers = sorted(set(self._attempt_writers()))
        return self._store.read(Query("writers", [Condition("writer", "in", writers)]))

    def _attempt_writers(self) -> list[str]:
        where = [Condition("run_id", "=", self.run_id)]
        return list(self._store.read(Query("attempts", where, ["writer"]))["writer"])

    def series(self, name: str, **options: Any) -> Table:
        """The points of a metric; the options are those of `Store.series`."""
        return self._store.series(self.run_id, name, **options)

    def __repr__(self) -> str:
        return f"<run {self.run_id} {self.name or ''} {self.status}>"
