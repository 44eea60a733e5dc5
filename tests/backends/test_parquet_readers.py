"""What Tachograph reads from a Parquet store, and what others read from it without Tachograph."""

from __future__ import annotations

import glob
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pytest

from tachograph.backends import parquet_read
from tachograph.backends.base import Condition, Query
from tachograph.backends.parquet import ParquetBackend
from tachograph.backends.parquet_scan import scan
from tachograph.merge import view
from tachograph.records import TABLES, Batch, Row
from tachograph.testing import START, make_batch, make_block


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ParquetBackend]:
    """A new store."""
    backend = ParquetBackend(f"parquet:///{tmp_path}/store", create=True)
    yield backend
    backend.close()


def fill_randomly(backend: ParquetBackend, seed: int, writers: int = 5) -> None:
    """Changes, points, deletes and attempts of several writers, with equal times among them."""
    chance = random.Random(seed)
    runs = ["a", "b", "c", "d"]
    for writer in (f"w{i}" for i in range(writers)):
        for _ in range(4):
            first = backend.write(Batch(writer, 0, 0))
            rows: dict[str, list[Row]] = {
                name: [] for name in ("runs", "attempts", "tags", "events")
            }
            for seq in range(first, first + 6):
                run = chance.choice(runs)
                change = {"run_id": run, "seq": seq, "changed_at": START + chance.randrange(9)}
                text = chance.choice([None, "x", "y"])
                gone = chance.choice([None, 0, 0, 1])
                rows["runs"].append(
                    change | {"name": text, "deleted": gone, "root_id": chance.choice([None, "a"])}
                )
                rows["tags"].append(
                    change | {"key": chance.choice("kl"), "value": text, "deleted": gone or 0}
                )
                rows["attempts"].append(
                    change
                    | {"attempt": chance.choice([1, 2]), "first_step": chance.choice([None, 3])}
                )
                rows["events"].append({"run_id": chance.choice([None, run]), "seq": seq})
            values = {"loss": [chance.choice([1.0, float("nan"), 3.0]) for _ in range(6)]}
            seqs = range(first, first + 6)
            block = make_block(
                chance.choice(runs),
                values,
                seqs=seqs,
                attempt=chance.choice([1, 2]),
                steps=range(6),
            )
            backend.write(make_batch(writer, first, blocks=[block], **rows))


def model_of(backend: ParquetBackend) -> dict[str, list[Row]]:
    """What the plain model shows of the raw rows of a store."""
    raw = {table: backend.read(Query(table, raw=True)).to_pylist() for table in TABLES}
    return {table: view(table, raw) for table in (*TABLES, "all_metrics")}


def by_sql(folder: Path) -> dict[str, list[Row]]:
    """All tables as plain DuckDB shows them from inside the folder of a store."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with duckdb.connect() as connection:
            connection.execute((folder / "views.sql").read_text())
            return {table: _rows(connection, table) for table in (*TABLES, "all_metrics")}
    finally:
        os.chdir(before)


def _rows(connection: duckdb.DuckDBPyConnection, table: str) -> list[Row]:
    found = connection.execute(f"select * from {table}")
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def rounded(rows: Any) -> list[str]:
    """Rows in an order of their own; of a mean ten digits."""
    return sorted(
        repr(row | ({"mean": float(f"{row['mean']:.10g}")} if row.get("mean") else {}))
        for row in rows
    )


@pytest.mark.parametrize("seed", range(3))
def test_read_the_views_and_the_model_agree(store: ParquetBackend, seed: int) -> None:
    """Files alone, plain DuckDB over `views.sql` and the model give the same rows.

    Before and after merging, while the merged parts still lie there, and when they are gone.
    """
    fill_randomly(store, seed)
    expected = {table: rounded(rows) for table, rows in model_of(store).items()}
    assert expected["tags"]
    assert expected["summaries"]
    for grace in (None, 3600.0, 0.0):
        if grace is not None:
            store.compact(grace_seconds=grace)
        by_views = by_sql(store.path)
        for table, rows in expected.items():
            assert rounded(store.read(Query(table))) == rows, (table, grace)
            assert rounded(by_views[table]) == rows, (table, grace)
    for table in ("runs", "tags", "summaries"):
        assert len(list((store.path / table).glob("*.parquet"))) == 2  # merged and schema


def test_segments_of_runs_are_opened_once_for_all_tables_of_a_run(
    store: ParquetBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there is another one, which may delete the run."""
    for number in range(3):
        run = f"r{number}"
        block = make_block(run, {"loss": [1.0]}, seqs=[2])
        of_run = {"runs": [{"run_id": run, "root_id": run}], "tags": [{"run_id": run, "key": "k"}]}
        store.write(make_batch(f"w{number}", 0, blocks=[block], **of_run))  # type: ignore[arg-type]
    opened: list[Path] = []

    def note(files: list[Path], *rest: Any) -> Any:
        opened.extend(path for path in files if path.parent.name == "runs")
        return scan(files, *rest)

    monkeypatch.setattr(parquet_read, "scan", note)
    where = [Condition("run_id", "in", ["r0", "r1"])]
    asked = [Query(table, where) for table in ("metrics", "all_metrics", "summaries", "tags")]
    assert [len(store.read(query)) for query in asked] == [2] * 4
    assert len(opened) == 2 * 3, "for who is deleted, and for roots"
    store.write(make_batch("w9", 0, runs=[{"run_id": "r0", "deleted": 1}]))
    assert [len(store.read(query)) for query in asked] == [1] * 4


def test_filters_are_the_same_with_and_without_pruning(store: ParquetBackend) -> None:
    """Partitions and row groups that are skipped hold nothing that was asked for."""
    fill_randomly(store, 7)
    for table in ("metrics", "all_metrics", "events", "tags", "runs", "summaries"):
        for raw in (False, True):
            rows = store.read(Query(table, raw=raw)).to_pylist()
            for where in (
                Condition("run_id", "=", "b"),
                Condition("run_id", "=", None),
                Condition("run_id", "in", ["c", "d", None]),
                Condition("run_id", ">", "b"),
                Condition("writer", "=", "w3"),
                Condition("seq", "<", 4),
            ):
                tests = {
                    "=": lambda value, wanted: value == wanted,
                    "in": lambda value, wanted: value is not None and value in wanted,
                    ">": lambda value, wanted: value is not None and value > wanted,
                    "<": lambda value, wanted: value < wanted,
                }
                wanted = [r for r in rows if tests[where.operator](r[where.column], where.value)]
                found = store.read(Query(table, [where], raw=raw))
                assert rounded(found) == rounded(wanted), (table, raw, where)


# ---------------------------------------------------------------------------- other tools


def read_duckdb(pattern: str) -> list[tuple[str, int]]:
    """Writer and number of each row, by plain DuckDB."""
    with duckdb.connect() as connection:
        return connection.execute(f"select writer, seq from '{pattern}'").fetchall()


def read_polars(pattern: str) -> list[tuple[str, int]]:
    """Writer and number of each row, by plain Polars."""
    return polars.scan_parquet(pattern).select("writer", "seq").collect().rows()


def read_pandas(pattern: str) -> list[tuple[str, int]]:
    """Writer and number of each row, by plain pandas, file by file."""
    frames = [pandas.read_parquet(path, columns=["writer", "seq"]) for path in glob.glob(pattern)]
    return [(str(writer), int(seq)) for writer, seq in pandas.concat(frames).to_numpy()]


TOOLS: list[Callable[[str], list[tuple[str, int]]]] = [read_duckdb, read_polars, read_pandas]
WRITING = """
import sys
from tachograph.backends.parquet import ParquetBackend
from tachograph.testing import make_batch, make_block
backend = ParquetBackend(sys.argv[1])
print("ready", flush=True)
first = 0
while True:
    seqs = range(first, first + 20)
    block = make_block(f"r{first % 7}", {"loss": [float(seq) for seq in seqs]}, seqs=seqs)
    first = backend.write(make_batch("w", first, blocks=[block]))
"""


@pytest.mark.parametrize("read", TOOLS)
def test_empty_store_reads_as_no_rows(store: ParquetBackend, read: Any) -> None:
    """A glob over a new store matches a file with all columns and no row."""
    for table, spec in TABLES.items():
        pattern = f"{store.path}/{table}/" + ("*/*.parquet" if spec.grows else "*.parquet")
        assert read(pattern) == []


@pytest.mark.parametrize("read", TOOLS)
def test_others_read_while_a_writer_adds_segments(store: ParquetBackend, read: Any) -> None:
    """At any moment a glob gives whole segments, no row twice, nothing less than before."""
    pattern = f"{store.path}/metrics/*/*.parquet"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITING, store.url], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        before: set[int] = set()
        end = time.monotonic() + 1.5
        while time.monotonic() < end or len(before) < 100:
            seqs = [seq for _, seq in read(pattern)]
            found = set(seqs)
            assert len(seqs) == len(found)
            assert all(seq - seq % 20 + i in found for seq in found for i in range(20))
            assert found >= before
            before = found
            assert time.monotonic() < end + 20
    finally:
        writer.kill()
        writer.wait()


def test_whole_folders_read_as_tables(store: ParquetBackend) -> None:
    """pandas, Polars and DuckDB take a table's folder; ids stay texts, the root is a column."""
    block = make_block("20240101", {"loss": [1.0, 2.0]})
    store.write(make_batch("1e5", 0, blocks=[block], runs=[{"run_id": "20240101"}]))
    for frame in (
        pandas.read_parquet(store.path / "metrics"),
        pandas.read_parquet(store.path / "runs"),
    ):
        assert [str(run) for run in frame["run_id"].unique()] == ["20240101"]
    found = polars.read_parquet(store.path / "metrics")
    assert found["run_id"].to_list() == ["20240101"] * 2
    assert [str(root) for root in found["root_id"].unique()] == ["20240101"]
    with duckdb.connect() as connection:
        path = f"{store.path}/metrics/*/*.parquet"
        assert connection.execute(f"select distinct run_id, writer from '{path}'").fetchall() == [
            ("20240101", "1e5")
        ]


def test_four_processes_make_and_fill_one_store(tmp_path: Path) -> None:
    """Processes that start at once make one store; nothing is lost or doubled."""
    code = """
import sys
from tachograph.backends.parquet import ParquetBackend
from tachograph.testing import make_batch, make_block
backend = ParquetBackend(sys.argv[1], create=True)
for first in range(0, 100, 10):
    seqs = range(first, first + 10)
    block = make_block("r", {"loss": [1.0] * 10}, seqs=seqs)
    tags = [{"run_id": "r", "key": sys.argv[2], "value": str(first)}]
    assert backend.write(make_batch(sys.argv[2], first, blocks=[block], tags=tags)) == first + 10
"""
    url = f"parquet:///{tmp_path}/store"
    processes = [subprocess.Popen([sys.executable, "-c", code, url, f"w{i}"]) for i in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    backend = ParquetBackend(url)
    rows = backend.read(Query("metrics", columns=("writer", "seq"), order=("writer", "seq")))
    assert [tuple(row.values()) for row in rows] == [
        (f"w{i}", seq) for i in range(4) for seq in range(100)
    ]
    assert backend.read(Query("tags"))["value"] == ["90"] * 4
    assert backend.read(Query("summaries"))["count"] == [400]
