"""The SQLite store obeys the laws of all stores, and those of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tachograph.backends.base import Condition, Query
from tachograph.backends.sqlite import SQLiteBackend
from tachograph.errors import QueryError, StoreError, StoreNotFound, StoreTooNew
from tachograph.records import TABLES, Batch
from tachograph.testing import BackendContract, dump, make_batch, make_block

WRITE_ON = """
import sys
from tachograph.backends.sqlite import SQLiteBackend
from tachograph.testing import make_batch, make_block
url, writer, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
backend = SQLiteBackend(url, create=True)
for batch in range(batches):
    seqs = range(batch * 50, batch * 50 + 50)
    names = [f"metric{i}" for i in range(20)]
    block = make_block("r", {name: [float(seq) for seq in seqs] for name in names}, seqs=seqs)
    print(backend.write(make_batch(writer, batch * 50, blocks=[block])), flush=True)
backend.close()
"""

ROUNDS = 100
OPEN_MANY = f"""
import sys, time
from tachograph.backends.sqlite import SQLiteBackend
folder, start = sys.argv[1], float(sys.argv[2])
for number in range({ROUNDS}):
    time.sleep(max(0.0, start + number * 0.03 - time.time()))
    SQLiteBackend(f"sqlite://{{folder}}/{{number}}.sqlite", create=True).close()
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A file that does not exist yet."""
    return f"sqlite://{tmp_path}/folder/runs.sqlite"


@pytest.fixture
def backend(url: str) -> Iterator[SQLiteBackend]:
    """A new store with a run and some points."""
    backend = SQLiteBackend(url, create=True)
    block = make_block("r", {"loss": [2.0, float("nan")], "acc": [0.5, -0.0]})
    runs = [{"run_id": "r", "name": "first"}]
    backend.write(make_batch("w", 0, blocks=[block], runs=runs, tags=[{"run_id": "r", "key": "k"}]))
    yield backend
    backend.close()


def write_on(url: str, writer: str, batches: int) -> subprocess.Popen[str]:
    """A process that writes batches of 50 calls with 20 metrics, and prints after each."""
    command = [sys.executable, "-c", WRITE_ON, url, writer, str(batches)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class TestSQLiteBackend(BackendContract):
    """The contract, on a file."""

    backend_class = SQLiteBackend

    @pytest.fixture
    def backend_url(self, tmp_path: Path) -> str:
        """A file that does not exist yet."""
        return f"sqlite://{tmp_path}/folder/runs.sqlite"


# ---------------------------------------------------------------------------- an open file


def test_any_sqlite_tool_reads_the_views(backend: SQLiteBackend) -> None:
    """Each table is a view with the columns of the records, without a line of ours."""
    connection = sqlite3.connect(backend.path)
    for name, spec in (*TABLES.items(), ("all_metrics", TABLES["metrics"])):
        cursor = connection.execute(f"select * from {name}")
        assert tuple(column[0] for column in cursor.description) == tuple(spec.columns), name
    points = connection.execute("select name, step, value, special from metrics order by 1, 2")
    assert points.fetchall() == [
        ("acc", 0, 0.5, None),
        ("acc", 1, 0.0, "-0"),
        ("loss", 0, 2.0, None),
        ("loss", 1, None, "nan"),
    ]
    connection.close()


def test_shared_parts_are_stored_once(backend: SQLiteBackend) -> None:
    """A call's step and time stand once for all its metrics, a document once for all runs."""
    rows = [{"run_id": f"r{i}", "section": "diff", "document": "[1]", "seq": 2} for i in range(9)]
    backend.write(make_batch("w", 2, provenance=rows))
    connection = sqlite3.connect(backend.path)
    count = "select (select count(*) from _calls), (select count(*) from _documents)"
    assert connection.execute(count).fetchone() == (2, 1)
    connection.close()


def test_points_are_found_by_series_and_call(backend: SQLiteBackend) -> None:
    """Reading one series walks over its own points only, whatever else its writer recorded."""
    where = tuple(Condition(name, "=", "x") for name in ("run_id", "name", "context"))  # type: ignore[arg-type]
    assert len(backend.read(Query("metrics", where))) == 0
    plan = "explain query plan select value from metrics where run_id = ? and name = ?"
    steps = [row["detail"] for row in backend.sql(plan, ["r", "loss"])]
    assert [step.split()[1] for step in steps] == ["r", "s", "w", "p", "c"]
    assert all(step.startswith("SEARCH") for step in steps)


def test_no_adapter_is_looked_for_point_by_point(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each None that sqlite3 is given it looks for one, which doubles the time of a point."""
    asked: list[None] = []
    key = (type(None), sqlite3.PrepareProtocol)
    monkeypatch.setitem(sqlite3.adapters, key, asked.append)
    values = [0.5, float("nan"), float("inf"), 0.0, -0.0] * 100
    block = make_block("r", {"loss": values}, seqs=range(2, 502), steps=[None] * 500)
    backend.write(make_batch("w", 2, blocks=[block]))
    assert len(asked) < 50


def test_store_says_what_it_is(backend: SQLiteBackend) -> None:
    """The header names the program and the version of the format."""
    backend.close()
    header = backend.path.read_bytes()[:100]
    assert header[68:72] == b"Tach"
    assert int.from_bytes(header[60:64], "big") == 1


# ---------------------------------------------------------------------------- opening


def test_newer_format_is_refused(backend: SQLiteBackend, url: str) -> None:
    """A store of a newer version says so, and is left alone."""
    backend.close()
    connection = sqlite3.connect(backend.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreTooNew, match="version 99"):
        SQLiteBackend(url, create=True)


@pytest.mark.parametrize("content", [b"not a store, but a text" * 100, b"short"])
def test_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is not SQLite is named, and not touched."""
    path = tmp_path / "notes.sqlite"
    path.write_bytes(content)
    for create in (False, True):
        with pytest.raises(StoreError, match=r"notes\.sqlite"):
            SQLiteBackend(f"sqlite://{path}", create=create)
    assert path.read_bytes() == content


def test_other_database_is_refused(tmp_path: Path) -> None:
    """An SQLite file of another program is named, and gets no tables of ours."""
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table mine (a)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        SQLiteBackend(f"sqlite://{path}", create=True)
    connection = sqlite3.connect(path)
    assert connection.execute("select name from sqlite_master").fetchall() == [("mine",)]
    connection.close()


def test_empty_file_is_no_store_until_it_is_made_one(tmp_path: Path) -> None:
    """What a process leaves that was killed while it made the store is made anew."""
    path = tmp_path / "runs.sqlite"
    path.touch()
    with pytest.raises(StoreNotFound):
        SQLiteBackend(f"sqlite://{path}")
    SQLiteBackend(f"sqlite://{path}", create=True).close()
    SQLiteBackend(f"sqlite://{path}").close()


def test_folder_is_no_store(tmp_path: Path) -> None:
    """A folder at the place of the file is an error that names it."""
    with pytest.raises(StoreError, match=tmp_path.name):
        SQLiteBackend(f"sqlite://{tmp_path}", create=True)


def test_network_file_system_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's locks do not work there; the message says what does."""
    monkeypatch.setattr("tachograph.filesystems._mounts", lambda: iter([("/", "nfs4")]))
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*parquet://"):
        SQLiteBackend(url, create=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to become nobody")
def test_store_in_a_read_only_folder_can_be_read(backend: SQLiteBackend, url: str) -> None:
    """Who may not write there reads what is there, and is told when it writes."""
    backend.close()
    for folder in [backend.path, *backend.path.parents]:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o444 if folder.is_file() else 0o755)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            reader = SQLiteBackend(url)
            found = [len(reader.read(Query("runs"))), len(reader.sql("select * from metrics"))]
            with pytest.raises(StoreError):
                reader.write(Batch("w", 4, 4, heartbeat=1))
            status = 0 if found == [1, 4] else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------------------- failing


def test_removed_store_is_noticed(backend: SQLiteBackend) -> None:
    """A file that is gone, or another one, takes no more records into nowhere."""
    backend.path.unlink()
    for batch in (Batch("w", 9, 9), make_batch("w", 2, events=[{"run_id": "r"}])):
        with pytest.raises(StoreError, match="removed or replaced"):
            backend.write(batch)
    backend.path.write_bytes(b"")
    with pytest.raises(StoreError, match="removed or replaced"):
        backend.write(make_batch("w", 2, events=[{"run_id": "r"}]))


def test_failed_write_leaves_nothing_and_may_be_tried_again(backend: SQLiteBackend) -> None:
    """What could not be stored as a whole is not stored in part, and harms no later batch."""
    before = dump(backend)
    block = make_block("new", {"loss": [1.0]}, seqs=[2])
    bad = make_batch("w", 2, blocks=[block], events=[{"run_id": "new", "time": 1 << 70}])
    for _ in range(2):
        with pytest.raises(StoreError):
            backend.write(bad)
        assert dump(backend) == before
    assert backend.write(make_batch("w", 2, blocks=[block])) == 3
    assert len(backend.read(Query("metrics"))) == 5


def test_full_disk_is_a_store_error(backend: SQLiteBackend) -> None:
    """A disk that is full is said, what was written stays, and it goes on when there is room."""
    pages = backend._connection.execute("PRAGMA page_count").fetchone()[0]
    backend._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    before = dump(backend)
    block = make_block("r", {"loss": [float(i) for i in range(10_000)]}, seqs=range(2, 10_002))
    with pytest.raises(StoreError, match="full"):
        backend.write(make_batch("w", 2, blocks=[block]))
    assert dump(backend) == before
    backend._connection.execute("PRAGMA max_page_count = 1000000")
    assert backend.write(make_batch("w", 2, blocks=[block])) == 10_002


def test_sql_leaves_no_way_out(backend: SQLiteBackend, tmp_path: Path) -> None:
    """Neither a setting nor another file is reached, and the message says what is allowed."""
    for text in (
        f"attach '{tmp_path}/x.db' as x",
        "pragma query_only = off",
        "pragma journal_mode = delete",
        "select load_extension('x')",
    ):
        with pytest.raises(QueryError, match="authorized"):
            backend.sql(text)


def test_columns_of_one_name_stay_apart(backend: SQLiteBackend) -> None:
    """A join may name a column twice."""
    found = backend.sql("select a.key, b.key from tags a join tags b on a.key = b.key")
    assert found.to_pylist() == [{"key": "k", "key_2": "k"}]


# ---------------------------------------------------------------------------- artifacts


def test_young_file_that_no_row_names_yet_is_kept(backend: SQLiteBackend, tmp_path: Path) -> None:
    """An artifact arrives before its row does; only an old one without a row is garbage."""
    source = tmp_path / "model"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    backend.put_artifact(source, digest)
    assert backend.gc(dry_run=False).artifacts == ()
    kept = backend.path.with_name("runs.sqlite.artifacts") / digest[:2] / digest
    os.utime(kept, (0, 0))
    backend.put_artifact(source, digest)
    assert backend.gc().artifacts == ()
    os.utime(kept, (0, 0))
    assert backend.gc(dry_run=False).artifacts == (digest,)
    assert not kept.exists()


def test_gc_gives_space_back_and_forgets_ids(backend: SQLiteBackend, url: str) -> None:
    """The file shrinks, and a process that writes on mixes nothing up."""
    values = {f"m{i}": [float(j) for j in range(2000)] for i in range(10)}
    backend.write(make_batch("w", 2, blocks=[make_block("big", values, seqs=range(2, 2002))]))
    other = SQLiteBackend(url)
    other.write(make_batch("editor", 0, runs=[{"run_id": "big", "deleted": 1}]))
    backend._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = backend.path.stat().st_size
    assert other.gc(dry_run=False).points == 20_000
    assert backend.path.stat().st_size < before / 2
    kept = make_block("kept", {name: [7.0] for name in values}, seqs=[2002])
    other.write(make_batch("v", 0, blocks=[kept], events=[{"run_id": "kept", "seq": 0}]))
    shown = dump(other)
    late = make_block("big", {name: [9.0] for name in values}, seqs=[2002])
    backend.write(make_batch("w", 2002, blocks=[late]))
    assert dump(backend) == shown
    other.close()


def test_summary_follows_a_writer_across_processes(backend: SQLiteBackend, url: str) -> None:
    """A process whose records another one delivered meanwhile does not go on from what it knew."""
    other = SQLiteBackend(url)
    for number, store in enumerate([other, backend, backend, other], start=2):
        block = make_block("r", {"loss": [float(number)]}, seqs=[number])
        store.write(make_batch("w", number, blocks=[block]))
    where = (Condition("name", "=", "loss"),)
    found = backend.read(Query("summaries", where, columns=("last", "min", "max", "count")))
    assert found.to_pylist() == [{"last": 5.0, "min": 2.0, "max": 5.0, "count": 6}]
    other.close()


# ---------------------------------------------------------------------------- many processes


@pytest.mark.slow
def test_many_processes_lose_and_double_nothing(url: str) -> None:
    """Sixteen processes make one store at once and write into it."""
    children = [write_on(url, f"w{i:02}", 5) for i in range(16)]
    assert [child.communicate(timeout=120)[0].split()[-1] for child in children] == ["250"] * 16
    backend = SQLiteBackend(url)
    counts = backend.sql(
        "select writer, count(*) as points, count(distinct seq) as calls, sum(value = seq) as right"
        " from metrics group by writer order by writer"
    )
    assert [tuple(row.values()) for row in counts] == [
        (f"w{i:02}", 5000, 250, 5000) for i in range(16)
    ]
    assert set(backend.read(Query("summaries", columns=("count",)))["count"]) == {16 * 250}
    backend.close()


@pytest.mark.slow
def test_processes_that_make_one_store_at_once_all_open_it(tmp_path: Path) -> None:
    """SQLite answers 'locked' at once while others turn a new file to WAL; we wait."""
    command = [sys.executable, "-c", OPEN_MANY, str(tmp_path), str(time.time() + 2)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(8)]
    assert [child.communicate(timeout=120)[1] for child in children] == [b""] * 8
    for number in range(ROUNDS):
        assert SQLiteBackend(f"sqlite://{tmp_path}/{number}.sqlite").read(Query("runs")).columns


@pytest.mark.slow
def test_kill_at_any_time_leaves_whole_batches(url: str) -> None:
    """What was acknowledged before a SIGKILL is there, nothing is there in part or twice."""
    delays = random.Random(7)
    for number in range(6):
        child = write_on(url, f"w{number}", 100_000)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delays.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        acknowledged = int(["50", *child.stdout.read().split()][-1])
        child.wait()
        backend = SQLiteBackend(url)
        expected = backend.write(Batch(f"w{number}", 0, 0))
        assert expected >= acknowledged
        where = (Condition("writer", "=", f"w{number}"),)
        seqs = sorted(backend.read(Query("metrics", where, columns=("seq",)))["seq"])
        assert seqs == [seq for seq in range(expected) for _ in range(20)]
        assert backend._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        backend.close()
