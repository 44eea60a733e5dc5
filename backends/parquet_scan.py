"""Arrow tables out of Parquet files, filtered, sorted, and as Python lists.

Knows files and conditions, nothing about runs. Does without pyarrow.dataset, which imports pandas.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tachograph.backends.base import Condition
from tachograph.backends.parquet_arrays import (
    Integers,
    Mask,
    from_list,
    from_numpy,
    join,
    scalar,
    to_numpy,
    valid_of,
)
from tachograph.errors import QueryError

_MANY = 64  # files from which on threads pay
_THREADS = 2

REPEATED = frozenset(
    {
        *("run_id", "name", "context", "writer", "special"),
        *("kind", "level", "dtype", "shape", "logical_shape"),
    }
)
"""Text columns with few values in tables that grow; they stay codes until the end."""


# ---------------------------------------------------------------------------- files


def scan(
    files: Sequence[Path],
    schema: pa.Schema,
    conditions: Sequence[Condition],
    dictionary: Iterable[str] = (),
) -> pa.Table:
    """Rows of files that satisfy all conditions.

    Parameters
    ----------
    files : sequence of Path
        What to read.
    schema : pyarrow.Schema
        Columns to read, among them those of the conditions; NULL where a file lacks one.
    conditions : sequence of Condition
        Row groups whose statistics exclude them are not decoded.
    dictionary : iterable of str
        Columns to read as codes of few texts.
    """
    coded = [name for name in schema.names if name in dictionary]
    conditions = [_prepared(condition) for condition in conditions]

    def scan_one(path: Path) -> pa.Table | None:
        return _scan_file(path, schema, conditions, coded)

    if len(files) < _MANY:
        parts = list(map(scan_one, files))
    else:
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(scan_one, files))
    found = [part for part in parts if part is not None]
    if not found:
        return pa.Table.from_batches([], schema)
    return pa.concat_tables(found)


def _scan_file(
    path: Path, schema: pa.Schema, conditions: Sequence[Condition], coded: list[str]
) -> pa.Table | None:
    with pq.ParquetFile(path, read_dictionary=coded) as file:
        groups = _groups(file.metadata, conditions)
        if not groups:
            return None
        present = set(file.schema_arrow.names)
        names = [name for name in schema.names if name in present]
        table = file.read_row_groups(groups, names, use_threads=False)
    table = filter_table(_complete(table, schema, coded), conditions)
    return table if table.num_rows else None


def _complete(table: pa.Table, schema: pa.Schema, coded: Sequence[str]) -> pa.Table:
    """Columns in the order of the schema; those that an older file lacks are NULL."""
    if table.column_names == schema.names:
        return table
    columns = []
    for field in schema:
        kind = pa.dictionary(pa.int32(), pa.string()) if field.name in coded else field.type
        present = field.name in table.column_names
        columns.append(table[field.name] if present else pa.nulls(table.num_rows, kind))
    return pa.table(columns, names=schema.names)


def _groups(metadata: pq.FileMetaData, conditions: Sequence[Condition]) -> list[int]:
    """Row groups that may hold a row that satisfies all conditions."""
    groups = [i for i in range(metadata.num_row_groups) if metadata.row_group(i).num_rows]
    positions = {metadata.schema.column(i).name: i for i in range(metadata.num_columns)}
    for condition in conditions:
        position = positions.get(condition.column)
        if position is not None and condition.operator in _MAY_HOLD and groups:
            groups = [
                group
                for group in groups
                if _may_hold(metadata.row_group(group).column(position).statistics, condition)
            ]
    return groups


class _Texts(Sequence[str]):
    """Texts of a condition, made ready once for all segments that are asked for them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._sorted = sorted(set(texts))
        self.array = from_list(self._sorted, "text")

    def __getitem__(self, at: Any) -> Any:
        return self._sorted[at]

    def __len__(self) -> int:
        return len(self._sorted)

    def any_within(self, low: str, high: str) -> bool:
        """Whether one of them lies between two texts."""
        at = bisect_left(self._sorted, low)
        return at < len(self) and self._sorted[at] <= high


def _prepared(condition: Condition) -> Condition:
    values = condition.value
    if condition.operator != "in" or isinstance(values, _Texts):
        return condition
    is_text = all(isinstance(value, str) for value in values)
    return replace(condition, value=_Texts(values)) if is_text else condition


def _any_within(low: Any, high: Any, values: Iterable[Any]) -> bool:
    if isinstance(values, _Texts):
        return values.any_within(low, high)
    return any(low <= value <= high for value in values if value is not None)


_MAY_HOLD: dict[str, Callable[[Any, Any, Any], bool]] = {
    "=": lambda low, high, value: low <= value <= high,
    "in": _any_within,
    "<": lambda low, high, value: low < value,
    "<=": lambda low, high, value: low <= value,
    ">": lambda low, high, value: high > value,
    ">=": lambda low, high, value: high >= value,
}


def _may_hold(statistics: pq.Statistics | None, condition: Condition) -> bool:
    if condition.value is None or statistics is None or not statistics.has_min_max:
        return True
    try:
        return _MAY_HOLD[condition.operator](statistics.min, statistics.max, condition.value)
    except TypeError:  # of different types: the comparison of values says what that means
        return True


# ---------------------------------------------------------------------------- conditions


def filter_table(table: pa.Table, conditions: Iterable[Condition]) -> pa.Table:
    """The rows that satisfy all conditions."""
    keep: Mask = np.ones(table.num_rows, np.bool_)
    for condition in map(_prepared, conditions):
        keep &= _matches(table[condition.column], condition)
    return keep_rows(table, keep)


def keep_rows(table: pa.Table, keep: Mask) -> pa.Table:
    """The rows where `keep` is true."""
    return table if keep.all() else table.filter(from_numpy(keep))


def _matches(column: pa.ChunkedArray, condition: Condition) -> Mask:
    """Which values satisfy a condition; QueryError where they cannot be compared with it."""
    try:
        return join((_match(chunk, condition) for chunk in column.chunks), np.bool_)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise QueryError(
            f"cannot compare column {condition.column!r} with {condition.value!r}: {error}"
        ) from error


def _match(array: pa.Array, condition: Condition) -> Mask:
    if condition.value is None:
        known = valid_of(array)
        return {"=": ~known, "!=": known}.get(condition.operator, np.zeros(len(array), np.bool_))
    if pa.types.is_dictionary(array.type):
        # one more, which satisfies nothing, for NULL
        hits = np.append(_match(array.dictionary, condition), False)
        found: Mask = hits[to_numpy(array.indices, len(hits) - 1)]
        return found
    return to_numpy(_TESTS[condition.operator](array, condition.value))


def _compute() -> Any:
    """Arrow's functions, imported when a reader needs them: a training does without 12 MB."""
    import pyarrow.compute

    return pyarrow.compute


def _comparable(array: pa.Array, value: Any) -> bool:
    return isinstance(value, str) is bool(pa.types.is_string(array.type))


def _equal(array: pa.Array, value: Any) -> pa.Array:
    if not _comparable(array, value):  # as in Python, different types are never equal
        return from_numpy(np.zeros(len(array), np.bool_), valid_of(array))
    return _compute().equal(array, scalar(value))


def _in(array: pa.Array, values: Iterable[Any]) -> pa.Array:
    if pa.types.is_string(array.type):
        texts = values if isinstance(values, _Texts) else _Texts(_only_texts(values))
        return _compute().is_in(array, value_set=texts.array)
    wanted = [value for value in values if value is not None and _comparable(array, value)]
    if pa.types.is_integer(array.type):
        wanted = [int(value) for value in wanted if value == int(value)]
    known = from_list(wanted, "int" if pa.types.is_integer(array.type) else "float")
    return _compute().and_(_compute().is_in(array, value_set=known), array.is_valid())


def _only_texts(values: Iterable[Any]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))


def _like(array: pa.Array, pattern: str) -> pa.Array:
    # In SQL without ESCAPE a backslash is a backslash.
    return _compute().match_like(array, pattern.replace("\\", "\\\\"))


_TESTS: dict[str, Callable[[pa.Array, Any], pa.Array]] = {
    "=": _equal,
    "!=": lambda array, value: _compute().invert(_equal(array, value)),
    "<": lambda array, value: _compute().less(array, scalar(value)),
    "<=": lambda array, value: _compute().less_equal(array, scalar(value)),
    ">": lambda array, value: _compute().greater(array, scalar(value)),
    ">=": lambda array, value: _compute().greater_equal(array, scalar(value)),
    "in": _in,
    "like": _like,
}


# ---------------------------------------------------------------------------- order and lists


def sort_table(table: pa.Table, order: Sequence[str]) -> pa.Table:
    """Sort by columns, a leading '-' descending; NULLs come last either way."""
    if not order:
        return table
    keys: dict[str, str] = {}
    for name in order:
        keys.setdefault(name.removeprefix("-"), "descending" if name[0] == "-" else "ascending")
    columns = {name: _plain(table[name]) for name in keys}
    # NULLs come last by default.
    positions = _compute().sort_indices(pa.table(columns), sort_keys=list(keys.items()))
    in_order = to_numpy(positions) == np.arange(len(positions), dtype=np.uint64)
    return table if in_order.all() else table.take(positions)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def codes(column: pa.ChunkedArray) -> tuple[Integers, list[Any]]:
    """Number the distinct values of a column, NULL among them; return numbers and values."""
    encoded = _compute().dictionary_encode(_plain(column), null_encoding="encode").combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # where it has no chunk
        return np.zeros(0, np.int64), []
    return to_numpy(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()
