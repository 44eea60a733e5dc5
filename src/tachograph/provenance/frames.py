"""Fingerprints of tables with named columns: pandas, Polars, Arrow."""

from __future__ import annotations

from typing import Any

from tachograph.provenance.arrays import OBJECT_BYTES
from tachograph.provenance.digest import Column, digest_columns, plain_bytes


def pandas_frame(data: Any) -> dict[str, Any]:
    """Columns with their types, rows, and a digest of the content with its index."""
    columns = [
        _pandas_column(str(name), data.iloc[:, position])
        for position, name in enumerate(data.columns)
    ]
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
    numeric = getattr(series.dtype, "kind", "O") in "biufcmM" and hasattr(series.dtype, "itemsize")
    if numeric and hasattr(series.dtype, "newbyteorder"):  # a dtype of numpy, not an extension
        return Column(
            name,
            str(series.dtype),
            series.dtype.itemsize,
            lambda start, stop: bytes(series.iloc[start:stop].to_numpy().tobytes()),
        )
    return Column(
        name,
        str(series.dtype),
        OBJECT_BYTES,
        lambda start, stop: plain_bytes(
            series.iloc[start:stop].to_numpy(dtype=object, na_value=None).tolist()
        ),
    )


def polars_frame(data: Any) -> dict[str, Any]:
    """Columns with their types, rows, and a digest of the content."""
    columns = [_polars_column(series) for series in data.get_columns()]
    return _frame(data.height, columns, len(columns))


def polars_series(data: Any) -> dict[str, Any]:
    """The same of one column."""
    return polars_frame(data.to_frame())


def _polars_column(series: Any) -> Column:
    if series.dtype.is_numeric() and series.null_count() == 0:
        return Column(
            series.name,
            str(series.dtype),
            8,
            lambda start, stop: bytes(series.slice(start, stop - start).to_numpy().tobytes()),
        )
    return Column(
        series.name,
        str(series.dtype),
        OBJECT_BYTES,
        lambda start, stop: plain_bytes(series.slice(start, stop - start).to_list()),
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
        return Column(
            name,
            dtype,
            8,
            lambda start, stop: bytes(column.slice(start, stop - start).to_numpy().tobytes()),
        )
    return Column(
        name,
        dtype,
        OBJECT_BYTES,
        lambda start, stop: plain_bytes(column.slice(start, stop - start).to_pylist()),
    )


def _frame(rows: int, columns: list[Column], width: int) -> dict[str, Any]:
    return {
        "shape": [rows, width],
        "rows": rows,
        "columns": [{"name": column.name, "dtype": column.dtype} for column in columns[:width]],
        **digest_columns(rows, columns),
    }
