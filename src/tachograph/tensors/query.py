"""Statistics of tensors as a reader wants them: chosen, merged over ranks, the latest attempt's.

Works on whole columns, because a run easily has a million rows. Knows the table `tensors` and what
its columns mean, no store.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tachograph.backends.base import SPAN, Condition, Query
from tachograph.errors import QueryError
from tachograph.merge import visible_points
from tachograph.reading.facts import decode_context, nearest
from tachograph.records import TABLES, Row
from tachograph.table import Table
from tachograph.tensors import histograms
from tachograph.tensors.merge import is_shard, merge_shards

Read = Callable[[Query], Table]
Step = int | range | Literal["last"]
Key = tuple[Any, ...]

SERIES = ("run_id", "name", "kind", "context")
"""What makes rows one tensor over time."""

_PLACE = (*SERIES, "rank", "attempt", "step")
_HIDDEN = ("writer", "seq", "histogram")
_DERIVED = ("shards", "update_ratio")
_MERGED_FROM = {"size", "logical_shape", "nan", "inf", "mean", "std"}

COLUMNS = (*(name for name in TABLES["tensors"].columns if name not in _HIDDEN), *_DERIVED)
"""Columns of an answer, but for the histogram."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which tensors; `Store.tensors` says what each means."""

    run_ids: Sequence[str]
    kinds: Sequence[str] = ()
    names: Sequence[str] = ()
    step: Step | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    ranks: int | Literal["merge", "all"] = "merge"
    attempts: Literal["latest", "all"] = "latest"
    columns: Sequence[str] = COLUMNS


def find(read: Read, wanted: Wanted) -> Table:
    """The rows that are wanted, by run, by step, and then as they were recorded.

    Raises
    ------
    QueryError
        Nothing fits; the message says what there is.
    """
    known = (*COLUMNS, "histogram")
    if unknown := [name for name in wanted.columns if name not in known]:
        raise QueryError(f"tensors have no column {unknown[0]!r}; they have: {', '.join(known)}")
    needed = {*_PLACE, *wanted.columns} - {*_DERIVED}
    if "update_ratio" in wanted.columns:
        needed.add("l2")
    if wanted.step == "last":
        found = _last_rows(read, wanted, needed)
    else:
        found = _merged(read, wanted, needed)
    if not len(found) and (problem := _nothing(read, wanted)):
        raise QueryError(problem)
    return _answer(found, wanted)


def index(read: Read, wanted: Wanted) -> Table:
    """One row per tensor, by run and name: its key, first and last step, and number of rows."""
    wanted = replace(wanted, step=None)
    seen: dict[Key, list[Any]] = {}
    for key, first, last, count in _spans(read, wanted):
        known = seen.setdefault(key, [first, last, 0])
        known[2] += count
        if first is not None:
            known[0] = first if known[0] is None else min(known[0], first)
            known[1] = last if known[1] is None else max(known[1], last)
    place = {run_id: at for at, run_id in enumerate(wanted.run_ids)}
    ordered = sorted(seen, key=lambda key: (place[key[0]], _by_numbers(key[1]), key))
    found = [(*key, *seen[key]) for key in ordered]
    names = (*SERIES, "first_step", "last_step", "count")
    return Table({name: [row[i] for row in found] for i, name in enumerate(names)})


def _by_numbers(name: str) -> list[tuple[str, int]]:
    """What sorts ``layer2`` before ``layer10``."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _spans(read: Read, wanted: Wanted) -> Iterable[tuple[Key, int | None, int | None, int]]:
    """Keys, first and last steps, and counts; of one tensor perhaps several times.

    The store works them out where each row counts for itself: a later attempt may hide some, and
    what ranks hold parts of is there at the steps that all of them have.
    """
    found = _fitting(wanted, read(Query("tensors", _conditions(wanted), SERIES, span="step")))
    is_whole = wanted.ranks != "merge" or not any(_by_value(found["context"], is_shard))
    if not len(found) or (is_whole and (wanted.attempts == "all" or not _attempts(read, wanted))):
        return zip(_keys(found, SERIES), *(found[name] for name in SPAN), strict=True)
    rows = _merged(read, wanted, {*_PLACE})
    steps = rows["step"]
    return zip(_keys(rows, SERIES), steps, steps, [1] * len(rows), strict=True)


# ---------------------------------------------------------------------------- reading


def _merged(
    read: Read, wanted: Wanted, columns: set[str], steps: Sequence[int] | None = None
) -> Table:
    """Rows that fit; what ranks hold parts of is merged, unless each rank's is wanted."""
    rows = _rows(read, wanted, columns, steps)
    if wanted.ranks != "merge" or not any(_by_value(rows["context"], is_shard)):
        return rows
    if not columns >= _MERGED_FROM:
        rows = _rows(read, wanted, columns | _MERGED_FROM, steps)
    whole: list[Row] = []
    parts: list[Row] = []
    for at, row in enumerate(rows):
        (parts if is_shard(row["context"]) else whole).append(row | {"at": at})
    whole = sorted([*whole, *merge_shards(parts)], key=lambda row: row["at"])
    return Table.from_rows(whole, (*rows.columns, "shards"))


def _rows(read: Read, wanted: Wanted, columns: set[str], steps: Sequence[int] | None) -> Table:
    """Rows as they were recorded that fit, of weights also those of their updates."""
    where = [*_conditions(wanted), *([] if steps is None else [_one_of("step", steps)])]
    names = [name for name in TABLES["tensors"].columns if name in columns]
    rows = _fitting(wanted, read(Query("tensors", where, names)))
    if isinstance(wanted.step, range):
        rows = _keep(rows, [step in wanted.step for step in rows["step"]])
    return rows if wanted.attempts == "all" else _latest_attempt(read, wanted, rows)


def _fitting(wanted: Wanted, rows: Table) -> Table:
    """The rows whose name and context fit, which a store cannot tell."""
    if wanted.names:
        rows = _keep(rows, _by_value(rows["name"], lambda name: _fits(wanted.names, name)))
    if wanted.context:
        items = wanted.context.items()
        fits = _by_value(rows["context"], lambda text: items <= decode_context(text).items())
        rows = _keep(rows, fits)
    return rows


def _conditions(wanted: Wanted) -> list[Condition]:
    where = [_one_of("run_id", wanted.run_ids)]
    if wanted.kinds:
        with_updates = "weight" in wanted.kinds and "update_ratio" in wanted.columns
        where.append(_one_of("kind", [*wanted.kinds, *["update"] * with_updates]))
    if wanted.names and not any(map(_is_pattern, wanted.names)):
        where.append(_one_of("name", wanted.names))
    elif len(wanted.names) == 1:  # lets a little more through, as '_' is any letter in SQL
        where.append(Condition("name", "like", wanted.names[0].replace("*", "%")))
    if isinstance(wanted.step, range):
        where.append(Condition("step", ">=", min(wanted.step, default=0)))
        where.append(Condition("step", "<=", max(wanted.step, default=-1)))
    elif isinstance(wanted.step, int):
        where.append(Condition("step", "=", wanted.step))
    if isinstance(wanted.ranks, int):
        where.append(Condition("rank", "=", wanted.ranks))
    return where


def _latest_attempt(read: Read, wanted: Wanted, rows: Table) -> Table:
    attempts = _attempts(read, wanted) if len(rows) else ()
    if not attempts:
        return rows
    points = [row | {"at": at} for at, row in enumerate(rows.select(_PLACE))]
    return rows.take([row["at"] for row in visible_points(points, attempts)])


def _attempts(read: Read, wanted: Wanted) -> Sequence[Row]:
    """The attempts at the runs where there are several at one; else none."""
    columns = ("run_id", "attempt", "first_step")
    found = list(read(Query("attempts", [_one_of("run_id", wanted.run_ids)], columns)))
    return found if any((row["attempt"] or 1) > 1 for row in found) else ()


def _last_rows(read: Read, wanted: Wanted, columns: set[str]) -> Table:
    """The last row of each tensor: not all are recorded at the same steps."""
    known = index(read, wanted)
    last = dict(zip(_keys(known, SERIES), known["last_step"], strict=True))
    steps = sorted({step for step in last.values() if step is not None})
    rows = _merged(read, wanted, columns, steps)
    keys = zip(_keys(rows, SERIES), rows["step"], strict=True)
    return _keep(rows, [step == last[key] for key, step in keys])


# ---------------------------------------------------------------------------- the answer


def _answer(rows: Table, wanted: Wanted) -> Table:
    columns: dict[str, Sequence[Any]] = {name: rows[name] for name in rows.columns}
    merged = columns.get("shards", [None] * len(rows))
    columns["shards"] = [1 if count is None else count for count in merged]
    if "update_ratio" in wanted.columns:
        columns["update_ratio"] = update_ratios(rows)
    for name, decode in _DECODED.items():
        if name in columns:
            columns[name] = _by_value(columns[name], decode)
    names = [name for name in (*COLUMNS, "histogram") if name in wanted.columns]
    answer = Table({name: columns[name] for name in names})
    kept: Sequence[int] = range(len(rows))
    if wanted.kinds and "update" not in wanted.kinds:  # these were read for the ratios
        kept = [at for at, kind in enumerate(columns["kind"]) if kind != "update"]
    ordered = _in_order(columns["run_id"], columns["step"], wanted.run_ids, kept)
    return answer if ordered == range(len(rows)) else answer.take(ordered)


def _in_order(
    run_ids: Sequence[str], steps: Sequence[int | None], runs: Sequence[str], kept: Sequence[int]
) -> Sequence[int]:
    """Positions by run, by step, those without a step last, and then as they are."""
    order = kept
    numbers = [math.inf if step is None else step for step in steps]
    if any(map(operator.gt, numbers, numbers[1:])):
        order = sorted(order, key=numbers.__getitem__)
    if len(runs) > 1:
        place = {run_id: at for at, run_id in enumerate(runs)}
        order = sorted(order, key=lambda at: place[run_ids[at]])
    return order


def update_ratios(rows: Table) -> list[float | None]:
    """For weights the l2 of the update at the same step by that of the weight, else None.

    The update is that of the same name, rank and attempt in the same context; where there is none
    in it, that of the only optimizer.
    """
    updates: dict[Key, dict[str, float | None]] = {}
    keys = _keys(rows, ("run_id", "name", "rank", "attempt", "step"))
    kinds, contexts, norms = rows["kind"], rows["context"], rows["l2"]
    for key, kind, context, norm in zip(keys, kinds, contexts, norms, strict=True):
        if kind == "update":
            updates.setdefault(key, {})[context] = norm
    ratios: list[float | None] = []
    for key, kind, context, norm in zip(keys, kinds, contexts, norms, strict=True):
        by_context = updates.get(key) if kind == "weight" and norm else None
        update = None
        if by_context:
            only = next(iter(by_context.values())) if len(by_context) == 1 else None
            update = by_context.get(context, only)
        ratios.append(None if update is None or not norm else update / norm)
    return ratios


def _shape(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(json.loads(text))


def _pairs(text: str | None) -> tuple[tuple[int, int], ...] | None:
    return None if text is None else tuple(sorted(histograms.from_text(text).items()))


_DECODED = {"shape": _shape, "logical_shape": _shape, "histogram": _pairs}


# ---------------------------------------------------------------------------- what there is


def _nothing(read: Read, wanted: Wanted) -> str | None:
    """Why nothing fits, and what there is; None where there is nothing and all was wanted."""
    runs = f"run {wanted.run_ids[0]}" if len(wanted.run_ids) == 1 else "these runs"
    known = index(read, Wanted(wanted.run_ids, ranks=wanted.ranks))
    if not len(known):
        if len(index(read, Wanted(wanted.run_ids, ranks="all"))):
            return f"of {runs} the tensors of some ranks are not here; ranks='all' gives the others"
        is_all = not (wanted.kinds or wanted.names or wanted.context or wanted.step is not None)
        return None if is_all else f"no tensors are recorded of {runs}"
    kinds, names = set(known["kind"]), set(known["name"])
    for kind in wanted.kinds:
        if kind not in kinds:
            return f"{runs} has no tensors of kind {kind!r}{_hint(kind, kinds)}"
    if wanted.names and not any(_fits(wanted.names, name) for name in names):
        return f"{runs} has no tensor {', '.join(wanted.names)}{_hint(wanted.names[0], names)}"
    if isinstance(wanted.step, int):
        steps = f"{min(known['first_step'])} to {max(known['last_step'])}"
        return f"{runs} has no such tensors at step {wanted.step}; there are some from {steps}"
    return f"{runs} has no tensors that satisfy all of this{_hint('', names)}"


def _hint(name: str, known: set[str]) -> str:
    shown = sorted(known)[:12]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return f"{nearest(name, known)}; it has: {', '.join(shown)}{more}"


# ---------------------------------------------------------------------------- columns


def _keys(table: Table, names: Iterable[str]) -> list[Key]:
    return list(zip(*(table[name] for name in names), strict=True))


def _by_value(values: Sequence[Any], function: Callable[[Any], Any]) -> list[Any]:
    """The function of each value, asked once for each that differs; there are few."""
    found = {value: function(value) for value in set(values)}
    return [found[value] for value in values]


def _keep(table: Table, kept: Sequence[Any]) -> Table:
    return table if all(kept) else table.take([at for at, keep in enumerate(kept) if keep])


def _one_of(column: str, values: Sequence[Any]) -> Condition:
    if len(values) == 1:
        return Condition(column, "=", values[0])
    return Condition(column, "in", list(values))


def _is_pattern(name: str) -> bool:
    return "%" in name or "*" in name


def _fits(names: Sequence[str], name: str) -> bool:
    """Whether a name is one of these, or fits one of them that is a pattern."""
    return any(
        _pattern(one).fullmatch(name) is not None if _is_pattern(one) else one == name
        for one in names
    )


@functools.lru_cache
def _pattern(text: str) -> re.Pattern[str]:
    # Unlike in SQL '_' stands for itself: names of tensors are full of it.
    return re.compile(".*".join(map(re.escape, re.split("[%*]", text))), re.DOTALL)
