"""Sketches: how the values of a column are spread, in a few numbers and without the values.

A sketch is given the rows of a column in pieces, and gives one document per column that it covers.
Values themselves are in it only where they are few, short and repeated, as categories are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tachograph.provenance import Document
from tachograph.security.names import is_secret_name
from tachograph.security.texts import redact_text

DISTINCT = 1_000
"""Up to so many distinct values are counted."""

CATEGORIES = 20
"""Up to so many distinct values are told, each with how often it occurs."""

CATEGORY_LENGTH = 40
"""Longer texts are not told."""

WIDTH = 50
"""Columns of an array beyond which there is one sketch over all its values."""

COLUMNS = 100
"""Columns of a frame that have a sketch."""

_DIGITS = 9  # of sums, whose last ones depend on the processor
_HUGE = 1e300  # where rounding up could overflow

Convert = Callable[[Any], Any]
"""From what is read of a column to what its sketch takes."""


class Sketch:
    """Base of sketches: a failure ends the sketch, and what is read is read on."""

    width = 1

    def __init__(self, convert: Convert | None = None) -> None:
        self._convert = convert
        self._failure: Document | None = None

    def add(self, rows: Any) -> None:
        """Take the next rows; never raises."""
        if self._failure is not None:
            return
        try:
            self._add(self._convert(rows) if self._convert else rows)
        except Exception as error:
            self._fail(error)

    def documents(self) -> list[Document]:
        """One document per column; never raises."""
        documents: list[Document] = []
        try:
            if self._failure is None:
                documents = self._documents()
        except Exception as error:
            self._fail(error)
        return documents or [self._failure or {}] * self.width

    def _fail(self, error: Exception) -> None:
        self._failure = {"failed": type(error).__name__}  # its message may have values in it

    def _add(self, rows: Any) -> None:
        raise NotImplementedError

    def _documents(self) -> list[Document]:
        raise NotImplementedError


# ---------------------------------------------------------------------------- documents


def told(counts: Mapping[Any, int], text: Callable[[Any], str]) -> Document:
    """`values` with their counts, where they are categories; nothing else may be told.

    Few, short, and each twice on average: so a few rows of names or notes are not taken for
    categories.
    """
    if not 0 < len(counts) <= CATEGORIES or sum(counts.values()) < 2 * len(counts):
        return {}
    values: dict[str, int] = {}
    for value, count in counts.items():
        key = text(value)
        if len(key) > CATEGORY_LENGTH:
            return {}
        key = redact_text(key)
        values[key] = values.get(key, 0) + count
    return {"values": dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))}


def by_column(names: Iterable[str], documents: Sequence[Document], more: int) -> Document:
    """Documents under the names of their columns; nothing of a column with a secret name.

    Parameters
    ----------
    names : iterable of str
        One for each document; of names that occur twice the second one gets a number.
    documents : sequence of dict
    more : int
        Columns that have no document.
    """
    sketches: Document = {}
    for name, document in zip(names, documents, strict=True):
        key, number = name, 2
        while key in sketches:
            key, number = f"{name} ({number})", number + 1
        sketches[key] = {"redacted": True} if is_secret_name(name) else document
    return {"column_sketches": sketches, "more_columns": more}


def ends_of(ends: Sequence[str]) -> Document:
    """The first and the last of sorted texts; None where there are none."""
    return {"min": ends[0] if ends else None, "max": ends[-1] if ends else None}


def rounded(value: float, scale: float) -> float | None:
    """A sum or mean without digits that depend on the processor; None where it overflowed.

    `scale` is the size of the largest of the values.
    """
    if not math.isfinite(value) or not scale:
        return 0.0 if value == 0 else None
    digits = _DIGITS - math.ceil(math.log10(scale))
    return value if scale > _HUGE else round(value, digits) + 0.0  # no negative zero
