"""Reading tables over HTTP: queries, SQL, digests, and what could be freed.

docs/reference/protocol.md describes the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from tachograph import registry
from tachograph.backends.base import (
    Bounds,
    Garbage,
    SupportsGC,
    SupportsSQL,
    table_columns,
)
from tachograph.backends.base import Query as TableQuery
from tachograph.errors import QueryError, StoreError, TooLarge, WireError
from tachograph.records import TABLES, ColumnType
from tachograph.server import shapes, stretches
from tachograph.server.access import Admin, Overseer, Reader
from tachograph.server.asking import Found, answer_table, read_document, refuse_unknown
from tachograph.server.served import Served
from tachograph.wire.json_input import read_json
from tachograph.wire.tables import conditions_from_json, query_from_json, text_of

SQL_BYTES = 256 << 20
"""Memory that the answer to one SELECT may take, about."""

router = APIRouter(prefix="/v1", dependencies=[Depends(refuse_unknown)])


@router.post(
    "/read",
    summary="Rows of a table",
    tags=["reading"],
    responses=shapes.tables(413),
    openapi_extra=shapes.body("Query"),
)
async def read(request: Request, grant: Reader) -> Response:
    """The rows that a query is about."""
    query = query_from_json(
        await read_document(request, "table", "where columns order limit raw span")
    )
    return await answer_table(request, grant, lambda served: _rows(served, query))


@router.get(
    "/read", summary="Rows of a table, to be kept", tags=["reading"], responses=shapes.tables(413)
)
async def read_by_url(
    request: Request,
    grant: Reader,
    query: Annotated[str, Query(description="As JSON.", examples=['{"table": "runs"}'])],
) -> Response:
    """As `POST /v1/read`, with an ETag."""
    asked = query_from_json(read_json(query.encode()))
    return await answer_table(request, grant, lambda served: _rows(served, asked))


def _rows(served: Served, query: TableQuery) -> Found:
    table = "metrics" if query.table == "all_metrics" else query.table
    types: Mapping[str, ColumnType] = {"writer": "text", "next": "int"}
    if table in TABLES:
        types = TABLES[table].columns
    if query.span is not None:  # its columns are called as those of summaries
        types = {**types, "first": types[query.span], "last": types[query.span], "count": "int"}
    return Found(served.read(query), types)


@router.post(
    "/sql",
    summary="One SELECT",
    tags=["reading"],
    responses=shapes.tables(413),
    openapi_extra=shapes.body("Select"),
)
async def sql(request: Request, grant: Overseer) -> Response:
    """Rows of a SELECT over the tables. Only for tokens of all projects."""
    asked = await read_document(request, "text", "parameters")
    text, parameters = text_of("text", asked["text"]), _parameters(asked.get("parameters", []))
    readers = request.app.state.server.readers

    def work(served: Served) -> Found:
        store, rows = served.backend, request.app.state.server.settings.limits.answer_rows
        if not isinstance(store, SupportsSQL):
            raise QueryError(f"{store.url} answers no SQL")
        # As old as what another tool sees of a training's store.
        readers.flush(store.first_interval)
        found = store.sql(text, parameters, bounds=Bounds(rows + 1, SQL_BYTES))
        if len(found) > rows:
            raise TooLarge(f"the answer has more than {rows} rows; ask for less")
        return Found(found, {})

    return await answer_table(request, grant, work, heavy=True)


def _parameters(given: Any) -> list[str | int | float | None]:
    if not isinstance(given, list):
        raise QueryError("'parameters' is a list")
    for one in given:
        if isinstance(one, str):
            text_of("parameter", one)
        elif not (one is None or isinstance(one, int | float)):
            raise QueryError("a parameter is text, a number, true, false or null")
    return given


@router.post(
    "/digest",
    summary="The digest of a table",
    tags=["reading"],
    responses=shapes.answers("Digest", 413),
    openapi_extra=shapes.body("Digested"),
)
async def digest(request: Request, grant: Reader) -> dict[str, str]:
    """A number that is equal where two stores say the same, worked out where the rows are."""
    asked = await read_document(request, "table", "where without")
    where = conditions_from_json(asked.get("where", []))
    checked = query_from_json({"table": asked["table"], "columns": asked.get("without", [])})
    if checked.table == "cursors":
        raise QueryError("cursors are how far a store is, and have no digest")
    TableQuery(checked.table, where, table_columns(checked.table)).check()

    def work(served: Served) -> str:
        return stretches.digest(served, checked.table, where, checked.columns or ())

    readers = request.app.state.server.readers
    return {"digest": await readers.ask(work, grant, heavy=True)}


@router.post(
    "/gc",
    summary="Free what is deleted",
    tags=["operation"],
    responses=shapes.answers("Garbage"),
    openapi_extra=shapes.body("Collect"),
)
async def collect(request: Request, grant: Admin) -> dict[str, Any]:
    """What deleted runs still take, and, unless `dry_run`, what was freed of it."""
    dry_run = (await read_document(request, "", "dry_run")).get("dry_run", True)
    if not isinstance(dry_run, bool):
        raise WireError("'dry_run' is true or false")
    server = request.app.state.server

    def work() -> Garbage:
        server.readers.flush()
        first, *others = server.settings.stores
        found = _collect(first, dry_run)
        if not dry_run:
            for url in others:
                _collect(url, dry_run)
        return found

    found = await asyncio.to_thread(work)
    return {
        "dry_run": dry_run,
        "runs": found.runs,
        "points": found.points,
        "artifacts": found.artifacts,
        "bytes": found.bytes,
    }


def _collect(url: str, dry_run: bool) -> Garbage:
    backend = registry.open_backend(url, create=True)
    try:
        if not isinstance(backend, SupportsGC):
            raise StoreError(f"{url} cannot free what is deleted")
        return backend.gc(dry_run=dry_run)
    finally:
        backend.close()
