"""Reading runs over HTTP: lists of them, one of them, its series and documents.

Every question goes to the store through `readers`, which bounds it and leaves out what the token
does not cover; so a route here only says what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from tachograph import __version__
from tachograph.backends.base import Condition
from tachograph.backends.base import Query as TableQuery
from tachograph.errors import WireError
from tachograph.query import Store
from tachograph.reading.listing import BOOKKEEPING
from tachograph.records import FORMAT_VERSION, TABLES, split_special
from tachograph.server import shapes, stretches
from tachograph.server.access import Reader
from tachograph.server.asking import Found, answer_table, refuse_unknown
from tachograph.server.negotiation import document_form, respond
from tachograph.server.served import Served
from tachograph.server.settings import PROTOCOL
from tachograph.server.tokens import Grant
from tachograph.table import Table
from tachograph.wire.json_input import read_json
from tachograph.wire.tables import MOST_TERMS, table_to_json, to_json

DOCUMENTS: Mapping[str, tuple[str, ...]] = {
    "params": ("path",),
    "tags": ("key",),
    "provenance": ("section",),
    "artifacts": ("path",),
    "attempts": ("attempt",),
    "events": ("time", "seq"),
}
"""Tables that are asked for by run, and how they are sorted."""

_SUMMARY = (
    *("name", "context", "rank", "attempt"),
    *("last", "special", "last_step", "last_time", "min", "max", "mean", "count"),
)


router = APIRouter(prefix="/v1", tags=["reading"], dependencies=[Depends(refuse_unknown)])


# ---------------------------------------------------------------------------- the server itself


@router.get("", summary="What server this is", responses=shapes.answers("About"))
async def about(request: Request) -> dict[str, Any]:
    """Versions that it speaks, its limits, and what the token may do. For any token."""
    limits = request.app.state.server.settings.limits
    grant: Grant = request.state.grant
    projects = None if grant.covers_all else sorted(grant.projects or ())
    return {
        "protocols": [PROTOCOL],
        "version": __version__,
        "format": FORMAT_VERSION,
        "limits": {
            "body_bytes": limits.body_bytes,
            "batch_bytes": limits.batch_bytes,
            "answer_rows": limits.answer_rows,
        },
        "token": {"name": grant.name, "rights": sorted(grant.rights), "projects": projects},
    }


# ---------------------------------------------------------------------------- runs

_Names = Annotated[list[str] | None, Query()]


@router.get("/runs", summary="List runs", responses=shapes.tables(413))
async def list_runs(
    request: Request,
    grant: Reader,
    where: Annotated[
        str | None, Query(description="A filter.", examples=["metrics.val_loss < 0.1"])
    ] = None,
    sort: Annotated[
        _Names, Query(max_length=MOST_TERMS, description="Names; '-' before one sorts descending.")
    ] = None,
    columns: Annotated[_Names, Query(description="Names of columns, metrics, …")] = None,
    children: Annotated[bool, Query(description="Also trials, folds and other parts.")] = False,
    lost: Annotated[bool, Query(description="Show as lost whose process is gone.")] = True,
    limit: Annotated[int | None, Query(ge=0, description="Rows of a page.")] = None,
    offset: Annotated[int, Query(ge=0, description="Rows before the page.")] = 0,
) -> Response:
    """One row a run, chosen and sorted by the server; `total` says how many there are in all."""

    def work(served: Served) -> Found:
        found = served.store.runs(where, sort or "-started_at", columns, children, None, lost)
        end = len(found) if limit is None else offset + limit
        page = found.take(range(min(offset, len(found)), min(end, len(found))))
        return Found(page, TABLES["runs"].columns, {"total": len(found)})

    return await answer_table(request, grant, work)


@router.get(
    "/runs/{run}", summary="One run", responses=shapes.answers("Run", 404, 406) | shapes.UNCHANGED
)
async def show_run(request: Request, grant: Reader, run: str) -> Response:
    """Its row, and the tables that belong to it but for points, events and provenance."""
    form = document_form(request)

    def work(served: Served) -> Response:
        store = served.store
        row = store.row(run)
        parts = {name: _of_run(store, row["run_id"], name).table for name in _SHOWN}
        parts |= {"metrics": _summaries(store, row["run_id"]), "children": store.children(run)}
        texts = {"run": to_json(row)} | {name: table_to_json(one) for name, one in parts.items()}
        body = b",".join(b'"%s":%s' % (name.encode(), text) for name, text in texts.items())
        return respond(request, b"{%s}" % body, form)

    response: Response = await request.app.state.server.readers.ask(work, grant)
    return response


_SHOWN = ("params", "tags", "attempts", "artifacts")


def _summaries(store: Store, run_id: str) -> Table:
    order = ("name", "context", "rank", "attempt")
    where = [Condition("run_id", "=", run_id)]
    return store.read(TableQuery("summaries", where, _SUMMARY, order))


def _of_run(store: Store, run: str, table: str) -> Found:
    """Rows of a table of documents; JSON in them stays the text that it is."""
    hidden = {"run_id", *BOOKKEEPING} - ({"writer", "seq"} if TABLES[table].grows else set())
    columns = [name for name in TABLES[table].columns if name not in hidden]
    where = [Condition("run_id", "=", store.resolve(run))]
    found = store.read(TableQuery(table, where, columns, DOCUMENTS[table]))
    return Found(found, TABLES[table].columns)


def _add_documents(table: str) -> None:
    @router.get(
        f"/runs/{{run}}/{table}",
        summary=f"The {table} of a run",
        name=f"run_{table}",
        responses=shapes.tables(404, 413),
    )
    async def documents(request: Request, grant: Reader, run: str) -> Response:
        """The columns of the table of that name; JSON in them is text."""
        return await answer_table(request, grant, lambda served: _of_run(served.store, run, table))


for _table in DOCUMENTS:
    _add_documents(_table)


@router.get("/runs/{run}/series", summary="A metric", responses=shapes.tables(404, 413))
async def series(
    request: Request,
    grant: Reader,
    run: str,
    name: Annotated[str, Query(description="Of the metric.", examples=["loss"])],
    context: Annotated[
        str | None, Query(description="JSON: keys that tell it.", examples=['{"phase": "val"}'])
    ] = None,
    rank: Annotated[
        int | Literal["all"] | None, Query(description="By default the lowest.")
    ] = None,
    attempts: Literal["latest", "all"] = "latest",
    points: Annotated[
        int | None, Query(ge=2, description="At most so many, with all extremes; exact without.")
    ] = None,
) -> Response:
    """Its points by step. `special` is nan, inf, -inf or -0 where `value` cannot say it."""
    keys = _context(context)

    def work(served: Served) -> Found:
        store = served.store
        if points is None:
            found = store.series(run, name, context=keys, rank=rank, attempts=attempts)
        else:
            found = stretches.reduced_series(served, run, name, points, keys, rank, attempts)
        return Found(_split(found), TABLES["metrics"].columns)

    return await answer_table(request, grant, work)


def _context(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    keys = read_json(text.encode())
    if not isinstance(keys, dict):
        raise WireError(f"a context is an object such as {{'phase': 'val'}}, not {text!r:.40}")
    return keys


def _split(points: Table) -> Table:
    """Values as JSON has them, and a column for the others."""
    pairs = [(None, None) if one is None else split_special(one) for one in points["value"]]
    columns: dict[str, Any] = {}
    for name in points.columns:
        columns[name] = [value for value, _ in pairs] if name == "value" else points[name]
        if name == "value":
            columns["special"] = [special for _, special in pairs]
    return Table(columns)
