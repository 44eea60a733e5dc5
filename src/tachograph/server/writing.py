"""Receiving batches over HTTP.

docs/reference/protocol.md describes the routes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request

from tachograph.records import RUN_ID
from tachograph.server import shapes
from tachograph.server.access import Writer
from tachograph.server.answers import Refusal
from tachograph.server.limits import read_encoded
from tachograph.wire.encoding import MEDIA_TYPE, compress, decode, encode, from_json
from tachograph.wire.json_input import read_json
from tachograph.wire.tables import JSON

if TYPE_CHECKING:
    from tachograph.server.app import Server
    from tachograph.server.tokens import Grant

router = APIRouter(prefix="/v1", tags=["writing"])

_threads = ThreadPoolExecutor(32, "receiver")  # most of them wait for the disk, together
_BATCH = {
    JSON: {"schema": shapes.reference("Batch")},
    MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
}


@router.post(
    "/batches",
    summary="Send a batch",
    responses=shapes.answers("Received", 400, 403, 408, 409, 413, 415, 429, 503, 507),
    openapi_extra={"requestBody": {"required": True, "content": _BATCH}},
)
async def write(request: Request, grant: Writer) -> dict[str, Any]:
    """Take a batch: when the answer comes it is on the server's disk, once."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _BATCH:
        raise Refusal(
            415, "media_type", f"a batch is {MEDIA_TYPE} or {JSON}, not {media_type!r:.60}"
        )
    server = request.app.state.server
    payload, body = await read_encoded(request)
    loop, given = asyncio.get_running_loop(), (server, grant, media_type, payload, body)
    async with server.intake.turn(len(payload)):
        return await loop.run_in_executor(_threads, _receive, *given)


def _receive(
    server: Server, grant: Grant, media_type: str, payload: bytes, body: bytes
) -> dict[str, Any]:
    if media_type == JSON:
        batch = from_json(read_json(payload))
        packed = compress(encode(batch))
    else:
        batch = decode(payload)
        packed = compress(payload) if body is payload else body  # nothing is compressed twice
    server.intake.charge(grant, bytes=len(body), points=batch.points)
    server.metrics.points.inc(batch.points)
    with server.ownership.admit(batch, grant):
        expected = server.inbox.receive(packed, batch)
    return {"next": expected, "interval": server.inbox.interval}


@router.get(
    "/writers/{writer}",
    summary="Ask for the record that is expected next",
    responses=shapes.answers("Expected", 400, 403, 503),
)
async def ask(
    request: Request, grant: Writer, writer: Annotated[str, Path(pattern=f"^{RUN_ID.pattern}$")]
) -> dict[str, int]:
    """The number of the record that is expected next; 0 of a writer that is not known."""
    loop = asyncio.get_running_loop()
    expected = request.app.state.server.inbox.expected
    return {"next": await loop.run_in_executor(_threads, expected, writer)}
