"""A real application in this process, and real server processes, each on a store of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tachograph.server.app import make_app
from tachograph.server.settings import ServerSettings
from tachograph.server.tokens import Tokens

sys.path.insert(0, str(Path(__file__).parent))  # for `import faulty`


@pytest.fixture
def server_settings(tmp_path: Path) -> ServerSettings:
    """A server on an SQLite store."""
    return ServerSettings(
        stores=(f"sqlite:///{tmp_path}/store/runs.sqlite",), folder=tmp_path / "server"
    )


@pytest.fixture
def tokens(server_settings: ServerSettings) -> Tokens:
    """The tokens of that server; `tokens.create(name, rights=…, projects=…)` makes more."""
    return Tokens(server_settings.folder)


@pytest.fixture
def server_app(server_settings: ServerSettings) -> FastAPI:
    """The application of that server, not started."""
    return make_app(server_settings)


@pytest.fixture
def client(server_app: FastAPI, tokens: Tokens) -> Iterator[TestClient]:
    """A client of that server, which runs, with an admin token."""
    headers = {"Authorization": f"Bearer {tokens.create('admin', rights=('admin',))}"}
    with TestClient(server_app, headers=headers) as started:
        yield started


@dataclass
class ServerProcess:
    """A real server process.

    Attributes
    ----------
    store : str
        URL of its store.
    folder : Path
        Its own folder: tokens, journal, and its log in these tests.
    token : str
        An admin token.
    arguments : list of str
        More of the command line.
    url : str
        Where it answers.
    """

    store: str
    folder: Path
    token: str
    arguments: list[str] = field(default_factory=list)
    url: str = ""
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> ServerProcess:
        """Start it, again on the port that it had before, and wait until it answers."""
        command = [sys.executable, "-m", "tachograph", "serve", "--store", self.store]
        command += ["--folder", str(self.folder), "--port", str(self.port), *self.arguments]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.match(r"listening on (https?://\S+:(\d+))$", line):
                self.url, self.port = found[1], int(found[2])
                return self
        raise AssertionError(f"the server did not start: {self.log()}")

    @property
    def headers(self) -> dict[str, str]:
        """With the token."""
        return {"Authorization": f"Bearer {self.token}"}

    def log(self) -> str:
        """What it has said on stderr so far."""
        return (self.folder / "log").read_text()

    def kill(self) -> None:
        """End it at once, as when its memory runs out."""
        self._end(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and return its status."""
        return self._end(number)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self.process is not None and self.process.poll() is None


def _new(folder: Path, store: str | None, arguments: list[str] | None) -> ServerProcess:
    token = Tokens(folder).create("admin", rights=("admin",))
    store = store or f"sqlite:///{folder}/store/runs.sqlite"
    return ServerProcess(store, folder, token, arguments or []).start()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts server processes: ``serve(store=url, arguments=[…])``, each with its own folder."""
    made: list[ServerProcess] = []

    def start(store: str | None = None, arguments: list[str] | None = None) -> ServerProcess:
        made.append(_new(tmp_path / f"server-{len(made)}", store, arguments))
        return made[-1]

    yield start
    for server in made:
        if server.runs:
            server.kill()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    """One server process for all tests of a file; `SERVER_ARGUMENTS` there are its arguments."""
    arguments = getattr(request.module, "SERVER_ARGUMENTS", None)
    started = _new(tmp_path_factory.mktemp("server"), None, arguments)
    yield started
    if started.runs:
        started.kill()
