"""Reading from a server: it filters, sorts, reduces; what is too long comes in pages.

Knows queries and tables; `remote_http` knows how to ask.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import Bounds, Condition, Query, table_columns
from tachograph.backends.remote_errors import Patience, document
from tachograph.backends.remote_http import Connection
from tachograph.errors import QueryError, StoreError, TooLarge, WireError
from tachograph.merge import select, spanned
from tachograph.records import TABLES
from tachograph.table import Table
from tachograph.wire.tables import (
    ARROW,
    JSON,
    conditions_to_json,
    query_to_json,
    table_from_arrow,
    table_from_json,
)

if TYPE_CHECKING:
    import httpx

READING = Patience(connect=5.0, silence=60.0, total=600.0)

PAGE_ROWS = 500_000
"""Rows that are asked for at once where all are too many for the server; fewer where these are."""

FEWEST_ROWS = 1000
"""Where so few are too many, it is not the rows: they are large, or take too long to find."""

MANY_ROWS = 20_000
"""After an answer of so many it is worth to import pyarrow for the next ones.

200,000 points from a server on the same machine take 2.9 s as JSON and 0.9 s as Arrow."""

Ask = Callable[[Query], Table]
_HEADERS = {"Accept": JSON, "Content-Type": JSON}
_EITHER = {"Accept": f"{ARROW}, {JSON};q=0.5", "Content-Type": JSON}


class RemoteReading:
    """The reading half of a store behind a server."""

    _connection: Connection
    _likes_arrow = False

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        query.check()
        try:
            return self._read_once(query)
        except TooLarge:
            return read_in_pages(self._read_once, query)

    def sql(
        self, text: str, parameters: Sequence[Any] = (), *, bounds: Bounds | None = None
    ) -> Table:
        """Run one SELECT; QueryError for anything that would write, or a mistake in it."""
        found = self._table(self._post("/sql", {"text": text, "parameters": [*parameters]}))
        return found if bounds is None else found.take(range(min(len(found), bounds.rows)))

    def digest(self, table: str, where: Sequence[Condition], without: Sequence[str]) -> str:
        """The digest of rows of a table, worked out by the server."""
        asked = {"table": table, "where": conditions_to_json(where), "without": [*without]}
        return str(document(self._post("/digest", asked))["digest"])

    def list_runs(
        self,
        where: str | None,
        sort: Sequence[str],
        columns: Sequence[str] | None,
        children: bool,
        limit: int | None,
        lost: bool,
    ) -> Table:
        """The runs, as `Store.runs` gives them; QueryError for a filter that cannot be."""
        given = {"where": where, "sort": sort, "columns": columns, "limit": limit}
        params = {name: value for name, value in given.items() if value is not None}
        params |= {"children": children, "lost": lost}
        return self._get("/runs", params)

    def reduced_series(self, where: Sequence[Condition], attempts: str, points: int) -> Table:
        """At most so many points of the one series that the conditions choose."""
        chosen = {condition.column: condition.value for condition in where}
        run_id = chosen.pop("run_id")
        return self._get(
            f"/runs/{run_id}/series", chosen | {"attempts": attempts, "points": points}
        )

    # ------------------------------------------------------------------ inside

    def _read_once(self, query: Query) -> Table:
        arrow = self._likes_arrow or sys.modules.get("pyarrow") is not None
        headers = _EITHER if arrow else _HEADERS
        found = self._table(self._post("/read", query_to_json(query), headers))
        if len(found) >= MANY_ROWS and not arrow:
            self._likes_arrow = find_spec("pyarrow") is not None
        return found

    def _get(self, path: str, params: dict[str, Any]) -> Table:
        return self._table(
            self._connection.ask("GET", path, patience=READING, headers=_HEADERS, params=params)
        )

    def _post(self, path: str, asked: Any, headers: Mapping[str, str] = _HEADERS) -> httpx.Response:
        try:
            content = json.dumps(asked, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise QueryError(f"this cannot be sent to a server: {error}") from error
        return self._connection.ask(
            "POST", path, patience=READING, headers=headers, content=content
        )

    def _table(self, response: httpx.Response) -> Table:
        is_arrow = response.headers.get("Content-Type") == ARROW
        try:
            return (table_from_arrow if is_arrow else table_from_json)(response.content)
        except WireError as error:
            raise StoreError(f"{self._connection.url}: {error}") from error


# ---------------------------------------------------------------------------- pages


def read_in_pages(ask: Ask, query: Query) -> Table:
    """The answer to a query, of which the server gives only so many rows at once."""
    if query.span is not None:
        return spanned(lambda rows: read_in_pages(ask, rows), query)
    spec = TABLES.get("metrics" if query.table == "all_metrics" else query.table)
    keys = ("writer",) if spec is None else spec.key or ("seq", "writer")  # None: of cursors
    names = query.columns or table_columns(query.table)
    sorted_by = [name.removeprefix("-") for name in query.order]
    wanted = replace(query, columns=[*dict.fromkeys([*names, *sorted_by, *keys])])
    columns: dict[str, list[Any]] = {name: [] for name in wanted.columns or ()}
    for page in _Pages(ask).of(wanted, keys):
        for name, values in columns.items():
            values.extend(page[name])
        if not query.order and query.limit is not None and len(columns[keys[0]]) >= query.limit:
            break
    found = Table(columns)
    if query.order or query.limit is not None:
        return select(replace(query, where=()), found)
    return found.select(names)


class _Pages:
    """Cuts an answer between two values of a key, so that no row is lost or comes twice.

    Parameters
    ----------
    ask : callable
        Answers a query at once, or raises TooLarge.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._rows = PAGE_ROWS

    def of(self, query: Query, keys: Sequence[str]) -> Iterator[Table]:
        """Tables that are together what the query finds, in ascending order of the first key."""
        key, *others = keys
        rest = query
        while True:
            page, whole = self._next(rest, key)
            if whole:
                yield page
                return
            last = page[key][-1]
            before = bisect_left(page[key], last)  # of the last value there may be more
            yield page.take(range(before))
            operator = ">="
            if not before:  # one value has more rows than a page
                if not others:
                    raise QueryError(f"{key} {last!r} of {query.table!r} has too many rows to send")
                yield from self.of(_also(query, Condition(key, "=", last)), others)
                operator = ">"
            rest = _also(query, Condition(key, operator, last))  # type: ignore[arg-type]

    def _next(self, query: Query, key: str) -> tuple[Table, bool]:
        """The next rows by a key, and whether they are all."""
        while True:
            try:
                page = self._ask(replace(query, order=(key,), limit=self._rows))
            except TooLarge:
                if self._rows <= FEWEST_ROWS:
                    raise
                self._rows //= 2
                continue
            return page, len(page) < self._rows


def _also(query: Query, condition: Condition) -> Query:
    return replace(query, where=[*query.where, condition])
