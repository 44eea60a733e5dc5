"""A long series as few points that look the same when they are drawn.

This is min-max aggregation: the series is cut into stretches of equally many points, and each keeps
its least and its greatest (U. Jugel, Z. Jerzak, G. Hackenbroich, V. Markl, "M4: A
Visualization-Oriented Time Series Data Aggregation", VLDB 7(10), 2014, section 4.2). What is no
finite number is kept apart from these: a NaN is neither, and an infinity would hide them.

Knows columns of points; knows no store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tachograph.errors import QueryError
from tachograph.records import join_special
from tachograph.table import Table

FEWEST = 2
"""So many points there must be room for: the first and the last."""


def check_count(count: int) -> None:
    """QueryError where a series cannot be reduced to so many points."""
    if count < FEWEST:
        raise QueryError(f"a series can be reduced to {FEWEST} points or more, not to {count}")


def reduce(points: Table, count: int) -> Table:
    """At most so many of the points, in their order.

    The first and the last point are kept, and of each stretch between them the least and the
    greatest finite value and the first NaN, infinity and negative infinity. Where `count` leaves
    no room for that even in a single stretch, they are kept in the order first, last, NaN,
    infinities, least, greatest.

    Parameters
    ----------
    points : Table
        In the order in which they are drawn. `value` is a float; where there is a column
        `special`, together with it (see `records.join_special`). A value that is None counts as
        NaN. The other columns are kept as they are.
    count : int
        From 2.

    Raises
    ------
    QueryError
        `count` is less than 2.
    """
    check_count(count)
    if len(points) <= count:
        return points
    values = _numbers(points)
    kept = dict.fromkeys((0, len(values) - 1))
    for start, end in _stretches(values, count):
        kept |= dict.fromkeys(_outstanding(values, start, end))
    return points.take(sorted([*kept][:count]))


def _numbers(points: Table) -> list[float]:
    values = points["value"]
    if "special" in points.columns:
        special = points["special"]
        values = [*map(join_special, values, special)] if any(special) else values
    return [math.nan if value is None else value for value in values]


def _stretches(values: Sequence[float], count: int) -> Iterator[tuple[int, int]]:
    """Where stretches begin and end, so many that all they may keep has room."""
    others = [str(value) for value in values if not math.isfinite(value)]
    room = count - FEWEST
    number = max(1, room // (2 + len(set(others))), (room - len(others)) // 2)
    between = len(values) - 2
    for n in range(number):
        yield 1 + n * between // number, 1 + (n + 1) * between // number


def _outstanding(values: Sequence[float], start: int, end: int) -> Iterator[int]:
    """The positions that a stretch keeps, what matters most first."""
    stretch = values[start:end]
    finite = [*filter(math.isfinite, stretch)]
    if len(finite) < len(stretch):
        others: dict[str, int] = {}
        for at, value in enumerate(stretch, start):
            if not math.isfinite(value):
                others.setdefault(str(value), at)
        yield from (others[text] for text in ("nan", "inf", "-inf") if text in others)
    if finite:
        yield values.index(min(finite), start, end)
        yield values.index(max(finite), start, end)
