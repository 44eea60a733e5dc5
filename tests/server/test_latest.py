"""Following a run from its last points on: exactly so many, whoever recorded them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tachograph.testing.builders import START, make_batch, make_block
from tachograph.wire.encoding import MEDIA_TYPE, encode

RUN = {"run_id": "r", "root_id": "r", "status": "finished", "started_at": START, "seq": 0}


@pytest.fixture
def follow(client: TestClient) -> Any:
    """Sends two writers' records of one run, and follows it: the points that come."""
    # Writer b has one point every 10 records of a, and an event with each.
    many = make_block("r", {"x": [float(n) for n in range(100)], "y": [0.5] * 100})
    few = make_block("r", {"x": [-float(n) for n in range(10)]}, seqs=range(0, 100, 10), rank=1)
    events = [{"run_id": "r", "time": START + n, "kind": "note", "seq": n} for n in range(100)]
    for batch in (
        make_batch("a", 0, 101, blocks=[many], runs=[RUN]),
        make_batch("b", 0, 101, blocks=[few], events=events),
    ):
        headers = {"Content-Type": MEDIA_TYPE}
        assert client.post("/v1/batches", content=encode(batch), headers=headers).is_success

    def ask(cursor: str | None = None, **params: Any) -> list[tuple[str, str, float]]:
        headers = {} if cursor is None else {"Last-Event-ID": cursor}
        answer = client.get("/v1/runs/r/follow", params=params, headers=headers)
        assert answer.status_code == 200, answer.text
        found = []
        for text in answer.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
            if fields.get("event") == "point":
                row = json.loads(fields["data"])
                found.append((fields["id"], row["name"], row["value"]))
        return found

    return ask


def values(found: list[tuple[str, str, float]]) -> list[tuple[str, float]]:
    """Without the cursors, in an order of their own."""
    return sorted((name, value) for _, name, value in found)


@pytest.mark.parametrize(
    ("last", "names", "expected"),
    [
        (0, [], []),
        (1, [], [("y", 0.5)]),
        (3, [], [("x", 99.0), ("y", 0.5), ("y", 0.5)]),
        (4, ["x"], [("x", 96.0), ("x", 97.0), ("x", 98.0), ("x", 99.0)]),
        (11, ["x"], [("x", -9.0), *(("x", float(n)) for n in range(90, 100))]),
    ],
)
def test_so_many_points_come(
    follow: Any, last: int, names: list[str], expected: list[tuple[str, float]]
) -> None:
    """The last by their time, of one record perhaps only some; of these metrics alone."""
    assert values(follow(last=last, name=names)) == expected


def test_where_it_began_does_not_matter_to_what_follows(follow: Any) -> None:
    """A cursor from such a beginning goes on behind it, each point once."""
    found = follow(last=30)
    assert len(found) == 30
    for at in (0, 7, 28):
        assert values(follow(found[at][0], last=5)) == values(found[at + 1 :])
    everything = follow()
    assert len(everything) == 210
    assert values(follow(last=1000)) == values(everything)


def test_how_many_is_a_number_within_bounds(client: TestClient, follow: Any) -> None:
    """What cannot be is refused before anything is read."""
    for last in ("-1", "1001", "all"):
        assert client.get("/v1/runs/r/follow", params={"last": last}).status_code == 400
