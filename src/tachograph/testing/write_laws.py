"""Laws of `write`: exactly once, in order, durable."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tachograph.backends.base import Backend, Query
from tachograph.errors import Gap, StoreNotFound
from tachograph.records import Batch
from tachograph.testing.builders import START, dump, make_batch, make_block
from tachograph.testing.fixtures import StoreFixtures, read, read_one

KILLED_AFTER_WRITE = """
import os, signal
from tachograph.testing import make_batch, make_block
{open}
block = make_block("r", {{"loss": [float(i) for i in range(1000)]}})
print(backend.write(make_batch("w", 0, blocks=[block], events=[{{"run_id": "r", "seq": 0}}])))
os.sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def points(writer: str, first: int, next: int, run_id: str = "r") -> Batch:
    """Records `first` to `next` - 1 of a writer, each one point whose value is its number."""
    seqs = range(first, next)
    block = make_block(run_id, {"loss": [float(seq) for seq in seqs]}, seqs=seqs)
    return make_batch(writer, first, next, blocks=[block])


def stored(backend: Backend, run_id: str = "r") -> list[tuple[str, int]]:
    """Writer and number of every point of a run, in order."""
    rows = read(backend, "metrics", "writer seq run_id", order=("writer", "seq"))
    return [(writer, seq) for writer, seq, run in rows if run == run_id]


class WriteLaws(StoreFixtures):
    """A record is stored once, whatever is sent again; a store says what it expects next."""

    def test_write_returns_the_number_expected_next(self, backend: Backend) -> None:
        """What `write` returns is the end of the batch, and `cursors` says the same."""
        assert backend.write(points("w", 0, 3)) == 3
        assert backend.write(points("w", 3, 4)) == 4
        assert read(backend, "cursors", "writer next") == [("w", 4)]

    def test_write_changes_nothing_when_repeated(self, backend: Backend) -> None:
        """A batch that was written before is a no-op, also an old one."""
        batches = [points("w", 0, 3), points("w", 3, 5)]
        for batch in batches:
            backend.write(batch)
        before = dump(backend)
        assert [backend.write(batch) for batch in batches] == [5, 5]
        assert dump(backend) == before

    def test_write_takes_only_the_new_part_of_an_overlap(self, backend: Backend) -> None:
        """Of a batch that begins in known records, the new ones are stored, of all tables."""
        events = [{"run_id": "r", "message": str(seq)} for seq in range(6)]
        backend.write(make_batch("w", 0, blocks=points("w", 0, 4).blocks, events=events[:4]))
        more = make_batch("w", 2, blocks=points("w", 2, 6).blocks, events=events[2:])
        assert backend.write(more) == 6
        assert stored(backend) == [("w", seq) for seq in range(6)]
        assert read(backend, "events", "seq message", order=("seq",)) == [
            (seq, str(seq)) for seq in range(6)
        ]
        assert read_one(backend, "summaries")["count"] == 6

    def test_write_refuses_a_gap(self, backend: Backend) -> None:
        """A batch behind the expected record raises Gap, stores nothing, and names the record."""
        backend.write(points("w", 0, 2))
        before = dump(backend)
        with pytest.raises(Gap) as caught:
            backend.write(points("w", 3, 5))
        assert (caught.value.writer, caught.value.expected, caught.value.first) == ("w", 2, 3)
        assert dump(backend) == before
        assert backend.write(points("w", 2, 5)) == 5

    def test_write_refuses_a_first_batch_that_does_not_begin_at_zero(
        self, backend: Backend
    ) -> None:
        """A writer that the store does not know begins at 0."""
        with pytest.raises(Gap) as caught:
            backend.write(points("w", 1, 2))
        assert caught.value.expected == 0
        assert stored(backend) == []

    def test_empty_batch_asks(self, backend: Backend) -> None:
        """An empty batch returns what is expected, wherever it stands, and changes nothing."""
        assert backend.write(Batch("w", 0, 0)) == 0
        backend.write(points("w", 0, 3))
        before = dump(backend)
        assert [backend.write(Batch("w", seq, seq)) for seq in (0, 2, 3, 9)] == [3, 3, 3, 3]
        assert backend.write(Batch("other", 7, 7)) == 0
        assert dump(backend) == before

    def test_numbers_may_be_missing_inside_a_batch(self, backend: Backend) -> None:
        """Records that hold no rows leave holes; the range counts, not the rows."""
        block = make_block("r", {"loss": [1.0, 2.0]}, seqs=[2, 7])
        assert backend.write(make_batch("w", 0, 10, blocks=[block])) == 10
        assert backend.write(Batch("w", 10, 12)) == 12
        assert backend.write(points("w", 12, 13)) == 13
        assert stored(backend) == [("w", 2), ("w", 7), ("w", 12)]

    def test_writers_are_independent(self, backend: Backend) -> None:
        """Two writers of one run interleave; each has its own numbers."""
        for first in (0, 2, 4):
            assert backend.write(points("a", first, first + 2)) == first + 2
            assert backend.write(points("b", first, first + 2)) == first + 2
        assert stored(backend) == [(writer, seq) for writer in "ab" for seq in range(6)]

    def test_batch_holds_several_runs(self, backend: Backend) -> None:
        """Blocks and rows of one batch go to the runs that they name."""
        batch = make_batch(
            "w",
            0,
            blocks=[
                make_block("r1", {"loss": [1.0, 2.0]}, seqs=[1, 3]),
                make_block("r2", {"loss": [3.0]}, seqs=[2]),
            ],
            tags=[{"run_id": "r1", "key": "k", "value": "1"}, {"run_id": "r2", "key": "k"}],
        )
        assert backend.write(batch) == 4
        assert stored(backend, "r1") == [("w", 1), ("w", 3)]
        assert stored(backend, "r2") == [("w", 2)]
        assert sorted(read(backend, "tags", "run_id value")) == [("r1", "1"), ("r2", None)]

    def test_reopened_store_continues(self, backend: Backend, backend_url: str) -> None:
        """Another object on the same store sees the rows, and goes on at the cursor."""
        backend.write(points("w", 0, 3))
        before = dump(backend)
        backend.close()
        again = self.open_backend(backend_url, create=False)
        try:
            assert dump(again) == before
            assert again.write(Batch("w", 0, 0)) == 3
            with pytest.raises(Gap):
                again.write(points("w", 4, 5))
            assert again.write(points("w", 1, 5)) == 5
            assert stored(again) == [("w", seq) for seq in range(5)]
            assert read_one(again, "summaries")["count"] == 5
        finally:
            again.close()

    def test_two_open_stores_see_each_other(self, backend: Backend, backend_url: str) -> None:
        """What one object wrote, another one on the same store reads and does not store again."""
        other = self.open_backend(backend_url)
        try:
            backend.write(points("w", 0, 3))
            assert other.write(points("w", 0, 5)) == 5
            assert backend.write(points("w", 3, 6)) == 6
            for one in (backend, other):
                assert stored(one) == [("w", seq) for seq in range(6)]
        finally:
            other.close()

    def test_what_write_returned_survives_a_kill(self, backend_url: str) -> None:
        """A process that is killed right after `write` has lost nothing."""
        code = KILLED_AFTER_WRITE.format(open=self.open_code(backend_url))
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert (child.stdout.strip(), child.returncode) == ("1000", -signal.SIGKILL), child.stderr
        backend = self.open_backend(backend_url, create=False)
        try:
            assert stored(backend) == [("w", seq) for seq in range(1000)]
            assert len(backend.read(Query("events"))) == 1
            assert backend.write(Batch("w", 0, 0)) == 1000
        finally:
            backend.close()

    def test_absent_store_is_not_found(self, backend_url: str) -> None:
        """Without `create` an absent store is an error, and stays absent."""
        for _ in range(2):
            with pytest.raises(StoreNotFound):
                self.open_backend(backend_url, create=False)

    def test_new_store_is_empty(self, backend: Backend) -> None:
        """Every table can be read before anything was written."""
        assert all(rows == [] for rows in dump(backend).values())
        assert read(backend, "cursors") == []

    def test_close_twice_does_nothing(self, backend: Backend) -> None:
        """A closed store can be closed."""
        backend.write(points("w", 0, 1))
        backend.close()
        backend.close()

    def test_store_says_where_it_is_and_what_it_likes(
        self, backend: Backend, backend_url: str
    ) -> None:
        """URL, intervals and batch size have values that a drain can work with."""
        assert backend.url == backend_url
        assert 0 <= backend.first_interval <= backend.longest_interval
        assert backend.batch_bytes > 0

    def test_heartbeat_shows_in_writers(self, backend: Backend, backend_url: str) -> None:
        """A heartbeat is seen at once, from an empty batch too, and is no record."""
        born = {"host": "here", "pid": 7, "started_at": START, "heartbeat_at": START}
        backend.write(make_batch("w", 0, writers=[born], heartbeat=START + 1))
        assert read_one(backend, "writers")["heartbeat_at"] == START + 1
        assert backend.write(Batch("w", 1, 1, heartbeat=START + 2_000_000)) == 1
        assert read(backend, "cursors", "next") == [(1,)]
        again = self.open_backend(backend_url)
        row = read_one(again, "writers")
        again.close()
        assert (row["heartbeat_at"], row["host"], row["pid"]) == (START + 2_000_000, "here", 7)

    def test_heartbeat_never_goes_back(self, backend: Backend) -> None:
        """A late batch with an older heartbeat does not make its writer look dead."""
        backend.write(make_batch("w", 0, writers=[{"pid": 7}], heartbeat=START + 50))
        backend.write(Batch("w", 1, 1, heartbeat=START + 20))
        backend.write(Batch("w", 1, 1))
        assert read_one(backend, "writers")["heartbeat_at"] == START + 50
