"""A server process: it starts with one command, says what it refuses, takes abuse, and stops."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tachograph import filesystems
from tachograph.cli import main
from tachograph.server import serve as module
from tachograph.server.connections import SPARE, Listener
from tachograph.server.tokens import Tokens

SERVER_ARGUMENTS = ["--request-seconds", "1", "--connections", "20"]

# ---------------------------------------------------------------------------- starting


def test_the_first_start_says_all_that_is_needed(tmp_path: Path) -> None:
    """Where it listens, an admin token, where tokens lie, and how a client is set up: once."""
    command = [sys.executable, "-m", "tachograph", "serve", "--port", "0"]
    for first in (True, False):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("clients:"):
            lines.append(process.stdout.readline())
        process.terminate()
        rest, _ = process.communicate()
        assert process.returncode == 0
        text = "".join(lines) + rest
        assert re.match(r"listening on http://127\.0\.0\.1:\d+\n", text)
        assert f"store: sqlite:///{tmp_path}/.tachograph/runs.sqlite" in text
        assert "TACHOGRAPH_TOKEN" in text
        secrets = re.findall(r"tacho_[\w-]{43}", text)
        assert len(secrets) == first
        if secrets:
            grant = Tokens(tmp_path / ".tachograph" / "server").find(secrets[0])
            assert grant is not None
            assert grant.rights == {"admin"}
    folder = tmp_path / ".tachograph" / "server"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def _certificate(folder: Path) -> list[str]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return ["--tls-cert", str(cert), "--tls-key", str(key)]


def test_tls_with_a_certificate(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Clients that trust it are answered; what comes unencrypted is not, and does no harm."""
    started = serve(arguments=_certificate(tmp_path))
    assert started.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    assert httpx.get(f"{started.url}/healthz", verify=context).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{started.port}/healthz")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{started.url}/healthz")  # trusts nobody who signed it
    assert httpx.get(f"{started.url}/healthz", verify=context).status_code == 200
    assert started.stop() == 0


# ---------------------------------------------------------------------------- not starting


@pytest.fixture
def never_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that starts where it must not fails the test, rather than answer for ever."""

    def fail(running: Any) -> None:
        running.close()
        raise AssertionError("it starts")

    monkeypatch.setattr(module.asyncio, "run", fail)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("never_serves")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--tls-cert"),
        (["--host", "192.0.2.1", "--behind-proxy"], "cannot listen on 192.0.2.1"),
        (["--host", "no.such.host.invalid", "--behind-proxy"], "cannot listen"),
        (["--tls-cert", "x.pem"], "go together"),
        (["--tls-cert", "x.pem", "--tls-key", "y.pem"], "x.pem"),
        (["--store", "https://elsewhere.example"], "is a server itself"),
        (["--store", "sqlite:////proc/nothing/runs.sqlite"], "/proc/nothing"),
        (["--folder", "/proc/nothing/server"], "/proc/nothing"),
        (["--port", "{taken}"], "port {taken}: Address already in use"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_1(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where tokens would pass in the clear, and whatever else cannot work."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", *(one.format(taken=port) for one in arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert said.format(taken=port) in printed.err


@pytest.mark.usefixtures("never_serves")
def test_a_certificate_that_is_none_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a traceback of the library."""
    (tmp_path / "x.pem").write_text("hello")
    assert main(["serve", "--tls-cert", "x.pem", "--tls-key", "x.pem"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "x.pem" in printed


@pytest.mark.usefixtures("never_serves")
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Locks and writes cannot be trusted there; nothing can be mounted here, so it is named so."""
    monkeypatch.setattr(filesystems, "_mounts", lambda: [("/", "ext4"), (str(tmp_path), "nfs4")])
    assert main(["serve"]) == 1
    assert "network file system" in capsys.readouterr().err


@pytest.mark.usefixtures("never_serves")
def test_a_second_server_on_a_store_is_refused(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with a folder of its own, and by a link: neither would know what the other received."""
    link = tmp_path / "link.sqlite"
    link.symlink_to(server.store.removeprefix("sqlite:///"))
    for store in (server.store, f"sqlite:///{link}"):
        assert main(["serve", "--store", store, "--folder", str(tmp_path), "--port", "0"]) == 1
        assert "another server uses" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    """Nobody listens in on the way."""
    module.Listening(host=host).check()


def test_without_its_extra_it_says_what_to_install() -> None:
    """One line, as for any other mistake."""
    code = (
        "import sys; sys.modules['uvicorn'] = None\nimport tachograph.cli as c; c.main(['serve'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert "pip install 'tachograph[server]'" in done.stderr


# ---------------------------------------------------------------------------- the log


def test_each_request_is_a_line_of_json_without_secrets(server: Any) -> None:
    """Who asked for which route, what came of it, how long it took; never a token."""
    secret, before = server.token, len(server.log())
    with httpx.Client(base_url=server.url) as client:
        client.get("/metrics", headers=server.headers)
        client.get(f"/metrics?token={secret}", headers=server.headers)
        client.get(f"/{secret}", headers=server.headers)
        client.get("/v1/runs/x", auth=("me", secret))
        client.get("/v1/runs/x", headers={"Authorization": f"Bearer {secret}x"})
    time.sleep(0.2)
    log = server.log()[before:]
    assert secret not in log
    assert secret[6:] not in log
    lines = [json.loads(line) for line in log.splitlines()]
    asked = [line for line in lines if line["logger"] == "tachograph.request"]
    assert [line["status"] for line in asked][:3] == [200, 400, 404]
    assert asked[0].items() >= {"method": "GET", "path": "/metrics", "token": "admin"}.items()
    assert asked[0]["ms"] > 0
    assert len({line["id"] for line in asked}) == len(asked) == 5


# ---------------------------------------------------------------------------- stopping


def test_a_stop_lets_requests_finish(serve: Callable[..., Any]) -> None:
    """SIGTERM: what was begun is answered, nothing new is taken, the status is 0."""
    started = serve()
    with socket.create_connection(("127.0.0.1", started.port)) as begun:
        head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {started.token}\r\n"
        body = b'{"writer": "w", "first": 0, "next": 0}'
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        begun.sendall(head.encode() + body[:10])
        time.sleep(0.3)
        started.process.terminate()
        time.sleep(0.5)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", started.port)).close()
        begun.sendall(body[10:])
        assert begun.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert started.process.wait(10) == 0


def test_a_stop_sends_followers_away(serve: Callable[..., Any]) -> None:
    """SIGINT: who follows a run holds up nothing, and what was received is in the store."""
    started = serve()
    run = {"seq": 0, "run_id": "r", "root_id": "r", "kind": "run", "status": "running"}
    row = run | {"attempt": 1, "started_at": 1, "changed_at": 1}
    batch = {"writer": "w", "first": 0, "next": 1, "rows": {"runs": [row]}}
    with httpx.Client(base_url=started.url, headers=started.headers, timeout=20) as client:
        assert client.post("/v1/batches", json=batch).json()["next"] == 1
        with client.stream("GET", "/v1/runs/r/follow") as followed:
            lines = followed.iter_lines()  # as long as it is kept, the connection is
            assert next(lines)
            assert started.stop(signal.SIGINT) == 0
            assert [*lines]
    assert "timeout" not in started.log()  # as uvicorn says where it has to cut off a request
    with sqlite3.connect(started.store.removeprefix("sqlite:///")) as store:
        assert store.execute("select run_id from runs").fetchall() == [("r",)]


# ---------------------------------------------------------------------------- bad clients


def _connect(server: Any, text: str = "") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(text.encode())
    return connection


def _read_to_end(connection: socket.socket) -> bytes:
    pieces = []
    try:
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def _memory(server: Any) -> int:
    """The most memory that a server has had, in MiB."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) >> 10  # type: ignore[index]


def _is_well(server: Any, within: float = 20.0) -> bool:
    """Whether it answers, soon."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if httpx.get(f"{server.url}/healthz", timeout=5).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


def test_heads_that_never_end_are_given_up(server: Any) -> None:
    """More connections than the server takes, a byte now and then: it is free again soon."""
    started = time.monotonic()
    slow = [_connect(server, "GET /healthz HTTP/1.1\r\nX-A: ") for _ in range(40)]
    for _ in range(6):
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.sendall(b"a")
        time.sleep(0.1)
    assert all(_read_to_end(connection) == b"" for connection in slow)
    assert time.monotonic() - started < 40
    assert _is_well(server)
    for connection in slow:
        connection.close()


def test_what_no_route_sees_is_answered_in_the_shape_of_all_errors(server: Any) -> None:
    """What is no HTTP, a body whose chunks are none, and one connection too many."""
    head = "POST /v1/batches HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    for text in ("\x16\x03\x01\r\n", "GET / HTTP/1.1\r\n\r\n", head):
        with _connect(server, text) as connection:
            answer = _read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "malformed"
    with contextlib.ExitStack() as others:
        for _ in range(20):
            others.enter_context(_connect(server))
        answered = httpx.get(f"{server.url}/healthz", timeout=5)
    assert (answered.status_code, answered.json()["error"]["code"]) == (503, "busy")
    assert {"Retry-After", "Tachograph-Protocol"} <= {name.title() for name in answered.headers}
    assert _is_well(server)


def test_connections_are_bounded_before_they_speak_tls() -> None:
    """Each takes a file of the process; whoever ends makes room."""
    with Listener(socket.AF_INET, 0) as listener, contextlib.ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        for _ in range(SPARE + 2):
            held.enter_context(socket.create_connection(listener.getsockname()))
        accepted = [held.enter_context(listener.accept()[0]) for _ in range(SPARE)]
        with pytest.raises(ConnectionAbortedError):
            listener.accept()
        accepted[3].close()
        listener.accept()[0].close()


def test_a_head_without_end_is_given_up(server: Any) -> None:
    """It is not kept while it grows."""
    before = _memory(server)
    with _connect(server, "GET /healthz HTTP/1.1\r\n") as connection:
        try:
            for number in range(100_000):
                connection.sendall(f"X-{number}: {'a' * 1000}\r\n".encode())
        except OSError:
            pass
        assert number < 99_999
    assert _memory(server) - before < 20
    assert _is_well(server)


def test_a_body_that_comes_byte_by_byte_is_answered_with_408(server: Any) -> None:
    """After the time that a request may take, however many bytes still come."""
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    started = time.monotonic()
    with _connect(server, head) as connection:
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - started < 40:
            try:
                connection.sendall(b"{")
                answer = connection.recv(1 << 16)
            except TimeoutError:
                pass
        connection.settimeout(10)
        answer += _read_to_end(connection)  # the head may come alone
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b'"slow"' in answer
    assert time.monotonic() - started < 40  # at ten bytes a second all would take 100 s


def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_comes(server: Any) -> None:
    """Nothing of it is waited for; whoever asks first whether to go on sends nothing of it."""
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000000000\r\n"
    for expects in ("", "Expect: 100-continue\r\n"):
        with _connect(server, f"{head}{expects}\r\n") as connection:
            answer = _read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 413"), answer


@pytest.mark.parametrize("token", [True, False])
def test_a_body_without_end_is_cut_off(server: Any, token: bool) -> None:
    """Chunks for ever, with a token or without: an answer, an end, and no memory."""
    before, sent = _memory(server), 0
    head = "POST /v1/batches HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += "Content-Type: application/json\r\n"
    head += f"Authorization: Bearer {server.token}\r\n\r\n" if token else "\r\n"
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with _connect(server, head) as connection:
        try:
            while sent < 500 << 20:
                connection.sendall(chunk)
                sent += 1 << 20
        except OSError:
            pass
    assert sent < 100 << 20
    assert _memory(server) - before < 60
    assert _is_well(server)


def test_answers_that_nobody_takes_are_given_up(server: Any) -> None:
    """A client that asks on and on and reads nothing is cut off."""
    request = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}"
    requests = (request + "\r\n\r\n").encode() * 1000
    before, ended = _memory(server), False
    with _connect(server) as connection:
        connection.settimeout(0.5)
        started = time.monotonic()
        while time.monotonic() - started < 60 and not ended:
            try:
                connection.sendall(requests)
            except TimeoutError:
                pass
            except OSError:
                ended = True
    assert ended
    assert _memory(server) - before < 20
    assert _is_well(server)


@pytest.mark.parametrize(
    "text",
    [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET /healthz HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        "Content-Length: 4\r\n\r\nzzzz\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        "GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_does_no_harm(server: Any, text: str) -> None:
    """An error or an end, no 500, and the next client is answered."""
    with _connect(server) as connection:
        connection.sendall(text.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        answer = _read_to_end(connection)
    assert not answer or re.match(rb"HTTP/1.1 [24]\d\d", answer), answer
    assert _is_well(server)


def test_clients_that_go_away_are_no_errors(server: Any) -> None:
    """In the middle of a head, a body, an answer: nothing but a line of status 499 or none."""
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    for text in ("GET /hea", head, head + "Content-Length: 100\r\n\r\nabc"):
        _connect(server, text).close()
    _connect(server, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").close()
    assert _is_well(server)
    time.sleep(0.2)
    levels = {json.loads(line)["level"] for line in server.log().splitlines()}
    assert "ERROR" not in levels, server.log()
