"""The Parquet store obeys the laws of all stores, keeps its own promises, and fails cleanly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tachograph.backends.base import Query
from tachograph.backends.memory import MemoryBackend
from tachograph.backends.parquet import ParquetBackend
from tachograph.errors import StoreError, StoreTooNew
from tachograph.records import TABLES, Batch
from tachograph.testing import START, BackendContract, dump, make_batch, make_block

HERE = Path(__file__).parent


class TestParquetBackend(BackendContract):
    """The laws of every store."""

    backend_class = ParquetBackend

    @pytest.fixture
    def backend_url(self, tmp_path: Path) -> str:
        """A folder that does not exist yet; its name has what globs and SQL take for syntax."""
        return f"parquet:///{tmp_path}/it's [a] store"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ParquetBackend]:
    """A new store."""
    backend = ParquetBackend(f"parquet:///{tmp_path}/store", create=True)
    yield backend
    backend.close()


def points_of(backend: ParquetBackend) -> Counter[tuple[Any, ...]]:
    """How often each point is in the store."""
    rows = backend.read(Query("metrics", columns=("run_id", "name", "seq", "value"), raw=True))
    return Counter(tuple(row.values()) for row in rows)


# ---------------------------------------------------------------------------- exactly once


@pytest.mark.slow
@pytest.mark.parametrize("end", [100, 40, 150])
def test_killed_batch_is_stored_once(tmp_path: Path, end: int) -> None:
    """A batch whose writer was killed at any point is sent again, to another end: no loss, no copy.

    Meanwhile another writer has told where a run belongs that went to a partition of its own.
    """
    sys.path.insert(0, str(HERE))
    from parquet_crashes import crash_batch

    script = [sys.executable, str(HERE / "parquet_crashes.py"), str(tmp_path)]
    made = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True)
    points = int(made.stdout)
    assert points > 15
    expected = MemoryBackend(f"memory://{tmp_path}", create=True)
    expected.write(crash_batch(0, 100))
    expected.write(crash_batch(100, 160))
    expected.write(make_batch("w2", 0, runs=[{"run_id": "stray", "root_id": "a"}]))
    for point in range(1, points + 1):
        backend = ParquetBackend(f"parquet:///{tmp_path}/{point}")
        backend.write(make_batch("w2", 0, runs=[{"run_id": "stray", "root_id": "a"}]))
        at = backend.write(Batch("w", 0, 0))
        assert at in (0, 100)
        if at < end:
            at = backend.write(crash_batch(at, end))
        again = ParquetBackend(f"parquet:///{tmp_path}/{point}")  # nothing is in its memory
        assert again.write(crash_batch(at, 160)) == 160
        assert set(points_of(again).values()) == {1}
        assert dump(again) == dump(expected), point


def test_failed_write_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    """On a disk that takes no more bytes a write raises StoreError; later it succeeds, once."""
    code = """
import resource, sys
from tachograph.backends.parquet import ParquetBackend
from tachograph.errors import StoreError
from tachograph.testing import make_batch, make_block
import random
backend = ParquetBackend(sys.argv[1], create=True)
values = [random.random() for _ in range(50_000)]
batch = make_batch("w", 0, blocks=[make_block("r", {"loss": values})], tags=[{"run_id": "r"}])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        backend.write(batch)
    except StoreError as error:
        print(type(error).__name__)
assert not list((backend.path / ".tachograph" / "tmp").iterdir())
assert not list(backend.path.glob("metrics/root_id=r/*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(backend.write(batch))
"""
    url = f"parquet:///{tmp_path}/store"
    done = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["StoreError", "StoreError", "50000"], done.stderr
    backend = ParquetBackend(url)
    assert set(points_of(backend).values()) == {1}
    assert backend.read(Query("summaries"))["count"] == [50_000]


def test_removed_store_is_a_store_error(store: ParquetBackend) -> None:
    """A folder that vanished under a writer raises what a drain expects."""
    store.path.rename(store.path.with_name("moved"))
    store.path.write_text("a file is in the way")
    with pytest.raises(StoreError):
        store.write(make_batch("w", 0, events=[{"run_id": "r"}]))


def test_row_of_wrong_type_is_a_store_error(store: ParquetBackend) -> None:
    """A text where a number belongs cannot end the thread that drains."""
    with pytest.raises(StoreError):
        store.write(make_batch("w", 0, events=[{"run_id": "r", "time": "noon"}]))
    assert len(store.read(Query("events"))) == 0


def test_newer_store_is_refused(store: ParquetBackend) -> None:
    """A store of a newer format version is not touched."""
    meta = store.path / ".tachograph" / "store.json"
    meta.write_text(json.dumps({"format_version": 2}))
    with pytest.raises(StoreTooNew):
        ParquetBackend(store.url)


def test_numbers_go_on_after_another_object_wrote(store: ParquetBackend) -> None:
    """Summaries held in memory are not trusted when another process has written meanwhile."""
    other = ParquetBackend(store.url)
    for i, backend in enumerate((store, other, store, store, other)):
        backend.write(make_batch("w", i, blocks=[make_block("r", {"a": [float(i)]}, seqs=[i])]))
    row = store.read(Query("summaries")).to_pylist()[0]
    assert (row["count"], row["mean"], row["min"], row["last"]) == (5, 2.0, 0.0, 4.0)


# ---------------------------------------------------------------------------- files


def test_segments_are_small_and_open(store: ParquetBackend) -> None:
    """Plain strings, no key of Arrow, encodings that old engines read, statistics."""
    steps = range(20_000)
    values = {f"m{i}": np.random.default_rng(i).random(20_000).tolist() for i in range(20)}
    store.write(make_batch("w", 0, blocks=[make_block("r", values, steps=steps)]))
    (path,) = store.path.glob("metrics/root_id=r/*.parquet")
    metadata = pq.ParquetFile(path).metadata
    assert metadata.metadata is None
    assert metadata.num_row_groups == 10  # four series each, in tiles of 16,384 calls
    group = metadata.row_group(0)
    columns = {metadata.schema.column(i).name: group.column(i) for i in range(metadata.num_columns)}
    assert [*columns] == [*TABLES["metrics"].columns]
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name, encoding in (("name", "RLE_DICTIONARY"), ("step", "DELTA_BINARY_PACKED")):
        assert encoding in columns[name].encodings
        assert columns[name].statistics.has_min_max
    assert set(columns["value"].encodings) <= {"PLAIN", "RLE"}
    equal_times = sum(columns[name].total_compressed_size for name in ("time", "step", "seq"))
    assert equal_times < group.num_rows / 4  # compressed once for the series side by side


def test_writing_and_reading_leave_pandas_alone(tmp_path: Path) -> None:
    """Neither a training nor a listing pays for importing pandas, DuckDB or pyarrow.dataset."""
    code = """
import sys
from tachograph.backends.base import Condition, Query
from tachograph.backends.parquet import ParquetBackend
from tachograph.records import TABLES
from tachograph.testing import make_batch, make_block
backend = ParquetBackend(sys.argv[1], create=True)
block = make_block("r", {"a": [1.0, float("nan")]}, steps=[None, 1])
rows = {name: [{"run_id": "r", "name": "n"}] for name in ("runs", "attempts", "tags", "tensors")}
backend.write(make_batch("w", 0, blocks=[block], **rows))
where = [Condition("run_id", "in", ["r"]), Condition("run_id", "like", "r%")]
for table in TABLES:
    keyed = where if "run_id" in TABLES[table].columns else []
    backend.read(Query(table, keyed, order=("writer", "-seq"), limit=3))
backend.compact(grace_seconds=0)
backend.gc(dry_run=False)
print([name for name in ("pandas", "duckdb", "pyarrow.dataset", "polars") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"parquet:///{tmp_path}/store"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


# ---------------------------------------------------------------------------- upkeep


def test_late_change_wins_its_column_after_merging(store: ParquetBackend) -> None:
    """Merging keeps when each column of a run was said, so a late arrival falls into place."""
    rows = [
        {"run_id": "r", "status": "running", "name": "n", "changed_at": START + 1},
        {"run_id": "r", "hypothesis": "h", "changed_at": START + 9},
    ]
    for seq, row in enumerate(rows):
        store.write(make_batch("w", seq, runs=[row]))
    assert store.compact(grace_seconds=0.0) == 2
    late = {"run_id": "r", "status": "finished", "changed_at": START + 5}
    store.write(make_batch("late", 0, runs=[late]))
    (row,) = store.read(Query("runs")).to_pylist()
    assert (row["status"], row["name"], row["hypothesis"]) == ("finished", "n", "h")
    assert (row["changed_at"], row["writer"]) == (START + 9, "w")


def test_compact_leaves_unfinished_batches_alone(store: ParquetBackend) -> None:
    """Summaries of a batch that was not finished are not what its writer goes on from."""
    for i in range(2):
        store.write(make_batch("w", i, blocks=[make_block("r", {"a": [1.0]}, seqs=[i])]))
    cursor = store.path / ".tachograph" / "cursors" / "w"
    cursor.write_text(
        json.dumps({"next": 1, "until": 2, "roots": {"r": "r"}})
    )  # as a kill leaves it
    store.compact(grace_seconds=0.0)
    again = ParquetBackend(store.url)
    again.write(make_batch("w", 1, blocks=[make_block("r", {"a": [1.0]}, seqs=[1])]))
    assert again.read(Query("summaries"))["count"] == [2]
    assert set(points_of(again).values()) == {1}


def test_gc_takes_a_child_out_of_its_roots_segments(store: ParquetBackend) -> None:
    """A deleted trial goes, the study and its other trials keep every row."""
    rows = [{"run_id": run, "root_id": "study"} for run in ("study", "t1", "t2")]
    blocks = [
        make_block(run, {"loss": [1.0, 2.0]}, seqs=[3 + 2 * i, 4 + 2 * i])
        for i, run in enumerate(("study", "t1", "t2"))
    ]
    params = [{"run_id": run, "path": "lr", "value": "1", "seq": 9} for run in ("t1", "t2")]
    store.write(make_batch("w", 0, runs=rows, blocks=blocks, params=params))
    deleted = {"run_id": "t1", "deleted": 1, "changed_at": START + 10**6}
    store.write(make_batch("editor", 0, runs=[deleted]))
    before = dump(store)
    garbage = store.gc(dry_run=False)
    assert (garbage.runs, garbage.points) == (("t1",), 2)
    assert dump(store) == before
    for table in ("metrics", "params", "summaries"):
        assert set(store.read(Query(table, raw=True))["run_id"]) >= {"t2"}
        assert "t1" not in store.read(Query(table, raw=True))["run_id"]
    assert (store.gc().runs, store.gc().points) == ((), 0)
