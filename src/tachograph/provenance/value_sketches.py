"""Sketches of lists of plain values: texts, truth values, numbers, dates."""

from __future__ import annotations

import decimal
import numbers
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tachograph.provenance import Document
from tachograph.provenance.number_sketches import NumberSketch
from tachograph.provenance.sketches import (
    CATEGORIES,
    DISTINCT,
    Convert,
    Sketch,
    ends_of,
    rounded,
    told,
)


class ValueSketch(Sketch):
    """Of lists of plain values: texts, truth values, numbers, dates; None and NaN are missing.

    Parameters
    ----------
    rows : int
        How many values will be read.
    convert : callable, optional
        Makes a list of what is read.
    """

    def __init__(self, rows: int, convert: Convert | None = None) -> None:
        super().__init__(convert)
        self._rows = rows
        self._missing = 0
        self._types: set[type] = set()
        self._counts: Counter[Any] | None = Counter()
        self._numbers: NumberSketch | None = None
        self._lengths: list[int] = [0, sys.maxsize, 0]  # sum, min, max
        self._ends: list[Any] = []

    def _add(self, rows: Iterable[Any]) -> None:
        values = list(rows)
        types = set(map(type, values))
        present = values
        if types - {str, bool, int}:
            present = [v for v in values if v is not None and (hasattr(v, "__len__") or v == v)]
            types = set(map(type, present))
        self._missing += len(values) - len(present)
        self._types |= types
        self._count(present)
        if not types:
            return
        if _all(types, str, bytes):
            lengths = list(map(len, present))
            shortest, longest = min(lengths), max(lengths)
            total, low, high = self._lengths
            self._lengths = [total + sum(lengths), min(low, shortest), max(high, longest)]
        elif _all(types, numbers.Real, decimal.Decimal):
            self._add_numbers(present)
        elif all(hasattr(kind, "isoformat") for kind in types):
            ends = [*self._ends, min(present), max(present)]
            self._ends = [min(ends), max(ends)]

    def _count(self, present: list[Any]) -> None:
        if self._counts is None:
            return
        try:
            self._counts.update(present)
        except TypeError:  # lists cannot be counted
            self._counts = None
        if self._counts is not None and len(self._counts) > DISTINCT:
            self._counts = None

    def _add_numbers(self, present: list[Any]) -> None:
        numpy: Any = sys.modules.get("numpy")
        if numpy is None:
            return
        if self._numbers is None:
            self._numbers = NumberSketch(self._rows, numpy.dtype("f8"), distinct=False)
        self._numbers.add(numpy.array(present, dtype="f8"))

    def _documents(self) -> list[Document]:
        counts = self._counts
        document: Document = {"missing_values": self._missing} | self._spread()
        if not self._ends:
            document["distinct"] = None if counts is None else len(counts)
        if _all(self._types, str, numbers.Real):
            document |= told(counts or {}, str)
        return [document]

    def _spread(self) -> Document:
        types = self._types
        if not types or types == {bool}:
            return {}
        if _all(types, str, bytes):
            total, low, high = self._lengths
            mean = total / max(1, self._rows - self._missing)
            return {"length": {"mean": rounded(mean, high), "min": low, "max": high}}
        if _all(types, numbers.Real, decimal.Decimal):
            return self._numeric()
        if all(hasattr(kind, "isoformat") for kind in types):
            return ends_of([end.isoformat() for end in self._ends])
        return {"types": sorted(kind.__qualname__ for kind in types)[:CATEGORIES]}

    def _numeric(self) -> Document:
        if self._numbers is None:
            return {}
        (document,) = self._numbers.documents()
        document = {n: v for n, v in document.items() if n not in ("missing_values", "distinct")}
        if _all(self._types, numbers.Integral) and "min" in document:
            document |= {name: _whole(document[name]) for name in ("min", "max", "quantiles")}
        return document


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return None if value is None else int(value)


def _all(types: set[type], *bases: type) -> bool:
    return all(issubclass(kind, bases) for kind in types)
