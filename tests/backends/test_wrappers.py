"""Wrappers obey the laws of the stores inside, and add what they promise."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tachograph.backends import wrappers
from tachograph.backends.base import Backend, Query
from tachograph.backends.memory import MemoryBackend
from tachograph.backends.wrappers import Mirror, Retry
from tachograph.errors import Gap, StoreError, StoreNotFound, StoreTooNew
from tachograph.records import Batch
from tachograph.registry import backend_class
from tachograph.table import Table
from tachograph.testing import BackendContract, dump, make_batch, make_block
from tachograph.testing.keyed_laws import change, fill


class Flaky(MemoryBackend):
    """A store that fails every other call, before it wrote or after."""

    calls = 0

    def write(self, batch: Batch) -> int:
        """Write, and perhaps fail."""
        self.calls += 1
        if self.calls % 4 == 1:
            raise StoreError("before the write")
        next_ = super().write(batch)
        if self.calls % 4 == 3:
            raise StoreError("after the write")
        return next_

    def read(self, query: Query) -> Table:
        """Read, and perhaps fail."""
        self.calls += 1
        if self.calls % 2:
            raise StoreError("before the read")
        return super().read(query)


class Failing(MemoryBackend):
    """A store that raises what it is told to, and counts."""

    error: Exception | None = None
    calls = 0

    def write(self, batch: Batch) -> int:
        """Raise, if there is an error."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        return super().write(batch)


def new_url() -> str:
    """URL of a store that nobody else uses."""
    return f"memory://{uuid.uuid4()}"


def points(first: int, next: int) -> Batch:
    """Records `first` to `next` - 1 of writer w."""
    seqs = range(first, next)
    block = make_block("r", {"loss": [float(seq) for seq in seqs]}, seqs=seqs)
    return make_batch("w", first, blocks=[block])


class TestRetry(BackendContract):
    """The contract, on a store that fails every other time."""

    @pytest.fixture
    def backend_url(self) -> str:
        """A name of its own for each test."""
        return new_url()

    def open_backend(self, url: str, create: bool = True) -> Backend:
        """A flaky store that is asked again."""
        return Retry(Flaky(url, create=create), attempts=3, first_delay=0.0)

    def test_what_write_returned_survives_a_kill(self, backend_url: str) -> None:
        """Not over a store in memory."""


class TestMirror(BackendContract):
    """The contract, on two stores of which the second joined later."""

    @pytest.fixture
    def backend_url(self) -> str:
        """A name of its own for each test."""
        return new_url()

    def open_backend(self, url: str, create: bool = True) -> Backend:
        """Two stores in memory."""
        return Mirror(MemoryBackend(url, create=create), MemoryBackend(f"{url}-2", create=create))

    def test_what_write_returned_survives_a_kill(self, backend_url: str) -> None:
        """Not over stores in memory."""


def test_retry_gives_up_after_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last error reaches the caller; waits double and are never longer than said."""
    waits: list[float] = []
    monkeypatch.setattr(wrappers.time, "sleep", waits.append)
    store = Failing(new_url(), create=True)
    store.error = StoreError("disk full")
    with pytest.raises(StoreError, match="disk full"):
        Retry(store, attempts=4, first_delay=1.0).write(points(0, 1))
    assert store.calls == 4
    longest = (1.0, 2.0, 4.0)
    assert all(last / 2 <= wait <= last for wait, last in zip(waits, longest, strict=True))


@pytest.mark.parametrize(
    "error",
    [Gap("w", 0, 1), StoreNotFound("none"), StoreTooNew("2"), ValueError("no store's error")],
)
def test_retry_does_not_repeat_what_cannot_succeed(error: Exception) -> None:
    """A gap, an absent or a newer store, or a mistake in the code is raised at once."""
    store = Failing(new_url(), create=True)
    store.error = error
    with pytest.raises(type(error)):
        Retry(store, first_delay=60.0).write(points(0, 1))
    assert store.calls == 1


def test_mirror_catches_up_a_store_that_joined_later() -> None:
    """Gap names what the newcomer needs, nothing is written; sent from there all are equal."""
    old, new = (MemoryBackend(new_url(), create=True) for _ in range(2))
    old.write(points(0, 3))
    mirror = Mirror(old, new)
    assert mirror.write(Batch("w", 3, 3)) == 0
    with pytest.raises(Gap) as caught:
        mirror.write(points(3, 5))
    assert caught.value.expected == 0
    assert (old.write(Batch("w", 0, 0)), new.write(Batch("w", 0, 0))) == (3, 0)
    assert mirror.write(points(0, 5)) == 5
    assert dump(old) == dump(new)
    assert len(dump(new)["metrics"]) == 5


@pytest.mark.parametrize("failing_first", [False, True])
def test_mirror_heals_after_a_failure_of_one(failing_first: bool) -> None:
    """A store that fails stops the batch; the same batch tried again makes them equal."""
    bad, good = Failing(new_url(), create=True), MemoryBackend(new_url(), create=True)
    mirror = Mirror(bad, good) if failing_first else Mirror(good, bad)
    mirror.write(points(0, 2))
    bad.error = StoreError("away")
    with pytest.raises(StoreError, match="away"):
        mirror.write(points(2, 4))
    bad.error = None
    assert mirror.write(points(2, 4)) == 4
    assert dump(bad) == dump(good)
    assert len(dump(bad)["metrics"]) == 4


def test_mirror_keeps_stores_of_different_kinds_equal(tmp_path: Path) -> None:
    """SQLite and Parquet, written through one mirror, show the same in every table."""
    pytest.importorskip("pyarrow")
    stores = [
        backend_class("sqlite")(f"sqlite:///{tmp_path}/runs.sqlite", create=True),
        backend_class("parquet")(f"parquet:///{tmp_path}/runs", create=True),
    ]
    mirror = Mirror(*stores)
    next_ = fill(mirror, "r", "w")
    fill(mirror, "r", "w", first=next_)
    fill(mirror, "gone", "w2")
    change(mirror, "editor", "runs", 10_000, run_id="gone", deleted=1)
    first, second = map(dump, stores)
    assert first == second
    assert [table for table, rows in first.items() if not rows] == ["writers"]
    mirror.close()


def test_mirror_reads_from_the_first() -> None:
    """What only the other holds is not seen."""
    first, other = (MemoryBackend(new_url(), create=True) for _ in range(2))
    other.write(points(0, 2))
    assert len(Mirror(first, other).read(Query("metrics"))) == 0
    assert len(Mirror(other, first).read(Query("metrics"))) == 2


def test_mirror_closes_all_even_if_one_fails() -> None:
    """The error of one store does not leave another one open."""
    closed: list[str] = []

    class Closing(MemoryBackend):
        def close(self) -> None:
            closed.append(self.url)
            raise StoreError("cannot close")

    urls = [new_url() for _ in range(3)]
    with pytest.raises(StoreError):
        Mirror(*(Closing(url, create=True) for url in urls)).close()
    assert sorted(closed) == sorted(urls)
