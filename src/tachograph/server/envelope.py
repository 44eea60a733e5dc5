"""What every request and answer has in common, in one place around all routes.

A request gets an id and has to carry a token; an answer gets its headers; both are counted and
logged. What no route foresaw is answered with 500 and that id, and told to the log alone. Knows
no route.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tachograph.errors import TachographError
from tachograph.server.access import grant_of
from tachograph.server.answers import Refusal, answer, internal
from tachograph.server.settings import PROTOCOL

OPEN_PATHS = frozenset({"/healthz"})
"""What anyone may ask for."""

_LINGER = 2.0  # seconds for the rest of a body that is refused
_LINGER_BYTES = 32 << 20
HEADERS = {
    "Tachograph-Protocol": str(PROTOCOL),
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_GONE = 499  # in logs and figures: the client did not wait for the answer
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_log = logging.getLogger("tachograph.server")
_requests = logging.getLogger("tachograph.request")


class Envelope:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        server = scope["app"].state.server
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        finally:
            server.intake.release(exchange.state)
            server.metrics.count(exchange)
            line = exchange.line()
            _requests.info("%(method)s %(path)s %(status)s", line, extra=line)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            _check(exchange)
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or _GONE
        except (Refusal, TachographError) as error:
            await exchange.refuse(error, answer(error))
        except Exception as error:
            await exchange.refuse(error, None)


class Exchange:
    """One request and its answer, as they pass.

    Attributes
    ----------
    state : dict
        What routes find at `request.state`: the grant, and what `limits` holds for it.
    id : str
        For the log, and for people who ask about it.
    status : int
        0 as long as there is no answer.
    received : int
        Bytes of the body so far, as they came.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.headers = Headers(scope=scope)
        self.id = secrets.token_hex(8)
        self.status = 0
        self.received = 0
        self.started = time.perf_counter()
        self._unread = "content-length" in self.headers or "transfer-encoding" in self.headers

    async def receive(self) -> Message:
        """The next piece of the request."""
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """The next piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._unread:
                await self._linger()
            if self._unread:
                headers["Connection"] = "close"
        await self._send(message)

    async def _linger(self) -> None:
        """Throw away the rest of a body that nobody wants.

        A connection that is closed while its client sends is reset, and the client never sees
        why; so what is nearly here is waited for. A client that waits to be told to go on has
        sent nothing.
        """
        most = self.received + _LINGER_BYTES
        declared = self.headers.get("content-length", "")
        if "expect" in self.headers or (declared.isdecimal() and int(declared) > most):
            return
        try:
            async with asyncio.timeout(_LINGER):
                while self._unread and self.received < most:
                    await self.receive()
        except TimeoutError:
            pass

    async def refuse(self, error: Exception, response: Response | None) -> None:
        """Answer with an error; None is one that nobody foresaw."""
        if response is None:
            _log.error("request %s failed", self.id, exc_info=error)
            response = internal(self.id)
        if not self.status:
            await response(self.scope, self.receive, self.send)
        else:
            _log.warning("the answer to request %s broke off: %s", self.id, error)

    def line(self) -> dict[str, Any]:
        """What the log says of it; never a query, a header or an address with a secret."""
        grant = self.state.get("grant")
        return {
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(self.seconds * 1000, 1),
            "bytes": self.received,
            "token": grant.name if grant else None,
        }

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.started

    @property
    def method(self) -> str:
        """Of HTTP; '-' for one that nobody knows, of which there may be any number."""
        method: str = self.scope["method"]
        return method if method in _METHODS else "-"

    @property
    def path(self) -> str:
        """The route, such as ``/v1/runs/{run}``; '-' where there is none."""
        return getattr(self.scope.get("route"), "path", "-")


def _check(exchange: Exchange) -> None:
    """Refuse what no route should see."""
    scope = exchange.scope
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if any(name.lower() in ("token", "access_token") for name, _ in query):
        raise Refusal(
            400,
            "malformed",
            "a token never goes into a URL, which logs and histories keep; revoke this one, and"
            " send the next as Authorization: Bearer <token>",
        )
    if scope["path"] not in OPEN_PATHS:
        exchange.state["grant"] = grant_of(exchange.headers, scope["app"].state.server.tokens)
    site = exchange.headers.get("sec-fetch-site", "none")
    if scope["method"] not in ("GET", "HEAD") and site not in ("none", "same-origin"):
        # A browser that knows the token from Basic sends it along with other sites' forms.
        raise Refusal(403, "forbidden", "another site may change nothing here")
    wanted = exchange.headers.get("tachograph-protocol", str(PROTOCOL)).strip()
    if wanted != str(PROTOCOL):
        raise Refusal(
            400,
            "protocol",
            f"this server speaks version {PROTOCOL} of the protocol, not {wanted!r:.20};"
            " update the older of client and server",
        )
