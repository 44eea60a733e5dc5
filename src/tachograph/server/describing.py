"""The server as it describes itself: `/openapi.json` for machines, `/docs` for people.

FastAPI collects what the routes say; here it becomes a description of this protocol. Knows no
store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute

from tachograph import __version__
from tachograph.server.access import Needs
from tachograph.server.docs_page import render
from tachograph.server.shapes import SCHEMAS, errors, reference
from tachograph.wire.tables import JSON

router = APIRouter(tags=["operation"])

_ABOUT = """\
Records of machine learning trainings, sent by those who record and asked for by those who look.

A request carries a token: `Authorization: Bearer <token>`, or Basic with any user name and the
token as password. A token has rights (`read`, `write`, `admin`) and may be for some projects only;
runs of others are left out of every answer. Times are microseconds since 1970. Bodies are JSON
unless another type is named. Errors have the shape `Error` whatever their status. More is said on
the page 'The protocol of the server' of the documentation."""

_TAGS = [
    {
        "name": "writing",
        "description": "Sending records. A batch that was answered is on the disk.",
    },
    {"name": "reading", "description": "Runs, series and tables, exact or reduced, and live."},
    {"name": "files", "description": "Checkpoints and other files, named by their SHA-256."},
    {"name": "operation", "description": "For whoever runs the server."},
]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the server."},
    "basic": {"type": "http", "scheme": "basic", "description": "The token as password."},
}
_OPEN = ("/healthz",)
_RUN = "An id, the beginning or end of one, a unique name, `latest`, or `@2` for the second latest."
_CONTENT = "SHA-256 of the content, 64 hexadecimal digits in lower case."
_WRITER = "Id of a process that records."
_KNOWN = {"run": _RUN, "sha256": _CONTENT, "writer": _WRITER}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The ETag of an answer: 304 as long as it would be the same.",
}
_ETAG = {"description": "Tells this answer from others.", "schema": {"type": "string"}}


@router.get("/openapi.json", summary="This description", response_class=JSONResponse)
async def openapi(request: Request) -> JSONResponse:
    """Every route, parameter, body and answer, as OpenAPI 3.1. For any token."""
    return JSONResponse(describe(request.app))


@router.get("/docs", summary="This description, to be read", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """One page that asks nobody else for anything. For any token."""
    # The page needs nothing but its own style; whatever got into it could do nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    return HTMLResponse(render(describe(request.app)), headers={"Content-Security-Policy": policy})


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an application, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _describe(app)
    return app.openapi_schema


def _describe(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title="Tachograph", version=__version__, description=_ABOUT, routes=app.routes, tags=_TAGS
    )
    found["components"] = {"schemas": SCHEMAS, "securitySchemes": _SCHEMES}
    found["security"] = [{name: []} for name in _SCHEMES]
    needs = {(path, method): need for path, method, need in _needs(app)}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            if path in _OPEN:
                operation["security"] = []
            if need := needs.get((path, method)):
                everywhere = " in all projects" if need.all_projects else ""
                operation["description"] += f"\n\nNeeds the right `{need.right}`{everywhere}."
                operation["x-right"] = need.right
            operation["responses"] = _answers(operation["responses"], path, method, need)
            _complete_parameters(operation)
    return found


def _needs(app: FastAPI) -> Iterator[tuple[str, str, Needs]]:
    """What right each route asks for."""
    for route in _routes(app.routes):
        for dependency in route.dependant.dependencies:
            if isinstance(dependency.call, Needs):
                for method in route.methods or ():
                    yield route.path_format, method.lower(), dependency.call


def _routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:  # a router that was included; older versions of FastAPI have its routes instead
            yield from _routes(getattr(getattr(route, "original_router", None), "routes", ()))


def _answers(given: dict[str, Any], path: str, method: str, need: Needs | None) -> dict[str, Any]:
    """What a route says that it answers, and what all do."""
    common = (400,) if path in _OPEN else (400, 401, 503)
    more = errors(*common, *((403,) if need else ()))
    found = {str(status): answer for status, answer in (more | given).items()}
    found.pop("422", None)  # FastAPI's own for a parameter that is not as described: 400 here
    if method != "get":
        found.pop("304", None)
    error = {JSON: {"schema": reference("Error")}}
    found = dict(sorted(found.items())) | {"default": {"description": "Another.", "content": error}}
    for answer in found.values():
        if method == "head":
            answer.pop("content", None)
        for content in answer.get("content", {}).values():
            if "$ref" in content.get("schema", {}):  # what a route says, not its annotation
                content["schema"] = {"$ref": content["schema"]["$ref"]}
    return found


def _complete_parameters(operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in _KNOWN:
            parameter.setdefault("description", _KNOWN[parameter["name"]])
    answers = operation["responses"]
    if "304" in answers:
        operation.setdefault("parameters", []).append(_IF_NONE_MATCH)
        answers["200"]["headers"] = {"ETag": _ETAG}
