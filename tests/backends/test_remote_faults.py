"""Servers that fail: each failure has its error, in its time, and costs no record.

Patience is shortened, so that seconds stand for minutes.
"""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tachograph.backends import remote, remote_http, remote_reading
from tachograph.backends.base import Condition, Query
from tachograph.backends.remote import RemoteBackend
from tachograph.backends.remote_errors import Dropped, Patience, Slow
from tachograph.errors import AccessDenied, Busy, Full, Gap, QueryError, StoreError, StoreTooNew
from tachograph.records import Batch
from tachograph.testing import make_batch, make_block
from tachograph.wire.encoding import decode, decompress

PATIENCE = Patience(connect=0.4, silence=0.4, total=1.0)
ENOUGH = Patience(connect=10.0, silence=20.0, total=30.0)  # for a server in good health
ASK = Batch("w", 0, 0)
OK = b'{"next": 3, "interval": 1.0}'


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits, and a token to be careful with."""
    for module, name in ((remote, "WRITING"), (remote_reading, "READING")):
        monkeypatch.setattr(module, name, PATIENCE)
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "tacho_secret")
    remote._pace_of.cache_clear()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What it contains takes at most so long."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def points(writer: str, first: int, next: int) -> Batch:
    """Records of one point each, whose value is its number."""
    seqs = range(first, next)
    block = make_block("r", {"loss": [float(seq) for seq in seqs]}, seqs=seqs)
    return make_batch(writer, first, next, blocks=[block])


def refused(url: str, kind: type[Exception], message: str, seconds: float = 4) -> Exception:
    """The error of a write, which is of a kind, says something, and comes in time."""
    backend = RemoteBackend(url, create=True)
    with within(seconds), pytest.raises(kind, match=message) as caught:
        backend.write(points("w", 0, 3))
    backend.close()
    assert type(caught.value) is kind
    assert "tacho_secret" not in str(caught.value)
    return caught.value


# ---------------------------------------------------------------------------- no connection


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_constructing_needs_no_server() -> None:
    """A training starts while the server is away; a reader is told at once, and what to do."""
    url = f"http://127.0.0.1:{free_port()}"
    with within(2):
        RemoteBackend(url, create=True).close()
    with pytest.raises(StoreError, match=f"nothing listens at {url}: start it .*tachograph serve"):
        RemoteBackend(url)


def test_unknown_host_is_named() -> None:
    """A name that nobody knows is not taken for a server that is down."""
    refused("https://tachograph.invalid", StoreError, "there is no host 'tachograph.invalid'", 10)


def test_machine_that_is_off(faulty: Callable[..., Any]) -> None:
    """No answer to the connection: said after its limit."""
    refused(faulty("absent").url, StoreError, "no answer from .* within 0.4 s: the machine is off")


def test_certificate_that_is_not_trusted(
    scripted: Callable[..., Any],
    answering: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is sent, the message says how to trust it; done so, it works."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handle(connection: socket.socket) -> None:
        while server.read_request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(OK) + OK)

    server = scripted(handle, context)
    remote_http._trusted.cache_clear()
    refused(server.url, StoreError, r"certificate .* not trusted \(self.signed .*SSL_CERT_FILE")
    assert server.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    remote_http._trusted.cache_clear()
    backend = RemoteBackend(server.url, create=True)
    assert backend.write(points("w", 0, 3)) == 3
    backend.close()
    other_name = server.url.replace("127.0.0.1", "localhost")
    refused(other_name, StoreError, r"not trusted \(Hostname .*: write the address with a name")
    for unusable in (tmp_path / "none.pem", key):
        monkeypatch.setenv("SSL_CERT_FILE", str(unusable))
        remote_http._trusted.cache_clear()
        refused(server.url, StoreError, f"SSL_CERT_FILE names no file .*{unusable}")
    remote_http._trusted.cache_clear()


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("http://proxy.invalid", "no host 'proxy.invalid', the proxy of the environment"),
        ("http://127.0.0.1:{port}", "nothing listens at '127.0.0.1', the proxy"),
        ("nonsense://me:tacho_secret@proxy", "proxy of the environment cannot be used: Unknown"),
        ("http://[half", "no host"),
    ],
)
def test_proxy_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, proxy: str, message: str
) -> None:
    """Not the server, which nobody has asked."""
    for name in ("no_proxy", "NO_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy.format(port=free_port()))
    refused("https://tachograph.invalid", StoreError, message, 10)


# ---------------------------------------------------------------------------- bad answers


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (500, "internal", StoreError, "on purpose"),
        (400, "malformed", StoreError, "on purpose"),
        (404, "not_found", StoreError, "on purpose"),
        (401, "unauthorized", AccessDenied, "on purpose; set TACHOGRAPH_TOKEN, or run: tacho"),
        (403, "forbidden", AccessDenied, "on purpose"),
        (408, "slow", Slow, "on purpose"),
        (503, "store", Busy, "on purpose"),
        (502, "none", Busy, "502 .*; a proxy answers, and the server behind it is away"),
        (507, "full", Full, "on purpose"),
        (400, "protocol", StoreTooNew, "speaks version 2 of the protocol, this client 1: update"),
    ],
)
def test_errors_of_the_protocol(
    answering: Callable[..., Any], status: int, code: str, kind: type[StoreError], message: str
) -> None:
    """Each status is an error of its kind, with the words of the server."""
    body = b'{"error": {"code": "%s", "message": "on purpose"}}' % code.encode()
    if code == "none":
        body = b"<html>from a proxy</html>"
    version = "2" if code == "protocol" else "1"
    server = answering(status, body, Tachograph_Protocol=version)
    backend = RemoteBackend(server.url, create=True)
    with within(4), pytest.raises(kind, match=message):
        backend.write(ASK)
    backend.close()


def test_gap_says_what_is_expected(answering: Callable[..., Any]) -> None:
    """409 is the Gap of any other store."""
    server = answering(409, b'{"error": {"code": "gap", "message": "", "expected": 120}}')
    error = refused(server.url, Gap, "expected record 120 next, got 0")
    assert isinstance(error, Gap)
    assert (error.writer, error.expected, error.first) == ("w", 120, 0)


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026", 5.0), ("-1", 0.0), ("nan", 5.0)]
)
def test_busy_server_says_when(answering: Callable[..., Any], said: str, seconds: float) -> None:
    """429 says when to ask again; a date, or nothing usable, is a few seconds."""
    server = answering(429, b"no json", Retry_After=said)
    error = refused(server.url, Busy, "HTTP status 429")
    assert isinstance(error, Busy)
    assert error.retry_after == seconds


def test_version_that_this_client_does_not_speak(answering: Callable[..., Any]) -> None:
    """Also with an answer that looks well: nothing is taken for stored."""
    refused(answering(200, OK, Tachograph_Protocol="2, 11").url, StoreTooNew, "version 2, 11 of")
    fine = RemoteBackend(answering(200, OK, Tachograph_Protocol="2, 1").url, create=True)
    assert fine.write(points("w", 0, 3)) == 3


@pytest.mark.parametrize(
    ("said", "taken"), [("7.5", 7.5), ("0", 1.0), ("1e9", 300.0), ("null", 1.0), ('"x"', 1.0)]
)
def test_server_says_how_often_to_send(
    answering: Callable[..., Any], said: str, taken: float
) -> None:
    """One that has many clients asks for patience; none makes a training keep all for itself."""
    server = answering(200, b'{"next": 3, "interval": %s}' % said.encode())
    backend = RemoteBackend(server.url, create=True)
    backend.write(points("w", 0, 3))
    assert (backend.first_interval, backend.longest_interval) == (1.0, taken)
    backend.close()


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[3]", b'{"next": "3"}', b'{"next": true}', b"{}"]
)
def test_answer_that_is_none(answering: Callable[..., Any], body: bytes) -> None:
    """Whatever does not say `next` has stored nothing."""
    refused(answering(200, body).url, StoreError, "Tachograph server")


@pytest.mark.parametrize("sent", [b"\0garbage\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_garbage_instead_of_http(scripted: Callable[..., Any], sent: bytes) -> None:
    """Another service on that port, or one that hangs up."""

    def handle(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(sent)

    refused(scripted(handle).url, Dropped, "does not answer")


def test_file_that_is_another_is_not_handed_out(answering: Callable[..., Any]) -> None:
    """A store behind a bad disk or cache: what was asked for by its digest has that digest."""
    backend = RemoteBackend(answering(200, b"another").url, create=True)
    with pytest.raises(StoreError, match="gave a file with the digest ae448ac86c4e8e4d"):
        backend.open_artifact(hashlib.sha256(b"wanted").hexdigest())
    backend.close()


def test_redirect_is_not_followed(answering: Callable[..., Any]) -> None:
    """The token goes to no other host, also not in a redirect on the same one."""
    other = answering(200, OK)
    first = answering(307, Location=f"{other.url}/v1/batches")
    refused(first.url, StoreError, f"sends its clients on to {other.url}/v1/batches: a token")
    assert other.requests == []
    assert len(first.requests) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [(b"500 Endless", "HTTP status 500 Endless"), (b"200 OK", "another service at that address")],
)
def test_endless_answer_is_cut(scripted: Callable[..., Any], status: bytes, said: str) -> None:
    """It is read to a bound, not until the memory of the training or its patience ends."""

    def handle(connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    server = scripted(handle)
    refused(server.url, StoreError, said)


# ---------------------------------------------------------------------------- no time


def test_server_that_never_answers(scripted: Callable[..., Any]) -> None:
    """Takes the request, says nothing."""
    refused(scripted(lambda _: time.sleep(30)).url, Slow, "said nothing for 0.4 s")


def drip(connection: socket.socket, text: bytes) -> None:
    """Send byte by byte, each in time."""
    for byte in text:
        time.sleep(0.1)
        connection.sendall(bytes([byte]))


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n"])
def test_server_that_drips(scripted: Callable[..., Any], begun: bytes) -> None:
    """A byte now and then is no answer: the whole has a limit, in the head and in the body."""

    def handle(connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(begun)
        drip(connection, b"x" * 100)

    server = scripted(handle)
    refused(server.url, Slow, "was not done within 1 s")


def test_server_that_reads_too_slowly(scripted: Callable[..., Any]) -> None:
    """So has the request: a body that trickles away is given up, and the next one is smaller."""

    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        while connection.recv(1 << 12):
            time.sleep(0.1)

    server = scripted(handle)
    backend = RemoteBackend(server.url, create=True)
    size = backend.batch_bytes
    noise = random.Random(0)
    block = make_block("r", {"loss": [noise.random() for _ in range(30_000)]})
    with within(4), pytest.raises(Slow):
        backend.write(make_batch("w", 0, blocks=[block]))
    assert backend.batch_bytes <= size / 2
    backend.close()
    again = RemoteBackend(server.url, create=True)  # as a drain does after a failure
    assert again.batch_bytes <= size / 2
    again.close()


def test_reading_has_its_limits_too(scripted: Callable[..., Any]) -> None:
    """A reader is told that the server hangs, in a time of its own."""
    backend = RemoteBackend(scripted(lambda _: time.sleep(30)).url, create=True)
    with within(4), pytest.raises(Slow, match=r"said nothing for 0\.4 s"):
        backend.read(Query("runs"))
    backend.close()


def test_what_json_cannot_say_is_not_asked(answering: Callable[..., Any]) -> None:
    """A constant that no server could compare with is the caller's mistake."""
    server = answering(200, OK)
    backend = RemoteBackend(server.url, create=True)
    for value in (b"bytes", float("nan"), object()):
        with pytest.raises(QueryError, match="cannot be sent to a server"):
            backend.read(Query("runs", [Condition("name", "=", value)]))
    assert server.requests == []
    backend.close()


def test_close_ends_a_request_of_another_thread(
    scripted: Callable[..., Any], monkeypatch: Any
) -> None:
    """At exit nobody waits for a server that hangs."""
    monkeypatch.setattr(remote, "WRITING", Patience(30, 30, 30))
    backend = RemoteBackend(scripted(lambda _: time.sleep(30)).url, create=True)
    closing = threading.Timer(0.3, backend.close)
    closing.start()
    with within(4), pytest.raises(StoreError, match="was closed"):
        backend.write(ASK)
    closing.join()
    with pytest.raises(StoreError, match="was closed"):
        backend.write(ASK)


# ---------------------------------------------------------------------------- cut connections


def test_kept_connection_that_was_dropped_goes_unnoticed(scripted: Callable[..., Any]) -> None:
    """A server that hangs up between two requests costs neither of them."""

    def handle(connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(OK) + OK)
        server.read_request(connection)  # and goes without an answer

    server = scripted(handle)
    backend = RemoteBackend(server.url, create=True)
    assert [backend.write(ASK) for _ in range(3)] == [3, 3, 3]
    assert len(server.requests) == 5
    backend.close()


def test_half_an_answer_is_none(scripted: Callable[..., Any]) -> None:
    """What ends before its length is not taken, nor asked for without end."""

    def handle(connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + OK)

    server = scripted(handle)
    refused(server.url, Dropped, "does not answer")
    assert len(server.requests) == 2


# ---------------------------------------------------------------------------- tokens


def test_renewed_token_is_used_without_a_restart(
    scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 401 looks the token up anew: where there is another one, nobody notices."""

    def handle(connection: socket.socket) -> None:
        while head := server.read_request(connection):
            status, body = (200, OK) if b"Bearer tacho_renewed" in head else (401, b"")
            answer = b"HTTP/1.1 %d Scripted\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            connection.sendall(answer + body)

    server = scripted(handle)
    backend = RemoteBackend(server.url, create=True)
    for asked in (1, 2):  # each time it is looked up, and found to be the one that was refused
        with pytest.raises(AccessDenied, match=f"tachograph login {server.url}"):
            backend.write(points("w", 0, 3))
        assert len(server.requests) == asked
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "tacho_renewed")
    assert backend.write(points("w", 0, 3)) == 3
    sent = [head for head in server.requests if b"tacho_renewed" in head]
    assert len(sent) == 1
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "tacho_another")
    assert backend.write(points("w", 0, 3)) == 3  # what works is not looked up again
    backend.close()


def test_token_on_this_machine_goes_past_a_proxy(
    answering: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy of the network never sees a token that is for a server beside the training."""
    proxy, server = answering(200, OK), answering(200, OK)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    backend = RemoteBackend(server.url, create=True)
    assert backend.write(points("w", 0, 3)) == 3
    assert (len(proxy.requests), len(server.requests)) == (0, 1)
    far = RemoteBackend("http://tachograph.invalid", create=True)
    assert far.write(points("w", 0, 3)) == 3
    assert b"POST http://tachograph.invalid/v1/batches" in proxy.requests[0]
    for one in (backend, far):
        one.close()


# ---------------------------------------------------------------------------- nothing lost


@pytest.mark.parametrize("fault", ["refusing", "hanging", "broken", "full", "expired", "cut"])
def test_records_arrive_once_when_the_fault_is_over(
    start: Callable[..., str],
    faulty: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Sent again and again as a drain does: no record is missing, none is there twice."""
    port, prefix = start("sqlite").removeprefix("http://127.0.0.1:").split("/")
    bad = faulty(fault, int(port))
    batches = [points("w", first, next) for first, next in ((0, 300), (0, 300), (200, 500))]
    for _ in range(2):
        backend = RemoteBackend(f"{bad.url}/{prefix}", create=True)
        remote._pace_of(backend.url).refused(8_000)  # several requests a batch
        for batch in batches:
            with within(6), pytest.raises(StoreError):
                backend.write(batch)
        backend.close()
    bad.heal()
    monkeypatch.setattr(remote, "WRITING", ENOUGH)
    backend = RemoteBackend(f"{bad.url}/{prefix}", create=True)
    assert [backend.write(batch) for batch in batches] == [300, 300, 500]
    backend.close()
    assert stored(f"http://127.0.0.1:{port}/{prefix}") == [(seq, float(seq)) for seq in range(500)]


def stored(url: str) -> list[tuple[int, float]]:
    """Number and value of every point on a server."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remote_reading, "READING", ENOUGH)
        backend = RemoteBackend(url, create=True)
        found = backend.read(Query("all_metrics", columns=["seq", "value"], order=["seq"]))
        backend.close()
    return [*zip(found["seq"], found["value"], strict=True)]


def test_slow_line_gets_everything_through(
    start: Callable[..., str], faulty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1 kB/s both ways each attempt brings something there, and the next one goes on behind."""
    monkeypatch.setattr(remote, "WRITING", Patience(connect=1.0, silence=1.5, total=2.5))
    port, prefix = start("sqlite").removeprefix("http://127.0.0.1:").split("/")
    backend = RemoteBackend(f"{faulty('slow', int(port)).url}/{prefix}", create=True)
    noise = random.Random(0)
    block = make_block("r", {"loss": [noise.random() for _ in range(400)]})
    batch = make_batch("w", 0, blocks=[block])
    remote._pace_of(backend.url).least = 2_000
    attempts, done = 0, 0
    while done < 400:
        attempts += 1
        assert attempts <= 6
        with suppress(Slow):
            done = backend.write(batch)
    assert attempts > 1
    backend.close()
    assert [seq for seq, _ in stored(f"http://127.0.0.1:{port}/{prefix}")] == list(range(400))


def test_share_that_is_used_up_says_until_when(
    start: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went before the limit is kept, and the rest waits as long as the server says."""
    monkeypatch.setattr(remote, "WRITING", ENOUGH)
    url = start("sqlite", token_points=2)  # a second, over a minute: 120
    backend = RemoteBackend(url, create=True)
    remote._pace_of(url).refused(8_000)
    with pytest.raises(Busy) as caught:
        backend.write(points("w", 0, 300))
    assert 0 < caught.value.retry_after <= 60
    backend.close()
    assert 0 < len(stored(url)) < 300


def test_batch_goes_on_where_the_attempt_before_got_to(scripted: Callable[..., Any]) -> None:
    """A server that has room for two requests at a time gets each record once, and all of them."""
    sent: list[tuple[int, int]] = []
    expected = [0]

    def handle(connection: socket.socket) -> None:
        while server.read_request(connection):
            batch = decode(decompress(server.bodies[-1], 1 << 20))
            full = batch.first < batch.next and len(sent) % 3 == 2
            if batch.first < batch.next:
                sent.append((batch.first, expected[0]))
                expected[0] = expected[0] if full else batch.next
            body = b'{"next": %d}' % expected[0]
            status = b"503 Busy" if full else b"200 OK"
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            connection.sendall(head + body)

    server = scripted(handle)
    batch, attempts = points("w", 0, 300), 0
    while expected[0] < 300:
        attempts += 1
        backend = RemoteBackend(server.url, create=True)
        remote._pace_of(server.url).refused(3_000)  # pieces of 1,500 bytes
        with suppress(Busy):
            assert backend.write(batch) == 300
        backend.close()
        assert attempts < 10
    assert attempts > 2
    assert all(first == wanted for first, wanted in sent)
