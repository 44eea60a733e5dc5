"""What the routes that read have in common: their parameters, their bodies, their answers.

Knows HTTP and tables; knows no route.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from tachograph.errors import WireError
from tachograph.reading.facts import nearest
from tachograph.records import ColumnType
from tachograph.server.answers import Refusal
from tachograph.server.limits import read_body
from tachograph.server.negotiation import encode, respond, table_form
from tachograph.server.served import Served
from tachograph.server.tokens import Grant
from tachograph.table import Table


async def refuse_unknown(request: Request) -> None:
    """Refuse a parameter that the route does not have: a misspelled filter would show all."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            hint = nearest(name, known) or f"; there are: {', '.join(sorted(known)) or 'none'}"
            raise Refusal(400, "malformed", f"there is no parameter {name!r:.40}{hint}")


@dataclass(frozen=True, slots=True)
class Found:
    """A table, what is known of its columns, and what is said beside it."""

    table: Table
    types: Mapping[str, ColumnType]
    facts: Mapping[str, Any] = field(default_factory=dict)


async def answer_table(
    request: Request, grant: Grant, work: Callable[[Served], Found], *, heavy: bool = False
) -> Response:
    """A table as the client likes it; everything but asking is done in a thread."""
    form = table_form(request)

    def answer(served: Served) -> Response:
        found = work(served)
        return respond(request, encode(found.table, form, found.types, found.facts), form)

    response: Response = await request.app.state.server.readers.ask(answer, grant, heavy=heavy)
    return response


async def read_document(request: Request, required: str, optional: str = "") -> dict[str, Any]:
    """The body of a request: an object with these keys."""
    given = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if given.lower() != "application/json":
        raise Refusal(415, "media_type", f"the body is application/json, not {given!r:.60}")
    body = await read_body(request)
    document = await request.app.state.server.intake.read_json(body)
    if not isinstance(document, dict):
        raise WireError("the body is an object")
    known = [*required.split(), *optional.split()]
    if unknown := sorted(document.keys() - known):
        raise WireError(f"there is no {unknown[0]!r:.40}; there are: {', '.join(known)}")
    if missing := sorted(set(required.split()) - document.keys()):
        raise WireError(f"{missing[0]!r} is missing")
    return document
