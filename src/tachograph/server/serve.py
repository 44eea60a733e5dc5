"""A server process: from its settings to a socket that answers, until it is told to stop.

Knows uvicorn and the application; knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from tachograph.errors import StoreError
from tachograph.server.app import make_app
from tachograph.server.connections import Connection
from tachograph.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Listening:
    """Where and how a server is reached.

    Attributes
    ----------
    host : str
    port : int
        0 is any that is free.
    certificate, key : Path or None
        Files of TLS.
    behind_proxy : bool
        A proxy on the way does TLS, and says for whom it asks.
    connections : int
        How many there may be at once.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False
    connections: int = 1000


def serve(settings: ServerSettings, listening: Listening, announce: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Parameters
    ----------
    settings : ServerSettings
    listening : Listening
    announce : callable
        Called with the server's URL when it answers.

    Raises
    ------
    ConfigError, StoreError
        It cannot start; the message says why and what to do.
    """
    config = uvicorn.Config(
        make_app(settings),
        http=Connection,
        loop="asyncio",
        lifespan="off",  # run below, where its errors come out as they are
        ws="none",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=listening.behind_proxy,
        limit_concurrency=listening.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
    )
    with _bind(listening.host, listening.port) as sock:
        scheme = "https" if listening.certificate else "http"
        server = _Server(config, lambda: announce(_url(scheme, sock)))
        asyncio.run(server.run_app(sock))


class _Server(uvicorn.Server):
    """uvicorn, which ends with status 0 when it is told to, and says when it answers."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def run_app(self, sock: socket.socket) -> None:
        """Open the application, serve, and close it."""
        app = self.config.app
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        async with app.router.lifespan_context(app):
            await self.serve(sockets=[sock])

    def _stop(self) -> None:
        self.config.app.state.server.stopping = True
        self.handle_exit(signal.SIGINT, None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as they are: uvicorn would raise them again when it is done."""
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot listen on {host}, port {port}: {reason}") from error


def _url(scheme: str, sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
