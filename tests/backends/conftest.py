"""Servers for the tests of the remote store: real ones on a port of this machine, and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]
pytest.register_assert_rewrite("remote_contract")

Handler = Callable[[socket.socket], None]


# ---------------------------------------------------------------------------- real ones


class ServerThread:
    """uvicorn on a port of its own, in a thread; answers for any number of applications.

    Each stands under a path of its own, as behind a proxy that has several servers. So a test has
    a new server in the time that it takes to open a store.
    """

    def __init__(self) -> None:
        import uvicorn

        from tachograph.server.connections import Connection

        self._apps: dict[str, Any] = {}
        self._count = 0
        config = uvicorn.Config(
            self._dispatch,
            port=0,
            http=Connection,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    @contextlib.contextmanager
    def running(self, app: Any) -> Iterator[str]:
        """The URL of an application, which runs meanwhile."""
        self._count += 1
        prefix = f"/server{self._count}"
        lifespan = app.router.lifespan_context(app)
        self._wait_for(lifespan.__aenter__())
        self._apps[prefix] = app
        try:
            yield f"http://127.0.0.1:{self.port}{prefix}"
        finally:
            del self._apps[prefix]
            self._wait_for(lifespan.__aexit__(None, None, None))

    def stop(self) -> None:
        """End the thread."""
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve())

    def _wait_for(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        _, name, path = scope["path"].split("/", 2)
        app = self._apps.get(f"/{name}")
        if app is None:
            await send({"type": "http.response.start", "status": 404})
            await send({"type": "http.response.body"})
            return
        raw = scope["raw_path"].removeprefix(f"/{name}".encode())
        await app(scope | {"path": f"/{path}", "raw_path": raw}, receive, send)


@pytest.fixture(scope="session")
def server_thread() -> Iterator[ServerThread]:
    """A port that real servers answer on."""
    thread = ServerThread()
    yield thread
    thread.stop()


@pytest.fixture
def start(
    server_thread: ServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Starts a real server: ``start("sqlite", answer_rows=100)`` gives its URL."""
    from tachograph.server.app import make_app
    from tachograph.server.settings import Limits, ServerSettings
    from tachograph.server.tokens import Tokens

    token = Tokens(tmp_path / "server").create("admin", rights=("admin",))
    monkeypatch.setenv("TACHOGRAPH_TOKEN", token)
    with contextlib.ExitStack() as stack:

        def begin(scheme: str, **limits: int) -> str:
            made = ServerSettings(
                (f"{scheme}:///{tmp_path}/store/runs.db",), tmp_path / "server", Limits(**limits)
            )
            url: str = stack.enter_context(server_thread.running(make_app(made)))
            return url

        yield begin


# ---------------------------------------------------------------------------- bad ones


class ScriptedServer:
    """A port on which each connection is handed to a function.

    Attributes
    ----------
    url : str
    requests, bodies : list of bytes
        Heads and bodies of the requests that `read_request` has read.
    """

    def __init__(self, handler: Handler, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.bodies: list[bytes] = []
        self._handler = handler
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def read_request(self, connection: socket.socket) -> bytes:
        """The head of the next request; empty where there is none."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (chunk := connection.recv(1 << 16)):
                return b""
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        length = int(found[1]) if found else 0
        while len(body) < length and (chunk := connection.recv(1 << 16)):
            body += chunk
        self.requests.append(head)
        self.bodies.append(body)
        return head

    def close(self) -> None:
        """Let go of the port and of all connections."""
        for one in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side may go at any time
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection:
                self._handler(connection)


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts servers that do what a function does with each connection."""
    made: list[ScriptedServer] = []

    def start(handler: Handler, context: ssl.SSLContext | None = None) -> ScriptedServer:
        made.append(ScriptedServer(handler, context))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def answering(scripted: Callable[..., ScriptedServer]) -> Callable[..., ScriptedServer]:
    """Starts servers that give one answer to every request: ``answering(status, body, **headers)``.

    An underscore in the name of a header stands for a hyphen.
    """

    def start(status: int, body: bytes = b"", **headers: str) -> ScriptedServer:
        lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        answer = "\r\n".join([*lines, "", ""]).encode() + body

        def handle(connection: socket.socket) -> None:
            while server.read_request(connection):
                connection.sendall(answer)

        server = scripted(handle)
        return server

    return start


@pytest.fixture
def faulty() -> Iterator[Callable[..., Any]]:
    """Starts servers that hide another one behind a fault: ``faulty(fault, port)``."""
    from faulty import FaultyServer

    with contextlib.ExitStack() as stack:
        yield lambda fault, port=0: stack.enter_context(FaultyServer(fault, port))
