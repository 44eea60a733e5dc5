"""Bodies of requests: whatever comes is bounded in bytes, in time, and over all requests."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from tachograph.errors import Busy
from tachograph.server import limits as module
from tachograph.server.answers import Refusal
from tachograph.server.app import make_app
from tachograph.server.limits import Intake, read_body
from tachograph.server.settings import Limits, ServerSettings
from tachograph.server.tokens import Grant, Tokens

LIMITS = Limits(
    body_bytes=10_000, batch_bytes=100_000, in_flight_bytes=120_000, request_seconds=1.0
)


@pytest.fixture
def server_settings(server_settings: ServerSettings) -> ServerSettings:
    """A server with small limits."""
    return replace(server_settings, limits=LIMITS)


@pytest.fixture
def echo(server_app: FastAPI, client: TestClient) -> Iterator[TestClient]:
    """That server with a route that says what it has read; afterwards it holds nothing."""

    @server_app.post("/echo")
    async def answer(request: Request) -> dict[str, Any]:
        body = await read_body(request)
        held = request.app.state.server.intake.bytes
        return {"bytes": len(body), "sum": zlib.crc32(body), "held": held}

    yield client
    assert server_app.state.server.intake.bytes == 0


# ---------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("pieces", [[], [b""], [b"x" * 9_999, b"y"], [b"z"] * 100])
def test_a_body_comes_whole(echo: TestClient, pieces: list[bytes]) -> None:
    """However it is cut, up to the limit, and counted as held while its request lasts."""
    whole = b"".join(pieces)
    answer = echo.post("/echo", content=iter(pieces))
    assert answer.json() == {"bytes": len(whole), "sum": zlib.crc32(whole), "held": len(whole)}


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_above_the_limit_is_refused(echo: TestClient, declared: bool) -> None:
    """By what it says of itself, or when it comes: 413, and what the limit is."""
    body = b"x" * 10_001
    answer = echo.post("/echo", content=body if declared else iter([body[:6000], body[6000:]]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "10000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("deflate", zlib.compress), ("gzip", gzip.compress), ("GZIP ", gzip.compress)],
)
def test_a_compressed_body_is_unpacked(echo: TestClient, encoding: str, pack: Any) -> None:
    """And held are what came and what it unpacks to."""
    body = bytes(range(256)) * 390  # 99840 bytes
    packed = pack(body)
    answer = echo.post("/echo", content=packed, headers={"Content-Encoding": encoding})
    held = len(body) + len(packed)
    assert answer.json() == {"bytes": len(body), "sum": zlib.crc32(body), "held": held}


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("size", [100_001, 9_000_000])
def test_a_bomb_is_refused(echo: TestClient, pack: Any, size: int) -> None:
    """What unpacks to more than the limit: 413, without unpacking more."""
    answer = echo.post("/echo", content=pack(b"\0" * size), headers={"Content-Encoding": "deflate"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    exact = echo.post(
        "/echo", content=pack(b"\0" * 100_000), headers={"Content-Encoding": "deflate"}
    )
    assert exact.json()["bytes"] == 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not compressed",
        zlib.compress(b"cut short" * 100)[:-5],
        zlib.compress(b"one") + b"more",
        gzip.compress(b"damaged" * 100, mtime=0)[:-8] + b"\0" * 8,
    ],
)
def test_a_damaged_body_is_malformed(echo: TestClient, body: bytes) -> None:
    """400 that says what is wrong with it."""
    answer = echo.post("/echo", content=body, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate, gzip", "x" * 5000])
def test_an_encoding_that_is_not_known_is_said_to_be(echo: TestClient, encoding: str) -> None:
    """415, with those that are taken."""
    answer = echo.post("/echo", content=b"x", headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "media_type")
    assert "deflate, gzip or none" in answer.json()["error"]["message"]
    assert len(answer.text) < 300


# ---------------------------------------------------------------------------- all requests


def test_requests_hold_together_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes when others hold it all waits for a moment, and is told to come again."""

    monkeypatch.setattr(module, "_WAIT", 0.3)

    async def scene() -> None:
        intake = Intake(LIMITS)
        first: dict[str, Any] = {}
        second: dict[str, Any] = {}
        await intake.reserve(first, 80_000)
        waiting = asyncio.create_task(intake.reserve(second, 50_000))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        intake.release(first)
        await waiting
        assert intake.bytes == 50_000

        started = time.monotonic()
        with pytest.raises(Busy):
            await intake.reserve(first, 80_000)
        assert time.monotonic() - started > 0.25
        intake.release(second)
        intake.release(second)  # what is given back twice is counted once
        assert intake.bytes == 0

    asyncio.run(scene())


def test_one_request_alone_may_be_larger_than_what_all_may_hold() -> None:
    """Or it could never be answered at all."""

    async def scene() -> None:
        intake, state = Intake(LIMITS), {}
        await intake.reserve(state, 70_000)
        await intake.reserve(state, 70_000)
        assert intake.bytes == 140_000

    asyncio.run(scene())


def test_large_bodies_are_decoded_two_at_a_time() -> None:
    """As objects they take many times their bytes; small ones pass by."""

    async def scene() -> None:
        intake, most = Intake(LIMITS), 0
        decoding: set[int] = set()

        async def decode(number: int) -> None:
            nonlocal most
            async with intake.turn(1 << 20):
                decoding.add(number)
                most = max(most, len(decoding))
                async with intake.turn(1000):
                    await asyncio.sleep(0)
                decoding.remove(number)

        await asyncio.gather(*map(decode, range(6)))
        assert most == 2

    asyncio.run(scene())


# ---------------------------------------------------------------------------- shares


def test_a_token_may_send_its_share_and_no_more() -> None:
    """Bytes and points are counted apart, and for each token by itself."""
    intake = Intake(Limits(token_bytes=1000, token_points=10))  # a second: 60000 and 600 a minute
    one, other = (Grant(name, frozenset(), None, name) for name in ("one", "other"))
    for _ in range(6):
        intake.charge(one, bytes=100, points=100)
    with pytest.raises(Refusal, match="600 points a minute") as refused:
        intake.charge(one, bytes=1, points=1)
    assert (refused.value.status, refused.value.code) == (429, "limit")
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 61
    intake.charge(one, bytes=59_400, points=0)  # points that were refused cost no bytes
    with pytest.raises(Refusal, match="60000 bytes a minute"):
        intake.charge(one, bytes=1, points=0)
    intake.charge(other, bytes=60_000, points=600)


def test_a_client_that_sends_more_than_its_share_is_told_to_wait(
    server_settings: ServerSettings,
) -> None:
    """429 over HTTP, after which nothing of that batch was taken."""
    limited = replace(server_settings, limits=replace(LIMITS, token_points=1))
    secret = Tokens(limited.folder).create("writer", rights=["write"])
    with TestClient(make_app(limited), headers={"Authorization": f"Bearer {secret}"}) as client:
        for first, status in ((0, 200), (40, 429)):
            rows = [[first + number, 0, number, None, [0.5]] for number in range(40)]
            batch = {"writer": "w", "first": first, "next": first + 40}
            batch["points"] = [{"run_id": "r", "names": ["loss"], "rows": rows}]
            answer = client.post("/v1/batches", json=batch)
            assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == "limit"
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/v1/writers/w").json() == {"next": 40}


def test_a_batch_above_a_whole_share_is_to_be_cut() -> None:
    """Waiting would not help: 413, so that the client sends less at once."""
    intake = Intake(Limits(token_points=1))
    with pytest.raises(Refusal, match="send less at once") as refused:
        intake.charge(Grant("one", frozenset()), bytes=1, points=61)
    assert refused.value.status == 413


def test_a_share_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that `Retry-After` says, and not before."""
    intake = Intake(Limits(token_points=1))
    grant = Grant("one", frozenset(), None, "one")
    now = time.time()
    intake.charge(grant, points=60)
    with pytest.raises(Refusal) as refused:
        intake.charge(grant, points=1)
    wait = int(refused.value.headers["Retry-After"])
    monkeypatch.setattr(time, "time", lambda: now + wait - 2)
    with pytest.raises(Refusal):
        intake.charge(grant, points=1)
    monkeypatch.setattr(time, "time", lambda: now + wait + 1)
    intake.charge(grant, points=60)


def test_without_limits_a_token_sends_what_it_likes() -> None:
    """Which is the default."""
    intake = Intake(Limits())
    for _ in range(100):
        intake.charge(Grant("one", frozenset()), bytes=1 << 30, points=1 << 30)
