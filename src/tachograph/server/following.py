"""Following a run over HTTP: server-sent events, as docs/reference/protocol.md says.

A follower costs a look at the store now and then, when the inbox has received something; nothing is
kept for it between two looks but its position.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from tachograph.errors import Busy, RunNotFound, StoreError, TooLarge
from tachograph.server import shapes
from tachograph.server.access import Reader, grant_of
from tachograph.server.answers import Refusal
from tachograph.server.asking import refuse_unknown
from tachograph.server.latest import MOST_LAST, near_end
from tachograph.server.negotiation import choose
from tachograph.server.news import Look, Position, as_event, look
from tachograph.server.served import Served
from tachograph.server.tokens import Grant

if TYPE_CHECKING:
    from tachograph.server.app import Server

MOST = 200
"""Followers at the same time."""

COMMENT_SECONDS = 10.0
"""After which a client that hears nothing is told with the next look that the server is there."""

LOOK_SECONDS = 5.0
"""After which it is looked for what came into the store by another way."""

QUIET_SECONDS = 1.0
"""How long nothing must come of a run that has ended: other processes may still be sending."""

SHORTEST_PAUSE = 0.5
SHARE = 0.5
"""Of the time of one thread, what all followers together may take."""

_TICK = 0.2
_EVENTS = "text/event-stream"
router = APIRouter(prefix="/v1", tags=["reading"], dependencies=[Depends(refuse_unknown)])


@router.get(
    "/runs/{run}/follow",
    summary="What is added to a run",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events until the run has ended.",
            "content": {_EVENTS: {"schema": {"type": "string"}}},
        },
        **shapes.errors(404, 406),
    },
)
async def follow(
    request: Request,
    grant: Reader,
    run: str,
    cursor: Annotated[str | None, Query(description="Go on behind the event of that id.")] = None,
    name: Annotated[list[str] | None, Query(description="Points of these metrics alone.")] = None,
    last: Annotated[
        int | None, Query(ge=0, le=MOST_LAST, description="Begin with the last so many points.")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="As `cursor`; comes first.")] = None,
) -> Response:
    """Points, events and changes of the run's row as they come, each once, whatever breaks."""
    if choose(request.headers.get("accept", "*/*"), (_EVENTS,)) is None:
        raise Refusal(406, "not_acceptable", f"this is answered as {_EVENTS}")
    position = Position.parse(last_event_id or cursor or "")
    server: Server = request.app.state.server
    if server.followers.count >= MOST:
        raise Busy("too many follow runs of this server", 10.0)
    names = tuple(name or ())

    def begin(served: Served) -> tuple[str, Position]:
        run_id = served.store.resolve(run)
        if last is None or position != Position():
            return run_id, position
        return run_id, near_end(served, run_id, last, names)

    run_id, position = await server.readers.ask(begin, grant)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    events = _Follower(request, grant, run_id, position, names).events()
    return StreamingResponse(events, media_type=_EVENTS, headers=headers)


class Followers:
    """Counts who follows."""

    def __init__(self) -> None:
        self.count = 0

    def pause(self, cost: float) -> float:
        """Seconds until one should look again to which a look costs so many."""
        return max(SHORTEST_PAUSE, cost * self.count / SHARE)


class _Follower:
    """One client that follows a run."""

    def __init__(
        self,
        request: Request,
        grant: Grant,
        run_id: str,
        position: Position,
        names: tuple[str, ...],
    ) -> None:
        self._request, self._grant, self._run_id = request, grant, run_id
        self._position, self._names = position, names
        self._server: Server = request.app.state.server
        self._spoke = self._heard = time.monotonic()

    async def events(self) -> AsyncIterator[str]:
        """The text of the answer, piece by piece: the next one is made when this one is taken."""
        self._server.followers.count += 1
        try:
            async for piece in self._pieces():
                self._spoke = time.monotonic()
                yield piece
        finally:
            self._server.followers.count -= 1

    async def _pieces(self) -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        while not self._server.stopping and self._may_go_on():
            version, started = self._server.inbox.version, time.monotonic()
            try:
                found = await self._look()
            except RunNotFound:
                yield self._end("deleted")
                return
            now = time.monotonic()
            if found:
                self._position = found.position
            if found and found.news:
                self._heard = now
                yield "".join(map(as_event, found.news))
            elif found and found.status != "running" and now - self._heard >= QUIET_SECONDS:
                yield self._end(found.status)
                return
            if now - self._spoke >= COMMENT_SECONDS:
                yield ": still here\n\n"
            if found is None or not found.more:
                await self._wait(version, now - started, found)

    async def _look(self) -> Look | None:
        """What is new; None where the store cannot be asked now."""

        def work(served: Served) -> Look:
            return look(served, self._run_id, self._position, self._names)

        try:
            return await self._server.readers.ask(work, self._grant)
        except (StoreError, TooLarge):
            return None

    async def _wait(self, version: int, cost: float, found: Look | None) -> None:
        """Until there may be news."""
        now = time.monotonic()
        earliest = now + self._server.followers.pause(cost)
        ended = found is not None and found.status != "running"
        latest = max(earliest, now + (QUIET_SECONDS if ended else LOOK_SECONDS))
        while not self._server.stopping and (now := time.monotonic()) < latest:
            if now >= earliest and self._server.inbox.version != version:
                return
            await asyncio.sleep(_TICK)

    def _may_go_on(self) -> bool:
        """Whether the token is still good: it may have been revoked meanwhile."""
        try:
            self._grant = grant_of(self._request.headers, self._server.tokens)
        except Refusal:
            return False
        return self._grant.may("read")

    def _end(self, status: str) -> str:
        return f'id: {self._position.cursor}\nevent: end\ndata: {{"status":"{status}"}}\n\n'
