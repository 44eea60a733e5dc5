"""What requests and tokens may take: the bodies of requests are read here, and nowhere else.

Knows HTTP and no store. A body is counted while it comes, whatever its headers say, and given back
when its request ends (`app.Envelope` calls `Intake.release`).
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from threading import Lock
from typing import Any

import limits as rates
from fastapi import Request

from tachograph.errors import Busy
from tachograph.server.answers import Refusal
from tachograph.server.settings import Limits
from tachograph.server.tokens import Grant
from tachograph.wire.encoding import decompress
from tachograph.wire.json_input import read_json

_WAIT = 2.0  # seconds for other bodies to be done with
_MINUTE = 60
_LARGE = 1 << 18  # bytes


class Intake:
    """What all requests of a server hold together, and what each token has used.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0  # of bodies, in flight now
        self._freed = asyncio.Event()
        self._unpacking, self._decoding = asyncio.Semaphore(2), asyncio.Semaphore(2)
        limited = limits.token_bytes or limits.token_points
        self._shares = _Shares(limits) if limited else None

    async def reserve(self, state: dict[str, Any], size: int) -> None:
        """Count bytes as held by a request; Busy where others hold too many for a while."""

        def fits() -> bool:
            alone = self.bytes == state.get("held", 0)
            return alone or self.bytes + size <= self.limits.in_flight_bytes

        try:
            async with asyncio.timeout(_WAIT):
                while not fits():
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise Busy("the server has too many requests in hand", 1.0) from None
        self.bytes += size
        state["held"] = state.get("held", 0) + size

    def release(self, state: dict[str, Any]) -> None:
        """Give back all that a request holds."""
        self.bytes -= state.pop("held", 0)
        self._freed.set()

    def charge(self, grant: Grant, *, bytes: int = 0, points: int = 0) -> None:
        """Take a token's share of a minute; Refusal (429) where it is used up."""
        if self._shares is not None:
            self._shares.charge(grant, {"bytes": bytes, "points": points})

    def turn(self, size: int) -> AbstractAsyncContextManager[None]:
        """A turn to decode so many bytes; large ones come two at a time.

        As objects of Python they may take thirty times as much.
        """
        return self._decoding if size > _LARGE else nullcontext()

    async def read_json(self, body: bytes) -> Any:
        """A document of JSON; a large one would hold up all others in the loop."""
        if len(body) <= _LARGE:
            return read_json(body)
        async with self._decoding:
            return await asyncio.to_thread(read_json, body)

    async def unpack(self, body: bytes) -> bytes:
        """Decompress a body, of any number of them two at a time, and outside of the loop."""
        async with self._unpacking:
            return await asyncio.to_thread(decompress, body, self.limits.batch_bytes)


async def read_body(request: Request) -> bytes:
    """The body of a request, decompressed; see `read_encoded`."""
    return (await read_encoded(request))[0]


async def read_encoded(request: Request) -> tuple[bytes, bytes]:
    """The body of a request: decompressed, and as it came.

    Raises
    ------
    Refusal
        It has too many bytes (413), takes too long (408), or is encoded in an unknown way (415).
    WireError
        It is not what its Content-Encoding says.
    Busy
        Other requests hold too much memory.
    """
    intake: Intake = request.app.state.server.intake
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "deflate", "gzip"):
        raise Refusal(
            415,
            "media_type",
            f"Content-Encoding {encoding!r:.40} is not taken; send deflate, gzip or none",
        )
    try:
        async with asyncio.timeout(intake.limits.request_seconds):
            body = await _receive(request, intake)
    except TimeoutError:
        raise Refusal(
            408, "slow", f"the body did not come within {intake.limits.request_seconds:g} s"
        ) from None
    if encoding == "identity":
        return body, body
    payload = await intake.unpack(body)
    intake.release(request.scope["state"])
    await intake.reserve(request.scope["state"], len(payload) + len(body))
    return payload, body


async def _receive(request: Request, intake: Intake) -> bytes:
    limit, state = intake.limits.body_bytes, request.scope["state"]
    too_large = Refusal(413, "too_large", f"a request has at most {limit} bytes; send less at once")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise too_large
        await intake.reserve(state, len(piece))
        pieces.append(piece)
    return b"".join(pieces)


class _Shares:
    """What each token has sent in its current minute, which begins with what it sends first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = {
            kind: rates.RateLimitItemPerMinute(most * _MINUTE, namespace=kind)
            for kind, most in (("bytes", limits.token_bytes), ("points", limits.token_points))
            if most is not None
        }
        # Not a window that slides: of that the library does not say when it has room again.
        self._window = rates.strategies.FixedWindowRateLimiter(rates.storage.MemoryStorage())
        self._lock = Lock()

    def charge(self, grant: Grant, costs: dict[str, int]) -> None:
        with self._lock:
            for kind, item in self._limits.items():
                self._check(grant, kind, item, costs[kind])
            for kind, item in self._limits.items():
                self._window.hit(item, grant.id, cost=costs[kind])

    def _check(self, grant: Grant, kind: str, item: rates.RateLimitItem, cost: int) -> None:
        share = f"the token {grant.name!r} may send {item.amount} {kind} a minute"
        if cost > item.amount:
            message = f"{share}, and this request alone has {cost}; send less at once"
            raise Refusal(413, "too_large", message)
        if not self._window.test(item, grant.id, cost=cost):
            reset = self._window.get_window_stats(item, grant.id).reset_time
            wait = max(1, math.ceil(reset - time.time()))
            message = f"{share}, which it has for this one; come again in {wait} s"
            raise Refusal(429, "limit", message, {"Retry-After": str(wait)})
