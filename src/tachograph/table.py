"""What every query returns: a small table of named columns.

The same with or without pyarrow, pandas and Polars; each is imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tachograph.errors import QueryError

Row = dict[str, Any]


class Table:
    """Named columns of equal length; iterating gives a dict per row.

    Parameters
    ----------
    columns : mapping of str to sequence
        Column name to its values, in order. NULL is None.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns: dict[str, Sequence[Any]] = dict(columns)
        lengths = {name: len(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise QueryError(f"columns differ in length: {lengths}")
        self._length = next(iter(lengths.values()), 0)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
        """Build a table from mappings; a missing column is None."""
        return cls({name: [row.get(name) for row in rows] for name in columns})

    @classmethod
    def from_tuples(cls, rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> Table:
        """Build a table from tuples that have a value for each column."""
        return cls({name: [row[at] for row in rows] for at, name in enumerate(columns)})

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns in order."""
        return tuple(self._columns)

    def __getitem__(self, column: str) -> Sequence[Any]:
        """The values of a column; QueryError where there is none of that name."""
        try:
            return self._columns[column]
        except KeyError:
            known = ", ".join(self._columns)
            raise QueryError(f"no column {column!r}; there are: {known}") from None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        names = self.columns
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return self.columns == other.columns and self.to_pylist() == other.to_pylist()

    __hash__ = None  # type: ignore[assignment]

    def select(self, columns: Sequence[str]) -> Table:
        """These columns, in this order."""
        return Table({name: self[name] for name in columns})

    def filter(self, keep: Callable[[Row], bool]) -> Table:
        """The rows for which `keep(row)` is true."""
        chosen = [index for index, row in enumerate(self) if keep(row)]
        return self.take(chosen)

    def take(self, indices: Sequence[int]) -> Table:
        """The rows at these positions, in this order."""
        return Table({name: [v[i] for i in indices] for name, v in self._columns.items()})

    def to_pylist(self) -> list[Row]:
        """A list of dicts, one per row."""
        return list(self)

    def to_pydict(self) -> dict[str, list[Any]]:
        """A dict of lists, one per column."""
        return {name: list(values) for name, values in self._columns.items()}

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`."""
        import pyarrow

        return pyarrow.table(self.to_pydict())

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self.to_pydict())

    def to_polars(self) -> Any:
        """A `polars.DataFrame`."""
        import polars

        return polars.DataFrame(self.to_pydict(), infer_schema_length=None)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The Arrow C stream protocol, so that DuckDB, Polars and others take a Table as it is."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"Table({len(self)} rows: {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        import html

        def cell(value: Any) -> str:
            return "" if value is None else html.escape(str(value))

        shown = [row for _, row in zip(range(50), self, strict=False)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row.values()) + "</tr>"
            for row in shown
        )
        more = f"<p>{len(self) - len(shown)} more rows</p>" if len(self) > len(shown) else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def distinct(columns: Sequence[str]) -> list[str]:
    """Names of columns, with a number behind those that were there before."""
    seen: dict[str, int] = {}
    result = []
    for name in columns:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result
