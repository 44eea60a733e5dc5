"""Files over HTTP, for those who read: whole, in part, or only whether they are there.

docs/reference/protocol.md describes the routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from tachograph.backends.base import Condition, Query, SupportsArtifacts
from tachograph.errors import StoreNotFound
from tachograph.server import shapes
from tachograph.server.access import Reader
from tachograph.server.answers import Refusal
from tachograph.server.asking import Found, answer_table
from tachograph.server.served import Served
from tachograph.server.tokens import Grant
from tachograph.table import Table

router = APIRouter(prefix="/v1/artifacts", tags=["files"])

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the content.")]
OFFSET = "Upload-Offset"
"""A header: how many bytes of a file the server has."""

_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("", summary="Files that are kept", responses=shapes.tables(403, 503))
async def files(request: Request, grant: Reader) -> Response:
    """Digest and bytes of each file; of those that a run names which the token covers."""
    return await answer_table(request, grant, partial(_list, grant))


def _list(grant: Grant, served: Served) -> Found:
    backend = served.backend
    kept = backend.list_artifacts() if isinstance(backend, SupportsArtifacts) else ()
    found = dict(kept)
    if not grant.covers_all:
        named = {*served.read(Query("artifacts", columns=["sha256"]))["sha256"]}
        found = {sha256: size for sha256, size in found.items() if sha256 in named}
    table = Table({"sha256": [*found], "bytes": [*found.values()]})
    return Found(table, {"sha256": "text", "bytes": "int"})


@router.get(
    "/{sha256}",
    summary="Fetch a file",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The content.", "content": _BYTES},
        206: {"description": "The part that Range asks for.", "content": _BYTES},
        304: {"description": "The client has it: see If-None-Match."},
        **shapes.errors(400, 403, 404, 416, 503),
    },
)
async def fetch(request: Request, grant: Reader, sha256: Digest) -> Response:
    """The content with that digest, or the part of it that `Range` asks for."""
    headers = {
        "ETag": f'"{sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": "attachment",  # never shown as a page of this server
        "Vary": "Authorization",
    }
    file = await request.app.state.server.readers.ask(partial(_open, sha256, grant), grant)
    if sha256 in request.headers.get("if-none-match", ""):
        file.close()
        return Response(None, 304, headers)
    size = file.seek(0, 2)
    try:
        first, after = _range(request, sha256, size)
    except Refusal:
        file.close()
        raise
    headers["Content-Length"] = str(after - first)
    whole = after - first == size
    if not whole:
        headers["Content-Range"] = f"bytes {first}-{after - 1}/{size}"
    pieces = _pieces(file, first, after)
    return StreamingResponse(
        pieces, 200 if whole else 206, headers, media_type="application/octet-stream"
    )


@router.head(
    "/{sha256}",
    summary="Ask whether a file is there",
    responses={
        200: {"description": "All of it."},
        400: {"description": "This is no SHA-256."},
        404: {"description": f"Not all of it; {OFFSET} says how many of its bytes."},
        503: {"description": "The server is overloaded; see Retry-After."},
    },
)
async def look(request: Request, sha256: Digest) -> Response:
    """Whether a file is complete; if not, how much of it has come.

    Who may send files is told of all, so that none is sent twice; others of what they may fetch.
    """
    server, grant = request.app.state.server, request.state.grant
    covered = None if grant.may("write") else grant
    try:
        file = await server.readers.ask(partial(_open, sha256, covered), covered)
    except StoreNotFound:
        if covered is not None:
            raise
        offset = await server.uploads.aside(partial(server.uploads.parts.size, sha256))
        raise Refusal(
            404, "not_found", f"{sha256} is not complete here", {OFFSET: str(offset)}
        ) from None
    headers = {"Content-Length": str(file.seek(0, 2)), "ETag": f'"{sha256}"'}
    file.close()
    return Response(None, 200, headers)


# ---------------------------------------------------------------------------- content


def _open(sha256: str, grant: Grant | None, served: Served) -> BinaryIO:
    """A kept file; with a grant only one that a run names which it covers."""
    missing = StoreNotFound(f"there is no file {sha256}")
    if grant is not None and not grant.covers_all:
        where = [Condition("sha256", "=", sha256)]
        if not len(served.read(Query("artifacts", where, ["sha256"], limit=1))):
            raise missing
    if not isinstance(served.backend, SupportsArtifacts):
        raise missing
    return served.backend.open_artifact(sha256)


def _range(request: Request, sha256: str, size: int) -> tuple[int, int]:
    """The bytes that are asked for, half open; all of them where that is not understood."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match.group() == "bytes=-":
        return 0, size
    if request.headers.get("if-range", sha256).strip('"') != sha256:
        return 0, size
    first, last = match.groups()
    if not first:  # the last so many
        begin, after = max(0, size - int(last)), size
    else:
        begin, after = int(first), min(size, int(last) + 1 if last else size)
    if begin >= after:
        raise Refusal(
            416,
            "range",
            f"the file has {size} bytes",
            {"Content-Range": f"bytes */{size}"},
        )
    return begin, after


def _pieces(file: BinaryIO, first: int, after: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while first < after and (piece := file.read(min(_CHUNK, after - first))):
            first += len(piece)
            yield piece
