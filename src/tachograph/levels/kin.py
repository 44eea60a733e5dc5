"""What the runs above a run and those inside it tell of how far it can be reproduced.

A part is run again with all that it is a part of, and a whole with all of its parts: what one of
them draws decides for the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tachograph.backends.base import Condition, Query
from tachograph.errors import RunNotFound
from tachograph.query import Store
from tachograph.reading.lookup import RunId
from tachograph.reading.run_record import RunRecord

_PARTS = 200  # that are looked at
_DOCUMENTS = 50
_STUDIES = 20
_SAMPLER = "optuna.random_state"
_STATE = "random_state"


@dataclass(frozen=True, slots=True)
class Kin:
    """What counts for a run beside its own record.

    Attributes
    ----------
    documents : mapping
        Of a study above, on its sampler.
    params : mapping
        Those of the runs above, and of the parts those of estimators that were given no seed.
    data : sequence of (section, document)
        On the data of parts; several may be of one section.
    frameworks : sequence of str
        What the parts were trained with.
    studies : sequence of (documents, params)
        Of studies inside: the documents on their samplers, and what they were told.
    processes : int
        How many recorded the trials of the study that the run is, or is inside of, or has in it.
    """

    documents: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    data: Sequence[tuple[str, Any]] = ()
    frameworks: Sequence[str] = ()
    studies: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    processes: int = 1


def kin_of(record: RunRecord, store: Store) -> Kin:
    """What the runs above and inside a run tell of it."""
    above = list(_above(record, store))
    parts = record.parts[:_PARTS]
    params = _unset(store, parts) if parts else {}
    for one in above:
        params = one.params | params
    if any(path.endswith(_STATE) for path in record.params):  # then it knows of them itself
        params = {path: value for path, value in params.items() if not path.endswith(_STATE)}
    documents = _samplers(store, [one.run_id for one in above])
    inside = _studies(store, parts)
    studies = [one.run_id for one in (record, *above) if one.row["kind"] == "study"] or inside
    return Kin(
        documents,
        params,
        _documents(store, parts, Condition("section", "like", "data.%")),
        _frameworks(store, parts),
        [(_samplers(store, [study]), store.run(RunId(study)).params) for study in inside],
        max((_processes(store, study) for study in studies[:_STUDIES]), default=1),
    )


def _above(record: RunRecord, store: Store) -> Iterator[RunRecord]:
    """The runs that a run is a part of, the nearest first, as far as the store has them."""
    parent, passed = record.row["parent_id"], {record.run_id}
    while parent and parent not in passed:  # anyone may record any parent
        passed.add(parent)
        above = store.run(RunId(parent))
        try:
            parent = above.row["parent_id"]
        except RunNotFound:
            return
        yield above


def _unset(store: Store, parts: Sequence[str]) -> dict[str, Any]:
    """Parameters for seeds that are not set."""
    where = [
        Condition("run_id", "in", list(parts)),
        Condition("path", "like", f"%{_STATE}"),
        Condition("value", "=", "null"),
    ]
    found = store.read(Query("params", where, ["path"], ["run_id", "path"], _DOCUMENTS))
    return dict.fromkeys(map(str, found["path"]))


def _frameworks(store: Store, parts: Sequence[str]) -> list[str]:
    if not parts:
        return []
    found = store.read(
        Query("runs", [Condition("run_id", "in", list(parts))], ["framework"], ["run_id"])
    )
    return list(dict.fromkeys(str(one) for one in found["framework"] if one))


def _studies(store: Store, parts: Sequence[str]) -> list[str]:
    """Studies among the parts of a run, the first ones."""
    if not parts:
        return []
    where = [Condition("run_id", "in", list(parts)), Condition("kind", "=", "study")]
    return list(store.read(Query("runs", where, ["run_id"], ["run_id"], _STUDIES))["run_id"])


def _samplers(store: Store, run_ids: Sequence[str]) -> dict[str, Any]:
    return dict(_documents(store, run_ids, Condition("section", "=", _SAMPLER)))


def _processes(store: Store, study: str) -> int:
    where = [Condition("parent_id", "=", study), Condition("kind", "=", "trial")]
    trials = store.read(Query("runs", where, ["run_id"], ["started_at", "run_id"], _PARTS))
    where = [Condition("run_id", "in", list(trials["run_id"]))]
    return len(set(store.read(Query("attempts", where, ["writer"]))["writer"]))


def _documents(store: Store, run_ids: Sequence[str], sections: Condition) -> list[tuple[str, Any]]:
    if not run_ids:
        return []
    where = [Condition("run_id", "in", list(run_ids)), sections]
    columns = ("section", "document")
    found = store.read(Query("provenance", where, columns, ["run_id", "section"], _DOCUMENTS))
    return [
        (section, json.loads(text or "null"))
        for section, text in zip(found["section"], found["document"], strict=True)
    ]
