"""Where the last points of a run begin, for who wants to follow it from there.

Knows a store as `served` has it; knows no HTTP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tachograph.reading.live import Cursors
from tachograph.server.news import MOST_ROWS, Found, Position, key_of, rows_between
from tachograph.server.served import Served

MOST_LAST = 1_000
"""So many points one may begin with."""

_Place = tuple[int, int]
"""A record, and how many of its rows come before."""


def near_end(served: Served, run_id: str, last: int, names: Sequence[str] = ()) -> Position:
    """The position before the last so many points of these metrics, or of all, by their time."""
    stored = Cursors(served.backend)
    ends: dict[str, _Place] = {}
    found: list[tuple[int, str, _Place]] = []
    for writer in served.live.writers_of(run_id):
        end = max(stored.get(writer, 0), served.marks.get(writer, 0))
        ends[writer] = end, 0
        rows_of = functools.partial(rows_between, served, run_id, writer, names)
        found += [(time, writer, place) for time, place in _last(rows_of, end, last)]
    for _, writer, place in sorted(found, reverse=True)[:last]:
        ends[writer] = min(ends[writer], place)
    return Position(seen={key_of(writer): place for writer, place in ends.items()})


def _last(
    rows_of: Callable[[int, int], list[Found]], end: int, last: int
) -> list[tuple[int, _Place]]:
    """Time and place of the last points of a writer: at least so many, or all that it has."""
    records, may_grow = max(last, 1), True
    while True:
        start = max(0, end - records)
        rows = rows_of(start, end)
        if len(rows) > MOST_ROWS and records > 1:
            records, may_grow = records // 2, False
            continue
        points = _points(rows)
        if len(points) >= last or start == 0 or not may_grow:
            return points
        records *= 8


def _points(rows: Sequence[Found]) -> list[tuple[int, _Place]]:
    points = []
    record, before = -1, 0
    for seq, kind, _, row in rows:
        record, before = seq, (before + 1 if seq == record else 0)
        if kind == "point":
            points.append((row["time"], (seq, before)))
    return points
