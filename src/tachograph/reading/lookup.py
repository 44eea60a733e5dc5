"""Finds the run that a person means by a few characters.

Knows how runs are named; knows no store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tachograph.backends.base import Condition, Query
from tachograph.errors import RunNotFound
from tachograph.reading.facts import nearest
from tachograph.reading.listing import Reader
from tachograph.reading.portions import chunks
from tachograph.records import Row

_SHORTEST_END = 4  # characters; fewer would fit runs by accident
_SHOWN = 10


class RunId(str):
    """The id of a run that was found; it is not looked up again."""

    __slots__ = ()


def resolve_run(reader: Reader, text: str) -> RunId:
    """The id of the run meant: its id, ``latest`` or ``@n``, an id's beginning or end, a name.

    Raises
    ------
    RunNotFound
        None fits, or several do; the message lists them.
    """
    if isinstance(text, RunId):
        return text
    if not text.startswith("@") and _find(reader, [Condition("run_id", "=", text)], 1):
        return RunId(text)
    ordinal = re.fullmatch(r"@([1-9]\d{0,17})", "@1" if text == "latest" else text)
    if ordinal:
        return _latest(reader, int(ordinal[1]))
    for found in (_beginning(reader, text), _end(reader, text), _named(reader, text)):
        if len(found) == 1:
            return RunId(found[0]["run_id"])
        if found:
            raise RunNotFound(f"{text!r} fits several runs:\n{_listed(found)}")
    raise RunNotFound(f"there is no run {text!r}{_hint(reader, text)}")


def family_of(reader: Reader, run_ids: Iterable[str]) -> list[str]:
    """The runs and all their descendants: a generation after the one before, by their start."""
    family = dict.fromkeys(run_ids)
    parents = list(family)
    while parents:
        born: list[str] = []
        for some in chunks(parents):
            where = [Condition("parent_id", "in", some)]
            born += reader.read(Query("runs", where, ["run_id"], ["started_at", "run_id"]))[
                "run_id"
            ]
        parents = [run_id for run_id in dict.fromkeys(born) if run_id not in family]
        family |= dict.fromkeys(parents)
    return list(family)


def _find(reader: Reader, where: Sequence[Condition], limit: int | None) -> list[Row]:
    columns = ["run_id", "name", "project", "status", "started_at"]
    return list(reader.read(Query("runs", where, columns, ["-started_at"], limit)))


def _latest(reader: Reader, ordinal: int) -> RunId:
    found = _find(reader, [Condition("parent_id", "=", None)], ordinal)
    if len(found) < ordinal:
        raise RunNotFound(f"there is no run @{ordinal}; the store has {len(found)}")
    return RunId(found[ordinal - 1]["run_id"])


def _beginning(reader: Reader, text: str) -> list[Row]:
    if not text:
        return []
    last = text + "\x7f"  # behind every character that an id may have
    where = [Condition("run_id", ">=", text), Condition("run_id", "<", last)]
    return _find(reader, where, _SHOWN + 1)


def _end(reader: Reader, text: str) -> list[Row]:
    if len(text) < _SHORTEST_END:
        return []
    found = _find(reader, [Condition("run_id", "like", "%" + text)], None)
    return [row for row in found if row["run_id"].endswith(text)]  # '_' fits any character


def _named(reader: Reader, text: str) -> list[Row]:
    return _find(reader, [Condition("name", "=", text)], _SHOWN + 1)


def _listed(found: Sequence[Row]) -> str:
    lines = [
        f"  {row['run_id']}  {row['status'] or ''}  {row['project'] or ''}  {row['name'] or ''}"
        for row in found[:_SHOWN]
    ]
    return "\n".join(line.rstrip() for line in [*lines, *["  …"] * (len(found) > _SHOWN)])


def _hint(reader: Reader, text: str) -> str:
    recent = _find(reader, [], 1000)
    names = {str(row["name"]) for row in recent if row["name"]}
    near = nearest(text, names | {row["run_id"] for row in recent})
    return near or "; give an id, the beginning or end of one, or a whole name"
