"""Points of metrics as a reader wants them: of one series, in order, exact or reduced.

Knows the tables `summaries` and `metrics` and what their columns mean, no store.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tachograph.backends.base import Condition, Query, SupportsReduction
from tachograph.errors import QueryError
from tachograph.reading.facts import choose_context, nearest
from tachograph.reading.listing import Reader
from tachograph.reading.live import LiveReader
from tachograph.reading.reduction import check_count, reduce
from tachograph.records import join_special
from tachograph.table import Table

COLUMNS = ("step", "epoch", "time", "value")
"""Columns of an answer."""

TOGETHER = 100_000
"""Series of so many points in all are read at once rather than one by one."""

Attempts = Literal["latest", "all"]
_SERIES = ("name", "context", "rank")
Key = tuple[str, str, int]
"""Name, context (canonical JSON) and rank: one series of a run."""


def find_series(
    reader: Reader,
    run_id: str,
    name: str,
    context: Mapping[str, Any] | str | None,
    rank: int | Literal["all"] | None,
) -> list[Condition]:
    """What selects the series that is meant.

    Raises
    ------
    QueryError
        The run has no such metric, or it is in several contexts; the message lists them.
    """
    found = reader.read(
        Query("summaries", [Condition("run_id", "=", run_id)], ["name", "context", "rank"])
    )
    named = [row for row in found if row["name"] == name]
    if not named:
        hint = nearest(name, set(found["name"])) or f"; it has {_listed(found['name'])}"
        raise QueryError(f"run {run_id} has no metric {name!r}{hint}")
    wanted = json.loads(context) if isinstance(context, str) else context
    contexts = {row["context"] for row in named}
    chosen = choose_context(name, contexts, wanted)
    if chosen is None:
        raise QueryError(f"metric {name!r} has no context {context}; it has {_listed(contexts)}")
    if rank is None:
        rank = min(row["rank"] for row in named if row["context"] == chosen)
    return _conditions(run_id, name, chosen, rank)


def read_points(
    reader: LiveReader, where: Sequence[Condition], attempts: Attempts, count: int | None
) -> Table:
    """The points that are selected, by step, at most `count` where it is given.

    There are columns `rank` and `attempt` where those of several may be among them.
    """
    if count is not None:
        check_count(count)
    ranks = ("rank",) if all(one.column != "rank" for one in where) else ()
    columns = (*COLUMNS, *ranks, *(("attempt",) if attempts == "all" else ()))
    backend = reader.backend
    if (
        count is not None
        and columns == COLUMNS
        and isinstance(backend, SupportsReduction)
        and not reader.has_tail()
    ):
        return _exact(backend.reduced_series(where, attempts, count), columns)
    table = "all_metrics" if attempts == "all" else "metrics"
    points = by_step(_exact(reader.read(Query(table, where, [*columns, "special"])), columns))
    return points if count is None else reduce(points, count)


def read_curves(
    reader: LiveReader, run_id: str, counts: Mapping[Key, int], most: int | None
) -> dict[Key, Table]:
    """Several series of a run, each of at most `most` points or whole, in few questions.

    Parameters
    ----------
    counts : mapping of name, context and rank to int
        Which series, and about how many points each has.
    """
    together, room = [], TOGETHER
    for key, count in sorted(counts.items(), key=operator.itemgetter(1)):
        if count > room:
            break
        together.append(key)
        room -= count
    found = dict(_read_all(reader, run_id, together))
    if most is not None:
        found = {key: reduce(points, most) for key, points in found.items()}
    for key in [key for key in counts if key not in found]:
        found[key] = read_points(reader, _conditions(run_id, *key), "latest", most)
    return found


def _read_all(reader: LiveReader, run_id: str, keys: Sequence[Key]) -> Iterator[tuple[Key, Table]]:
    if not keys:
        return
    where = [Condition("run_id", "=", run_id)]
    for column, values in zip(_SERIES, zip(*keys, strict=True), strict=True):
        where.append(Condition(column, "in", sorted(set(values))))
    found = reader.read(Query("metrics", where, [*_SERIES, *COLUMNS, "special"]))
    places: dict[Key, list[int]] = {key: [] for key in keys}
    for at, key in enumerate(zip(*(found[name] for name in _SERIES), strict=True)):
        if key in places:  # the conditions let other pairs of name, context and rank through
            places[key].append(at)
    for key, chosen in places.items():
        yield key, by_step(_exact(found.take(chosen), COLUMNS))


def _conditions(
    run_id: str, name: str, context: str, rank: int | Literal["all"]
) -> list[Condition]:
    where = {"run_id": run_id, "name": name, "context": context, "rank": rank}
    if rank == "all":
        del where["rank"]
    return [Condition(column, "=", value) for column, value in where.items()]


def _exact(points: Table, columns: Sequence[str]) -> Table:
    """These columns, with values that are no finite numbers, and the sign of zero."""
    chosen = {name: points[name] for name in columns}
    if any(points["special"]):
        chosen["value"] = [*map(join_special, points["value"], points["special"])]
    return Table(chosen)


def by_step(points: Table) -> Table:
    """Sort by step, then by time; points without a step come last.

    By time, because stores give what several processes recorded of a series in orders of their own.
    """
    steps, times = points["step"], points["time"]
    if None not in steps and all(map(operator.lt, steps, steps[1:])):
        return points
    order = sorted(
        range(len(points)), key=lambda i: (steps[i] is None, steps[i] or 0, times[i] or 0)
    )
    return points.take(order)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"
