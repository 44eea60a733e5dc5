"""Digests of content that may be large: exact up to a limit, then of a fixed sample.

Copies no more than a chunk at a time. Knows rows, bytes and plain values; knows no library.
"""

from __future__ import annotations

import decimal
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

EXACT_BYTES = 64 << 20
"""Content up to this size is read in full."""

SAMPLE_BYTES = 8 << 20
"""Of larger content about this much is read, spread evenly from the first row to the last."""

_CHUNK_BYTES = 1 << 20
_BLOCKS = 128
_OBJECT_BYTES = 64  # what a Python object is taken for that is no longer
_SOME = 32  # values by which the size of others is estimated
_PLAIN = (str, int, float, bool, complex, bytes, decimal.Decimal, type(None))
_BY_REPR = {  # package and name of types whose `repr` tells the whole value
    *(("datetime", "timedelta"), ("uuid", "UUID"), ("fractions", "Fraction")),
    *(("pandas", "Interval"), ("pandas", "Period"), ("pathlib", "PosixPath")),
    *(("numpy", "longdouble"), ("numpy", "clongdouble")),
}


class NotPlain(Exception):
    """Content whose values have no bytes of their own, such as objects of a user's class."""


class Sketch(Protocol):
    """What is made of the rows beside their digest, in the same pass."""

    def add(self, rows: Any) -> None:
        """Take the next rows; never raises."""

    def documents(self) -> list[dict[str, Any]]:
        """What was found; never raises."""


@dataclass(frozen=True, slots=True)
class Column:
    """Rows of equal type.

    Attributes
    ----------
    name, dtype : str
    row_bytes : int
        About how many bytes a row takes.
    read : callable
        Gives the rows of a range: start, stop.
    encode : callable, default bytes
        Makes bytes of what `read` gave.
    sketch : callable, optional
        Makes a sketch, given how many rows will be read.
    """

    name: str
    dtype: str
    row_bytes: int
    read: Callable[[int, int], Any]
    encode: Callable[[Any], bytes] = bytes
    sketch: Callable[[int], Sketch] | None = None


class Reading(NamedTuple):
    """What was found in columns.

    Attributes
    ----------
    digest : dict
        `digest`, and `digest_of`: 'content', or 'sample' for rows picked by position alone. Where
        the values have no bytes of their own, `digest` is None and `missing` says so.
    sketches : list
        Of each column that has a sketch, its documents; None where its values have no bytes.
    covers : {'content', 'sample'}
    """

    digest: dict[str, Any]
    sketches: list[list[dict[str, Any]] | None]
    covers: str


def read_columns(rows: int, columns: Sequence[Column]) -> Reading:
    """Read columns once: for a digest over them with their names and types, and for sketches."""
    row_bytes = max(1, sum(column.row_bytes for column in columns))
    exact = rows * row_bytes <= EXACT_BYTES
    covers = "content" if exact else "sample"
    hasher = hashlib.sha256()
    sketches: list[list[dict[str, Any]] | None] = []
    reason = None
    for column in columns:
        hasher.update(column_header(column.name, column.dtype, rows))
        ranges = list(spans(rows, column.row_bytes if exact else row_bytes, exact=exact))
        sketch = _sketch(column, ranges)
        try:
            for start, stop in ranges:
                piece = column.read(start, stop)
                hasher.update(column.encode(piece))
                if sketch:
                    sketch.add(piece)
            documents = sketch.documents() if sketch else None
        except NotPlain as error:
            reason, documents = reason or str(error), None
        if sketch:
            sketches.append(documents)
    if reason:
        return Reading({"digest": None, "missing": reason}, sketches, covers)
    digest = f"sha256:{hasher.hexdigest()}"
    return Reading({"digest": digest, "digest_of": covers}, sketches, covers)


def _sketch(column: Column, ranges: Iterable[tuple[int, int]]) -> Sketch | None:
    return column.sketch and column.sketch(sum(stop - start for start, stop in ranges))


def digest_columns(rows: int, columns: Sequence[Column]) -> dict[str, Any]:
    """The digest alone, see `Reading`."""
    return read_columns(rows, columns).digest


def column_header(name: str, dtype: str, rows: int) -> bytes:
    """What stands in front of the content of a column in a digest."""
    return f"{name}\0{dtype}\0{rows}\0".encode(errors="replace")


def spans(
    rows: int, row_bytes: int, *, exact: bool, sample: int | None = None
) -> Iterator[tuple[int, int]]:
    """Ranges of rows to read: all, in chunks, or about `sample` bytes, spread evenly."""
    sample = SAMPLE_BYTES if sample is None else sample
    if exact:
        step = max(1, _CHUNK_BYTES // max(1, row_bytes))
        yield from ((start, min(rows, start + step)) for start in range(0, rows, step))
        return
    length = min(rows, max(1, sample // _BLOCKS // row_bytes))
    blocks = max(1, min(_BLOCKS, sample // row_bytes, rows // length))
    for block in range(blocks):
        start = block * (rows - length) // max(1, blocks - 1)
        yield start, start + length


def combine(digests: Iterable[str | None]) -> str | None:
    """One digest of several, in order; None where one is missing."""
    digests = list(digests)
    if None in digests:
        return None
    hasher = hashlib.sha256()
    for digest in digests:
        hasher.update(str(digest).encode())
    return f"sha256:{hasher.hexdigest()}"


def object_bytes(rows: int, read: Callable[[int, int], Sequence[Any]]) -> int:
    """About how many bytes a value takes in a column of objects, by the first ones."""
    sizes = [_object_bytes(value) for value in read(0, min(rows, _SOME))]
    return sum(sizes) // max(1, len(sizes)) or _OBJECT_BYTES


def _object_bytes(value: Any) -> int:
    if isinstance(value, str | bytes):
        return max(_OBJECT_BYTES, len(value))
    if isinstance(value, list | tuple | dict):
        return _OBJECT_BYTES * (1 + len(value))
    size = getattr(value, "nbytes", 0) if type(value).__module__ == "numpy" else 0
    return max(_OBJECT_BYTES, size)


def plain_bytes(values: Sequence[Any]) -> bytes:
    """Bytes of plain values (texts, numbers, None, arrays, lists, …); NotPlain for others."""
    texts = [_plain_text(value) for value in values]
    return "".join([f"{text}\x1f" for text in texts]).encode(errors="surrogatepass")


def _plain_text(value: Any, depth: int = 0) -> str:
    if type(value) in _PLAIN:
        return repr(value)
    if type(value) in (list, tuple) and depth < 4:
        return "[" + ",".join([_plain_text(item, depth + 1) for item in value]) + "]"
    if type(value) is dict and depth < 4:
        pairs = [(_plain_text(key, 4), _plain_text(item, depth + 1)) for key, item in value.items()]
        return "{" + ",".join([f"{key}:{item}" for key, item in pairs]) + "}"
    kind = type(value)
    if (kind.__module__.partition(".")[0], kind.__qualname__) in _BY_REPR:
        return repr(value)
    if (kind.__module__, kind.__qualname__) == ("numpy", "ndarray") and not value.dtype.hasobject:
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    item = getattr(value, "item", None)  # a scalar of numpy
    if callable(item) and getattr(value, "shape", None) == () and type(value.item()) in _PLAIN:
        return repr(value.item())
    if hasattr(value, "isoformat"):  # dates and times
        return str(value.isoformat())
    raise NotPlain(f"holds values of type {kind.__qualname__}")
