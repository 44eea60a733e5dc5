"""Cuts what a store holds into portions that fit into memory.

Knows how many points and rows runs and writers have; knows no medium.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tachograph.backends.base import Backend, Condition, Query

PAGE = 100_000
"""About so many points and records are in memory at once."""

TENSOR = 4
"""A row of the table `tensors` takes as much memory as so many points."""

_CHUNK = 2000  # ids in one condition


def chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    """The ids, as many at a time as go into one condition."""
    for start in range(0, len(ids), _CHUNK):
        yield list(ids[start : start + _CHUNK])


def one_of(column: str, ids: Sequence[str]) -> Condition:
    """That a column holds one of these ids."""
    return Condition(column, "in", list(ids))


def weights(backend: Backend, column: str, ids: Sequence[str]) -> Counter[str]:
    """How much memory the points and statistics of each of these runs or writers take, in points.

    Parameters
    ----------
    column : 'run_id' or 'writer'
    """
    found: Counter[str] = Counter()
    for some in chunks(ids):
        where = [one_of(column, some)]
        points = backend.read(Query("summaries", where, [column, "count"], raw=True))
        for one, count in zip(points[column], points["count"], strict=True):
            found[one] += count
        tensors = backend.read(Query("tensors", where, [column], raw=True))
        for one, count in Counter(tensors[column]).items():
            found[one] += TENSOR * count
    return found


def of_runs(
    run_ids: Sequence[str], weight: Mapping[str, int], records: int
) -> Iterator[list[Condition]]:
    """Conditions that cut points, statistics and events of these runs into portions.

    Parameters
    ----------
    run_ids : sequence of str
    weight : mapping of str to int
        Of each run.
    records : int
        As many as the longest writer has.
    """
    small: list[str] = []
    room = PAGE
    for run_id in run_ids:
        if weight[run_id] > PAGE:
            size = -(-records * PAGE // weight[run_id])
            for first in range(0, records, size):
                seqs = [Condition("seq", ">=", first), Condition("seq", "<", first + size)]
                yield [one_of("run_id", [run_id]), *seqs]
            continue
        if weight[run_id] > room or len(small) == _CHUNK:
            yield [one_of("run_id", small)]
            small, room = [], PAGE
        small.append(run_id)
        room -= weight[run_id]
    if small:
        yield [one_of("run_id", small)]
