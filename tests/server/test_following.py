"""Following a run: every point and event once, in order, for as long as it is followed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from recorded import KINDS, ReadServer, about, error_of, run_row, running

from tachograph.backends.base import Query
from tachograph.errors import StoreError, WireError
from tachograph.records import Batch
from tachograph.server import following, news, tails
from tachograph.server.news import Position, look
from tachograph.testing.builders import START, make_batch, make_block
from tachograph.wire.encoding import MEDIA_TYPE, compress, encode


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has ended is told to have without long waiting for what may still come."""
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(following, "SHORTEST_PAUSE", 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReadServer]:
    """A server on SQLite that has received nothing."""
    with running("sqlite", tmp_path) as started:
        yield started


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadServer]:
    """A server on a store of each kind that has received nothing."""
    with running(request.param, tmp_path) as started:
        yield started


def events_of(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, kind and data of server-sent events."""
    found = []
    for part in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.splitlines() if line[:1] not in ":")
        if "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


def run_batches() -> list[Batch]:
    """A run of two ranks with events, whose writers also record another run."""
    return [
        make_batch(
            "rank0",
            0,
            80,
            runs=[run_row("r", 1), run_row("other", 2)],
            events=about("r", "apple")["events"],
            blocks=[
                make_block(
                    "r", {"loss": [float(i) for i in range(30)], "acc": [0.5] * 30},
                    seqs=range(10, 70, 2),
                ),
                make_block("other", {"loss": [9.0] * 30}, seqs=range(11, 71, 2)),
            ],
        ),
        make_batch(
            "rank1",
            0,
            blocks=[make_block("r", {"time": [0.1] * 20}, seqs=range(20), rank=1)],
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------------------- what comes


def test_a_run_that_has_ended_is_told_from_its_beginning(server: ReadServer) -> None:
    """Its row, every point and event of it alone, in order of each writer, then the end."""
    server.deliver(*run_batches())
    answer = server.get("/runs/r/follow")
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events_of(answer.text)
    assert [kind for _, kind, _ in found[:1]] == ["status"]
    assert found[0][2]["run_id"] == "r"
    assert found[-1][1:] == ("end", {"status": "finished"})
    rows = [row for _, kind, row in found if kind == "point"]
    assert len(rows) == 80
    assert {row["run_id"] for row in rows} == {"r"}
    assert [row["message"] for _, kind, row in found if kind == "event"] == ["apple", None]
    for writer in ("rank0", "rank1"):
        told = [
            row["seq"] for _, kind, row in found if row.get("writer") == writer and kind != "status"
        ]
        assert told == sorted(told)
    assert len({cursor for cursor, _, _ in found[:-1]}) == len(found) - 1


def test_it_goes_on_behind_any_event(either: ReadServer) -> None:
    """From each cursor exactly the rest comes, also from within the points of one call."""
    either.deliver(*run_batches())
    whole = events_of(either.get("/runs/r/follow").text)[:-1]
    with either.server.readers.lend() as served:
        for at, (cursor, _, _) in [*enumerate(whole)][::5]:
            rest = look(served, "r", Position.parse(cursor)).news
            assert [(one.cursor, one.kind, one.row) for one in rest] == whole[at + 1 :]
    middle = whole[41][0]
    for asked in ({"headers": {"Last-Event-ID": middle}}, {"params": {"cursor": middle}}):
        assert events_of(either.get("/runs/r/follow", **asked).text)[:-1] == whole[42:]


def test_a_long_run_comes_piece_by_piece(
    server: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes only so many rows, and nothing is lost or told twice between two."""
    monkeypatch.setattr(news, "MOST_ROWS", 7)
    server.deliver(*run_batches())
    position, told, looks = Position(), [], 0
    with server.server.readers.lend() as served:
        more = True
        while more:
            found = look(served, "r", position)
            position, more, looks = found.position, found.more, looks + 1
            assert len(found.news) <= 40  # a call is not cut, and one step too large is tried again
            told += [
                (one.kind, one.row.get("writer"), one.row.get("seq"), one.row.get("name"))
                for one in found.news
            ]
    assert looks > 5
    assert len(told) == len(set(told)) == 80 + 2 + 1


def test_a_resumed_run_and_later_writers_are_told_too(either: ReadServer) -> None:
    """What another process adds comes behind what was seen; a changed row comes as its status."""
    either.deliver(make_batch("w", 0, runs=[run_row("r", 1, status="running")]))
    with either.server.readers.lend() as served:
        first = look(served, "r", Position())
    assert [one.kind for one in first.news] == ["status"]
    note = {"run_id": "r", "time": START, "level": "info", "kind": "note", "message": "hello"}
    ended = {"run_id": "r", "status": "failed", "changed_at": START + 10**9}
    either.deliver(make_batch("editor", 0, events=[note]))
    either.deliver(
        make_batch("w", 1, runs=[ended], blocks=[make_block("r", {"n": [1.0]}, seqs=[2])])
    )
    with either.server.readers.lend() as served:
        second = look(served, "r", first.position)
    assert sorted(one.kind for one in second.news) == ["event", "point", "status"]
    assert (second.status, second.news[-1].row["status"]) == ("failed", "failed")


def test_a_look_that_fails_halfway_loses_nothing(
    server: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the store failed is read again with the next look."""
    server.deliver(*run_batches())
    start = Position()
    with server.server.readers.lend() as served:
        read, asked = served.read, []

        def breaks(query: Query) -> Any:
            asked.append(query.table)
            if query.table == "events" and asked.count("events") == 2:
                raise StoreError("the disk is gone")
            return read(query)

        monkeypatch.setattr(served, "read", breaks)
        with pytest.raises(StoreError):
            look(served, "r", start)
        assert len(look(served, "r", start).news) == 80 + 2 + 1


def test_what_cannot_be_read_yet_is_not_passed_over(
    either: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that lags too far behind shows less than was received: the rest comes later."""
    blocks = [make_block("r", {"n": [1.0]}, seqs=[1])]
    either.deliver(make_batch("w", 0, runs=[run_row("r", 1)], blocks=blocks))
    assert either.server.inbox.flush(20)
    monkeypatch.setattr(tails, "MOST_BYTES", 0)
    either.deliver(make_batch("w", 2, blocks=[make_block("r", {"n": [2.0]}, seqs=[2])]))
    with either.server.readers.lend() as served:
        before = look(served, "r", Position())
    assert either.server.inbox.flush(20)
    with either.server.readers.lend() as served:
        after = look(served, "r", before.position)
    told = [one.row["value"] for one in (*before.news, *after.news) if one.kind == "point"]
    assert told == [1.0, 2.0]


@pytest.mark.parametrize("names", [("loss",), ("acc", "time"), ()])
def test_points_of_some_metrics_alone(server: ReadServer, names: tuple[str, ...]) -> None:
    """Events and the run's row come all the same."""
    server.deliver(*run_batches())
    found = events_of(server.get("/runs/r/follow", params={"name": names}).text)
    told = {row["name"] for _, kind, row in found if kind == "point"}
    assert told == (set(names) or {"loss", "acc", "time"})
    assert {kind for _, kind, _ in found} == {"status", "event", "point", "end"}


@pytest.mark.parametrize(
    "cursor", ["", "1-00000000", "1-0a1b2c3d-0011223344556677:5", "1-0a1b2c3d-0011223344556677:5.2"]
)
def test_cursors_are_what_they_were(cursor: str) -> None:
    """A cursor that is read and written is the same."""
    assert Position.parse(cursor).cursor == (cursor or "1-00000000")


@pytest.mark.parametrize(
    "cursor", ["x", "2-00000000", "1-0", "1-00000000-ab:1", "1-00000000-0011223344556677:-1",
               "1-00000000-0011223344556677:1" + "0" * 30, "1-00000000\n", "1-00000000" + "-" * 9],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    """With an error, not with the wrong place."""
    with pytest.raises(WireError):
        Position.parse(cursor)


def test_who_follows_too_many_is_sent_away(
    server: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503; and a run that is not there is 404 before anything is streamed."""
    assert error_of(server.get("/runs/nobody/follow")) == (404, "not_found")
    server.deliver(*run_batches())
    monkeypatch.setattr(following, "MOST", 0)
    assert error_of(server.get("/runs/r/follow")) == (503, "busy")


# ---------------------------------------------------------------------------- a connection


@dataclass
class Connection:
    """A request to an application, whose answer is looked at while it comes."""

    chunks: list[str] = field(default_factory=list)
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    done: bool = False

    async def send(self, message: Any) -> None:
        """Take the next piece, when it is allowed to come."""
        await self.takes.wait()
        self.status = message.get("status", self.status)
        self.chunks.append(message.get("body", b"").decode())

    async def receive(self) -> Any:
        """Nothing, until the client goes."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def until(self, test: Callable[[], bool]) -> None:
        """Wait for something to hold."""
        async with asyncio.timeout(10):
            while not test():
                await asyncio.sleep(0.01)

    @property
    def text(self) -> str:
        """What has come."""
        return "".join(self.chunks)


@contextlib.asynccontextmanager
async def following_run(server: ReadServer, run: str) -> AsyncIterator[Connection]:
    """Follow a run of an application that runs in this loop."""
    async with server.app.router.lifespan_context(server.app):
        server.deliver(make_batch("w", 0, runs=[run_row(run, 1, status="running")]))
        connection = Connection()
        connection.takes.set()
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "GET",
            "path": f"/v1/runs/{run}/follow", "query_string": b"", "http_version": "1.1",
            "headers": [(b"authorization", f"Bearer {server.admin}".encode())],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http",
        }  # fmt: skip
        task = asyncio.create_task(server.app(scope, connection.receive, connection.send))
        task.add_done_callback(lambda _: setattr(connection, "done", True))
        try:
            yield connection
        finally:
            connection.takes.set()
            connection.gone.set()
            await asyncio.wait_for(task, 10)


def new_point(seq: int) -> Batch:
    """Another point of the run that is followed."""
    return make_batch("w", seq, blocks=[make_block("r", {"n": [float(seq)]}, seqs=[seq])])


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and comments come quickly, so that a test need not wait for them."""
    monkeypatch.setattr(following, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(following, "_TICK", 0.01)


@pytest.fixture
def here(tmp_path: Path) -> ReadServer:
    """A server on SQLite that is not started."""
    return ReadServer("sqlite", tmp_path)


@pytest.mark.usefixtures("hasty")
def test_points_come_as_they_are_received(here: ReadServer) -> None:
    """Each soon after it was acknowledged, and nothing in between costs a look."""

    async def scene() -> None:
        async with following_run(here, "r") as connection:
            await connection.until(lambda: "status" in connection.text)
            for seq in (1, 2, 3):
                here.deliver(new_point(seq))
                await connection.until(lambda seq=seq: f'"seq":{seq}' in connection.text)
            assert here.server.followers.count == 1
        assert here.server.followers.count == 0

    asyncio.run(scene())


@pytest.mark.usefixtures("hasty")
def test_a_client_that_takes_nothing_costs_nothing(
    here: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last piece is not taken, there is no further look, and nothing piles up."""
    looks = 0

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*arguments)

    monkeypatch.setattr(following, "look", counted)

    async def scene() -> None:
        async with following_run(here, "r") as connection:
            await connection.until(lambda: "status" in connection.text)
            connection.takes.clear()
            here.deliver(new_point(1))
            await asyncio.sleep(0.3)
            before = looks
            for seq in (2, 3, 4):
                here.deliver(new_point(seq))
                await asyncio.sleep(0.1)
            assert looks == before
            connection.takes.set()
            await connection.until(lambda: '"seq":4' in connection.text)
            points = [row["seq"] for _, kind, row in events_of(connection.text) if kind == "point"]
            assert points == [1, 2, 3, 4]

    asyncio.run(scene())


@pytest.mark.usefixtures("hasty")
def test_it_says_that_it_is_there_and_ends_for_a_revoked_token(
    here: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments come while nothing happens; the token is looked at also where none is due."""
    monkeypatch.setattr(following, "COMMENT_SECONDS", 0.05)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.05)

    async def scene() -> None:
        async with following_run(here, "r") as connection:
            await connection.until(lambda: connection.text.count(": still here") >= 3)
            monkeypatch.setattr(following, "COMMENT_SECONDS", 60.0)
            here.server.tokens.revoke("admin")
            await connection.until(lambda: connection.done)
            assert "event: end" not in connection.text

    asyncio.run(scene())


@pytest.mark.usefixtures("hasty")
def test_it_ends_when_the_server_does_and_when_the_run_is_deleted(here: ReadServer) -> None:
    """Without `end` the client comes back; with it, it does not."""

    async def scene(deleted: bool) -> str:
        async with following_run(here, "r") as connection:
            await connection.until(lambda: "status" in connection.text)
            if deleted:
                gone = {"run_id": "r", "deleted": 1, "changed_at": START + 10**12}
                here.deliver(make_batch("editor", 0, runs=[gone]))
            else:
                here.server.stopping = True
            await connection.until(lambda: connection.done)
            return connection.text

    assert "event: end" not in asyncio.run(scene(False))
    assert '"status":"deleted"' in asyncio.run(scene(True))


# ---------------------------------------------------------------------------- a real server


def record(process: Any, total: int) -> None:
    """Send a run of so many points, a few at a time, and again until they are taken."""
    headers = {
        "Authorization": f"Bearer {process.token}",
        "Content-Type": MEDIA_TYPE,
        "Content-Encoding": "deflate",
    }
    batch = make_batch("w", 0, runs=[run_row("r", 1, status="running")])
    with httpx.Client(headers=headers) as client:
        while batch.first <= total:
            content = compress(encode(batch))
            with contextlib.suppress(httpx.HTTPError, KeyError):
                answer = client.post(f"{process.url}/v1/batches", content=content)
                batch = part_of_run(answer.json()["next"], total)
            time.sleep(0.01)


def part_of_run(first: int, total: int) -> Batch:
    """The next five points, or the end of the run."""
    seqs = range(first, min(first + 5, total))
    if not seqs:
        ended = {"run_id": "r", "status": "finished", "changed_at": START + 10**9}
        return make_batch("w", first, runs=[ended])
    return make_batch("w", first, blocks=[make_block("r", {"n": [*map(float, seqs)]}, seqs=seqs)])


def listen(process: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and data of what a server tells of the run, with a new connection where one breaks."""
    headers = {"Authorization": f"Bearer {process.token}", "Last-Event-ID": ""}
    client = httpx.Client()
    while True:
        fields: dict[str, str] = {}
        url = f"{process.url}/v1/runs/r/follow"
        with contextlib.suppress(httpx.HTTPError), client.stream("GET", url, headers=headers) as it:
            for line in it.iter_lines():
                name, _, value = line.partition(": ")
                fields[name] = value
                if not line and "data" in fields:
                    headers["Last-Event-ID"] = fields["id"]
                    yield fields["event"], json.loads(fields["data"])
                    fields = {}
        time.sleep(0.05)


@pytest.mark.slow
def test_nothing_is_lost_or_told_twice_when_the_server_is_killed(serve: Callable[..., Any]) -> None:
    """A client comes back with its cursor after each kill: all points once, in order, the end."""
    process, total, kills = serve(), 150, 0
    recording = threading.Thread(target=record, args=(process, total))
    recording.start()
    told: list[float] = []
    for kind, row in listen(process):
        if kind == "end":
            break
        told += [row["value"]] if kind == "point" else []
        if kills < 2 and len(told) >= (kills + 1) * 50:
            process.kill()
            process.start()
            kills += 1
    recording.join()
    assert kills == 2
    assert told == [float(seq) for seq in range(1, total)]
    assert process.stop() == 0


@pytest.mark.slow
def test_a_server_stops_while_it_is_followed(serve: Callable[..., Any]) -> None:
    """It does not wait for the run to end: the answer is finished, and the process ends."""
    process = serve()
    headers = {"Authorization": f"Bearer {process.token}"}
    body = compress(encode(make_batch("w", 0, runs=[run_row("r", 1, status="running")])))
    sent = {"Content-Type": MEDIA_TYPE, "Content-Encoding": "deflate"}
    httpx.post(f"{process.url}/v1/batches", content=body, headers=headers | sent)
    with httpx.stream("GET", f"{process.url}/v1/runs/r/follow", headers=headers) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("event: status"))
        began = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began < 5
        assert "event: end" not in list(lines)
