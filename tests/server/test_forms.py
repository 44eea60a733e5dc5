"""Answers of the reading routes: their form, their size, their freshness, and what is refused."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from recorded import (
    FEW,
    KINDS,
    ReadServer,
    batches,
    error_of,
    filled,
    reference,
    run_row,
    running,
    table_of,
)

from tachograph import host
from tachograph.backends.base import Query
from tachograph.errors import TooLarge
from tachograph.reading.listing import SILENT_US
from tachograph.records import TABLES, Batch, now_us
from tachograph.server import negotiation, readers
from tachograph.server.negotiation import choose
from tachograph.testing.builders import START, make_batch, make_block
from tachograph.wire.tables import ARROW, JSON, MOST_TERMS


@pytest.fixture(scope="module")
def full(tmp_path_factory: Any) -> Iterator[ReadServer]:
    """A server on SQLite that has received everything."""
    with filled("sqlite", tmp_path_factory.mktemp("full")) as server:
        yield server


@pytest.fixture
def few(tmp_path: Path) -> Iterator[ReadServer]:
    """A server on SQLite that has received nothing, and answers with few rows."""
    with running("sqlite", tmp_path, FEW) as server:
        yield server


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadServer]:
    """The same on a store of each kind."""
    with running(request.param, tmp_path, FEW) as server:
        yield server


TABLE_ROUTES = [
    ("/runs", {"children": True}),
    ("/runs/a1/series", {"name": "acc"}),
    ("/runs/a1/params", {}),
    ("/runs/a1/events", {}),
    ("/runs/a1/provenance", {}),
    ("/read", {"query": '{"table": "metrics"}'}),
    ("/read", {"query": '{"table": "tensors", "columns": ["histogram", "size"]}'}),
    ("/read", {"query": '{"table": "cursors"}'}),
    ("/read", {"query": '{"table": "summaries", "columns": ["name"], "span": "seq"}'}),
]

# ---------------------------------------------------------------------------- JSON and Arrow


@pytest.mark.parametrize(("path", "params"), TABLE_ROUTES, ids=str)
def test_arrow_equals_json(full: ReadServer, path: str, params: dict[str, Any]) -> None:
    """The same rows, and columns of the types that the tables have, also without a value."""
    answer = full.get(path, params=params, headers={"Accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    arrow = pyarrow.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    expected = table_of(full.get(path, params=params))
    assert repr(arrow.to_pylist()) == repr(expected.to_pylist()), "1 is not 1.0"
    types = {"text": "string", "json": "string", "int": "int64", "float": "double"}
    known = {name: kind for spec in TABLES.values() for name, kind in spec.columns.items()}
    for field in arrow.schema:
        if field.name in known and field.name not in ("value", "min", "max", "last"):  # by table
            assert str(field.type) == types[known[field.name]], field


def test_the_total_of_a_page_is_beside_the_table(full: ReadServer) -> None:
    """Arrow has it in the metadata of its schema."""
    answer = full.get("/runs", params={"limit": 1}, headers={"Accept": ARROW})
    arrow = pyarrow.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert (arrow.num_rows, arrow.schema.metadata) == (1, {b"total": b"5"})


def test_arrow_refuses_what_it_cannot_hold(full: ReadServer) -> None:
    """SQL may give a column of several kinds; the answer says what to do."""
    asked = {"text": "select 1 as a union all select 'x'"}
    assert error_of(full.post("/sql", asked, Accept=ARROW)) == (400, "query")
    assert [*table_of(full.post("/sql", asked))["a"]] == [1, "x"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", JSON),
        ("", None),
        (ARROW, ARROW),
        (f"{ARROW}, {JSON};q=0.5", ARROW),
        (f"{ARROW};q=0.1, {JSON};q=0.5", JSON),
        ("application/*", JSON),
        (f"text/html, {ARROW};q=0, */*;q=0.2", JSON),
        ("text/html", None),
        (f"{JSON};q=nonsense", None),
        (f"{JSON.upper()};charset=utf-8", JSON),
    ],
)
def test_the_client_chooses_the_form(accept: str, chosen: str | None) -> None:
    """As RFC 9110 weighs media ranges; of equal ones JSON."""
    assert choose(accept, (JSON, ARROW)) == chosen


def test_what_no_form_fits_is_refused(full: ReadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """406 says what there is; without pyarrow there is no Arrow."""
    for path in ("/runs", "/runs/a1", "/runs/a1/follow"):
        answer = full.get(path, headers={"Accept": "image/png"})
        assert error_of(answer) == (406, "not_acceptable")
    monkeypatch.setattr(negotiation, "HAS_ARROW", False)
    answer = full.get("/runs", headers={"Accept": f"{ARROW}, {JSON};q=0.1"})
    assert answer.headers["content-type"] == JSON
    refused = full.get("/runs", headers={"Accept": ARROW})
    assert error_of(refused) == (406, "not_acceptable")
    assert "pyarrow" in refused.json()["error"]["message"]


# ---------------------------------------------------------------------------- kept answers


@pytest.mark.parametrize(("path", "params"), [*TABLE_ROUTES, ("/runs/a1", {})], ids=str)
def test_an_answer_that_the_client_has_is_not_sent_again(
    full: ReadServer, path: str, params: dict[str, Any]
) -> None:
    """Each has an ETag; shared caches keep none of them, and Arrow is not JSON."""
    first = full.get(path, params=params)
    assert first.headers["cache-control"] == "private, no-cache"
    assert {"accept", "authorization"} <= set(first.headers["vary"].lower().split(", "))
    known = {"If-None-Match": f'"other", {first.headers["etag"]}'}
    again = full.get(path, params=params, headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    if path != "/runs/a1":
        assert full.get(path, params=params, headers=known | {"Accept": ARROW}).status_code == 200


def test_a_new_record_makes_a_new_answer(few: ReadServer) -> None:
    """The tag changes with the answer; a change elsewhere does not."""
    few.deliver(make_batch("w", 0, runs=[run_row("r", 1), run_row("s", 2)]))
    few.deliver(make_batch("x", 0, blocks=[make_block("r", {"loss": [1.0]})]))
    tag = few.get("/runs/r/series?name=loss").headers["etag"]
    few.deliver(make_batch("y", 0, blocks=[make_block("s", {"loss": [1.0]})]))
    unchanged = few.get("/runs/r/series?name=loss", headers={"If-None-Match": tag})
    assert unchanged.status_code == 304
    few.deliver(make_batch("x", 1, blocks=[make_block("r", {"loss": [0.5]}, seqs=[1])]))
    changed = few.get("/runs/r/series?name=loss", headers={"If-None-Match": tag})
    assert list(table_of(changed)["value"]) == [1.0, 0.5]


# ---------------------------------------------------------------------------- fresh


def test_what_was_acknowledged_is_seen_at_once(either: ReadServer) -> None:
    """Also raw, by its cursor, by a digest, and by who reads at the same time as others."""
    either.deliver(make_batch("w", 0, runs=[run_row("r", 1, status="running")]))
    for seq in range(1, 4):
        either.deliver(make_batch("w", seq, blocks=[make_block("r", {"n": [seq]}, seqs=[seq])]))
        assert list(table_of(either.get("/runs/r/series?name=n"))["step"])[-1] == seq
        assert either.get("/runs/r").json()["metrics"]["columns"]["count"] == [seq]
        cursors = either.post("/read", {"table": "cursors", "where": [["writer", "=", "w"]]})
        assert list(table_of(cursors)["next"]) == [seq + 1]
        raw = either.post("/read", {"table": "all_metrics", "raw": True, "columns": ["seq"]})
        assert sorted(table_of(raw)["seq"]) == [*range(1, seq + 1)]


def test_many_read_while_records_come(few: ReadServer) -> None:
    """Readers in several threads see every record that was acknowledged before they asked."""
    few.deliver(make_batch("w", 0, runs=[run_row("r", 1, status="running")]))
    received, problems = 0, []

    def read() -> None:
        while received < 40:
            before = received
            found = few.post("/read", {"table": "summaries", "columns": ["count"]})
            counts = list(table_of(found)["count"])
            if before and (not counts or counts[0] < before):
                problems.append((before, counts))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for seq in range(1, 41):
        few.deliver(make_batch("w", seq, blocks=[make_block("r", {"n": [seq]}, seqs=[seq])]))
        received = seq
    for thread in threads:
        thread.join()
    assert not problems


def test_a_reader_does_not_hold_up_what_comes(tmp_path: Path) -> None:
    """In the middle of a long answer from SQLite, records still reach the store."""
    with running("sqlite", tmp_path) as server:
        blocks = [make_block("r", {"n": [1.0] * 5000}, seqs=range(1, 5001))]
        server.deliver(make_batch("w", 0, runs=[run_row("r", 1)], blocks=blocks))
        assert server.server.inbox.flush(20)
        with server.server.readers.lend() as served:
            rows = served.backend._connection.execute("SELECT * FROM metrics")
            rows.fetchone()
            server.deliver(make_batch("v", 0, runs=[run_row("s", 2)]))
            assert server.server.inbox.flush(5)
            rows.close()


def test_a_run_is_lost_when_its_process_is_silent(few: ReadServer) -> None:
    """On another machine by its heartbeat, on the server's own by its process."""
    now = now_us()
    here = {"host": host.host_name(), "boot_id": host.boot_id(), "pid": 2**22 + 1}
    like_here = here | {"boot_id": "another"}  # a machine of that name elsewhere
    machines = {"alive": like_here, "silent": like_here, "gone": here}
    for name, machine in machines.items():
        seen = now - (2 * SILENT_US if name == "silent" else 0)
        batch = make_batch(
            name,
            0,
            runs=[run_row(name, 1, status="running")],
            attempts=[{"run_id": name, "attempt": 1, "status": "running"}],
            writers=[machine | {"started_at": seen, "heartbeat_at": seen}],
            heartbeat=seen,
        )
        few.deliver(batch)
    shown = {row["run_id"]: row["status"] for row in table_of(few.get("/runs"))}
    assert shown == {"alive": "running", "silent": "lost", "gone": "lost"}
    stored = table_of(few.get("/runs?lost=false"))
    assert set(stored["status"]) == {"running"}


# ---------------------------------------------------------------------------- bounded


@pytest.fixture(params=KINDS)
def long(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadServer]:
    """A server that answers with few rows, and has a series of many points."""
    with running(request.param, tmp_path, FEW) as server:
        server.deliver(long_series())
        yield server


def long_series() -> Batch:
    """A run with 300 points, the extremes in the middle."""
    values = [float((i * 7919) % 1000) for i in range(300)]
    values[150], values[170] = -5.0, 5000.0
    blocks = [make_block("r", {"loss": values}, seqs=range(1, 301))]
    return make_batch("w", 0, runs=[run_row("r", 1)], blocks=blocks)


@pytest.mark.parametrize("drained", [True, False])
def test_an_answer_of_too_many_rows_is_refused(long: ReadServer, drained: bool) -> None:
    """413 says what to do, and what it says works."""
    if drained:
        assert long.server.inbox.flush(20)
    too_large = (413, "too_large")
    assert error_of(long.get("/runs/r/series?name=loss")) == too_large
    assert error_of(long.post("/read", {"table": "metrics"})) == too_large
    assert error_of(long.post("/read", {"table": "metrics", "limit": FEW + 1})) == too_large
    assert error_of(long.post("/sql", {"text": "select * from metrics"})) == too_large
    asked = {"table": "metrics", "limit": FEW, "order": ["-step"], "columns": ["step"]}
    assert list(table_of(long.post("/read", asked))["step"]) == [*range(300, 300 - FEW, -1)]
    assert len(table_of(long.post("/sql", {"text": f"select * from metrics limit {FEW}"}))) == FEW


def test_the_store_is_not_asked_for_more_than_an_answer_has(
    long: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory is bounded also while records wait to be merged with those of the store."""
    assert long.server.inbox.flush(20)
    more = {"params": [{"run_id": "r", "path": "p", "value": "1"}]}
    blocks = [make_block("r", {"loss": [1.0]}, seqs=[1])]
    long.deliver(make_batch("v", 0, blocks=blocks, **more))
    limits: list[int | None] = []
    with long.server.readers.lend() as served:
        read = served.backend.read

        def spy(query: Query) -> Any:
            raw_of_a_run = query.raw and query.where
            if query.table in ("metrics", "summaries", "params") and not raw_of_a_run:
                limits.append(query.limit)
            return read(query)

        monkeypatch.setattr(served.backend, "read", spy)
        with pytest.raises(TooLarge):
            served.read(Query("metrics", order=["step"]))
        assert len(served.read(Query("params"))) == 1
        assert list(served.read(Query("summaries"))["count"]) == [301]
    assert len(limits) == 3
    assert all(limit is not None and FEW < limit <= FEW + 5 for limit in limits)


def test_rows_that_are_replaced_make_room_for_others(either: ReadServer) -> None:
    """A page from the store is as long as asked, though what just came hides some of its rows."""
    paths = ["p1", "p2", "p3", "p4", "p5"]
    owners = dict(zip(paths, ["a", "a", "b", "b", "b"], strict=True))
    stored = [{"run_id": owners[path], "path": path, "value": "1"} for path in paths]
    either.deliver(make_batch("w", 0, runs=[run_row("a", 1), run_row("b", 2)], params=stored))
    assert either.server.inbox.flush(20)
    gone = [row | {"deleted": 1, "changed_at": START + 10**9} for row in stored[:2]]
    either.deliver(make_batch("w", 5, params=gone))
    asked = {"table": "params", "order": ["path"], "limit": 2, "columns": ["path"]}
    assert list(table_of(either.post("/read", asked))["path"]) == ["p3", "p4"]


def test_a_long_series_is_reduced_and_digested_all_the_same(long: ReadServer) -> None:
    """Both are worked out piece by piece: the extremes are there, the digest is the same."""
    reduced = table_of(long.get("/runs/r/series?name=loss&points=10"))
    assert len(reduced) <= 10
    assert {-5.0, 5000.0} <= set(reduced["value"])
    assert (reduced["step"][0], reduced["step"][-1]) == (1, 300)
    local = reference(f"long-{long.kind}", [long_series()])
    answer = long.post("/digest", {"table": "metrics"})
    assert answer.json() == {"digest": local.digest("metrics")}


def test_reading_that_takes_too_long_is_cut_short(
    either: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQL that never ends becomes 413 in time, and the next question is answered."""
    monkeypatch.setattr(readers, "SECONDS", 0.5)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select sum(i) from n"
    began = time.monotonic()
    assert error_of(either.post("/sql", {"text": endless})) == (413, "too_large")
    assert time.monotonic() - began < 5
    assert table_of(either.post("/sql", {"text": "select 1 as a"}))["a"] == [1]


def test_who_would_wait_too_long_is_sent_away(
    full: ReadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After, so that a crowd of readers takes no memory."""
    monkeypatch.setattr(readers, "LONGEST_QUEUE", 0)
    answer = full.get("/runs")
    assert error_of(answer) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1


# ---------------------------------------------------------------------------- refused

REFUSED: list[tuple[str, str, Any, tuple[int, str]]] = [
    ("GET", "/runs?were=status", None, (400, "malformed")),
    ("GET", "/runs?where=status+%3D", None, (400, "query")),
    ("GET", "/runs?where=" + "(" * 5000, None, (400, "query")),
    ("GET", "/runs?sort=nix", None, (400, "query")),
    ("GET", "/runs?columns=metrics.", None, (400, "query")),
    ("GET", "/runs?limit=-1", None, (400, "malformed")),
    ("GET", "/runs?offset=99999999999999999999999", None, (200, "")),
    ("GET", "/runs?limit=many", None, (400, "malformed")),
    ("GET", "/runs/nobody", None, (404, "not_found")),
    ("GET", "/runs/nobody/series?name=loss", None, (404, "not_found")),
    ("GET", "/runs/a1/series", None, (400, "malformed")),
    ("GET", "/runs/a1/series?name=lss", None, (400, "query")),
    ("GET", "/runs/a1/series?name=loss&context=%7B", None, (400, "malformed")),
    ("GET", "/runs/a1/series?name=loss&context=[1]", None, (400, "malformed")),
    ("GET", "/runs/a1/series?name=loss&points=1", None, (400, "malformed")),
    ("GET", "/runs/a1/series?name=loss&rank=first", None, (400, "malformed")),
    ("GET", "/runs/a1/series?name=loss&rank=99999999999999999999", None, (400, "query")),
    ("GET", "/runs/a1/secrets", None, (404, "not_found")),
    ("GET", "/runs/a1/follow?cursor=nonsense", None, (400, "malformed")),
    ("GET", "/read?query=%7B", None, (400, "malformed")),
    ("GET", "/read?query=[]", None, (400, "query")),
    ("POST", "/read", {"table": "nix"}, (400, "query")),
    ("POST", "/read", {"table": "_points"}, (400, "query")),
    ("POST", "/read", {"table": "runs; drop table runs"}, (400, "query")),
    ("POST", "/read", {"table": "runs", "columns": ['run_id" from runs --']}, (400, "query")),
    ("POST", "/read", {"table": "runs", "where": [["run_id", "or", 1]]}, (400, "query")),
    ("POST", "/read", {"table": "runs", "where": [["run_id", "=", {}]]}, (400, "query")),
    ("POST", "/read", {"table": "runs", "where": [["run_id", "=", "\ud800"]]}, (400, "query")),
    ("POST", "/read", {"table": "runs", "where": [["seq", "=", 2**70]]}, (400, "query")),
    ("POST", "/read", {"table": "metrics", "order": ["- step"]}, (400, "query")),
    ("POST", "/read", {"table": "metrics", "limit": True}, (400, "query")),
    ("POST", "/read", {"table": "metrics", "offset": 3}, (400, "malformed")),
    ("POST", "/read", [], (400, "malformed")),
    ("POST", "/sql", {"text": 3}, (400, "query")),
    ("POST", "/sql", {"text": "select 1", "parameters": [[]]}, (400, "query")),
    ("POST", "/sql", {}, (400, "malformed")),
    ("POST", "/digest", {"table": "cursors"}, (400, "query")),
    ("POST", "/digest", {"table": "runs", "without": ["nix"]}, (400, "query")),
    ("POST", "/digest", {"table": "runs", "where": [["nix", "=", 1]]}, (400, "query")),
    ("POST", "/gc", {"dry_run": "no"}, (400, "malformed")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "document", "expected"), REFUSED, ids=str)
def test_what_cannot_be_is_refused(
    full: ReadServer, method: str, path: str, document: Any, expected: tuple[int, str]
) -> None:
    """With a clear error, never a 500, and never by ignoring what was asked."""
    content = None if document is None else json.dumps(document).encode()
    headers = {"Content-Type": JSON}
    answer = full.client.request(method, f"/v1{path}", content=content, headers=headers)
    if expected == (200, ""):
        assert answer.status_code == 200
    else:
        assert error_of(answer) == expected
        assert len(answer.json()["error"]["message"]) < 2000


def test_a_query_has_no_more_terms_than_a_store_takes(full: ReadServer) -> None:
    """So many it answers; one more is a mistake of who asks, not of the store."""
    for terms, status in ((MOST_TERMS, 200), (MOST_TERMS + 1, 400)):
        for part in ({"where": [["path", "=", "x"]] * terms}, {"order": ["path"] * terms}):
            assert full.post("/read", {"table": "params"} | part).status_code == status
        assert full.get("/runs", params={"sort": ["name"] * terms}).status_code == status


def test_comparing_what_has_no_order_is_no_fault(few: ReadServer) -> None:
    """Also where rows that are not in the store yet are compared."""
    few.deliver(make_batch("w", 0, runs=[run_row("r", 1)], blocks=[make_block("r", {"n": [1]})]))
    for operator in ("<", "like", "in", "="):
        for value in ("text", 3, 0.5, None):
            for column in ("step", "name"):
                wanted = [value] if operator == "in" else value
                asked = {"table": "metrics", "where": [[column, operator, wanted]]}
                assert few.post("/read", asked).status_code in (200, 400), asked


def test_a_body_of_another_kind_is_refused(full: ReadServer) -> None:
    """415 for what is not JSON, 400 for what is none."""
    headers = {"Content-Type": "text/csv"}
    answer = full.client.post("/v1/read", content=b"a,b", headers=headers)
    assert error_of(answer) == (415, "media_type")
    answer = full.client.post("/v1/read", content=b"{", headers={"Content-Type": JSON})
    assert error_of(answer) == (400, "malformed")


def test_a_filter_cannot_stop_the_server(few: ReadServer) -> None:
    """A pattern that would take years to try in all ways is answered at once."""
    few.deliver(make_batch("w", 0, runs=[run_row("r", 1, name="a" * 80)]))
    started = time.monotonic()
    answer = few.get("/runs", params={"where": f"name like '{'%a' * 20}b'"})
    assert len(table_of(answer)) == 0
    assert len(table_of(few.get("/runs", params={"where": f"name like '{'%a' * 20}'"}))) == 1
    assert time.monotonic() - started < 5


# ---------------------------------------------------------------------------- about, garbage


def test_the_server_says_what_it_is_and_what_the_token_may(full: ReadServer) -> None:
    """Versions, limits, rights and projects, for any token."""
    found = full.get("").json()
    assert found["protocols"] == [1]
    assert found["limits"]["answer_rows"] == 1_000_000
    assert found["token"] == {"name": "admin", "rights": ["admin"], "projects": None}
    assert full.get("", token=full.apple).json()["token"]["projects"] == ["apple"]


def test_deleted_runs_are_freed_when_told(tmp_path: Path) -> None:
    """A dry run says what would be freed; only who may everything may free it."""
    with running("sqlite", tmp_path) as server:
        server.deliver(*batches())
        first = server.post("/gc", {}).json()
        assert (first["dry_run"], first["runs"], first["points"]) == (True, ["a4"], 1)
        freed = server.post("/gc", {"dry_run": False}).json()
        assert (freed["dry_run"], freed["runs"]) == (False, ["a4"])
        assert server.post("/gc", {}).json()["runs"] == []
        assert error_of(server.post("/gc", {}, token=server.apple)) == (403, "forbidden")
