"""Fingerprints of tables with named columns: pandas, Polars, Arrow."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tachograph.provenance import Document, sketches
from tachograph.provenance.arrays import array_sketch
from tachograph.provenance.digest import Column, object_bytes, plain_bytes, read_columns
from tachograph.provenance.value_sketches import ValueSketch


def pandas_frame(data: Any) -> dict[str, Any]:
    """Columns with their types, rows, and a digest of the content with its index and categories."""
    columns = [  # by position: by name, older versions would keep them in the user's frame
        _pandas_column(str(name), data.iloc[:, position])
        for position, name in enumerate(data.columns)
    ]
    # A model sees the codes of categories, which follow their order.
    positions = [at for at, dtype in enumerate(data.dtypes) if str(dtype) == "category"]
    columns += [_pandas_column("", data.iloc[:, position].cat.codes) for position in positions]
    index = data.index
    plainly_numbered = (getattr(index, "start", None), getattr(index, "step", None)) == (0, 1)
    if not plainly_numbered:
        levels = (index.get_level_values(level) for level in range(index.nlevels))
        columns += [_pandas_column("", level.to_series()) for level in levels]
    return _frame(len(data), columns, len(data.columns))


def pandas_series(data: Any) -> dict[str, Any]:
    """The same of one column."""
    return pandas_frame(data.to_frame())


def _pandas_column(name: str, series: Any) -> Column:
    dtype = series.dtype
    if is_numeric(dtype):
        values = series.to_numpy()
        return _numeric(name, dtype, dtype.itemsize, lambda start, stop: values[start:stop])

    def read(start: int, stop: int) -> list[Any]:
        values: list[Any] = series.iloc[start:stop].to_numpy(object, na_value=None).tolist()
        return values

    return _plain(name, str(dtype), len(series), read)


def polars_frame(data: Any) -> dict[str, Any]:
    """Columns with their types, rows, and a digest of the content."""
    columns = [_polars_column(series) for series in data.get_columns()]
    return _frame(data.height, columns, len(columns))


def polars_series(data: Any) -> dict[str, Any]:
    """The same of one column."""
    return polars_frame(data.to_frame())


def _polars_column(series: Any) -> Column:
    name, dtype = series.name, str(series.dtype)
    if is_number_of_polars(dtype) and series.null_count() == 0:
        return _numeric(
            name, dtype, 8, lambda start, stop: series.slice(start, stop - start).to_numpy()
        )
    return _plain(
        name, dtype, len(series), lambda start, stop: series.slice(start, stop - start).to_list()
    )


def arrow_table(data: Any) -> dict[str, Any]:
    """Columns with their types, rows, and a digest of the content; the same for any chunking."""
    columns = [
        _arrow_column(field.name, str(field.type), column)
        for field, column in zip(data.schema, data.columns, strict=True)
    ]
    return _frame(data.num_rows, columns, len(columns))


def _arrow_column(name: str, dtype: str, column: Any) -> Column:
    if dtype.startswith(("int", "uint", "float", "double")) and column.null_count == 0:
        return _numeric(
            name, dtype, 8, lambda start, stop: column.slice(start, stop - start).to_numpy()
        )
    return _plain(
        name, dtype, len(column), lambda start, stop: column.slice(start, stop - start).to_pylist()
    )


# ---------------------------------------------------------------------------- columns


def is_numeric(dtype: Any) -> bool:
    """Whether a type of pandas is one of numpy for numbers or times, and not an extension."""
    return getattr(dtype, "kind", "O") in "biufcmM" and hasattr(dtype, "newbyteorder")


def is_number_of_polars(dtype: str) -> bool:
    """Whether numpy has numbers of a type of Polars: no decimal ones, and none of 128 bits."""
    return re.fullmatch(r"U?Int(8|16|32|64)|Float(16|32|64)", dtype) is not None


def _numeric(name: str, dtype: Any, row_bytes: int, read: Callable[[int, int], Any]) -> Column:
    """A column that is read as an array of numpy."""
    return Column(
        name,
        str(dtype),
        row_bytes,
        read,
        lambda piece: bytes(piece.tobytes()),
        array_sketch(read(0, 0).dtype, (0,)),
    )


def _plain(name: str, dtype: str, rows: int, read: Callable[[int, int], list[Any]]) -> Column:
    """A column that is read as a list of plain values."""
    return Column(name, dtype, object_bytes(rows, read), read, plain_bytes, ValueSketch)


def _frame(rows: int, columns: list[Column], width: int) -> Document:
    """Columns beyond `width`, such as of an index, count and are not described."""
    sketched = min(width, sketches.COLUMNS)
    others = [replace(column, sketch=None) for column in columns[sketched:]]
    reading = read_columns(rows, [*columns[:sketched], *others])
    names = [column.name for column in columns[:sketched] if column.sketch]
    found = [documents[0] if documents else {} for documents in reading.sketches]
    return {
        "shape": [rows, width],
        "rows": rows,
        "columns": [{"name": column.name, "dtype": column.dtype} for column in columns[:width]],
        **reading.digest,
        **sketches.by_column(names, found, width - sketched),
        "sketch_of": reading.covers,
    }
