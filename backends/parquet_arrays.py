"""Between Arrow arrays and numpy or Python values.

pyarrow's own conversions (`pa.array`, `pa.scalar`, `to_numpy`) import pandas where it is
installed: a quarter of a second and 45 MB that a training does not need. These do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tachograph.records import ColumnType

Mask = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

TYPES: dict[ColumnType, pa.DataType] = {
    "text": pa.string(),
    "json": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
}
_DTYPES: dict[pa.DataType, type[np.generic]] = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint64(): np.uint64,
    pa.float64(): np.float64,
}
_ARROW = {np.dtype(numpy): arrow for arrow, numpy in _DTYPES.items()}


# ---------------------------------------------------------------------------- to Arrow


def from_numpy(values: Numbers, valid: Mask | None = None) -> pa.Array:
    """An array that shares the memory of `values`; NULL where `valid` is false."""
    values = np.ascontiguousarray(values)
    bits = None if valid is None or valid.all() else _bits(valid)
    if values.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(values), [bits, _bits(values)])
    return pa.Array.from_buffers(_ARROW[values.dtype], len(values), [bits, pa.py_buffer(values)])


def _bits(mask: Mask) -> pa.Buffer:
    return pa.py_buffer(np.packbits(mask, bitorder="little"))


def from_list(values: Sequence[Any], kind: ColumnType) -> pa.Array:
    """An array of Python values; None and NaN are NULL, a lone surrogate is escaped."""
    valid = np.array([value is not None and value == value for value in values], np.bool_)
    if TYPES[kind] == pa.string():
        texts = ["" if value is None else str(value) for value in values]
        return _from_texts(texts, valid)
    kept = [value if known else 0 for value, known in zip(values, valid, strict=True)]
    return from_numpy(np.array(kept, _DTYPES[TYPES[kind]]), valid)


def _from_texts(texts: Sequence[str], valid: Mask) -> pa.Array:
    encoded = [text.encode(errors="backslashreplace") for text in texts]
    ends = list(itertools.accumulate(map(len, encoded), initial=0))
    buffers = [
        None if valid.all() else _bits(valid),
        pa.py_buffer(np.array(ends, np.int32)),  # more than 2 GiB in a column raises
        pa.py_buffer(b"".join(encoded)),
    ]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def scalar(value: Any) -> pa.Scalar:
    """A Python str, bool, int or float as Arrow has it."""
    if isinstance(value, str):
        return from_list([value], "text")[0]
    return from_list([value], "float" if isinstance(value, float) else "int")[0]


# ---------------------------------------------------------------------------- from Arrow


def valid_of(array: pa.Array) -> Mask:
    """Where an array is not NULL."""
    if not array.null_count:
        return np.ones(len(array), np.bool_)
    return _unpack(array.is_valid())


def _unpack(array: pa.BooleanArray) -> Mask:
    """The data of a boolean array; any value where it is NULL."""
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    bits = np.unpackbits(data, count=array.offset + len(array), bitorder="little")
    return bits[array.offset :].astype(np.bool_)


def to_numpy(array: pa.Array, missing: float = 0) -> Numbers:
    """Numbers, or true and false, with `missing` for NULL; shares memory where there is none."""
    if not len(array) or array.null_count == len(array):
        kind = np.bool_ if pa.types.is_boolean(array.type) else _DTYPES[array.type]
        return np.full(len(array), missing, kind)
    if pa.types.is_boolean(array.type):
        values: Numbers = _unpack(array)
    else:
        values = np.frombuffer(array.buffers()[1], _DTYPES[array.type])
        values = values[array.offset : array.offset + len(array)]
    if array.null_count:
        values = np.where(valid_of(array), values, np.array(missing, values.dtype))
    return values


def join(parts: Iterable[Numbers], kind: type[np.generic]) -> Numbers:
    """Arrays as one; empty where there is none."""
    arrays = list(parts)
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


def column_numbers(column: pa.ChunkedArray, missing: float = 0) -> Numbers:
    """The numbers of a column, with `missing` for NULL."""
    return join((to_numpy(chunk, missing) for chunk in column.chunks), _DTYPES[column.type])


def column_valid(column: pa.ChunkedArray) -> Mask:
    """Where a column is not NULL."""
    return join((valid_of(chunk) for chunk in column.chunks), np.bool_)


def to_list(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python values, NULL as None; much faster than `to_pylist` for long ones."""
    values: list[Any] = []
    for chunk in column.chunks:
        values += _to_list(chunk)
    return values


def _to_list(array: pa.Array) -> list[Any]:
    if array.null_count == len(array):
        return [None] * len(array)
    if pa.types.is_dictionary(array.type):
        texts = [*array.dictionary.to_pylist(), None]
        numbers = to_numpy(array.indices, len(texts) - 1)
        return np.array(texts, object)[numbers].tolist()  # type: ignore[no-any-return]
    if pa.types.is_string(array.type):
        return array.to_pylist()  # type: ignore[no-any-return]
    values: list[Any] = to_numpy(array).tolist()
    if array.null_count:
        for position in np.flatnonzero(~valid_of(array)).tolist():
            values[position] = None
    return values
