"""Arrow tables out of Parquet files, filtered, sorted, and as Python lists.

Knows files and conditions, nothing about runs. Does without pyarrow.dataset, which imports pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tachograph.backends.base import Condition
from tachograph.errors import QueryError

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

REPEATED = frozenset(
    "run_id name context writer special kind level dtype shape logical_shape".split()
)
"""Text columns with few values in tables that grow; they stay codes until the end."""


# ---------------------------------------------------------------------------- files


def scan(
    files: Iterable[Path],
    schema: pa.Schema,
    conditions: Sequence[Condition],
    dictionary: Iterable[str] = (),
) -> pa.Table:
    """Rows of files that satisfy all conditions.

    Parameters
    ----------
    files : iterable of Path
        What to read.
    schema : pyarrow.Schema
        Columns to read, among them those of the conditions; NULL where a file lacks one.
    conditions : sequence of Condition
        Row groups whose statistics exclude them are not decoded.
    dictionary : iterable of str
        Columns to read as codes of few texts.
    """
    coded = [name for name in schema.names if name in dictionary]
    found = [
        part for path in files if (part := _scan_file(path, schema, conditions, coded)) is not None
    ]
    if not found:
        return schema.empty_table()
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


_MAY_HOLD: dict[str, Callable[[Any, Any, Any], bool]] = {
    "=": lambda low, high, value: low <= value <= high,
    "in": lambda low, high, values: any(low <= v <= high for v in values if v is not None),
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
    for condition in conditions:
        keep &= matches(table[condition.column], condition)
    return table if keep.all() else table.filter(pa.array(keep))


def matches(column: pa.ChunkedArray, condition: Condition) -> Mask:
    """Which values satisfy a condition; QueryError where they cannot be compared with it."""
    try:
        parts = [_matches(chunk, condition) for chunk in column.chunks]
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise QueryError(
            f"cannot compare column {condition.column!r} with {condition.value!r}: {error}"
        ) from error
    return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


def _matches(array: pa.Array, condition: Condition) -> Mask:
    if condition.value is None:
        known = _numpy(array.is_valid())
        return {"=": ~known, "!=": known}.get(condition.operator, np.zeros(len(array), np.bool_))
    if pa.types.is_dictionary(array.type):
        # one value more, which satisfies nothing, for NULL
        hits = np.append(_matches(array.dictionary, condition), False)
        return hits[array.indices.fill_null(len(hits) - 1).to_numpy(zero_copy_only=False)]
    found = _TESTS[condition.operator](array, condition.value)
    return _numpy(pc.fill_null(found, False))


def _numpy(array: pa.BooleanArray) -> Mask:
    found: Mask = array.to_numpy(zero_copy_only=False)
    return found


def _comparable(array: pa.Array, value: Any) -> bool:
    return isinstance(value, str) == pa.types.is_string(array.type)


def _scalar(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _equal(array: pa.Array, value: Any) -> pa.Array:
    if not _comparable(array, value):  # as in Python, different types are never equal
        return pc.and_(array.is_null(), False)
    return pc.equal(array, _scalar(value))


def _in(array: pa.Array, values: Iterable[Any]) -> pa.Array:
    wanted = [_scalar(v) for v in values if v is not None and _comparable(array, v)]
    if pa.types.is_integer(array.type):
        wanted = [int(value) for value in wanted if value == int(value)]
    return pc.is_in(array, value_set=pa.array(wanted, array.type))


def _like(array: pa.Array, pattern: str) -> pa.Array:
    # In SQL without ESCAPE a backslash is a backslash.
    return pc.match_like(array, pattern.replace("\\", "\\\\"))


_TESTS: dict[str, Callable[[pa.Array, Any], pa.Array]] = {
    "=": _equal,
    "!=": lambda array, value: pc.invert(_equal(array, value)),
    "<": lambda array, value: pc.less(array, _scalar(value)),
    "<=": lambda array, value: pc.less_equal(array, _scalar(value)),
    ">": lambda array, value: pc.greater(array, _scalar(value)),
    ">=": lambda array, value: pc.greater_equal(array, _scalar(value)),
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
    positions = pc.sort_indices(
        pa.table(columns), sort_keys=list(keys.items()), null_placement="at_end"
    )
    return table.take(positions)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def codes(column: pa.ChunkedArray) -> tuple[Positions, list[Any]]:
    """Number the distinct values of a column, NULL among them; return numbers and values."""
    encoded = pc.dictionary_encode(_plain(column), null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks() if encoded.num_chunks != 1 else encoded.chunk(0)
    numbers = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers, encoded.dictionary.to_pylist()


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
        texts = np.array([*array.dictionary.to_pylist(), None], object)
        numbers = array.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)
        return texts[numbers].tolist()  # type: ignore[no-any-return]
    if pa.types.is_string(array.type):
        return array.to_pylist()  # type: ignore[no-any-return]
    if not array.null_count:
        return array.to_numpy().tolist()  # type: ignore[no-any-return]
    values: list[Any] = array.fill_null(0).to_numpy().tolist()
    for position in np.flatnonzero(_numpy(array.is_null())).tolist():
        values[position] = None
    return values
