"""A courier works beside everybody else, and nobody waits for it longer than they said."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph import recorder, registry
from tachograph.backends.base import Query
from tachograph.backends.memory import MemoryBackend
from tachograph.delivery import drain_thread
from tachograph.delivery.courier import Courier
from tachograph.delivery.sink import Sink
from tachograph.errors import Busy, StoreError
from tachograph.journal import JournalWriter
from tachograph.records import Batch, Series, uuid7


class Gated(MemoryBackend):
    """A store that answers when its gate is open, and fails when it is told to."""

    gate = threading.Event()
    fails = False
    writes: list[int]
    batch_bytes = 200

    def write(self, batch: Batch) -> int:
        """Wait, fail, or write."""
        Gated.writes.append(batch.next)
        self.gate.wait(20.0)
        if self.fails:
            raise StoreError("away")
        return super().write(batch)


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Its scheme is known, its gate open; threads that wait at it are let go at the end."""
    made = threading.Event()
    made.set()
    monkeypatch.setitem(registry.BUILTIN, "gated", f"{__name__}:Gated")  # type: ignore[arg-type]
    monkeypatch.setattr(Gated, "gate", made)
    monkeypatch.setattr(Gated, "fails", False)
    monkeypatch.setattr(Gated, "writes", [], raising=False)
    yield made
    made.set()


class Recording:
    """A journal with points, and a courier that brings them away."""

    def __init__(self, folder: Path) -> None:
        self.journal = JournalWriter(folder, uuid7(), {})
        self.url = f"gated://{self.journal.writer}"
        self.told: list[str] = []
        sink = Sink(self.url, folder, self.journal.writer, self.journal.now_us)
        self.courier = Courier(sink, lambda: self.told.append("step"), self.told.append)
        self.handle = self.journal.series(Series("it", ("loss",)))

    def log(self, count: int) -> None:
        """Log points."""
        for _ in range(count):
            self.journal.append_points(self.handle, 0, None, [1.0])

    def stored(self) -> int:
        """How many points the store has."""
        return len(MemoryBackend(self.url, create=True).read(Query("all_metrics")))


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """A recording whose courier has not done a step."""
    made = Recording(tmp_path)
    yield made
    made.journal.close()


def test_no_thread_before_there_is_work(recording: Recording) -> None:
    """And one from the first step on."""
    before = threading.active_count()
    assert not recording.courier.alive
    recording.courier.step()
    assert recording.courier.alive
    assert threading.active_count() == before + 1
    recording.courier.close()
    recording.courier.join(time.monotonic() + 5.0)


def test_the_end_brings_everything_and_says_so(recording: Recording) -> None:
    """What was recorded before `close` is in the store when the thread has ended."""
    recording.log(100)
    recording.courier.step()
    recording.log(100)
    recording.courier.close()
    recording.courier.join(time.monotonic() + 10.0)
    assert not recording.courier.alive
    assert recording.stored() == 200
    assert recording.courier.confirmed == recording.journal.next_seq
    assert recording.told[-1] == recording.url
    assert "step" in recording.told


def test_a_step_returns_though_the_store_hangs(recording: Recording, gate: threading.Event) -> None:
    """And the end leaves it at the deadline; who knows already that it hangs does not wait."""
    gate.clear()
    recording.log(10)
    began = time.monotonic()
    for _ in range(100):
        recording.courier.step(seal=True)
    assert time.monotonic() - began < 0.5
    while not Gated.writes:
        time.sleep(0.01)
    recording.courier.close()
    began = time.monotonic()
    recording.courier.join(began + 0.3)
    assert 0.25 < time.monotonic() - began < 2.0
    recording.courier.give_up(recording.journal.next_seq)
    began = time.monotonic()
    recording.courier.join(began + 10.0)
    assert time.monotonic() - began < 0.2
    assert recording.courier.alive


def test_a_store_that_is_down_gets_one_quick_attempt(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    """Nobody waits for the deadline: not where it fails again, not where it hangs now."""
    monkeypatch.setattr(Gated, "fails", True)
    recording.log(10)
    with pytest.warns(match="away"):
        while not recording.courier.is_down():
            recording.courier.step(seal=True)
            time.sleep(0.01)
    while Gated.writes and recording.courier._began is not None:
        time.sleep(0.01)
    gate.clear()
    tried = len(Gated.writes)
    recording.courier.close()
    began = time.monotonic()
    recording.courier.join(began + 30.0)
    assert time.monotonic() - began < 5.0
    assert len(Gated.writes) <= tried + 1


def test_a_store_that_is_back_at_the_end_is_waited_for(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it was down, once it takes something it may take the rest."""
    monkeypatch.setattr(Gated, "fails", True)
    recording.log(200)
    with pytest.warns(match="away"):
        while not recording.courier.is_down():
            recording.courier.step(seal=True)
            time.sleep(0.01)
    monkeypatch.setattr(Gated, "fails", False)
    monkeypatch.setattr("tachograph.delivery.courier.QUICK_SECONDS", 0.2)
    slow_write = Gated.write

    def write(store: Gated, batch: Batch) -> int:
        time.sleep(0.02)
        return slow_write(store, batch)

    monkeypatch.setattr(Gated, "write", write)
    recording.courier.close()
    recording.courier.join(time.monotonic() + 20.0)
    assert recording.stored() == 200


def test_a_busy_store_is_waited_for_at_the_end(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it asks for, where that is before the deadline; else not at all."""
    busy = [0.3, 60.0]
    write = Gated.write

    def write_when_free(store: Gated, batch: Batch) -> int:
        if batch.next > batch.first and busy:
            raise Busy("full", busy.pop(0))
        return write(store, batch)

    monkeypatch.setattr(Gated, "write", write_when_free)
    recording.log(50)
    began = time.monotonic()
    with pytest.warns(match="full"):
        recording.courier.close()
        recording.courier.join(began + 30.0)
    assert 0.3 < time.monotonic() - began < 10.0
    assert busy == []  # it came back after the first, and was left after the second
    assert recording.courier.alive
    assert recording.stored() == 0


@pytest.mark.parametrize(
    ("url", "far"),
    [
        ("sqlite:////data/runs.sqlite", False),
        ("parquet:////data/runs", False),
        ("parquet:////share/runs", True),
        ("memory://test", False),
        ("https://tachograph.lab.example:8765", True),
        ("s3://bucket/runs", True),
    ],
)
def test_which_stores_get_a_courier(url: str, far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that another machine may keep waiting."""
    monkeypatch.setattr(registry, "is_network_path", lambda path: Path("/share") in path.parents)
    assert registry.is_far(url) is far


def test_a_process_waits_once_for_a_store_that_hangs(tmp_path: Path, gate: threading.Event) -> None:
    """Not again for each fold, and not again at its end."""
    gate.clear()
    record = {"system": False, "exit_deadline": 1.0}
    config = {"backend": f"gated://{uuid7()}", "journal": str(tmp_path), "record": record}
    began = time.monotonic()
    with tachograph.start_run(config=config) as run:
        for _ in range(3):
            run.child("fold").finish()
    assert recorder.get_recorder(run.config).close() is False
    assert 0.9 < time.monotonic() - began < 2.5
    gate.set()


def test_a_store_that_is_away_for_days_takes_no_memory(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it lags is known all the same."""
    monkeypatch.setattr(drain_thread, "_MOST_MARKS", 16)
    monkeypatch.setattr(drain_thread, "TICK_SECONDS", 0.005)
    gate.clear()
    record = {"system": False, "exit_deadline": 0.1}
    config = {"backend": f"gated://{uuid7()}", "journal": str(tmp_path), "record": record}
    began = time.monotonic()
    with tachograph.start_run(config=config) as run:
        for step in range(150):
            run.log({"loss": 1.0}, step=step)
            time.sleep(0.005)
        thread: Any = run._recorder._drain
        assert len(thread._marks) <= 16
        lag = run._recorder.backlog()["lag_seconds"]
        assert 0.3 < lag < time.monotonic() - began
    gate.set()


def test_without_more_threads_the_work_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from Python 3.12 on, where the first step comes when the interpreter is about to end."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("tachograph gated:"):
            raise RuntimeError("can't start new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    url = f"gated://{uuid7()}"
    config: dict[str, Any] = {"backend": url, "journal": str(tmp_path)}
    with tachograph.start_run(config=config | {"record": {"system": False}}) as run:
        run.log({"loss": 1.0}, step=0)
    assert recorder.get_recorder(run.config).close()
    assert not list(tmp_path.glob("*.journal"))
    found = MemoryBackend(url, create=True).read(Query("all_metrics"))
    assert [row["name"] for row in found if row["name"] == "loss"] == ["loss"]
