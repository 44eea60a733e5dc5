"""Rows of data as words: of arrays, sparse matrices, columns of frames and lists.

A part is a range of the columns of all rows, or all columns of a range of rows. It is asked for
sums over its columns, a chunk of rows at a time, so that no part is ever copied as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tachograph.provenance.row_values import (
    NotHashed,
    Vocabulary,
    bfloat16_words,
    factors,
    mix,
    number_words,
    numpy,
)

CHUNK_VALUES = 1 << 16
"""Their words fit into the cache of a core."""

FULL_BITS = 64.0
"""What a column is taken to tell of which most values differ."""

_OBJECT_BYTES = 512
"""A value that Python has to look at takes as long as so many bytes of an array."""


class Part(Protocol):
    """What has rows, and columns from `first` to `first + width`.

    Attributes
    ----------
    rows, width : int
    row_bytes : float
        What a row costs to read, in bytes of an array.
    chunk : int
        Rows to ask for at a time.
    """

    rows: int
    width: int
    row_bytes: float
    chunk: int

    def sums(self, rows: Any, first: int) -> Any:
        """Per row the sum of its words times the factors of its columns; uint64.

        `rows` is a slice or an array of numbers, and `first` the first column's number.
        """

    def bits(self, rows: Any) -> float:
        """How much a row tells: the entropy of the values among `rows`, over all columns."""


class Values:
    """An array, of which a row is ``array[i]``; `words` makes mixed words of a chunk."""

    def __init__(self, array: Any, words: Callable[[Any], Any] = number_words) -> None:
        self._array, self._words = array, words
        self.rows = int(array.shape[0])
        values = math.prod(array.shape[1:])
        self.width = values * (2 if array.dtype.kind == "c" else 1)
        is_object = array.dtype.kind in "OUST"
        self.row_bytes = values * float(_OBJECT_BYTES if is_object else array.dtype.itemsize)
        self.chunk = max(1, CHUNK_VALUES // max(1, self.width))
        self._factors: tuple[int, Any] | None = None

    def sums(self, rows: Any, first: int) -> Any:
        """See `Part`."""
        np = numpy()
        if self._factors is None or self._factors[0] != first:
            self._factors = first, factors(first, self.width)
        return np.einsum("ij,j->i", self._read(rows), self._factors[1])

    def bits(self, rows: Any) -> float:
        """See `Part`; of many columns some are looked at."""
        columns = self._read(rows)[:, :: max(1, self.width // 256)].T
        return float(sum(map(_bits_of_column, columns)) * self.width / max(1, len(columns)))

    def _read(self, rows: Any) -> Any:
        words = self._words(self._array[rows])
        return words.reshape(len(words), -1)


def array(values: Any) -> Part:
    """The part that an array of numpy is."""
    name, kind = values.dtype.name, values.dtype.kind
    if values.ndim == 0:
        raise NotHashed("it is one value, and has no rows")
    if values.dtype.names:
        return Beside([array(values[name]) for name in values.dtype.names])
    if name == "bfloat16":
        return Values(values.view("u2"), bfloat16_words)
    if hasattr(values, "filled") and kind in "biuf":  # what is masked is missing
        return Values(values, lambda chunk: number_words(chunk.astype("f8").filled(math.nan)))
    if kind in "OUST":
        vocabulary = Vocabulary()
        return Values(
            values, lambda chunk: vocabulary.words(chunk.ravel().tolist()).reshape(chunk.shape)
        )
    return Values(values)


class Column:
    """A column of a frame; `read` gives values or words of a slice or of numbered rows."""

    width = 1
    chunk = CHUNK_VALUES

    def __init__(self, rows: int, row_bytes: float, read: Callable[[Any], Any]) -> None:
        self.rows, self.row_bytes, self._read = rows, row_bytes, read

    def sums(self, rows: Any, first: int) -> Any:
        """See `Part`."""
        return self._read(rows) * factors(first, 1)

    def bits(self, rows: Any) -> float:
        """See `Part`."""
        return _bits_of_column(self._read(rows))


def number_column(rows: int, read: Callable[[Any], Any]) -> Column:
    """A column that `read` gives as an array of numbers or dates."""
    return Column(rows, 8.0, lambda some: number_words(read(some)))


def object_column(rows: int, read: Callable[[Any], list[Any]]) -> Column:
    """A column that `read` gives as a list of Python's own values."""
    vocabulary = Vocabulary()
    return Column(rows, float(_OBJECT_BYTES), lambda some: vocabulary.words(read(some)))


def samples(items: Sequence[Any], features: Callable[[Any], Any]) -> Column:
    """A list of samples, of which `features` gives what counts: plain values or an array."""
    vocabulary = Vocabulary()

    def word(item: Any) -> int:
        found = features(item)
        if getattr(found, "shape", ()) != ():
            values = _on_host(found)
            flat = array(values.reshape(1, -1))
            return int(flat.sums(slice(0, 1), 0)[0]) ^ flat.width
        return vocabulary.word(found)

    def read(some: Any) -> Any:
        np = numpy()
        chosen = items[some] if isinstance(some, slice) else [items[int(i)] for i in some]
        return mix(np.array([word(item) for item in chosen], dtype="u8"))

    row_bytes = 2.0 * _OBJECT_BYTES
    if len(items):
        row_bytes += float(getattr(features(items[0]), "nbytes", 0))
    return Column(len(items), row_bytes, read)


def _on_host(value: Any) -> Any:
    np = numpy()
    if hasattr(value, "detach"):
        if value.device.type != "cpu":
            raise NotHashed(f"lies on {value.device}")
        value = value.detach().numpy()
    if not isinstance(value, np.ndarray):
        raise NotHashed(f"its samples are of type {type(value).__qualname__}")
    return value


class Sparse:
    """A matrix of scipy in the format CSR; `absent` is what a value counts that is not stored."""

    def __init__(self, matrix: Any, absent: float = 0.0) -> None:
        np = numpy()
        self._matrix = matrix
        # An array, because numpy warns of single numbers that wrap.
        self._absent = number_words(np.array([absent]))
        self.rows, self.width = (int(size) for size in matrix.shape)
        stored = matrix.nnz / max(1, self.rows)
        self.row_bytes = 8.0 + stored * (4 + max(8, matrix.dtype.itemsize))
        self.chunk = max(1, int(CHUNK_VALUES // max(1.0, stored)))
        self._factors: tuple[int, Any, Any] | None = None

    def sums(self, rows: Any, first: int) -> Any:
        """See `Part`; that of a dense array of the same values."""
        np = numpy()
        if self._factors is None or self._factors[0] != first:
            found = factors(first, self.width)
            self._factors = first, found, np.add.reduce(found, keepdims=True) * self._absent
        chunk = self._matrix[rows]
        total = np.repeat(self._factors[2], chunk.shape[0])
        if chunk.nnz:
            products = (number_words(chunk.data) - self._absent) * self._factors[1][chunk.indices]
            counts = np.diff(chunk.indptr)
            total[counts > 0] += np.add.reduceat(products, chunk.indptr[:-1][counts > 0])
        return total

    def bits(self, rows: Any) -> float:
        """See `Part`; counts the values that are stored, with their columns."""
        chunk = self._matrix[rows]
        entries = mix(number_words(chunk.data) + factors(0, self.width)[chunk.indices])
        return _bits_of_column(entries) * float(chunk.nnz / max(1, chunk.shape[0]))


class Beside:
    """Parts whose columns stand side by side."""

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise NotHashed("it has no columns")
        if len({part.rows for part in parts}) > 1:
            raise NotHashed("its parts have different numbers of rows")
        self._parts = parts
        self.rows = parts[0].rows
        self.width = sum(part.width for part in parts)
        self.row_bytes = sum(part.row_bytes for part in parts)
        self.chunk = min(part.chunk for part in parts)

    def sums(self, rows: Any, first: int) -> Any:
        """See `Part`."""
        total = None
        for part in self._parts:
            sums = part.sums(rows, first)
            total = sums if total is None else total + sums
            first += part.width
        return total

    def bits(self, rows: Any) -> float:
        """See `Part`."""
        return sum(part.bits(rows) for part in self._parts)


class Stacked:
    """Parts whose rows follow one another."""

    def __init__(self, parts: Sequence[Part]) -> None:
        np = numpy()
        if not parts:
            raise NotHashed("it has no rows")
        if len({part.width for part in parts}) > 1:
            raise NotHashed("its parts have different numbers of columns")
        self._parts = parts
        self._ends = np.cumsum([part.rows for part in parts])
        self.rows, self.width = int(self._ends[-1]), parts[0].width
        self.row_bytes = max(part.row_bytes for part in parts)
        self.chunk = min(part.chunk for part in parts)

    def sums(self, rows: Any, first: int) -> Any:
        """See `Part`."""
        np = numpy()
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        owner = np.searchsorted(self._ends, numbers, side="right")
        total = np.empty(len(numbers), dtype="u8")
        for position in np.unique(owner):
            part, mine = self._parts[position], owner == position
            total[mine] = part.sums(numbers[mine] - (self._ends[position] - part.rows), first)
        return total

    def bits(self, rows: Any) -> float:
        """See `Part`: that of the part that tells least."""
        return min(part.bits(slice(0, min(part.rows, 512))) for part in self._parts)


class Picked:
    """Rows of a part by their numbers."""

    def __init__(self, part: Part, numbers: Any) -> None:
        self._part, self._numbers = part, numbers
        self.rows, self.width = len(numbers), part.width
        self.row_bytes, self.chunk = part.row_bytes, part.chunk

    def sums(self, rows: Any, first: int) -> Any:
        """See `Part`."""
        return self._part.sums(self._numbers[rows], first)

    def bits(self, rows: Any) -> float:
        """See `Part`."""
        return self._part.bits(self._numbers[rows])


def _bits_of_column(words: Any) -> float:
    """The entropy of its values: one of 30 flags in a row, all alike but for one, is no 30 bits."""
    np = numpy()
    counts = np.unique(words, return_counts=True)[1]
    if 2 * len(counts) > len(words):
        return FULL_BITS
    shares = counts / max(1, len(words))
    return float(abs(np.einsum("i,i->", shares, np.log2(shares))))
