"""What is too long to be read at once is read in stretches of records, and put together.

Knows digests and reduced series; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, TypeVar

from tachograph.backends.base import Condition
from tachograph.errors import TooLarge
from tachograph.reading.digests import add_digests
from tachograph.reading.live import LiveReader
from tachograph.reading.point_query import by_step, find_series, read_points
from tachograph.reading.reduction import reduce
from tachograph.records import TABLES
from tachograph.server.served import Served
from tachograph.table import Table

Result = TypeVar("Result")

FIRST = 1 << 18
"""Records of the first stretch."""


def in_stretches(ask: Callable[[list[Condition]], Result], end: int) -> Iterator[Result]:
    """Ask about all records before `end`, so many at a time that no answer is too large.

    Parameters
    ----------
    ask : callable
        From conditions to an answer; raises TooLarge.
    end : int
    """
    start, size = 0, FIRST
    while start < end:
        stretch = [Condition("seq", ">=", start), Condition("seq", "<", start + size)]
        try:
            answer = ask(stretch)
        except TooLarge:
            if size == 1:
                raise
            size = max(size // 4, 1)
            continue
        yield answer
        start, size = start + size, 2 * size


def digest(served: Served, table: str, where: Sequence[Condition], without: Sequence[str]) -> str:
    """The digest of a table, however long: what `Store.digest` gives."""
    try:
        return served.store.digest(table, where, without)
    except TooLarge:
        if table in TABLES and not TABLES[table].grows:
            raise
    parts = in_stretches(
        lambda stretch: served.store.digest(table, [*where, *stretch], without), served.records
    )
    return add_digests(parts)


def reduced_series(
    served: Served,
    run: str,
    name: str,
    points: int,
    context: dict[str, Any] | None,
    rank: int | Literal["all"] | None,
    attempts: Literal["latest", "all"],
) -> Table:
    """A series reduced to so many points, however long.

    One that is too long to be read at once is reduced stretch by stretch, and what is left is
    reduced again: then it keeps its extremes, but is not cut where the whole would be.
    """
    store = served.store
    try:
        return store.series(run, name, context=context, rank=rank, attempts=attempts, points=points)
    except TooLarge:
        where = find_series(store, store.resolve(run), name, context, rank)
    reader = LiveReader(served)
    parts = [
        *in_stretches(
            lambda stretch: read_points(reader, [*where, *stretch], attempts, points),
            served.records,
        )
    ]
    columns = parts[0].columns
    together = {name: [*chain.from_iterable(part[name] for part in parts)] for name in columns}
    return reduce(by_step(Table(together)), points)
