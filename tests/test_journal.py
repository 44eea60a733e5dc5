"""The journal: what was appended comes back, whatever happens to the file."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph import host
from tachograph import journal as journal_module
from tachograph.journal import JournalWriter, part_path
from tachograph.journal_reader import JournalReader, list_journals, read_header
from tachograph.records import Series, uuid7


def make_journal(folder: Path, **options: object) -> JournalWriter:
    """A journal with the facts that a reader needs."""
    return JournalWriter(folder, uuid7(), {"sinks": ["memory://x"]}, **options)  # type: ignore[arg-type]


def read_all(
    folder: Path, writer: str, *, size: int = 1 << 20, whole: bool = True
) -> JournalReader:
    """Read a whole journal; the batches are left on the reader as `batches`."""
    reader = JournalReader(folder, writer)
    reader.batches = []  # type: ignore[attr-defined]
    while (batch := reader.read(size, whole=whole)) is not None:
        reader.batches.append(batch)  # type: ignore[attr-defined]
    return reader


def points_of(reader: JournalReader) -> list[tuple[int, float]]:
    """(step, first value) of every point, in the order of the batches' blocks."""
    found = []
    for batch in reader.batches:  # type: ignore[attr-defined]
        for block in batch.blocks:
            found += [(row[2], row[4]) for row in block.unpack()]
    return sorted(found)


def test_points_and_rows_come_back_as_appended(tmp_path: Path) -> None:
    """Every value, step, epoch and row is read as it was written."""
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", ("a", "b"), '{"phase":"val"}', 3, 2))
    journal.append_points(handle, 7, 0.5, [1.0, float("inf")])
    journal.append_rows("tags", [{"run_id": "r", "key": "k", "value": "ü"}])
    journal.append_points(handle, None, None, [-0.0, 5e-324])
    reader = read_all(tmp_path, journal.writer)
    (batch,) = reader.batches  # type: ignore[attr-defined]
    (block,) = batch.blocks
    assert block.series == Series("r", ("a", "b"), '{"phase":"val"}', 3, 2)
    rows = list(block.unpack())
    assert [row[2] for row in rows] == [7, -(1 << 63)]
    assert rows[0][3:] == (0.5, 1.0, float("inf"))
    assert struct.pack("<2d", *rows[1][4:]) == struct.pack("<2d", -0.0, 5e-324)
    (tag,) = batch.rows["tags"]
    assert (tag["value"], tag["writer"], tag["deleted"]) == ("ü", journal.writer, 0)
    assert batch.next == journal.next_seq


def test_many_rows_of_a_call_are_several_records(tmp_path: Path) -> None:
    """One record with all of them would be too large for a server, however it is cut."""
    journal = make_journal(tmp_path)
    before = journal.next_seq
    journal.append_rows("params", [{"run_id": "r", "path": f"p{i}"} for i in range(25_000)])
    assert journal.next_seq == before + 3
    (batch,) = read_all(tmp_path, journal.writer).batches  # type: ignore[attr-defined]
    assert [row["path"] for row in batch.rows["params"]] == [f"p{i}" for i in range(25_000)]


@pytest.mark.parametrize("size", [64, 1000, 1 << 20])
def test_reading_in_pieces_gives_the_same_records(tmp_path: Path, size: int) -> None:
    """The size of the pieces that a reader takes changes nothing."""
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", tuple(f"m{i}" for i in range(30))))
    for step in range(200):
        journal.append_points(handle, step, None, [float(step)] * 30)
    reader = read_all(tmp_path, journal.writer, size=size)
    assert points_of(reader) == [(step, float(step)) for step in range(200)]
    assert not reader.damage


def test_parts_are_cut_and_each_is_complete_in_itself(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A part can be read after those before it were confirmed and deleted."""
    monkeypatch.setattr(journal_module, "PART_BYTES", 4096)
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", ("loss",)))
    for step in range(500):
        journal.append_points(handle, step, None, [float(step)])
    parts = list_journals(tmp_path)[journal.writer]
    assert len(parts) > 3
    assert points_of(read_all(tmp_path, journal.writer)) == [(s, float(s)) for s in range(500)]
    third = read_header(part_path(tmp_path, journal.writer, parts[2]))["first"]
    journal.delete_parts(third)
    assert list_journals(tmp_path)[journal.writer] == parts[2:]
    left = points_of(read_all(tmp_path, journal.writer))
    assert left == [(s, float(s)) for s in range(500 - len(left), 500)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_costs_only_its_record(tmp_path_factory, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    """Damage anywhere behind the header loses one record, and is counted."""
    folder = tmp_path_factory.mktemp("journal")
    journal = make_journal(folder)
    handle = journal.series(Series("r", ("loss",)))
    for step in range(50):
        journal.append_points(handle, step, None, [float(step)])
    path = part_path(folder, journal.writer, 0)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(8, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    reader = read_all(folder, journal.writer)
    lost = {(s, float(s)) for s in range(50)} - set(points_of(reader))
    assert len(points_of(reader)) + len(lost) == 50
    assert len(lost) <= 1
    assert reader.damage


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_end_loses_only_the_torn_record(tmp_path: Path, cut: int) -> None:
    """A file cut in the middle of its last record gives all others."""
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", ("loss",)))
    for step in range(20):
        journal.append_points(handle, step, None, [1.0])
    path = part_path(tmp_path, journal.writer, 0)
    os.truncate(path, path.stat().st_size - cut)
    reader = read_all(tmp_path, journal.writer)
    assert len(points_of(reader)) == 19 - (cut >= 53)
    assert reader.damage.torn_bytes > 0


def test_a_zero_filled_end_is_passed_over(tmp_path: Path) -> None:
    """A power cut can leave blocks of zeros where data was to come."""
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", ("loss",)))
    for step in range(20):
        journal.append_points(handle, step, None, [1.0])
    with open(part_path(tmp_path, journal.writer, 0), "ab") as file:
        file.write(bytes(1 << 20))
    assert len(points_of(read_all(tmp_path, journal.writer))) == 20


def test_an_incomplete_end_of_a_live_journal_is_waited_for(tmp_path: Path) -> None:
    """What is half-written now is read when it is whole."""
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", ("loss",)))
    journal.append_points(handle, 0, None, [1.0])
    path = part_path(tmp_path, journal.writer, 0)
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 5)
    reader = JournalReader(tmp_path, journal.writer)
    first = reader.read(1 << 20)
    assert first is not None
    assert not first.blocks
    path.write_bytes(whole)
    second = reader.read(1 << 20)
    assert second is not None
    assert len(second.blocks[0]) == 1
    assert not reader.damage


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tachograph.journal import JournalWriter
from tachograph.records import Series, uuid7
journal = JournalWriter(Path(sys.argv[1]), uuid7(), {"sinks": []})
handle = journal.series(Series("r", ("loss",)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for step in range(100):
    journal.append_points(handle, step, None, [float(step)])
room = Path(sys.argv[1]).glob("*.journal").__next__().stat().st_size + 30  # half a record
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
for step in range(100, 150):
    journal.append_points(handle, step, None, [float(step)])
journal.append_rows("tags", [{"run_id": "r", "key": "k", "value": "kept"}])
dropped = journal.dropped
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.recover()
for step in range(150, 200):
    journal.append_points(handle, step, None, [float(step)])
print(journal.writer, dropped, journal.dropped)
"""


def test_a_full_disk_drops_and_counts_and_goes_on(tmp_path: Path) -> None:
    """Points that do not fit are counted, rows wait, and nothing half-written stays."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    writer, dropped, dropped_later = done.stdout.split()
    reader = read_all(tmp_path, writer)
    assert [s for s, _ in points_of(reader)] == [*range(100), *range(150, 200)]
    assert dropped == dropped_later == "50"
    assert not reader.damage
    rows = [row for batch in reader.batches for row in batch.rows.get("tags", ())]  # type: ignore[attr-defined]
    assert [row["value"] for row in rows] == ["kept"]


def test_the_limit_of_waiting_bytes_drops_and_says_so(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Beyond the limit records are dropped; when the stores have caught up it goes on."""
    monkeypatch.setattr(journal_module, "PART_BYTES", 4096)
    journal = make_journal(tmp_path, limit_bytes=8192)
    handle = journal.series(Series("r", ("loss",)))
    for step in range(400):
        journal.append_points(handle, step, None, [1.0])
    assert len(points_of(read_all(tmp_path, journal.writer))) + journal.dropped == 400
    assert "wait" in str(journal.problem)
    last = os.open(part_path(tmp_path, journal.writer, 1), os.O_RDWR)
    assert not host.lock(last), "the process lives, and nobody may take its journal for an orphan"
    os.close(last)
    journal.delete_parts(journal.next_seq)
    journal.recover()
    before = journal.dropped
    journal.append_points(handle, 1000, None, [1.0])
    assert journal.dropped == before
    assert points_of(read_all(tmp_path, journal.writer))[-1] == (1000, 1.0)


def test_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    """Many threads append through one journal."""
    journal = make_journal(tmp_path)

    def work(number: int) -> None:
        handle = journal.series(Series("r", (f"m{number}",)))
        for step in range(300):
            journal.append_points(handle, step, None, [float(number)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = points_of(read_all(tmp_path, journal.writer))
    assert points == sorted((s, float(n)) for n in range(8) for s in range(300))


@pytest.mark.parametrize("part_bytes", [64 << 20, 2000])
def test_a_signal_handler_may_log(part_bytes: int, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A handler that logs in the middle of a log call neither blocks nor loses a point."""
    monkeypatch.setattr(journal_module, "PART_BYTES", part_bytes)
    journal = make_journal(tmp_path)
    handle = journal.series(Series("r", ("loss",)))
    inner = journal.series(Series("r", ("signal",)))
    count = 0

    def on_signal(*_: object) -> None:
        nonlocal count
        journal.append_points(inner, count, None, [-1.0])
        count += 1

    previous = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for step in range(20_000):
            journal.append_points(handle, step, None, [1.0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert count > 0
    points = points_of(read_all(tmp_path, journal.writer))
    assert len(points) == 20_000 + count


def test_the_lock_tells_the_living_from_the_dead(tmp_path: Path) -> None:
    """A journal is locked as long as its process lives, and not by its forked child."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from tachograph.journal import JournalWriter\nfrom tachograph.records import uuid7\n"
        "j = JournalWriter(Path(sys.argv[1]), uuid7(), {})\nprint(j.writer, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    writer = child.stdout.readline().strip()
    descriptor = os.open(part_path(tmp_path, writer, 0), os.O_RDWR)
    try:
        assert not host.lock(descriptor)
        child.kill()
        child.wait()
        assert host.lock(descriptor)
    finally:
        os.close(descriptor)


def test_resource_limits_are_as_they_were() -> None:
    """The full disk was another process's."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_half_a_character_is_replaced_and_whole_ones_stay(tmp_path: Path) -> None:
    """Text that is not Unicode would block a store forever; the rest of it is kept."""
    journal = make_journal(tmp_path)
    for text in ("a\udcffb", "😀", "\\ud800 as letters"):
        journal.append_rows("tags", [{"run_id": "r", "key": "k", "value": text}])
    rows = [
        row["value"]
        for batch in read_all(tmp_path, journal.writer).batches  # type: ignore[attr-defined]
        for row in batch.rows["tags"]
    ]
    assert rows == ["a�b", "😀", "\\ud800 as letters"]
