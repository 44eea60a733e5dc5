"""A connection that is closed when its client dawdles: what uvicorn leaves open for ever.

What no application sees, a request that cannot be read or one connection too many, is answered
here in the shape of all errors.

uvicorn bounds the head of a request and the idle time between two; not the time that a head takes
to come, or an answer to be taken. Without that, a few thousand connections that never say anything
would be all that a server takes. Bodies have their own deadline (`limits.read_body`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tachograph.server.answers import error_answer
from tachograph.server.envelope import HEADERS

HEAD_SECONDS = 15.0
"""Within which the head of a request must have come, at most."""

IDLE_SECONDS = 75
"""For which a connection is kept for another request."""

SPARE = 64
"""Connections beyond those that are served, which are told so before they are closed."""

_LAST = HEADERS | {"Connection": "close"}
_log = logging.getLogger("tachograph.server")


class Listener(socket.socket):
    """A socket that listens, and closes at once what comes when many connections are open.

    Also those count that never begin with TLS: uvicorn does not know them, and each takes one of
    the files that the process may have open, without which no record could be kept.

    Parameters
    ----------
    family : int
        Of addresses.
    served : int
        How many connections are served; `SPARE` more are told that they are too many.
    """

    def __init__(self, family: int, served: int) -> None:
        # The protocol is named: asyncio switches Nagle's algorithm off on such sockets alone, and
        # with it each answer waits some 40 ms for the client's acknowledgement of its head.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._most = served + SPARE
        self._accepted: set[socket.socket] = set()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; ConnectionAbortedError, which asyncio passes over, for too many."""
        connection, address = super().accept()
        if len(self._accepted) >= self._most:
            self._accepted = {one for one in self._accepted if one.fileno() >= 0}
        if len(self._accepted) >= self._most:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "there are too many connections")
        self._accepted.add(connection)
        return connection, address


class Connection(H11Protocol):
    """One connection of a client."""

    seconds = 60.0  # for what the client sends to come, and for an answer to be taken
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._served, self.app = self.app, self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the application, unless there are too many connections."""
        if self._most is None or len(self.connections) < self._most:
            await self._served(scope, receive, send)
            return
        _log.warning("there are %d connections, more than are served", len(self.connections))
        message = "the server has too many connections; come again"
        answer = error_answer(503, "busy", message, _LAST | {"Retry-After": "5"})
        await answer(scope, receive, send)

    def send_400_response(self, msg: str) -> None:
        """Answer to what is no HTTP; where an answer has begun already, end it."""
        answer = error_answer(400, "malformed", "this is no request of HTTP/1.1", _LAST)
        head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
        try:
            for part in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        except h11.LocalProtocolError:
            self.transport.abort()
        else:
            self.transport.close()

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_head(min(self.seconds, HEAD_SECONDS))

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        self._cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, and for the rest of this answer to be taken."""
        self._wait_for_head(IDLE_SECONDS + HEAD_SECONDS)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what it was sent."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client takes it."""
        super().resume_writing()
        if self._stall_timer:
            self._stall_timer.cancel()

    def _wait_for_head(self, seconds: float) -> None:
        if self._head_timer:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(seconds, self._close_unless_busy)

    def _close_unless_busy(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # Not close(), which waits until the client has taken what is still to be sent.
            self.transport.abort()

    def _cancel(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer:
                timer.cancel()


def connection_class(seconds: float) -> type[Connection]:
    """The class of connections that wait so long for their clients."""

    class Patient(Connection):
        pass

    Patient.seconds = seconds
    return Patient
