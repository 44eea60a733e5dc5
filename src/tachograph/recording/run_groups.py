"""The group of a run: what it depends on, noted while it is recorded, and worked out at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tachograph.records import Row

if TYPE_CHECKING:
    from tachograph.run import Run

UNGROUPED = frozenset({"fold", "step"})
"""Kinds of runs that are parts of one training."""

_GIVEN = ("argv", "config file", "user")
_CODE = ("source", "notebook", "git", "argv", "arguments")
_ROWS = 500  # of one record


class Gathered:
    """What a run has recorded, as far as its group depends on it.

    Attributes
    ----------
    parts : dict of str to str
        Of runs that are part of this one and have ended, id to digest of what is their own.
    is_complete : bool
        Whether this run has ended, and all that it gathered in the background is here.
    """

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.is_complete = False
        self._params: dict[str, tuple[str, str]] = {}
        self._documents: dict[str, str] = {}
        self._framework = ""
        self._is_given = False

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Take note of rows that the run records; the later of two for one key counts."""
        for row in rows:
            if table == "params":
                self._add_param(row)
            elif table == "provenance" and _counts(row["section"]):
                self._documents[row["section"]] = row["document"]
            elif table == "runs":
                self._framework = row.get("framework") or self._framework
                self._is_given = self._is_given or row.get("group_id") is not None

    def _add_param(self, row: Row) -> None:
        if row.get("deleted"):
            self._params.pop(row["path"], None)
        elif "changed_at" in row:  # said of the start: all others count for more
            self._params.setdefault(row["path"], (row["value"], row["source"]))
        else:
            self._params[row["path"]] = row["value"], row["source"]

    def own(self, kind: str) -> str | None:
        """Digest of what is this run's own; None where it has no group, or the user gave it one."""
        from tachograph.provenance.grouping import own_digest

        if self._is_given or kind in UNGROUPED:
            return None
        values = {path: value for path, (value, _) in self._params.items()}
        return own_digest(kind, self._framework, values, self._read("data."))

    def code(self) -> str:
        """Digest of the code that ran."""
        from tachograph.provenance.grouping import code_digest

        return code_digest(self._read(*_CODE))

    def around(self) -> str:
        """Digest of the code, and of what else runs that are part of this one share with it."""
        from tachograph.provenance.grouping import code_digest

        given = {path: v for path, (v, source) in self._params.items() if source in _GIVEN}
        return code_digest(self._read(*_CODE), given)

    def _read(self, *names: str) -> dict[str, Any]:
        return {
            section: json.loads(text)
            for section, text in self._documents.items()
            if section.startswith(names)
        }


def _counts(section: str) -> bool:
    return section in _CODE or section.startswith("data.")


def record_group(run: Run) -> None:
    """Record the group of a run that has ended, and those of its parts; runs in the background.

    A part waits for the outermost run, whose code is known as a whole only at its end. A part
    whose parent is in another process has no group.
    """
    from tachograph.provenance.grouping import group_id

    outermost = run
    while outermost.parent is not None:
        outermost = outermost.parent
    own = run.gathered.own(run.kind)
    if outermost is not run:
        if own is not None:
            outermost.gathered.parts[run.run_id] = own
        if outermost.gathered.is_complete:
            _record_parts(outermost)
    elif run.parent_id is None:
        run.gathered.is_complete = True
        if own is not None:
            run.record_rows("runs", {"group_id": group_id(run.gathered.code(), own)})
        _record_parts(run)


def _record_parts(run: Run) -> None:
    from tachograph.provenance.grouping import group_id

    if not run.gathered.parts:
        return
    around = run.gathered.around()
    rows = [
        {"run_id": part, "group_id": group_id(around, own)}
        for part, own in run.gathered.parts.items()
    ]
    run.gathered.parts.clear()
    for start in range(0, len(rows), _ROWS):
        run.record_rows("runs", *rows[start : start + _ROWS])
