"""Sketches of numbers, truth values and dates in arrays of numpy, which data of theirs has loaded.

Reads each value once, in pieces that stay in the cache.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from tachograph.provenance import Document
from tachograph.provenance.sketches import (
    CATEGORIES,
    DISTINCT,
    Convert,
    Sketch,
    ends_of,
    rounded,
    told,
)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_PIECE = 1 << 17  # values that stay in the cache while they are worked on
_FEW = 1 << 14  # values that are not worth a call of numpy
_SAMPLE = 1 << 17  # values of which quantiles are taken


class NumberSketch(Sketch):
    """Of numbers and truth values in arrays of numpy.

    Parameters
    ----------
    rows : int
        How many rows will be read.
    dtype : numpy.dtype
    width : int, default 1
        Number of columns; pieces have shape (n, width), or with a width of 1 any shape.
    convert : callable, optional
        Makes such a piece of what is read.
    distinct : bool, default True
        Whether to count distinct values.
    """

    def __init__(
        self,
        rows: int,
        dtype: Any,
        width: int = 1,
        convert: Convert | None = None,
        *,
        distinct: bool = True,
    ) -> None:
        super().__init__(convert)
        numpy = sys.modules["numpy"]
        self.width = width
        self._numpy: Any = numpy
        self._dtype = numpy.dtype("u1") if dtype.kind == "b" else dtype
        self._is_truth = dtype.kind == "b"
        limits = numpy.iinfo(self._dtype) if self._dtype.kind in "iu" else None
        low, high = (limits.max, limits.min) if limits else (numpy.inf, -numpy.inf)
        self._low, self._high = (numpy.full(width, end, self._dtype) for end in (low, high))
        self._count, self._mean, self._squares = numpy.zeros((3, width))
        self._nan, self._infinite = numpy.zeros((2, width), dtype="i8")
        none = numpy.empty(0, self._dtype), numpy.empty(0, "i8")
        self._distinct: list[tuple[Any, Any] | None] = [none if distinct else None] * width
        self._seen = 0
        kept = max(1, _SAMPLE // width)
        # A step that is no fraction of small numbers meets every phase of what is periodic.
        self._step = 1.0 if rows <= kept else rows / kept * 1.00618033988749
        self._kept: list[Any] = []
        self._waiting: list[Any] = []

    def _add(self, rows: Any) -> None:
        """Small pieces wait for others, because each call of numpy takes its time."""
        self._waiting.append(rows.reshape(-1, self.width))
        if sum(map(len, self._waiting)) * self.width >= _FEW:
            self._work()

    def _work(self) -> None:
        if not self._waiting:
            return
        rows = (
            self._waiting[0] if len(self._waiting) == 1 else self._numpy.concatenate(self._waiting)
        )
        self._waiting.clear()
        step = max(1, _PIECE // self.width)
        for start in range(0, len(rows), step):
            values = self._numpy.ascontiguousarray(rows[start : start + step].T)
            self._add_piece(values.view("u1") if self._is_truth else values)

    def _add_piece(self, values: Any) -> None:
        """Values of shape (width, n)."""
        self._keep(values)
        if values.dtype.kind == "f":
            finite = self._numpy.isfinite(values)
            if not finite.all():
                self._add_with_gaps(values, finite)
                return
        self._add_finite(slice(None), values)

    def _add_with_gaps(self, values: Any, finite: Any) -> None:
        nan = self._numpy.isnan(values).sum(axis=1)
        self._nan += nan
        self._infinite += values.shape[1] - finite.sum(axis=1) - nan
        for column in range(self.width):
            present = values[column][finite[column]]
            if len(present):
                self._add_finite(slice(column, column + 1), present[None])

    def _add_finite(self, columns: slice, values: Any) -> None:
        """Merge with what was seen before (Chan, Golub, LeVeque)."""
        numpy = self._numpy
        for edge, found in ((self._low, values.min(axis=1)), (self._high, values.max(axis=1))):
            merge = numpy.minimum if edge is self._low else numpy.maximum
            merge(edge[columns], found, out=edge[columns])
        added = values.shape[1]
        centred = values.astype("f8")
        with numpy.errstate(all="ignore"):  # of very large numbers
            mean = centred.mean(axis=1)
            centred -= mean[:, None]
            before = self._count[columns]
            share = added / (before + added)
            shift = mean - self._mean[columns]
            squares = numpy.einsum("ij,ij->i", centred, centred)  # takes no threads of a BLAS
            self._squares[columns] += squares + shift * shift * before * share
            self._mean[columns] += shift * share
            self._count[columns] += added
        for column, row in zip(range(self.width)[columns], values, strict=True):
            self._count_values(column, row)

    def _count_values(self, column: int, values: Any) -> None:
        """Count distinct values, unless there are too many."""
        numpy, known = self._numpy, self._distinct[column]
        if known is None:
            return
        first = values[: 4 * DISTINCT]
        if not len(known[0]) and len(first) < len(values) and len(numpy.unique(first)) > DISTINCT:
            self._distinct[column] = None
            return
        found, times = numpy.unique(values, return_counts=True)
        if len(known[0]):
            found, places = numpy.unique(numpy.concatenate([known[0], found]), return_inverse=True)
            times = numpy.bincount(places, numpy.concatenate([known[1], times])).astype("i8")
        self._distinct[column] = (found, times) if len(found) <= DISTINCT else None

    def _keep(self, values: Any) -> None:
        """Keep some values, evenly spread, for quantiles."""
        start, stop = self._seen, self._seen + values.shape[1]
        self._seen = stop
        first, last = math.ceil(start / self._step), math.ceil(stop / self._step)
        chosen = (self._numpy.arange(first, last) * self._step).astype("i8") - start
        self._kept.append(values[:, self._numpy.clip(chosen, 0, values.shape[1] - 1)])

    def _documents(self) -> list[Document]:
        self._work()
        kept = self._numpy.concatenate(self._kept, axis=1) if self._kept else None
        self._kept.clear()
        return [
            self._document(column, None if kept is None else kept[column])
            for column in range(self.width)
        ]

    def _document(self, column: int, kept: Any) -> Document:
        count, known = int(self._count[column]), self._distinct[column]
        document: Document = {"missing_values": int(self._nan[column])}
        if self._infinite[column]:
            document["infinite"] = int(self._infinite[column])
        if not self._is_truth:
            document |= dict.fromkeys(("mean", "std", "min", "max", "quantiles"))
            if count:
                document |= self._spread(column, count, kept)
        if known is None:
            return document | {"distinct": None}
        found, times = known
        if len(found) <= CATEGORIES:
            document |= told(dict(zip(found.tolist(), times.tolist(), strict=True)), self._key)
        return document | {"distinct": len(found)}

    def _spread(self, column: int, count: int, kept: Any) -> Document:
        low, high = self._low[column], self._high[column]
        scale = max(abs(float(low)), abs(float(high)))
        return {
            "mean": rounded(float(self._mean[column]), scale),
            "std": rounded(math.sqrt(self._squares[column] / count), scale),
            "min": self._plain(low),
            "max": self._plain(high),
            "quantiles": self._quantiles(kept),
        }

    def _quantiles(self, kept: Any) -> list[Any] | None:
        if self._dtype.kind == "f":
            kept = kept[self._numpy.isfinite(kept)]
        if not len(kept):
            return None
        ranks = [max(0, math.ceil(share * len(kept)) - 1) for share in QUANTILES]
        return [self._plain(value) for value in self._numpy.partition(kept, ranks)[ranks]]

    def _plain(self, value: Any) -> int | float:
        """The shortest number that is the same in the array's type."""
        return float(str(value)) if self._dtype.kind == "f" else int(value)

    def _key(self, value: Any) -> str:
        return str(bool(value)) if self._is_truth else str(self._dtype.type(value))


class DateSketch(Sketch):
    """Of dates, times and spans of time in arrays of numpy: the first and the last."""

    def __init__(self, convert: Convert | None = None) -> None:
        super().__init__(convert)
        self._missing = 0
        self._ends: list[Any] = []

    def _add(self, rows: Any) -> None:
        numpy: Any = sys.modules["numpy"]
        present = rows[~numpy.isnat(rows)]
        self._missing += int(rows.size - present.size)
        if present.size:
            ends = [*self._ends, present.min(), present.max()]
            self._ends = [min(ends), max(ends)]

    def _documents(self) -> list[Document]:
        return [{"missing_values": self._missing} | ends_of([str(end) for end in self._ends])]
