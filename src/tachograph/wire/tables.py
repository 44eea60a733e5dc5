"""Queries and tables as they travel between a server and its clients.

docs/reference/protocol.md describes both forms. Knows no HTTP and no store.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tachograph.backends.base import Condition, Query
from tachograph.errors import QueryError, WireError
from tachograph.records import ColumnType
from tachograph.table import Table

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
MOST_TERMS = 500
"""Conditions of a query, and columns that it names: more than these are more than a store takes."""

_MOST_BITS = 10_000  # Python does not print larger numbers

# ---------------------------------------------------------------------------- queries


def query_to_json(query: Query) -> dict[str, Any]:
    """A query as JSON can say it; what is as by default is left out."""
    document: dict[str, Any] = {"table": query.table}
    if query.where:
        document["where"] = conditions_to_json(query.where)
    if query.columns is not None:
        document["columns"] = list(query.columns)
    if query.order:
        document["order"] = list(query.order)
    if query.limit is not None:
        document["limit"] = query.limit
    if query.raw:
        document["raw"] = True
    if query.span is not None:
        document["span"] = query.span
    return document


def query_from_json(document: Any) -> Query:
    """Undo `query_to_json`; QueryError where it is no query of a table that there is."""
    if not isinstance(document, Mapping):
        raise QueryError("a query is an object with a 'table'")
    known = {"table", "where", "columns", "order", "limit", "raw", "span"}
    unknown = sorted(set(document) - known)
    if unknown:
        raise QueryError(f"a query has no {unknown[0]!r:.40}")
    limit, raw = document.get("limit"), document.get("raw", False)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise QueryError("'limit' is a whole number from 0")
    if not isinstance(raw, bool):
        raise QueryError("'raw' is true or false")
    columns, span = document.get("columns"), document.get("span")
    query = Query(
        text_of("table", document.get("table")),
        conditions_from_json(document.get("where", ())),
        None if columns is None else _texts("columns", columns),
        _texts("order", document.get("order", ())),
        limit,
        raw,
        None if span is None else text_of("span", span),
    )
    query.check()
    return query


def conditions_to_json(conditions: Sequence[Condition]) -> list[list[Any]]:
    """Conditions as lists of column, operator and value."""
    return [
        [one.column, one.operator, list(one.value) if one.operator == "in" else one.value]
        for one in conditions
    ]


def conditions_from_json(document: Any) -> list[Condition]:
    """Undo `conditions_to_json`; QueryError where it is none."""
    if not isinstance(document, list | tuple):
        raise QueryError("'where' is a list of [column, operator, value]")
    _check_length("where", document)
    return [_condition(entry) for entry in document]


def _condition(entry: Any) -> Condition:
    if not isinstance(entry, list) or len(entry) != 3:
        raise QueryError(f"a condition is [column, operator, value], not {entry!r:.80}")
    column, operator, value = entry
    constants = value if operator == "in" and isinstance(value, list) else [value]
    if operator == "in" and not isinstance(value, list):
        raise QueryError("'in' takes a list")
    if not all(one is None or isinstance(one, str | int | float) for one in constants):
        raise QueryError(f"{value!r:.80} is nothing to compare a column with")
    for one in constants:
        if isinstance(one, str):
            text_of("value", one)
    if any(isinstance(one, int) and not -(1 << 63) <= one < 1 << 63 for one in constants):
        raise QueryError(f"{value!r:.80} does not fit into 64 bits")
    return Condition(text_of("column", column), text_of("operator", operator), value)  # type: ignore[arg-type]


def text_of(name: str, value: Any) -> str:
    """A value that is text; QueryError where it is none, or has half a character."""
    if not isinstance(value, str):
        raise QueryError(f"{name!r} is text, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which JSON can spell
        raise QueryError(f"{name!r} is no text: {value!r:.40}") from None
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        raise QueryError(f"{name!r} is a list of texts, not {value!r:.40}")
    _check_length(name, value)
    return [text_of(name, one) for one in value]


def _check_length(name: str, value: Sequence[Any]) -> None:
    if len(value) > MOST_TERMS:
        raise QueryError(f"{name!r} has {len(value)} entries; a query has at most {MOST_TERMS}")


# ---------------------------------------------------------------------------- tables


def table_to_json(table: Table, facts: Mapping[str, Any] | None = None) -> bytes:
    """``{"rows": n, "columns": {name: [value, ...]}}``; what JSON has no number for is null.

    Of NaN and infinities `special` says beside it which they are: column, then text, to rows.

    Parameters
    ----------
    table : Table
    facts : mapping, optional
        What is said beside it.
    """
    columns = table.to_pydict()
    document = {"rows": len(table), **(facts or {}), "columns": columns}
    try:
        return _encode(document)
    except (ValueError, TypeError):  # a NaN or an infinity; or keys that are no texts
        special = {name: found for name, values in columns.items() if (found := _special(values))}
        return _encode(_speakable(document | ({"special": special} if special else {})))


def to_json(document: Any) -> bytes:
    """A document as JSON, null for what JSON has no number for."""
    try:
        return _encode(document)
    except (ValueError, TypeError):  # a NaN or an infinity; or keys that are no texts
        return _encode(_speakable(document))


def table_from_json(body: bytes) -> Table:
    """Undo `table_to_json`; WireError where it is none."""
    try:
        document = json.loads(body)
        columns = {name: list(values) for name, values in document["columns"].items()}
        for name, found in document.get("special", {}).items():
            for text, rows in found.items():
                for row in rows:
                    columns[name][row] = float(text)
        return Table(columns)
    except (ValueError, LookupError, TypeError, AttributeError, QueryError) as error:
        raise WireError(f"the answer is no table: {error}"[:200]) from error


def table_to_arrow(
    table: Table,
    types: Mapping[str, ColumnType] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> bytes:
    """A stream of Arrow IPC with one record batch; ImportError where pyarrow is missing.

    Parameters
    ----------
    table : Table
    types : mapping of str to ColumnType, optional
        Of columns where they are known: one without a value does not tell.
    facts : mapping, optional
        What is said beside it, in the metadata of the schema.

    Raises
    ------
    QueryError
        A column has values of several kinds, as SQL may give them.
    """
    import pyarrow

    kinds = {"text": pyarrow.string(), "json": pyarrow.string()}
    kinds |= {"int": pyarrow.int64(), "float": pyarrow.float64()}
    columns = {}
    for name in table.columns:
        kind = kinds[types[name]] if types and name in types else None
        try:
            columns[name] = pyarrow.array(table[name], kind)
        except (ValueError, TypeError, OverflowError) as error:
            raise QueryError(
                f"the column {name!r} has values of several kinds, which Arrow cannot hold"
                f" ({error}); ask for JSON"
            ) from error
    arrow = pyarrow.table(columns)
    if facts:
        arrow = arrow.replace_schema_metadata({name: str(fact) for name, fact in facts.items()})
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    return sink.getvalue()


def table_from_arrow(body: bytes) -> Table:
    """Undo `table_to_arrow`; WireError where it is no such stream."""
    import pyarrow

    try:
        arrow = pyarrow.ipc.open_stream(body).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise WireError(f"the answer is no table: {error}"[:200]) from error
    columns = zip(arrow.column_names, arrow.columns, strict=True)
    return Table({name: column.to_pylist() for name, column in columns})


def _encode(document: Any) -> bytes:
    text = json.dumps(
        document, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=str
    )
    return text.encode(errors="replace")


def _special(values: Sequence[Any]) -> dict[str, list[int]]:
    """Which values are NaN or infinite: 'nan', 'inf' and '-inf' to their rows."""
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            found.setdefault(str(value), []).append(row)
    return found


def _speakable(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, dict):
        return {str(key): _speakable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_speakable, value)]
    if isinstance(value, int):
        return value if value.bit_length() <= _MOST_BITS else None
    return None if isinstance(value, float) and not math.isfinite(value) else value
