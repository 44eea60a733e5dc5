"""Points under a writer that several processes derive: once in a store, whoever sends them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph import registry
from tachograph.backends.base import Backend, Query
from tachograph.delivery.drain import drain_orphans, pending_batches
from tachograph.delivery.sink import Sink
from tachograph.identity import derived_id
from tachograph.journal import JournalWriter, part_path
from tachograph.journal_reader import JournalReader
from tachograph.reading.live import Cursors, LiveReader
from tachograph.records import Series, uuid7

WRITER = derived_id("run", "points")
SERIES = Series("run", ("value",))


def make_journal(folder: Path, url: str) -> JournalWriter:
    """The journal of a process that records for one store."""
    return JournalWriter(folder, uuid7(), {"sinks": [url]})


def append(journal: JournalWriter, numbers: Sequence[int]) -> None:
    """Append points whose numbers, steps and values are alike."""
    rows = [(number, 1_000_000, number, None, [float(number)]) for number in numbers]
    journal.append_derived(WRITER, SERIES, rows)


def stored(backend: Backend) -> list[tuple[str, int, float]]:
    """Writer, number and value of all points in a store."""
    rows = backend.read(Query("all_metrics", order=["seq"]))
    return [(row["writer"], row["seq"], row["value"]) for row in rows]


def expected(numbers: Sequence[int]) -> list[tuple[str, int, float]]:
    """What `stored` gives where each of these is there once."""
    return [(WRITER, number, float(number)) for number in numbers]


@pytest.fixture(params=["sqlite", "parquet"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind."""
    return f"{request.param}:///{tmp_path}/store"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whoever_sends_them_they_are_stored_once(
    tmp_path: Path, url: str, order: tuple[int, ...]
) -> None:
    """One process sends them as they come and again at the end, others all at once."""
    journals = [make_journal(tmp_path / "journal", url) for _ in range(3)]
    sinks = [Sink(url, journal.folder, journal.writer, journal.now_us) for journal in journals]
    append(journals[0], [0])
    sinks[0].step(seal=True)
    append(journals[0], [1, 4])
    append(journals[0], [0, 1, 4, 5])
    append(journals[1], [0, 1, 4, 5])
    append(journals[2], [0, 1, 4, 5])
    for position in order:
        sinks[position].step(seal=True)
        sinks[position].step(seal=True)
    backend = registry.open_backend(url)
    assert stored(backend) == expected([0, 1, 4, 5])
    (summary,) = backend.read(Query("summaries"))
    assert (summary["count"], summary["last"], summary["mean"]) == (4, 5.0, 2.5)
    assert [sink.confirmed for sink in sinks] == [journal.next_seq for journal in journals]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 12), st.booleans()), min_size=1, max_size=12
    )
)
def test_any_order_of_sending_and_draining(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, int, bool]]
) -> None:
    """Each sender sends beginnings of one list; the store has the longest one that arrived."""
    folder = tmp_path_factory.mktemp("derived")
    url = f"sqlite:///{folder}/store"
    journals = [make_journal(folder / "journal", url) for _ in range(2)]
    sinks = [Sink(url, journal.folder, journal.writer, journal.now_us) for journal in journals]
    for sender, count, drain in plan:
        append(journals[sender], range(count))
        if drain:
            sinks[sender].step(seal=True)
    for sink in sinks:
        sink.step(seal=True)
    backend = registry.open_backend(url)
    assert stored(backend) == expected(range(max(count for _, count, _ in plan)))
    for one in (backend, *journals, *sinks):
        one.close()


def test_journals_of_the_dead_are_drained_once(tmp_path: Path, url: str) -> None:
    """Two processes died with the same points in their journals."""
    folder = tmp_path / "journal"
    for numbers in ([0, 1], [0, 1, 2]):
        journal = make_journal(folder, url)
        append(journal, numbers)
        journal.close()
    assert len(drain_orphans(folder)) == 2
    assert stored(registry.open_backend(url)) == expected([0, 1, 2])


def test_a_lost_cursor_repeats_nothing(tmp_path: Path, url: str) -> None:
    """Killed after the points arrived and before their journal was confirmed, it sends again."""
    journal = make_journal(tmp_path / "journal", url)
    append(journal, [0, 1])
    reader = JournalReader(journal.folder, journal.writer)
    backend = registry.open_backend(url, create=True)
    points = reader.read(1 << 20)
    assert points is not None
    assert points.writer == WRITER  # before the batch of the journal's own writer
    backend.write(points)
    journal.close()
    drain_orphans(journal.folder)
    assert stored(backend) == expected([0, 1])


def test_a_damaged_record_costs_its_points_alone(tmp_path: Path, url: str) -> None:
    """What comes behind is stored; the hole does not block the journal."""
    journal = make_journal(tmp_path / "journal", url)
    append(journal, [0])
    start = journal.size
    append(journal, [1])
    append(journal, [2])
    journal.close()
    path = part_path(journal.folder, journal.writer, 0)
    content = bytearray(path.read_bytes())
    content[start + 30] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(match="damaged"):
        drain_orphans(journal.folder)
    assert stored(registry.open_backend(url)) == expected([0, 2])


def test_readers_see_them_at_once_and_once(tmp_path: Path, url: str) -> None:
    """Points that wait in two live journals, and partly in the store, are read once."""
    backend = registry.open_backend(url, create=True)
    journals = [make_journal(tmp_path / "journal", url) for _ in range(2)]
    append(journals[0], [0, 1])
    Sink(url, journals[0].folder, journals[0].writer, journals[0].now_us).step(seal=True)
    append(journals[0], [2])
    append(journals[1], [0, 1, 2, 3])
    reader = LiveReader(
        backend, lambda _: pending_batches(journals[0].folder, backend.url, Cursors(backend))
    )
    rows = reader.read(Query("metrics", columns=["seq", "value"], order=["seq"]))
    assert list(rows["seq"]) == [0, 1, 2, 3]
    (summary,) = reader.read(Query("summaries"))
    assert summary["count"] == 4


def test_values_are_exact(tmp_path: Path) -> None:
    """Not-a-number, infinities, the sign of zero and the smallest float come back."""
    url = f"sqlite:///{tmp_path}/store"
    journal = make_journal(tmp_path / "journal", url)
    odd = [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324]
    rows = [(i, 1, None, 0.5, [value]) for i, value in enumerate(odd)]
    journal.append_derived(WRITER, SERIES, rows)
    batch = JournalReader(journal.folder, journal.writer).read(1 << 20)
    assert batch is not None
    values = [row[4] for row in batch.blocks[0].unpack()]
    assert [*map(repr, values)] == [*map(repr, odd)]


SENDER = """
import sys
from tachograph import registry
from tachograph.records import Batch, MetricBlock, Series
store = registry.open_backend(sys.argv[1])
cuts = [int(cut) for cut in sys.argv[2].split(",")]
print("ready", flush=True)
sys.stdin.readline()
for writer in range(40):
    for cut in cuts:
        rows = [(i, 1, i, None, [float(i)]) for i in range(cut)]
        block = MetricBlock.pack(Series("run", ("value",)), rows)
        store.write(Batch(f"w{writer}", 0, cut, (block,)))
"""


@pytest.mark.slow
def test_processes_that_send_at_the_same_instant(url: str) -> None:
    """Three processes write the same writers at once, cut differently; every point is once."""
    registry.open_backend(url, create=True).close()
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, url, cuts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for cuts in ("2,6", "6", "4,6")
    ]
    for sender in senders:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
    for sender in senders:
        assert sender.stdin is not None
        sender.stdin.write("go\n")
        sender.stdin.flush()
    assert [sender.wait(100) for sender in senders] == [0, 0, 0]
    points = stored(registry.open_backend(url))
    assert sorted(points) == sorted(
        (f"w{writer}", i, float(i)) for writer in range(40) for i in range(6)
    )
