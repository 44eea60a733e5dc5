"""The store behind a server, in this process and without a port; and its parts by themselves."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from remote_contract import RemoteContract

from tachograph.backends import remote_reading
from tachograph.backends.base import Backend, Condition, Query
from tachograph.backends.memory import MemoryBackend
from tachograph.backends.remote import RemoteBackend
from tachograph.backends.remote_following import Event, parse_events
from tachograph.backends.remote_pace import Pace, cut
from tachograph.backends.remote_reading import read_in_pages
from tachograph.errors import QueryError, StoreError, TooLarge
from tachograph.records import Batch
from tachograph.server.app import make_app
from tachograph.server.news import News, as_event
from tachograph.server.settings import ServerSettings
from tachograph.server.tokens import Tokens
from tachograph.table import Table
from tachograph.testing import make_batch, make_block
from tachograph.transfer.copying import copy_store
from tachograph.wire.encoding import decode

# ---------------------------------------------------------------------------- the contract


class TestRemoteInProcess(RemoteContract):
    """The contract on an application that is called without a port, with JSON, over SQLite."""

    scheme = "sqlite"

    @pytest.fixture(autouse=True)
    def without_arrow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where pyarrow is not installed."""
        monkeypatch.setitem(sys.modules, "pyarrow", None)

    @pytest.fixture
    def backend_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """A server of its own, on a new store."""
        made = ServerSettings((f"{self.scheme}:///{tmp_path}/store/runs.db",), tmp_path / "server")
        token = Tokens(made.folder).create("admin", rights=("admin",))
        monkeypatch.setenv("TACHOGRAPH_TOKEN", token)
        with TestClient(make_app(made), raise_server_exceptions=False) as self.client:
            yield "http://testserver"

    def open_backend(self, url: str, create: bool = True) -> Backend:
        """A client of that server."""
        return RemoteBackend(url, create=create, client=self.client)

    def test_what_write_returned_survives_a_kill(self, backend_url: str) -> None:
        """Another process cannot reach an application in this one; over a socket it can."""


def test_copy_of_some_projects_leaves_room_for_the_others(tmp_path: Path) -> None:
    """A writer recorded into two: a token for one must not claim the records of the other."""
    made = ServerSettings((f"sqlite:///{tmp_path}/runs.db",), tmp_path / "server")
    tokens, destination = Tokens(made.folder), MemoryBackend("memory://projects", create=True)
    admin = tokens.create("admin", rights=("admin",))
    reader = tokens.create("reader", rights=("read",), projects=("one",))
    runs = [{"run_id": name, "project": name, "root_id": name} for name in ("one", "two")]
    blocks = [make_block(name, {"loss": [1.0]}, seqs=[2]) for name in ("one", "two")]
    with TestClient(make_app(made)) as client:
        source = RemoteBackend("http://testserver", create=True, client=client)
        client.headers["Authorization"] = f"Bearer {admin}"
        source.write(make_batch("w", 0, 3, blocks=blocks, runs=runs))
        for token, points in ((reader, 1), (admin, 1), (reader, 0)):
            client.headers["Authorization"] = f"Bearer {token}"
            assert copy_store(source, destination).points == points
    assert set(destination.read(Query("runs"))["run_id"]) == {"one", "two"}


# ---------------------------------------------------------------------------- pages


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of few rows are not given up here."""
    monkeypatch.setattr(remote_reading, "FEWEST_ROWS", 4)


def bounded(store: MemoryBackend, most: int, asked: list[Query]) -> Callable[[Query], Table]:
    """Ask a store that gives at most so many rows, as a server does."""

    def ask(query: Query) -> Table:
        asked.append(query)
        found = store.read(query)
        if len(found) > most:
            raise TooLarge("too many rows")
        return found

    return ask


calls = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(1, 3)), max_size=25
)


@settings(max_examples=60, deadline=None, database=None)
@given(calls, st.integers(8, 30), st.integers(8, 40), st.none() | st.integers(0, 20), st.booleans())
def test_pages_are_the_whole_answer(
    drawn: list[tuple[str, int, int]], most: int, page: int, limit: int | None, ordered: bool
) -> None:
    """However the rows lie, none is lost at a cut, none comes twice, and order and limit hold."""
    store = MemoryBackend(f"memory://{object()}", create=True)
    counts = dict.fromkeys("abc", 0)
    for writer, run, metrics in drawn:
        seq = counts[writer]
        counts[writer] += 1
        values = {f"m{i}": [float(i)] for i in range(metrics)}
        block = make_block(f"r{run}", values, seqs=[seq])
        tags = [{"run_id": f"r{run}", "key": writer, "value": str(seq), "seq": seq}]
        store.write(make_batch(writer, seq, blocks=[block], tags=tags))
    order = ("-value", "seq", "writer", "run_id") if ordered else ()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remote_reading, "PAGE_ROWS", page)
        for table in ("metrics", "summaries", "tags", "cursors"):
            by = order if table == "metrics" else ("writer",) if ordered else ()
            query = Query(table, order=by, limit=limit)
            found = read_in_pages(bounded(store, most, []), query)
            whole = store.read(Query(table, order=by))
            assert found.columns == whole.columns
            assert len(found) == min(len(whole), len(whole) if limit is None else limit)
            if ordered:
                names = [name.removeprefix("-") for name in by]
                assert found.select(names) == whole.take(range(len(found))).select(names)
            rows = [repr(row) for row in whole]
            for row in map(repr, found):
                rows.remove(row)  # fails where one comes twice
        spans = Query(
            "metrics", columns=("run_id", "writer"), order=("writer", "run_id"), span="seq"
        )
        assert read_in_pages(bounded(store, most, []), spans) == store.read(spans)


def test_pages_keep_columns_and_conditions() -> None:
    """What is asked for beside the question, to cut by, does not show."""
    store = MemoryBackend("memory://pages", create=True)
    block = make_block("r", {"loss": [float(i) for i in range(50)]})
    store.write(make_batch("w", 0, blocks=[block]))
    asked: list[Query] = []
    where = [Condition("value", ">=", 10.0)]
    query = Query("metrics", where, ["value"], ["-step"], 7)
    found = read_in_pages(bounded(store, 20, asked), query)
    assert found.columns == ("value",)
    assert list(found["value"]) == [49.0, 48.0, 47.0, 46.0, 45.0, 44.0, 43.0]
    assert all(query.where[0] == where[0] for query in asked)


def test_pages_ask_as_seldom_as_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is too large is found out once, not for every page."""
    monkeypatch.setattr(remote_reading, "PAGE_ROWS", 64)
    store = MemoryBackend("memory://seldom", create=True)
    block = make_block("r", {"loss": [float(i) for i in range(200)]})
    store.write(make_batch("w", 0, blocks=[block]))
    asked: list[Query] = []
    found = read_in_pages(bounded(store, 20, asked), Query("metrics"))
    assert list(found["seq"]) == list(range(200))
    assert len(asked) <= 2 + 200 // 15 + 1


def test_record_that_no_answer_can_hold_is_said() -> None:
    """A call with more metrics than the server gives rows: an error, not an endless loop."""
    store = MemoryBackend("memory://wide", create=True)
    values = {f"m{i}": [0.5] for i in range(30)}
    store.write(make_batch("w", 0, blocks=[make_block("r", values)]))
    with pytest.raises((QueryError, TooLarge), match="too many rows"):
        read_in_pages(bounded(store, 20, []), Query("metrics"))


# ---------------------------------------------------------------------------- pace


def test_pace_approaches_a_second() -> None:
    """Whatever a server takes a second, requests soon last about as long, and stay in bounds."""
    for speed in (2_000, 100_000, 3_000_000, 10**9):
        pace = Pace(size=1 << 20, least=1 << 14, most=8 << 20, seconds=1.0)
        for _ in range(40):
            pace.took(pace.size, pace.size / speed)
        assert min(max(speed, 1 << 14), 8 << 20) == pytest.approx(pace.size, rel=0.3)


def test_pace_learns_nothing_from_little() -> None:
    """A heartbeat is quick on any line, and fails on any server that hangs."""
    pace = Pace(size=1 << 20, least=1 << 14, most=8 << 20, seconds=1.0)
    pace.took(100, 0.001)
    pace.took(100, 30.0)
    pace.failed(100)
    assert pace.size == 1 << 20


def test_pace_goes_down_after_failures_and_stays_below_what_is_refused() -> None:
    """A line of 1 kB/s is reached in a few steps; what a server refuses is not tried again."""
    pace = Pace(size=1 << 20, least=1 << 14, most=8 << 20, seconds=1.0)
    pace.failed(100_000)
    assert pace.size == 50_000
    for _ in range(6):
        pace.failed(pace.size)
    assert pace.size == 1 << 14
    pace.refused(5000)
    for _ in range(30):
        pace.took(pace.size, 0.001)
    assert pace.size == 2500


@pytest.mark.parametrize("size", [1, 500, 5_000, 10**9])
def test_cut_batches_are_the_batch(size: int) -> None:
    """Pieces follow each other, have a record at least, and about the size that is asked for."""
    block = make_block("r", {"loss": [float(i) for i in range(300)]}, seqs=range(0, 600, 2))
    events = [{"run_id": "r", "seq": 7, "message": "x" * 2000}]
    batch = make_batch("w", 0, 600, blocks=[block], events=events, heartbeat=5)
    seqs, rest, pieces = [], batch, 0
    while rest.next > rest.first:
        piece, payload = cut(rest, size)
        assert (piece.first, piece.heartbeat) == (rest.first, 5)
        assert decode(payload) == piece
        assert len(payload) <= 1.5 * size or piece.next - piece.first == 1
        seqs += [seq for block in piece.blocks for seq in block.seqs()]
        rest = rest.since(piece.next)
        pieces += 1
    assert seqs == list(range(0, 600, 2))
    assert pieces <= (600 if size == 1 else 2 + 4 * 40_000 // size)
    assert cut(Batch("w", 3, 3), size)[0] == Batch("w", 3, 3)


# ---------------------------------------------------------------------------- events


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_come_whole_however_they_are_cut(size: int) -> None:
    """Bytes arrive in any pieces; characters that end lines elsewhere are text here."""
    text = (
        ': hello\n\nid: 1\nevent: point\ndata: {"value": 0.5}\n\n'
        'id: 2\r\nevent: event\r\ndata: {"message":\r\ndata: "a\u2028b\x85é"}\r\n\r\n'
        "id: 3\n\ndata: cut"
    ).encode()
    chunks = (text[i : i + size] for i in range(0, len(text), size))
    events = list(parse_events(chunks))
    assert [event.kind for event in events] == ["comment", "point", "event"]
    assert [event.id for event in events] == ["", "1", "2"]
    assert events[2].row() == {"message": "a\u2028b\x85é"}


def test_infinite_epoch_is_heard() -> None:
    """JSON has no number for it."""
    news = News("1", "point", {"step": 1, "epoch": math.inf})
    (event,) = parse_events([as_event(news).encode()])
    assert event.row() == news.row


def test_event_without_a_row_is_an_error() -> None:
    """A stream of something else is not followed in silence."""
    for data in ("", "[1]", "{"):
        with pytest.raises(StoreError, match="'7' holds no row"):
            Event("7", "point", data).row()


# ---------------------------------------------------------------------------- imports


def run(code: str) -> str:
    """What a fresh process prints, or where it fails how."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr


def test_httpx_is_imported_by_the_first_request() -> None:
    """To make a client costs a training nothing but its own few files."""
    code = (
        "import sys\n"
        "from tachograph.registry import open_backend\n"
        "open_backend('http://127.0.0.1:1', create=True)\n"
        "print('httpx' in sys.modules)"
    )
    assert run(code) == "False"


def test_missing_httpx_says_what_to_install() -> None:
    """The message of any other store whose library is missing, and before the first request."""
    code = (
        "import sys\n"
        "sys.modules['httpx'] = None\n"
        "from tachograph.registry import open_backend\n"
        "open_backend('https://lab.example', create=True)\n"
    )
    said = run(code)
    assert "the https store needs 'httpx', which is not installed" in said
    assert "pip install 'tachograph[remote]'" in said
