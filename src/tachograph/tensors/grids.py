"""Tensors over time as grids of numbers, which a terminal or a picture then shows.

Layers by steps for one statistic, and the values of one tensor by steps. Pure functions over the
rows of `Store.tensors`; knows nothing of colours.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.records import Row
from tachograph.tensors import histograms

SHARES = ("zeros", "nan", "inf")
"""Counts, which are shown as shares of the size."""

STATISTICS = ("l2", "mean", "std", "min", "max", *SHARES, "update_ratio")

_STEEP = 30.0  # largest by smallest value from which on a scale is logarithmic
_TAIL = 0.02  # share of the values nearest to zero that may fall into one row
_OCTAVES = 24  # and at most so many powers of two below the largest value are told apart


def statistic_of(row: Row, statistic: str) -> float | None:
    """The value to show; counts as shares of the size."""
    value = row[statistic]
    if statistic in SHARES and value is not None:
        return value / row["size"] if row["size"] else None
    return None if value is None else float(value)


def label(row: Row, with_run: bool = False) -> str:
    """The name of a tensor with its context: ``fc.weight (stage=clipped)``."""
    pairs = json.loads(row["context"] or "{}")
    context = ", ".join(f"{key}={value}" for key, value in pairs.items())
    run = f"{row['run_id'][-8:]}: " if with_run else ""
    return f"{run}{row['name']} ({context})" if context else f"{run}{row['name']}"


# ---------------------------------------------------------------------------- layers by steps


@dataclass(frozen=True, slots=True)
class Grid:
    """A number for each of some rows and steps.

    Attributes
    ----------
    labels : sequence of str
        Of the rows, from the top.
    steps : sequence of int
        Of the columns, ascending.
    values : sequence of rows of float or None
        None where nothing is recorded, NaN where what is recorded is or holds no finite number.
    """

    labels: Sequence[str]
    steps: Sequence[int]
    values: Sequence[Sequence[float | None]]


def layer_grid(rows: Iterable[Row], statistic: str) -> Grid:
    """Tensors, in the order of their first rows, by recorded steps."""
    listed = [row for row in rows if row["step"] is not None]
    with_run = len({row["run_id"] for row in listed}) > 1
    found: dict[str, dict[int, float]] = {}
    for row in listed:
        value = statistic_of(row, statistic)
        is_bad = value is None and statistic != "update_ratio"
        if statistic not in SHARES and ((row["nan"] or 0) + (row["inf"] or 0)):
            is_bad = True
        if is_bad or value is not None:
            by_step = found.setdefault(label(row, with_run), {})
            by_step[row["step"]] = math.nan if is_bad or value is None else value
    steps = sorted({step for by_step in found.values() for step in by_step})
    values = [[by_step.get(step) for step in steps] for by_step in found.values()]
    return Grid(tuple(found), steps, values)


def squeeze(grid: Grid, width: int) -> Grid:
    """A grid of at most so many columns, each of as many steps as the others.

    A column shows the mean of what was recorded in it, NaN where some of that is; one without a
    record repeats the column before it.
    """
    columns = columns_of(grid.steps, width)
    values = [_squeezed(row, columns) for row in grid.values]
    return Grid(grid.labels, [grid.steps[members[0]] for members in columns], values)


def _squeezed(row: Sequence[float | None], columns: Sequence[Sequence[int]]) -> list[float | None]:
    result: list[float | None] = []
    for members in columns:
        known = [value for at in members if (value := row[at]) is not None]
        before = result[-1] if result else None
        result.append(math.fsum(known) / len(known) if known else before)
    return result


def columns_of(steps: Sequence[int], width: int) -> list[list[int]]:
    """Positions of the steps in each column of a picture of this width.

    Columns stand for equal numbers of steps; one in which none is recorded holds the last one
    before it. Where there are few steps, each is as wide as the time until the next.
    """
    first, last = steps[0], steps[-1]
    if first == last:
        return [list(range(len(steps)))]
    width = min(width, last - first + 1)
    columns = []
    for column in range(width):
        low = first + (last - first + 1) * column / width
        high = first + (last - first + 1) * (column + 1) / width
        start, end = bisect.bisect_left(steps, low), bisect.bisect_left(steps, high)
        columns.append(list(range(start, end)) or [start - 1])
    return columns


# ---------------------------------------------------------------------------- scales


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value lies between the least and the largest, from 0 to 1."""

    low: float
    high: float
    is_log: bool

    def place(self, value: float) -> float:
        """Its place; outside of the range that of the nearer end."""
        if self.high <= self.low:
            return 0.5
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def scale_of(values: Iterable[Sequence[float | None]]) -> Scale | None:
    """The scale of a grid; logarithmic where none is negative and they differ by far.

    None where there is no finite number.
    """
    finite = [v for row in values for v in row if v is not None and math.isfinite(v)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    positive = [value for value in finite if value > 0]
    if low >= 0 and positive and high / min(positive) > _STEEP:
        return Scale(min(positive), high, True)
    return Scale(low, high, False)


# ---------------------------------------------------------------------------- values by steps


@dataclass(frozen=True, slots=True)
class HistogramGrid:
    """How the values of one tensor are spread, at each step that has a histogram.

    Attributes
    ----------
    label : str
    steps : sequence of int
        Ascending.
    edges : sequence of float
        Ascending edges of the classes of values, one more than there are classes.
    counts : sequence of sequence of int
        Per class, from the lowest, the number of values at each step; exact.
    lines : mapping of str to sequence of float or None
        Per step the least and largest value, and the median with the 5 % and 95 % quantiles.
    """

    label: str
    steps: Sequence[int]
    edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    lines: dict[str, Sequence[float | None]]


def histogram_grid(rows: Sequence[Row], classes: int) -> HistogramGrid:
    """The histograms of one tensor over its steps, in at most about so many classes of values.

    Classes are whole bins, equally many in each, so the counts stay exact. The smallest values of
    both signs share the class in the middle.
    """
    found = [row for row in rows if row["histogram"] is not None and row["step"] is not None]
    by_step = [dict(row["histogram"]) for row in found]
    total = histograms.merge(by_step)
    groups = [
        (first, last)
        for first, last in _groups(total, classes)
        if not total or (min(total) <= last and first <= max(total))
    ]
    edges = [histograms.bounds(first)[0] for first, _ in groups]
    edges.append(histograms.bounds(groups[-1][1])[1])
    place = {bin_: at for at, (first, last) in enumerate(groups) for bin_ in range(first, last + 1)}
    counts = [[0] * len(found) for _ in groups]
    for column, one in enumerate(by_step):
        for bin_, count in one.items():
            counts[place[bin_]][column] += count
    steps = [row["step"] for row in found]
    return HistogramGrid(label(found[0]), steps, edges, counts, _lines(found, by_step))


def _groups(total: dict[int, int], classes: int) -> list[tuple[int, int]]:
    """First and last bin of each class, ascending."""
    if not total:
        return [(-1, 0)]
    least = min(*total, 0)
    most = max(*total, 0)
    floor = _floor(total)
    below, above = max(0, -1 - least - floor), max(0, most - floor)  # bins beyond the middle class
    each = max(1, math.ceil((below + above) / max(1, classes - 1)))
    groups: list[tuple[int, int]] = []
    for at in range(math.ceil(below / each), 0, -1):
        groups.append((-1 - floor - at * each, -2 - floor - (at - 1) * each))
    groups.append((-1 - floor if least < 0 else 0, floor if most > 0 or least == 0 else 0))
    for at in range(math.ceil(above / each)):
        groups.append((floor + 1 + at * each, floor + (at + 1) * each))
    return groups


def _floor(total: dict[int, int]) -> int:
    """The last bin, counted from zero, of the class in the middle."""
    by_size: dict[int, int] = {}
    for bin_, count in total.items():
        magnitude = bin_ if bin_ >= 0 else -1 - bin_
        if magnitude:  # zeros are in it anyway
            by_size[magnitude] = by_size.get(magnitude, 0) + count
    left = _TAIL * sum(by_size.values())
    largest, floor = max(by_size, default=0), 0
    for magnitude in sorted(by_size):
        left -= by_size[magnitude]
        if left < 0:
            floor = magnitude - 1
            break
    return max(0, floor, largest - 4 * _OCTAVES)


def _lines(rows: Sequence[Row], by_step: Sequence[dict[int, int]]) -> dict[str, Any]:
    """Quantiles come from bins, so they are kept between the extremes, which are exact."""
    middle = []
    for row, one in zip(rows, by_step, strict=True):
        found = histograms.quantiles(one, (0.05, 0.5, 0.95))
        is_known = one and row["min"] is not None and row["max"] is not None
        kept = [min(max(value, row["min"]), row["max"]) for value in found] if is_known else None
        middle.append(kept or [None] * len(found))
    names = ("5 %", "median", "95 %")
    lines = {name: [found[at] for found in middle] for at, name in enumerate(names)}
    return lines | {name: [row[name] for row in rows] for name in ("min", "max")}


def squeeze_counts(grid: HistogramGrid, width: int) -> list[list[float]]:
    """Per class the share of the values in each of at most `width` columns; see `columns_of`."""
    columns = columns_of(grid.steps, width)
    sums = [[sum(row[at] for at in members) for members in columns] for row in grid.counts]
    totals = [sum(column) for column in zip(*sums, strict=True)]
    return [
        [n / total if total else 0.0 for n, total in zip(row, totals, strict=True)] for row in sums
    ]
