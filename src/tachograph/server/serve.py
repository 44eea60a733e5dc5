"""A server process: from what it is told to a socket that answers, until it is told to stop.

Knows uvicorn and the application; knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from tachograph import registry
from tachograph.addresses import is_loopback
from tachograph.errors import ConfigError, StoreError
from tachograph.filesystems import is_network_path
from tachograph.host import lock
from tachograph.server.app import make_app
from tachograph.server.connections import IDLE_SECONDS, Listener, connection_class
from tachograph.server.logs import set_up_logging
from tachograph.server.settings import ServerSettings

GRACE_SECONDS = 10
"""For which requests may go on after the server was told to stop."""

_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Listening:
    """Where and how a server is reached.

    Attributes
    ----------
    host : str
    port : int
        0 is any that is free.
    certificate, key : Path or None
        PEM files; with them it speaks TLS.
    behind_proxy : bool
        TLS is somebody else's work.
    connections : int
        How many there may be at once.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False
    connections: int = 1000

    def check(self) -> None:
        """ConfigError where tokens and records would pass in the clear."""
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        if not (is_loopback(self.host) or self.certificate or self.behind_proxy):
            raise ConfigError(
                f"on {self.host} others could read tokens and records on their way: give"
                " --tls-cert and --tls-key, or --behind-proxy where a proxy does TLS"
            )


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
    listening.check()
    _check_places(settings)
    _allow_open_files(listening.connections)
    app = make_app(settings)
    config = uvicorn.Config(
        app,
        http=connection_class(settings.limits.request_seconds),
        loop="asyncio",
        lifespan="off",  # run below, where what goes wrong comes out as it is
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=listening.connections,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"the certificate {listening.certificate} with the key {listening.key} cannot be"
            f" used: {error.strerror or error}"
        ) from error
    scheme = "https" if listening.certificate else "http"
    with _locked(settings), _bind(listening.host, listening.port, listening.connections) as sock:
        server = _Server(config, app, lambda: announce(_url(scheme, sock)))
        set_up_logging()
        asyncio.run(server.run_app(sock))


class _Server(uvicorn.Server):
    """uvicorn, which says when it answers, and ends with status 0 when it is told to."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._announce = app, announce

    async def run_app(self, sock: socket.socket) -> None:
        """Open the application, serve, and close it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        async with self._app.router.lifespan_context(self._app):
            if not self.should_exit:
                await self.serve(sockets=[sock])

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # told twice
        self.should_exit = True
        if (server := getattr(self._app.state, "server", None)) is not None:
            server.stopping = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._app.state.server.metrics.show(
            "connections", "Open connections.", lambda: len(self.server_state.connections)
        )
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: uvicorn would send them again when it is done, and die of them."""
        yield


def _check_places(settings: ServerSettings) -> None:
    for url in settings.stores:
        if registry.is_server(url):
            raise ConfigError(f"{url} is a server itself; give the store that this one writes to")
    folders = [settings.folder, *filter(None, map(registry.store_folder, settings.stores))]
    for folder in folders:
        if is_network_path(folder):
            raise ConfigError(
                f"{folder} lies on a network file system, where neither locks nor what was"
                " written can be trusted; a server's store lies on a disk of its own machine"
            )


@contextlib.contextmanager
def _locked(settings: ServerSettings) -> Iterator[None]:
    """Keep a second server off the same stores; the inbox keeps it off the same folder."""
    with contextlib.ExitStack() as stack:
        for url in settings.stores:
            registry.open_backend(url, create=True).close()  # or say now that this cannot be
            if path := registry.local_path(url):
                path = path.resolve()  # one store, by whatever link it is named
                real = f"{url.partition(':')[0]}:///{path}"
                folder = _made(registry.journal_folder((real,)).parent)
                file = stack.enter_context(open(folder / f"{path.name}.server.lock", "a"))
                if not lock(file.fileno()):
                    raise StoreError(f"another server uses {url} already; stop it first")
        _made(settings.folder, 0o700)
        yield


def _made(folder: Path, mode: int = 0o777) -> Path:
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write in {folder}; whose is it?")
    return folder


def _allow_open_files(connections: int) -> None:
    """Let the process have as many files open as its connections may need, where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections * 2 + 512
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _bind(host: str, port: int, connections: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = Listener(family, connections)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(1024)
        return sock
    except OSError as error:
        sock.close()
        # Python adds to the reason what this message says already.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise StoreError(f"cannot listen on {host}, port {port}: {reason}") from error


def _url(scheme: str, sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
