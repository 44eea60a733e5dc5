"""Which runs of a process that was run again stand for which runs of the first one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tachograph.backends.base import Condition, Query
from tachograph.query import Store
from tachograph.reading.lookup import family_of
from tachograph.records import Row

SECTION = "reproduction"
"""The document of a run that was made to reproduce another."""

Part = tuple[str, ...]
"""Where a run stands in its root: ``("trial 3", "fold 0")``; of the root ``()``."""


def reproductions(
    store: Store, run_id: str | None = None, most: int | None = None
) -> dict[str, dict[str, Any]]:
    """Run id to document `reproduction`, of all runs, or of those that reproduce one.

    In the order of their ids; at most `most` are looked at.
    """
    where = [Condition("section", "=", SECTION)]
    if run_id is not None:
        where.append(Condition("document", "like", f"%{run_id}%"))
    found = store.read(Query("provenance", where, ["run_id", "document"], ["run_id"], most))
    documents = {
        run: json.loads(text or "{}")
        for run, text in zip(found["run_id"], found["document"], strict=True)
    }
    return {
        run: document
        for run, document in documents.items()
        if isinstance(document, dict) and run_id in (None, document.get("of"))
    }


def counterpart(
    store: Store, original: str, candidates: Sequence[str], words: Sequence[str]
) -> str | None:
    """Of the runs that a command recorded, the one that stands for the original.

    A process that records one run after another does so in the same order again. Processes that
    it starts with other words, such as workers, have runs of their own, unless the words are
    those of a launcher.
    """
    own = [run for run in candidates if _words(store, run) == list(words)]
    rows = _rows(store, own or candidates)
    place = _earlier(store, original)
    return str(rows[place]["run_id"]) if place < len(rows) else None


def _words(store: Store, run_id: str) -> Any:
    where = [Condition("run_id", "=", run_id), Condition("section", "=", "argv")]
    for text in store.read(Query("provenance", where, ["document"]))["document"]:
        document = json.loads(text or "{}")
        return document.get("original_argv") if isinstance(document, dict) else None
    return None


def _earlier(store: Store, run_id: str) -> int:
    """How many runs the process that recorded a run had started before it."""
    writers = _columns(store, "attempts", [run_id], "writer")
    together = store.read(
        Query("attempts", [Condition("writer", "in", sorted(set(writers)))], ["run_id"])
    )["run_id"]
    ids = [row["run_id"] for row in _rows(store, sorted(set(together)))]
    return ids.index(run_id) if run_id in ids else 0


def _rows(store: Store, run_ids: Sequence[str]) -> list[Row]:
    """Rows of those runs that are parts of no other, in order of their start."""
    found = store.read(
        Query(
            "runs",
            [Condition("run_id", "in", list(run_ids))],
            ["run_id", "parent_id", "started_at"],
            ["started_at", "run_id"],
        )
    )
    return [row for row in found if row["parent_id"] is None]


def _columns(store: Store, table: str, run_ids: Sequence[str], column: str) -> list[Any]:
    where = [Condition("run_id", "in", list(run_ids))]
    return list(store.read(Query(table, where, [column]))[column])


def parts(store: Store, root: str) -> dict[Part, str]:
    """Each part of a run, by its place, to its id; the run itself too.

    Runs of equal kind and name in one parent are numbered in order of their start.
    """
    ids = family_of(store, [root])
    found = store.read(
        Query(
            "runs",
            [Condition("run_id", "in", sorted(ids))],
            ["run_id", "parent_id", "kind", "name"],
            ["started_at", "run_id"],
        )
    )
    rows: dict[str, Row] = {row["run_id"]: row for row in found}
    places: dict[str, Part] = {root: ()}
    taken: Counter[Part] = Counter()
    used: set[Part] = set()

    def place(run_id: str) -> Part:
        if run_id not in places:
            row = rows[run_id]
            above = place(row["parent_id"]) if row["parent_id"] in rows else ()
            label = row["name"] or row["kind"] or "run"
            number = 0
            while not number or (*above, _numbered(label, number)) in used:
                taken[(*above, label)] += 1
                number = taken[(*above, label)]
            places[run_id] = (*above, _numbered(label, number))
            used.add(places[run_id])
        return places[run_id]

    return {place(run_id): run_id for run_id in rows}


def _numbered(label: str, number: int) -> str:
    return label if number == 1 else f"{label} ({number})"
