"""Statistics of tensors through the journal: packed, damaged, cut, resent, copied, killed."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tachograph
from tachograph import journal as journal_module
from tachograph import recorder
from tachograph.backends.base import Condition, Query
from tachograph.backends.parquet_files import Cursor, Folder
from tachograph.errors import RecordError, StoreError, TachographWarning
from tachograph.journal import JournalWriter, part_path
from tachograph.journal_reader import JournalReader, list_journals
from tachograph.reading import digests, portions
from tachograph.records import TABLES, Batch, Row, uuid7
from tachograph.registry import open_backend
from tachograph.tensors.histograms import from_text, to_text
from tachograph.tensors.records import (
    STATISTICS,
    TensorFrame,
    TensorKey,
    TensorRows,
    TensorSeries,
    loose_row,
    pack,
)
from tachograph.transfer.copying import copy_store

STORES = ("sqlite", "parquet")
KEYS = (
    TensorKey("encoder.weight", "weight", (2, 3), "float32", 6),
    TensorKey("encoder.weight", "gradient", (2, 3), "float32", 6, '{"stage":"clipped"}'),
    TensorKey("scale", "weight", (), "bfloat16", 1, '{"scope":"rank"}', (4, 2)),
)
QUIET = {"system": False, "exit_deadline": 30.0}


def numbers(step: int, count: int = len(KEYS)) -> bytes:
    """Statistics that tell which step they are of."""
    rows = [(step + 0.5, 0.25, -1.0, step, 2.0, tensor, 0, 1) for tensor in range(count)]
    return b"".join(struct.pack("<8d", *row) for row in rows)


def store_url(kind: str, folder: Path) -> str:
    """The URL of a store below a folder."""
    return f"sqlite:///{folder}/runs.sqlite" if kind == "sqlite" else f"parquet:///{folder}/runs"


def make_journal(folder: Path) -> JournalWriter:
    """A journal with the facts that a reader needs."""
    return JournalWriter(folder, uuid7(), {"sinks": []})


def batches(folder: Path, writer: str, size: int = 1 << 20, **how: Any) -> Iterator[Batch]:
    """A journal from its start."""
    reader = JournalReader(folder, writer)
    while (batch := reader.read(size, whole=True, **how)) is not None:
        yield batch


def rows_of(found: Iterator[Batch]) -> list[Row]:
    """All rows of the table `tensors`."""
    return [row for batch in found for row in batch.rows.get("tensors", ())]


def steps_of(rows: Sequence[Row], name: str = "scale") -> list[int]:
    """Steps of one tensor, in the order of the rows."""
    return [row["step"] for row in rows if row["name"] == name and row["kind"] == "weight"]


# ---------------------------------------------------------------------------- packing

anything = st.floats()
sizes = st.tuples(st.integers(0, 50), st.integers(0, 50))
bins = st.dictionaries(st.integers(-1020, 1019), st.integers(1, 2**62), max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.tuples(*[anything] * len(STATISTICS)), max_size=6),
    step=st.one_of(st.none(), st.integers(-(2**63) + 1, 2**63 - 1)),
    epoch=st.one_of(st.none(), st.floats(allow_nan=False)),
    data=st.data(),
)
def test_what_is_packed_comes_back(
    numbers: list[tuple[float, ...]], step: int | None, epoch: float | None, data: st.DataObject
) -> None:
    """Any number in any place: finite ones as they are, others as NULL, and nothing raises."""
    keys = tuple(TensorKey(f"t{n}", "weight", (n,), "float32", n) for n in range(len(numbers)))
    one = st.one_of(st.none(), bins)
    taken = data.draw(st.one_of(st.none(), st.lists(one, min_size=len(keys), max_size=len(keys))))
    pairs = None if taken is None else [None if t is None else list(t.items()) for t in taken]
    statistics = b"".join(struct.pack("<8d", *row) for row in numbers)
    frame = TensorFrame(
        TensorSeries("r", keys, 3, 2), "w", 7, pack(5_000_123, step, epoch, statistics, pairs)
    )
    rows = list(frame.rows())
    assert [row.keys() for row in rows] == [TABLES["tensors"].columns.keys()] * len(keys)
    for key, row, values, histogram in zip(keys, rows, numbers, taken or [None] * 6, strict=False):
        assert (row["name"], row["shape"], row["size"]) == (key.name, f"[{key.size}]", key.size)
        assert (row["step"], row["epoch"], row["time"]) == (step, epoch, 5000)
        assert (row["rank"], row["attempt"], row["writer"], row["seq"]) == (3, 2, "w", 7)
        for name, value in zip(STATISTICS[:5], values, strict=False):
            assert row[name] == (value if math.isfinite(value) else None)
        for name, value in zip(STATISTICS[5:], values[5:], strict=True):
            assert row[name] == (int(value) if 0 <= value < 2**63 else None)
        assert row["histogram"] == (None if histogram is None else to_text(histogram))


@given(st.data())
def test_a_body_that_does_not_fit_is_refused(data: st.DataObject) -> None:
    """Whatever its length: it must not be read as something else."""
    series = TensorSeries("r", KEYS)
    whole = pack(0, 1, None, numbers(1), [[(1, 2), (3, 4)], None, []])
    body = whole[: data.draw(st.integers(0, len(whole) - 1))]
    if len(body) != 24 + series.statistics_bytes:  # that is one without histograms
        with pytest.raises(RecordError):
            TensorFrame(series, "w", 0, body)
    with pytest.raises(RecordError):
        TensorFrame(series, "w", 0, whole + b"\0")


def test_facts_come_back() -> None:
    """All that a key says, through JSON; a shape without dimensions stays one."""
    series = TensorSeries("r", (*KEYS, TensorKey("s", "update", (3,), "f", 3, "{}", ())), 1, 2)
    back = TensorSeries.from_facts(json.loads(json.dumps(series.facts())))
    assert back == series
    assert [row["logical_shape"] for row in back.rows] == [None, None, "[4,2]", "[]"]


def test_rows_behave_as_a_sequence() -> None:
    """Readers that know nothing of frames see rows."""
    rows = TensorRows()
    rows.add(TensorFrame(TensorSeries("r", KEYS), "w", 0, pack(0, 1, None, numbers(1))))
    rows.add({"name": "loose", "seq": 1})
    assert len(rows) == 4 == len(list(rows))
    assert rows[-1]["name"] == "loose"
    assert [row["name"] for row in rows[1:3]] == ["encoder.weight", "scale"]
    batch = Batch("w", 0, 2, rows={"tensors": rows})
    assert [row["name"] for row in batch.since(1).rows["tensors"]] == ["loose"]


# ---------------------------------------------------------------------------- the journal


@pytest.mark.parametrize("size", [64, 1000, 1 << 20])
def test_the_journal_gives_back_rows(tmp_path: Path, size: int) -> None:
    """In pieces of any size, between points and other rows."""
    journal = make_journal(tmp_path)
    handle = journal.tensors(TensorSeries("r", KEYS))
    for step in range(50):
        histogram = [[(step, 1)], None, []] if step % 5 == 0 else None
        journal.append_tensors(handle, step, step / 10, numbers(step), histogram)
        journal.append_rows("tags", [{"run_id": "r", "key": "k", "value": str(step)}])
    rows = rows_of(batches(tmp_path, journal.writer, size))
    assert steps_of(rows) == list(range(50))
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
    assert rows[15]["histogram"] == "[[5,[1]]]"
    assert [row["histogram"] for row in rows[16:19]] == [None, "[]", None]


def test_each_part_can_be_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part says again what its tensors are, so those before it can be deleted."""
    monkeypatch.setattr(journal_module, "PART_BYTES", 4096)
    journal = make_journal(tmp_path)
    handle = journal.tensors(TensorSeries("r", KEYS))
    for step in range(100):
        journal.append_tensors(handle, step, None, numbers(step))
    parts = list_journals(tmp_path)[journal.writer]
    assert len(parts) > 3
    assert steps_of(rows_of(batches(tmp_path, journal.writer))) == list(range(100))
    journal.delete_parts(journal.first_seqs[2])
    left = steps_of(rows_of(batches(tmp_path, journal.writer)))
    assert left == list(range(100 - len(left), 100))
    assert 0 < len(left) < 100


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_costs_only_its_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """What the tensors are stands there twice, and frames behind the damage are found again."""
    folder = tmp_path_factory.mktemp("journal")
    journal = make_journal(folder)
    handle = journal.tensors(TensorSeries("r", KEYS))
    for step in range(20):
        journal.append_tensors(handle, step, None, numbers(step), [[(step, 1)], None, []])
    path = part_path(folder, journal.writer, 0)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(8, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    reader = JournalReader(folder, journal.writer)
    found = []
    while (batch := reader.read(1 << 20, whole=True)) is not None:
        found += steps_of([*batch.rows.get("tensors", ())])
    assert reader.damage
    assert found == sorted(found)
    assert len(found) >= 19


@pytest.mark.parametrize("cut", [1, 100, 200, 240])
def test_a_torn_end_loses_only_the_torn_record(tmp_path: Path, cut: int) -> None:
    """A file that was cut in the middle of its last frame gives all others."""
    journal = make_journal(tmp_path)
    handle = journal.tensors(TensorSeries("r", KEYS))
    for step in range(20):
        journal.append_tensors(handle, step, None, numbers(step))
    path = part_path(tmp_path, journal.writer, 0)
    os.truncate(path, path.stat().st_size - cut)
    assert len(steps_of(rows_of(batches(tmp_path, journal.writer)))) == 19 - (cut >= 238)


def test_what_does_not_fit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    """So that no reader stumbles over it."""
    journal = make_journal(tmp_path)
    handle = journal.tensors(TensorSeries("r", KEYS))
    before = journal.size
    for statistics, pairs in ((b"", None), (numbers(0, 2), None), (numbers(0), [None] * 2)):
        with pytest.raises(RecordError, match=r"expected|for 3 tensors"):
            journal.append_tensors(handle, 0, None, statistics, pairs)
    with pytest.raises(struct.error):
        journal.append_tensors(handle, 0, None, numbers(0), [[(1 << 20, 1)], None, None])
    assert journal.size == before


@pytest.mark.parametrize("part_bytes", [64 << 20, 3000])
def test_a_signal_handler_may_log(
    part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its record fills a part in the middle of another's."""
    monkeypatch.setattr(journal_module, "PART_BYTES", part_bytes)
    journal = make_journal(tmp_path)
    handle, inner = (journal.tensors(TensorSeries(run, KEYS)) for run in ("outer", "inner"))
    steps = itertools.count()  # one handler may interrupt another

    def on_signal(*_: object) -> None:
        step = next(steps)
        journal.append_tensors(inner, step, None, numbers(step))

    previous = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for step in range(3_000):
            journal.append_tensors(handle, step, None, numbers(step))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    count = next(steps)
    assert count > 0
    rows = rows_of(batches(tmp_path, journal.writer))
    found = sorted((row["run_id"], row["step"]) for row in rows if row["name"] == "scale")
    assert found == [("inner", s) for s in range(count)] + [("outer", s) for s in range(3_000)]


# ---------------------------------------------------------------------------- runs and stores


def record(run: tachograph.Run, steps: Sequence[int]) -> None:
    """Log statistics at some steps, each fifth with histograms, and loose rows between."""
    for step in steps:
        histograms = [[(step, 3)], None, [(-5, 1), (2, 2)]] if step % 5 == 0 else None
        run.log_statistics(KEYS, numbers(step), step, epoch=step / 10, histograms=histograms)
        if step % 7 == 0:
            run.log_tensors([{"name": "loose", "kind": "activation", "mean": step}], step)


def read(url: str, run_id: str) -> list[Row]:
    """Rows as a reader finds them, in order of steps."""
    store = tachograph.open(url)
    try:
        rows = store.read(Query("tensors", [Condition("run_id", "=", run_id)]))
        return sorted(rows, key=lambda row: (row["name"], row["kind"], row["step"]))
    finally:
        store.close()


@pytest.mark.parametrize("kind", STORES)
def test_statistics_reach_the_store_and_are_read_before(kind: str, tmp_path: Path) -> None:
    """A reader sees the same rows in the journal's tail and in the store."""
    url = store_url(kind, tmp_path)
    run = tachograph.start_run(config={"backend": url, "record": QUIET})
    record(run, range(40))
    live = read(url, run.run_id)
    run.finish()
    stored = read(url, run.run_id)
    assert live == stored
    assert len(stored) == 3 * 40 + 6
    assert steps_of(stored) == list(range(40))
    scale = [row for row in stored if row["name"] == "scale"]
    assert scale[10]["mean"] == 10.5
    assert from_text(scale[10]["histogram"]) == {-5: 1, 2: 2}
    assert scale[11]["histogram"] is None
    assert (scale[3]["logical_shape"], scale[3]["dtype"]) == ("[4,2]", "bfloat16")


def test_stores_hold_the_same(tmp_path: Path) -> None:
    """By their digests, and after copies from one to the other and on."""
    urls = [store_url(kind, tmp_path) for kind in STORES]
    with tachograph.start_run(config={"backend": urls, "record": QUIET}) as run:
        record(run, range(40))
    first, second = (open_backend(url) for url in urls)
    copies = [open_backend(store_url(kind, tmp_path / "copy"), create=True) for kind in STORES]
    copy_store(first, copies[1])
    copy_store(second, copies[0], run_ids=[run.run_id])
    copy_store(copies[1], copies[0])
    for store in (second, *copies):
        found = digests.digest_table(store, "tensors", without=["writer"])
        assert found == digests.digest_table(first, "tensors", without=["writer"])
    for store in (first, second, *copies):
        store.close()


@pytest.mark.parametrize("kind", STORES)
def test_a_copy_holds_few_rows_at_a_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long training has millions of them."""
    monkeypatch.setattr(portions, "PAGE", 100)
    url = store_url(kind, tmp_path)
    with tachograph.start_run(config={"backend": url, "record": QUIET | {"code": "allow"}}) as run:
        record(run, range(200))
    source, copy = open_backend(url), open_backend(f"memory://few-{kind}", create=True)
    sizes = []
    write = copy.write

    def counting(batch: Batch) -> int:
        sizes.append(sum(map(len, batch.rows.values())))
        return write(batch)

    monkeypatch.setattr(copy, "write", counting)
    copy_store(source, copy, run_ids=[run.run_id])
    assert max(sizes) < 250
    assert len(copy.read(Query("tensors"))) == 3 * 200 + 29
    source.close()


@pytest.mark.parametrize("kind", STORES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_overlapping_batches_double_nothing(
    kind: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Batches that were cut anywhere and are sent again in part leave each row once."""
    folder = tmp_path_factory.mktemp("overlap")
    journal = make_journal(folder)
    handle = journal.tensors(TensorSeries("r", KEYS))
    for step in range(30):
        journal.append_tensors(handle, step, None, numbers(step))
        if step % 10 == 0:
            row = {"name": "loose", "kind": "weight", "run_id": "r", "step": step, "context": "{}"}
            journal.append_rows("tensors", [row | {"rank": 0, "attempt": 1, "time": step}])
    store = open_backend(store_url(kind, folder), create=True)
    expected, chance = 0, random.Random(seed)
    while expected < journal.next_seq:
        reader = JournalReader(folder, journal.writer, chance.randint(0, expected))
        batch = reader.read(chance.randint(64, 8000))
        assert batch is not None
        expected = max(expected, store.write(batch))
    found = list(store.read(Query("tensors", order=("seq",))))
    assert steps_of(found) == list(range(30))
    assert len(found) == 93
    store.close()


def test_a_batch_that_was_cut_short_is_sent_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Parquet segment that is there before its cursor is not written a second time."""
    journal = make_journal(tmp_path)
    handle = journal.tensors(TensorSeries("r", KEYS))
    store = open_backend(store_url("parquet", tmp_path), create=True)
    write_cursor, calls = Folder.write_cursor, itertools.count()

    def fail_at_the_end(folder: Folder, writer: str, cursor: Cursor) -> None:
        if next(calls) == 1:
            raise OSError("cut short")
        write_cursor(folder, writer, cursor)

    monkeypatch.setattr(Folder, "write_cursor", fail_at_the_end)
    for step in range(10):
        journal.append_tensors(handle, step, None, numbers(step))
    (batch,) = batches(tmp_path, journal.writer)
    with pytest.raises(StoreError, match="cut short"):
        store.write(batch)
    journal.append_tensors(handle, 10, None, numbers(10))
    (batch,) = batches(tmp_path, journal.writer)
    store.write(batch)
    assert steps_of([*store.read(Query("tensors", order=("seq",)))]) == list(range(11))
    store.close()


def test_a_fork_records_into_the_same_run(tmp_path: Path) -> None:
    """A forked child says again what the tensors are, in a journal of its own."""
    url = store_url("sqlite", tmp_path)
    run = tachograph.start_run(config={"backend": url, "record": QUIET})
    record(run, range(10))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            record(run, range(10, 20))
            recorder.close_all()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    record(run, range(20, 30))
    run.finish()
    rows = read(url, run.run_id)
    assert steps_of(rows) == list(range(30))
    assert len({row["writer"] for row in rows}) == 2


TRAINING = """
import mmap, struct, sys, time
import tachograph
from tachograph.tensors.records import TensorKey
keys = tuple(TensorKey(f"t{n}", "weight", (3,), "float32", 3) for n in range(10))
run = tachograph.start_run(run_id=sys.argv[2], config={"backend": sys.argv[1]})
with open(sys.argv[3], "r+b") as file:
    acknowledged = mmap.mmap(file.fileno(), 8)
step = 0
while True:
    pairs = [[(step % 1000, 1)]] * 10 if step % 3 == 0 else None
    run.log_statistics(keys, struct.pack("<8d", *[float(step)] * 8) * 10, step, histograms=pairs)
    step += 1
    acknowledged[:] = struct.pack("<q", step)
    time.sleep(0.001)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_a_kill_loses_and_doubles_nothing(kind: str, tmp_path: Path) -> None:
    """A training killed at random times leaves each acknowledged step of each tensor, once."""
    url = store_url(kind, tmp_path)
    for number in range(2):
        counter = tmp_path / f"counter{number}"
        counter.write_bytes(bytes(8))
        command = [sys.executable, "-c", TRAINING, url, f"run{number}", str(counter)]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while int.from_bytes(counter.read_bytes(), "little") == 0:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0.5, 1.5))
        child.kill()
        child.wait()
        with open(counter, "rb") as file:
            content = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
            acknowledged = int.from_bytes(content, "little")
        rows = read(url, f"run{number}")
        steps = steps_of(rows, "t7")
        assert steps == list(range(len(steps)))
        assert len(steps) in (acknowledged, acknowledged + 1)
        assert len(rows) == 10 * len(steps)


# ---------------------------------------------------------------------------- rows by hand


def test_a_loose_row_is_put_into_the_forms_of_the_table() -> None:
    """Sequences, mappings and numbers of any kind."""
    row = loose_row(
        {
            "name": "w",
            "kind": "weight",
            "shape": (2, 3),
            "context": {"b": 1, "a": 2},
            "mean": 1,
            "std": math.nan,
            "zeros": 3.0,
            "histogram": [(5, 2), (4, 1)],
        }
    )
    assert row == {
        **{"name": "w", "kind": "weight", "shape": "[2,3]", "context": '{"a":2,"b":1}'},
        **{"mean": 1.0, "zeros": 3, "histogram": "[[4,[1,2]]]"},
    }


@pytest.mark.parametrize("kind", STORES)
def test_a_wrong_row_is_said_and_blocks_no_store(kind: str, tmp_path: Path) -> None:
    """What a store could not take is refused where it is logged."""
    url = store_url(kind, tmp_path)
    run = tachograph.start_run(config={"backend": url, "record": QUIET})
    wrong: list[dict[str, Any]] = [
        {"name": "w"},
        {"name": "w", "kind": "weight", "sigma": 1},
        {"name": "w", "kind": "weight", "mean": [1]},
        {"name": "w", "kind": "weight", "zeros": 1 << 70},
    ]
    for row in wrong:
        with pytest.warns(TachographWarning):
            run.log_tensors([row], 0)
    run.log_statistics(KEYS, struct.pack("<8d", *[math.nan, math.inf, 1e308, -1.0] * 2) * 3, 1)
    run.log_tensors([{"name": "w", "kind": "weight", "shape": [3], "mean": math.inf}], 2)
    run.finish()
    rows = read(url, run.run_id)
    assert [row["step"] for row in rows if row["name"] != "scale"] == [1, 1, 2]
    assert (rows[0]["mean"], rows[0]["min"], rows[0]["zeros"]) == (None, 1e308, None)


# ---------------------------------------------------------------------------- upkeep


@pytest.mark.parametrize("kind", STORES)
def test_gc_frees_what_a_deleted_run_recorded(kind: str, tmp_path: Path) -> None:
    """And leaves what others recorded; a store that remembers numbers of it goes on right."""
    store = open_backend(store_url(kind, tmp_path), create=True)
    rows = {"runs": [{"run_id": run, "root_id": run, "deleted": 0} for run in ("a", "b")]}
    written = 0
    for deleted in (0, 1, 0):
        statistics = TensorRows()
        for run in ("a", "b"):
            frame = pack(0, written, None, numbers(written))
            statistics.add(TensorFrame(TensorSeries(run, KEYS), "w", written, frame))
        changed = {"changed_at": written + 1, "writer": "w", "seq": written}
        runs = [
            dict.fromkeys(TABLES["runs"].columns) | row | changed
            for row in rows["runs"]
            if row["run_id"] == "b" or written < 2
        ]
        runs[0]["deleted"] = deleted
        batch = Batch("w", written, written + 1, rows={"runs": runs, "tensors": statistics})
        written = store.write(batch)
        if deleted:
            assert set(store.gc(dry_run=False).runs) == {"a"}  # type: ignore[attr-defined]
            raw = store.read(Query("tensors", raw=True))
            assert {row["run_id"] for row in raw} == {"b"}
            assert len(raw) == 6
    found = list(store.read(Query("tensors", raw=True, order=("seq",))))
    assert steps_of([row for row in found if row["run_id"] == "b"]) == [0, 1, 2]
    assert steps_of([row for row in found if row["run_id"] == "a"]) == [2]
    store.close()


@pytest.mark.parametrize("kind", STORES)
def test_tensors_stay_in_the_order_of_the_model(kind: str, tmp_path: Path) -> None:
    """Not in that of the alphabet."""
    keys = tuple(TensorKey(name, "weight", (1,), "float32", 1) for name in ("z", "a", "m"))
    url = store_url(kind, tmp_path)
    with tachograph.start_run(config={"backend": url, "record": QUIET}) as run:
        for step in range(3):
            run.log_statistics(keys, numbers(step), step)
    store = tachograph.open(url)
    found = store.read(Query("tensors", [Condition("run_id", "=", run.run_id)]))
    store.close()
    assert list(dict.fromkeys(found["name"])) == ["z", "a", "m"]
