"""Batches over HTTP: every form is taken once, and only of runs that the token is for."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tachograph.records import Batch
from tachograph.server.app import make_app
from tachograph.server.settings import Limits, ServerSettings
from tachograph.server.tokens import Tokens
from tachograph.testing import START, make_batch, make_block
from tachograph.wire.encoding import MEDIA_TYPE, compress, encode

Send = Callable[..., httpx.Response]


@pytest.fixture
def send(client: TestClient, tokens: Tokens) -> Send:
    """Sends a batch, with the admin's token or with one for some projects."""
    made: dict[tuple[str, ...], str] = {}

    def send(batch: Batch, *projects: str) -> httpx.Response:
        headers = {"Content-Type": MEDIA_TYPE, "Content-Encoding": "deflate"}
        if projects:
            if projects not in made:
                made[projects] = tokens.create("-".join(projects), projects=projects)
            headers["Authorization"] = f"Bearer {made[projects]}"
        return client.post("/v1/batches", content=compress(encode(batch)), headers=headers)

    return send


def points(writer: str, first: int = 0, after: int = 3, run_id: str = "r") -> Batch:
    """Points of a run."""
    seqs = range(first, after)
    block = make_block(run_id, {"loss": [float(seq) for seq in seqs]}, seqs=seqs)
    return make_batch(writer, first, after, blocks=[block])


def run(writer: str, run_id: str, project: str | None, **columns: Any) -> Batch:
    """The row of a run."""
    row = {"run_id": run_id, "root_id": run_id, "project": project, **columns}
    return make_batch(writer, 0, runs=[row])


def read(client: TestClient, table: str, **query: Any) -> list[dict[str, Any]]:
    """Rows of a table, as the server gives them."""
    columns = client.post("/v1/read", json={"table": table, **query}).json()["columns"]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def error(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return answer.status_code, answer.json()["error"]["code"]


# ---------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("deflate", zlib.compress),
        ("deflate", lambda payload: zlib.compress(payload, 9)),
        ("gzip", gzip.compress),
        ("identity", bytes),
        (None, bytes),
    ],
)
def test_every_encoding_is_taken(
    client: TestClient, encoding: str | None, pack: Callable[[bytes], bytes]
) -> None:
    """And what was sent in parts of different encodings is one record."""
    headers = {"Content-Type": MEDIA_TYPE} | ({"Content-Encoding": encoding} if encoding else {})
    for first in (0, 3):
        body = pack(encode(points("w", max(0, first - 1), first + 3)))
        answer = client.post("/v1/batches", content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"next": first + 3, "interval": 1.0})
    found = read(client, "metrics", order=["seq"])
    assert [(row["seq"], row["value"]) for row in found] == [(n, float(n)) for n in range(6)]


def test_json_is_taken(client: TestClient) -> None:
    """As the page of the protocol shows it."""
    document = {
        "writer": "0198c7e2-0000-7000-8000-000000000000",
        "first": 0,
        "next": 3,
        "heartbeat": START,
        "rows": {
            "runs": [
                {
                    **{"seq": 0, "run_id": "r1", "root_id": "r1", "kind": "run"},
                    **{"project": "churn", "status": "running", "attempt": 1},
                    **{"started_at": START, "changed_at": START},
                }
            ]
        },
        "points": [
            {
                **{"run_id": "r1", "names": ["loss", "accuracy"], "context": {"phase": "train"}},
                **{"rank": 0, "attempt": 1},
                "rows": [
                    [1, START + 1, 10, 0.5, [0.25, 0.9]],
                    [2, START + 2, 20, 1.0, ["nan", 0.91]],
                ],
            }
        ],
    }
    answer = client.post("/v1/batches", json=document)
    assert answer.json()["next"] == 3
    assert [row["name"] for row in read(client, "runs")] == [None]
    found = read(client, "metrics", where=[["name", "=", "loss"]], order=["seq"])
    assert [(row["step"], row["value"], row["special"]) for row in found] == [
        (10, 0.25, None),
        (20, None, "nan"),
    ]


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"Content-Type": "text/csv"}, b"", (415, "media_type")),
        ({}, b"", (415, "media_type")),
        ({"Content-Type": MEDIA_TYPE, "Content-Encoding": "br"}, b"", (415, "media_type")),
        ({"Content-Type": MEDIA_TYPE}, b"nothing", (400, "malformed")),
        ({"Content-Type": MEDIA_TYPE}, b"", (400, "malformed")),
        ({"Content-Type": MEDIA_TYPE, "Content-Encoding": "deflate"}, b"x", (400, "malformed")),
        ({"Content-Type": "application/json"}, b"{", (400, "malformed")),
        ({"Content-Type": "application/json; charset=utf-8"}, b"{}", (400, "malformed")),
        ({"Content-Type": "application/json"}, b"[" * 100_000, (400, "malformed")),
        ({"Content-Type": "application/json"}, b"[" + b"0," * 1_000_001, (413, "too_large")),
    ],
)
def test_what_is_no_batch_is_refused(
    client: TestClient, headers: dict[str, str], body: bytes, expected: tuple[int, str]
) -> None:
    """With a 4xx that says why."""
    assert error(client.post("/v1/batches", content=body, headers=headers)) == expected


def test_sizes_are_bounded(server_settings: ServerSettings, tokens: Tokens) -> None:
    """A body by what is sent, and by what it unpacks to."""
    limits = Limits(body_bytes=100_000, batch_bytes=1_000_000)
    token = tokens.create("admin", rights=("admin",))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": MEDIA_TYPE}
    with TestClient(make_app(replace(server_settings, limits=limits))) as client:
        body = bytes(100_001)
        assert error(client.post("/v1/batches", content=body, headers=headers))[0] == 413
        headers["Content-Encoding"] = "deflate"
        bomb = zlib.compress(bytes(1_000_001))
        assert len(bomb) < 2000
        answer = client.post("/v1/batches", content=bomb, headers=headers)
        assert error(answer) == (413, "too_large")
        answer = client.post("/v1/batches", content=compress(encode(points("w"))), headers=headers)
        assert answer.status_code == 200


# ---------------------------------------------------------------------------- once


def test_answers_say_what_is_expected_next(client: TestClient, send: Send) -> None:
    """To a batch, a repeat, a gap, an empty one, and to the question."""
    assert send(points("w", 0, 3)).json()["next"] == 3
    assert send(points("w", 0, 3)).json()["next"] == 3
    gap = send(points("w", 5, 6))
    assert error(gap) == (409, "gap")
    assert gap.json()["error"]["expected"] == 3
    assert send(Batch("w", 0, 0, heartbeat=START)).json()["next"] == 3
    assert client.get("/v1/writers/w").json() == {"next": 3}
    assert client.get("/v1/writers/stranger").json() == {"next": 0}
    assert read(client, "cursors") == [{"writer": "w", "next": 3}]
    assert len(read(client, "metrics")) == 3


def test_writer_is_an_id(client: TestClient) -> None:
    """Nothing else is looked up."""
    assert error(client.get("/v1/writers/a.b")) == (400, "malformed")
    assert error(client.get(f"/v1/writers/{'w' * 65}")) == (400, "malformed")


def test_token_needs_the_right_to_write(client: TestClient, tokens: Tokens) -> None:
    """For batches and for the question."""
    headers = {"Authorization": f"Bearer {tokens.create('reader', rights=('read',))}"}
    assert error(client.post("/v1/batches", json={}, headers=headers)) == (403, "forbidden")
    assert error(client.get("/v1/writers/w", headers=headers)) == (403, "forbidden")


def test_points_count_against_the_token(server_settings: ServerSettings, tokens: Tokens) -> None:
    """What would be too much in a minute is refused, and says when to come again."""
    settings = replace(server_settings, limits=Limits(token_points=1))
    headers = {"Authorization": f"Bearer {tokens.create('busy')}", "Content-Type": MEDIA_TYPE}
    with TestClient(make_app(settings), headers=headers) as client:

        def post(batch: Batch) -> httpx.Response:
            return client.post("/v1/batches", content=encode(batch))

        assert post(points("w", 0, 40)).status_code == 200
        refused = post(points("w", 40, 80))
        assert error(refused) == (429, "limit")
        assert 0 < int(refused.headers["Retry-After"]) <= 60
        assert error(post(points("w", 40, 200)))[0] == 413
        assert post(Batch("w", 0, 0)).json()["next"] == 40


# ---------------------------------------------------------------------------- projects


@pytest.fixture(params=["remembered", "in the journal", "in the store"])
def settle(request: pytest.FixtureRequest, client: TestClient) -> Callable[[], None]:
    """Called after what comes before: where the server finds it then."""

    def settle() -> None:
        server: Any = client.app.state.server  # type: ignore[attr-defined]
        if request.param != "remembered":
            server.ownership._said.clear()
        if request.param == "in the store":
            assert server.inbox.flush(30)

    return settle


def test_token_writes_to_runs_of_its_projects(send: Send, settle: Callable[[], None]) -> None:
    """It begins a run, and goes on with it, also as another writer and through its children."""
    assert send(run("w", "r", "churn"), "churn").status_code == 200
    settle()
    assert send(points("w", 1, 4), "churn").status_code == 200
    assert send(points("v"), "churn", "fraud").status_code == 200
    child = run("c", "child", None, root_id="r", parent_id="r")
    assert send(child, "churn").status_code == 200
    settle()
    assert send(points("c", 1, 3, "child"), "churn").status_code == 200


def test_token_writes_to_no_run_of_another_project(
    client: TestClient, send: Send, settle: Callable[[], None]
) -> None:
    """Whatever it says of that run; and nothing of such a batch is kept."""
    assert send(run("w", "r", "churn")).status_code == 200
    assert send(run("n", "none", None)).status_code == 200
    assert send(run("c", "child", None, root_id="r", parent_id="r")).status_code == 200
    settle()
    far = 2**52  # a change that would win
    refused = [
        points("x"),
        points("x", run_id="none"),
        points("x", run_id="child"),
        points("x", run_id="unknown"),
        run("x", "r", "fraud", changed_at=far),
        run("x", "r", None, changed_at=far, status="finished"),
        run("x", "none", "fraud", changed_at=far),
        run("x", "child", "fraud", root_id="child", changed_at=far),
        run("x", "new", "fraud", root_id="r"),
        run("x", "new", "fraud", parent_id="r"),
        run("x", "new", "churn"),
        run("x", "new", None),
        make_batch("x", 0, tags=[{"run_id": "r", "key": "k"}]),
        make_batch("x", 0, events=[{"run_id": "unknown", "message": "m"}]),
        make_batch("x", 0, tensors=[{"run_id": "r", "name": "n", "kind": "weight"}]),
        make_batch(
            "x",
            0,
            runs=[{"run_id": "mine", "root_id": "mine", "project": "fraud"}],
            blocks=[make_block("mine", {"a": [1.0]}), make_block("r", {"a": [1.0]})],
        ),
    ]
    for batch in refused:
        assert error(send(batch, "fraud")) == (403, "forbidden"), batch
    assert client.get("/v1/writers/x").json() == {"next": 0}
    assert {row["run_id"] for row in read(client, "runs")} == {"r", "none", "child"}


def test_run_cannot_be_moved_out_of_a_tokens_projects(
    send: Send, settle: Callable[[], None]
) -> None:
    """But between two of its own, and then whoever is for the old one has no more of it."""
    assert send(run("w", "r", "churn"), "churn").status_code == 200
    settle()
    later = {"changed_at": START + 10**9}
    assert send(run("x", "r", "fraud", **later), "churn").status_code == 403
    assert send(run("y", "r", "fraud", **later), "churn", "fraud").status_code == 200
    settle()
    assert send(points("w", 1, 2), "churn").status_code == 403
    assert send(points("z"), "fraud").status_code == 200


def test_run_that_changes_often_stays_where_it_is(send: Send, settle: Callable[[], None]) -> None:
    """The latest row decides, in whatever order and number they come."""
    times = [5, 90, 7, 30, 1, 60, 2, 80, 3, 70, 4, 50]
    projects = ["churn" if time == max(times) else "fraud" for time in times]
    rows = [
        {"run_id": "r", "project": project, "changed_at": START + time}
        for time, project in zip(times, projects, strict=True)
    ]
    rows.append({"run_id": "r", "root_id": "r", "changed_at": START})
    assert send(make_batch("w", 0, runs=rows)).status_code == 200
    settle()
    assert send(points("x"), "fraud").status_code == 403
    assert send(points("x"), "churn").status_code == 200


def test_deleted_run_is_nobody_elses(send: Send, settle: Callable[[], None]) -> None:
    """A token for another project cannot bring back what it then may read."""
    assert send(run("w", "r", "churn")).status_code == 200
    gone = {"run_id": "r", "deleted": 1, "changed_at": START + 10**9}
    assert send(make_batch("e", 0, runs=[gone])).status_code == 200
    settle()
    taken = run("x", "r", "fraud", deleted=0, changed_at=START + 10**10)
    assert send(taken, "fraud").status_code == 403
    assert send(taken, "churn", "fraud").status_code == 200


def test_batch_that_is_not_taken_claims_no_run(send: Send) -> None:
    """A gap stores nothing, so the run is still to be had."""
    assert error(send(make_batch("w", 5, runs=[{"run_id": "r", "project": "churn"}]), "churn")) == (
        409,
        "gap",
    )
    assert send(run("v", "r", "fraud"), "fraud").status_code == 200
    assert send(points("w", 0, 1), "churn").status_code == 403


def test_row_of_a_writer_needs_no_run(client: TestClient, send: Send) -> None:
    """Nor does a heartbeat; a token for some projects sends both."""
    assert send(make_batch("w", 0, writers=[{"pid": 7}]), "churn").status_code == 200
    assert send(Batch("w", 1, 1, heartbeat=START), "churn").json()["next"] == 1
    assert [row["pid"] for row in read(client, "writers", where=[["writer", "=", "w"]])] == [7]


def test_examples_of_the_page_are_taken(client: TestClient) -> None:
    """The batch that protocol.md shows is one."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "protocol.md"
    text = page.read_text().split("### A batch in JSON")[1].split("```json")[1].split("```")[0]
    document = json.loads(text.replace("…", "0"))
    assert client.post("/v1/batches", json=document).json()["next"] == document["next"]
