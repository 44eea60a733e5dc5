"""A sink brings everything into its store once, whatever happens to the store in between."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tachograph import journal, registry
from tachograph.backends.base import Query
from tachograph.backends.memory import MemoryBackend
from tachograph.delivery import sink
from tachograph.delivery.sink import Backoff, Sink
from tachograph.errors import AccessDenied, Busy, StoreError, TachographWarning
from tachograph.journal import JournalWriter
from tachograph.records import Batch, Series, uuid7
from tachograph.warning import warn_once


class Failing(MemoryBackend):
    """A store that raises what it is told to."""

    error: Exception | None = None
    batch_bytes = 100

    def write(self, batch: Batch) -> int:
        """Raise, if there is an error; questions and heartbeats are always answered."""
        if self.error is not None and batch.next > batch.first:
            raise self.error
        return super().write(batch)


class Recording:
    """A journal with points, and a sink that brings them into a store."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.journal = JournalWriter(folder, uuid7(), {"sinks": [url]})
        self.sink = Sink(url, folder, self.journal.writer, self.journal.now_us)
        self.handle = self.journal.series(Series("it", ("loss",)))
        self.logged = 0

    def log(self, count: int) -> None:
        """Log that many points more."""
        for step in range(self.logged, self.logged + count):
            self.journal.append_points(self.handle, step, None, [float(step)])
        self.logged += count

    def close(self) -> None:
        """Let go of both."""
        self.sink.close()
        self.journal.close()

    def stored(self) -> list[int]:
        """Steps that the store has, in order of the records."""
        backend = registry.open_backend(self.url)
        try:
            return list(backend.read(Query("all_metrics", order=["seq"]))["step"])
        finally:
            backend.close()


@pytest.fixture(params=["sqlite", "parquet"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Recording]:
    """A recording into a store of each kind."""
    made = Recording(tmp_path / "journal", f"{request.param}:///{tmp_path}/store/runs")
    yield made
    made.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recording]:
    """A recording into a store that can be made to fail."""
    monkeypatch.setitem(registry.BUILTIN, "failing", f"{__name__}:Failing")  # type: ignore[arg-type]
    monkeypatch.setattr(Failing, "error", None)
    made = Recording(tmp_path / "journal", f"failing://{uuid7()}")
    yield made
    made.close()


# ---------------------------------------------------------------------------- backups


def test_a_store_put_back_from_a_backup_gets_again_what_it_lost(
    recording: Recording, tmp_path: Path
) -> None:
    """As long as the journal has it; nothing is said, and no point is missing or doubled."""
    store, backup = tmp_path / "store", tmp_path / "backup"
    recording.log(50)
    recording.sink.step(seal=True)
    recording.sink.close()
    shutil.copytree(store, backup)
    recording.log(50)
    recording.sink.step(seal=True)
    assert recording.sink.confirmed == recording.journal.next_seq
    recording.sink.close()
    shutil.rmtree(store)
    backup.rename(store)
    recording.log(50)
    recording.sink.step(seal=True)
    assert recording.sink.problem is None
    assert recording.sink.confirmed == recording.journal.next_seq
    assert recording.stored() == list(range(150))


def test_a_heartbeat_notices_the_backup_too(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing new is recorded any more."""
    monkeypatch.setattr("tachograph.delivery.sink.HEARTBEAT_SECONDS", 0.0)
    recording.log(50)
    recording.sink.step(seal=True)
    recording.sink.close()
    shutil.rmtree(tmp_path / "store")
    recording.sink.step()
    recording.sink.step(seal=True)
    assert recording.stored() == list(range(50))


def test_what_the_journal_has_not_any_more_is_said(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole is never passed over in silence: the store gets nothing behind it."""
    monkeypatch.setattr(journal, "PART_BYTES", 1 << 12)
    recording.log(300)
    recording.sink.step(seal=True)
    recording.journal.delete_parts(recording.sink.confirmed)
    assert recording.journal.part > 2
    recording.sink.close()
    shutil.rmtree(tmp_path / "store")
    recording.log(10)
    with pytest.warns(match="was deleted or replaced"):
        recording.sink.step(seal=True)
    assert recording.stored() == []


# ---------------------------------------------------------------------------- troubles


def test_a_batch_that_failed_is_not_forgotten_over_a_heartbeat(
    failing: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat that gets through in between leaves it to be sent."""
    monkeypatch.setattr("tachograph.delivery.sink.HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(Failing, "longest_interval", 1000.0)
    monkeypatch.setattr(Failing, "first_interval", 1000.0)  # only what is full is sent
    failing.log(10)
    monkeypatch.setattr(Failing, "error", StoreError("away"))
    with pytest.warns(match="away"):
        failing.sink.step()
    monkeypatch.setattr(Failing, "error", None)
    for _ in range(3):
        failing.sink._backoff.succeeded()
        failing.sink.step()
    failing.log(10)
    failing.sink.step(seal=True)
    assert failing.stored() == list(range(20))


def test_each_kind_of_trouble_is_said_once(
    failing: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it fails and recovers; a recovery is not announced."""
    failing.log(1)
    errors = [StoreError("away"), OSError("off"), AccessDenied("who is it"), ValueError("odd")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for error in [*errors, None, *errors, None]:
            monkeypatch.setattr(Failing, "error", error)
            failing.log(1)
            failing.sink.step(seal=True)
    texts = [str(one.message) for one in said]
    assert len(texts) == 2
    assert "away" in texts[0]
    assert "who is it" in texts[1]
    assert "once the token is right" in texts[1]
    assert failing.stored() == list(range(failing.logged))


def test_a_warning_from_a_thread_of_ours_names_no_line() -> None:
    """The line would be one of `threading`, which tells nobody anything."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warn_once, args=("the store is away",))
        thread.start()
        thread.join()
    assert [one.filename.strip("<>") for one in said] == ["sys"]


def test_nobody_waits_for_a_store_that_keeps_failing(
    failing: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for one that does not know the token; it counts as up again when it has answered."""
    monkeypatch.setattr(Failing, "error", StoreError("away"))
    with pytest.warns():
        for _ in range(3):
            assert not failing.sink.is_down()
            failing.log(1)
            failing.sink.step(seal=True)
    assert failing.sink.is_down()
    monkeypatch.setattr(Failing, "error", None)
    failing.sink.step(seal=True)
    assert not failing.sink.is_down()
    monkeypatch.setattr(Failing, "error", AccessDenied("who is it"))
    failing.log(1)
    with pytest.warns():
        failing.sink.step(seal=True)
    assert failing.sink.is_down()


def test_who_waited_in_vain_does_not_wait_again(failing: Recording) -> None:
    """Until the store has caught up with what it was waited for."""
    failing.log(5)
    failing.sink.give_up(failing.journal.next_seq)
    assert failing.sink.is_down()
    failing.sink.step(seal=True)
    assert not failing.sink.is_down()


def test_a_busy_store_is_left_alone_for_as_long_as_it_asks(
    failing: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the end of a process, which then does not wait in vain."""
    failing.log(5)
    monkeypatch.setattr(Failing, "error", Busy("full", retry_after=0.5))
    with pytest.warns(match="full"):
        failing.sink.step(seal=True)
    monkeypatch.setattr(Failing, "error", None)
    asked = time.monotonic()
    assert failing.sink.is_down(asked + 0.1)
    assert not failing.sink.is_down(asked + 10.0)
    while failing.sink.confirmed < failing.journal.next_seq:
        failing.sink.step(seal=True)
        assert time.monotonic() - asked < 5.0
    assert time.monotonic() - asked > 0.45


# ---------------------------------------------------------------------------- delays


def test_a_store_that_others_write_to_is_left_for_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who steps it keeps the journal safe between; that others write is said if it lasts."""
    monkeypatch.setattr(sink, "_TURN_SECONDS", 0.05)
    recording = Recording(tmp_path / "journal", f"sqlite:///{tmp_path}/runs.sqlite")
    recording.log(10)
    recording.sink.step(seal=True)
    other = sqlite3.connect(tmp_path / "runs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recording.log(10)
    late = Recording(tmp_path / "late", recording.sink.url)
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        recording.sink.step(seal=True)
        late.sink.step(seal=True)
    assert time.monotonic() - began < 20.0  # SQLite itself would wait for 30
    assert not said
    assert not recording.sink.is_up
    monkeypatch.setattr(sink, "LOCKED_SECONDS", 0.0)
    with pytest.warns(TachographWarning, match="database is locked"):
        recording.sink.step(seal=True)
    other.close()
    recording.sink.step(seal=True, last=True)
    assert recording.stored() == list(range(20))
    recording.close()
    late.close()


def test_delays_grow_and_differ_between_clients() -> None:
    """A second at first, a minute at last, and never the same for all."""
    clients = [Backoff() for _ in range(50)]
    for longest in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        delays = []
        for client in clients:
            client.failed(StoreError("away"))
            delays.append(client._until - time.monotonic())
        assert longest / 2 - 0.1 <= min(delays) < max(delays) <= longest
        assert max(delays) - min(delays) > longest / 8


def test_delays_leave_the_seeds_of_a_training_alone() -> None:
    """The training draws the same numbers as without us."""
    state = random.getstate()
    Backoff().failed(Busy("full", 1.0))
    assert random.getstate() == state
