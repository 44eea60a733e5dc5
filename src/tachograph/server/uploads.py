"""Receiving files over HTTP, piece by piece, and bringing them into the stores.

docs/reference/protocol.md describes the route. Memory is constant whatever a file has: a piece is
on the disk, and in the digest, before the next one is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from tachograph import registry
from tachograph.backends.base import SupportsArtifacts
from tachograph.errors import Busy, Full, StoreError, StoreNotFound
from tachograph.server import shapes
from tachograph.server.access import Writer
from tachograph.server.answers import Refusal
from tachograph.server.downloads import OFFSET, Digest
from tachograph.server.parts import Part, Parts

if TYPE_CHECKING:
    from tachograph.server.app import Server

Result = TypeVar("Result")

router = APIRouter(prefix="/v1/artifacts", tags=["files"])

_PIECE = 1 << 20
_KEEP_SECONDS = 20.0  # for a file to be copied into the stores, before its client is told to wait
_FULL_SECONDS = 30.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MADE = {"description": "It is complete.", "content": shapes.answers("Kept")[200]["content"]}


class Uploads:
    """What is on its way, and where it goes.

    Parameters
    ----------
    stores : sequence of str
        Each of them that keeps files gets them; the first one has to.
    folder : Path
        For what is not complete.
    """

    def __init__(self, stores: Sequence[str], folder: Path) -> None:
        self.parts = Parts(folder)
        self._stores = tuple(stores)
        self._threads = ThreadPoolExecutor(8, "uploader")
        self._keeping: set[asyncio.Task[None]] = set()

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Do something in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def has(self, sha256: str) -> bool:
        """Whether the stores have a file."""
        try:
            for keeper in self._keepers():
                keeper.open_artifact(sha256).close()
        except StoreNotFound:
            return False
        return True

    async def keep(self, part: Part, sha256: str, held: ExitStack) -> None:
        """Bring a complete file into the stores, and let go of what is `held` for it.

        Raises
        ------
        Busy
            It takes long, and goes on.
        """

        async def go_on() -> None:
            with held:
                await self.aside(partial(self._keep, part, sha256))

        task = asyncio.create_task(go_on())
        self._keeping.add(task)
        task.add_done_callback(self._kept)
        try:
            async with asyncio.timeout(_KEEP_SECONDS):
                await asyncio.shield(task)
        except TimeoutError:
            raise Busy(f"{sha256} has come; it is being copied into the store", 5.0) from None

    def close(self) -> None:
        """Wait for what is being brought into the stores."""
        self._threads.shutdown()

    # ------------------------------------------------------------------ inside

    def _keepers(self) -> Iterator[SupportsArtifacts]:
        for url in self._stores:
            with contextlib.closing(registry.open_backend(url, create=True)) as store:
                if isinstance(store, SupportsArtifacts):
                    yield store
                elif url == self._stores[0]:
                    raise Refusal(404, "not_found", "the store of this server keeps no files")

    def _keep(self, part: Part, sha256: str) -> None:
        for keeper in self._keepers():
            keeper.put_artifact(part.path, sha256)
        self.parts.remove(part)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping.discard(task)
        task.exception()  # its request was told, or will ask again


@router.put(
    "/{sha256}",
    summary="Send a file, or a piece of it",
    status_code=201,
    responses={
        200: _MADE | {"description": "The server had it."},
        201: _MADE,
        202: {"description": f"The piece is there; {OFFSET} says how much of the file is."},
        **shapes.errors(400, 403, 408, 409, 413, 415, 429, 503, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"format": "binary"}}},
        }
    },
)
async def send(
    request: Request,
    grant: Writer,
    sha256: Digest,
    upload_offset: Annotated[
        int | None, Header(ge=0, description="Where the bytes begin; without it, the file anew.")
    ] = None,
    upload_complete: Annotated[
        Literal["?0", "?1"], Header(description="'?0' says that more follows.")
    ] = "?1",
) -> Response:
    """Take bytes of a file from `Upload-Offset` on; the last ones are followed by a check."""
    server: Server = request.app.state.server
    uploads = server.uploads
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "media_type", "a file is sent as it is, without a Content-Encoding")
    kept = {"uri": str(request.url.replace(query=""))}
    if await uploads.aside(partial(uploads.has, sha256)):
        return JSONResponse(kept)
    with _disk_errors(), ExitStack() as held:
        part = held.enter_context(uploads.parts.taken(sha256))
        await uploads.aside(partial(part.open, anew=upload_offset is None))
        if part.size != (upload_offset or 0):
            raise Refusal(
                409, "offset", f"the server has {part.size} bytes", {OFFSET: str(part.size)}
            )
        await _receive(request, part)
        if upload_complete == "?0":
            return Response(None, 202, {OFFSET: str(part.size)})
        if part.sha256 != sha256:
            uploads.parts.remove(part)
            raise Refusal(400, "digest", f"what came has the SHA-256 {part.sha256}")
        await uploads.keep(part, sha256, held.pop_all())
    return JSONResponse(kept, 201)


async def _receive(request: Request, part: Part) -> None:
    server: Server = request.app.state.server
    limit = server.settings.limits.artifact_bytes
    async for piece in _pieces(request, server.settings.limits.request_seconds):
        if limit is not None and part.size + len(piece) > limit:
            server.uploads.parts.remove(part)
            raise Refusal(413, "too_large", f"a file has at most {limit} bytes here")
        server.intake.charge(request.state.grant, bytes=len(piece))
        await server.uploads.aside(partial(part.append, piece))


async def _pieces(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body in pieces; also what came of it before its client was gone or too slow."""
    stream = request.stream()
    buffer = bytearray()
    problem: Exception | None = None
    while problem is None:
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            problem = Refusal(408, "slow", f"nothing has come for {seconds:g} s")
        except ClientDisconnect as error:
            problem = error
        else:
            buffer += chunk or b""
            while len(buffer) >= _PIECE:
                yield bytes(buffer[:_PIECE])
                del buffer[:_PIECE]
            if chunk is None:
                break
    yield bytes(buffer)
    if problem is not None:
        raise problem


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Tell a disk that is full from a store that fails."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, StoreError) else error
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            raise Full(
                f"the disk of the server is full: {cause.strerror}", _FULL_SECONDS
            ) from error
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the file cannot be kept: {error.strerror}") from error
