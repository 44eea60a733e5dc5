"""What the monitor promises: it sees everything, costs the stores nothing, and forgets runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph import journal
from tachograph.delivery import drain_thread
from tachograph.errors import TachographWarning
from tachograph.health.monitor import Monitor
from tachograph.records import MetricBlock, Series
from tachograph.run import Run
from tachograph.settings import HealthConfig
from tachograph.tensors.records import STATISTICS, TensorKey

Told = Callable[..., list[str]]
Events = Callable[[], list[dict[str, Any]]]
Start = Callable[..., Run]

TRAIN = {"phase": "train"}


def _tensors(run: Run, step: int, kind: str = "weight", names: str = "ab", **counts: int) -> None:
    """Record tensors by hand, the last of them with these numbers of NaN and infinities."""
    rows = [
        {"name": name, "kind": kind, "shape": [2, 2], "size": 4, "l2": 1.0, "mean": 0.1 * step}
        for name in names
    ]
    rows[-1] |= counts
    run.log_tensors(rows, step=step)


# ---------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_told_once(value: float, told: Told, events: Events) -> None:
    """The first point counts, also of an evaluation, and also among other metrics."""

    def log(run: Run) -> None:
        for step in range(50):
            loss = value if step >= 30 else 1.0
            run.log({"accuracy": 0.5, "val/loss": loss, "lr": 1e300}, step=step)

    assert told(log) == ["nan"]
    (event,) = events()
    assert (event["level"], event["data"]["step"], event["data"]["metric"]) == (
        *("error", 30),
        "val/loss",
    )


def test_other_metrics_may_be_undefined_now_and_then(told: Told, events: Events) -> None:
    """A precision without positives is nothing; one that stays undefined is told of."""

    def log(run: Run) -> None:
        for step in range(60):
            now_and_then = math.nan if step % 3 else 0.5
            from_some_step = math.nan if step >= 40 else 0.5
            run.log({"precision": now_and_then, "never": math.nan, "f1": from_some_step}, step=step)

    assert told(log) == ["nan"]
    (event,) = events()
    assert (event["level"], event["data"]["metric"], event["data"]["step"]) == (
        *("warning", "f1"),
        42,
    )


def test_the_evaluation_may_get_worse(told: Told) -> None:
    """Overfitting is no divergence, whatever says that it is an evaluation."""

    def log(run: Run) -> None:
        for step in range(200):
            run.log({"loss": 1 / (step + 1)}, step=step, context=TRAIN)
            run.log({"loss": 1.0 + step}, step=step, context={"phase": "val"})
            run.log({"logloss": 1.0 + step}, step=step, context={"dataset": "validation_0"})
            run.log({"val_loss": 1.0 + step, "kl_loss": float(step), "lr": step / 10}, step=step)

    assert told(log) == []


@pytest.mark.parametrize("values", [(2.3, 9.0), (-5.0, 9.0)], ids=["positive", "negative"])
def test_a_loss_that_stays_far_above_its_beginning(
    values: tuple[float, float], told: Told, events: Events
) -> None:
    """One that only jumps there is not told of."""
    low, high = values

    def log(run: Run) -> None:
        for step in range(100):
            far = step >= 40
            run.log({"spike": low, "train_loss": high if far else low}, step=step)
            run.log({"other_loss": high if step % 20 < 10 else low}, step=step)

    assert told(log) == ["divergence"]
    assert events()[0]["data"]["metric"] == "train_loss"


def test_a_norm_that_explodes(told: Told, events: Events) -> None:
    """Three times in a row; a single outlier is what clipping is for."""

    def log(run: Run) -> None:
        for step in range(200):
            norm = 1e6 if step in (50, 90, 91) or step >= 150 else 1.0 + step % 3
            run.log({"gradient_norm": norm}, step=step, context=TRAIN)

    assert told(log) == ["exploding_gradient"]
    assert events()[0]["data"]["step"] == 152


def test_a_norm_may_grow_back_to_what_it_was(told: Told) -> None:
    """As it does where a learning rate is restarted after the training had nearly converged."""

    def log(run: Run) -> None:
        for step in range(400):
            norm = 1e-5 if 50 < step < 300 else 1.0
            run.log({"gradient_norm": norm}, step=step, context=TRAIN)

    assert told(log) == []


# ---------------------------------------------------------------------------- tensors


def test_infinite_gradients_that_do_not_end(told: Told, events: Events) -> None:
    """A scaler that never finds a scale: told of after ten records, with where it began."""

    def log(run: Run) -> None:
        for step in range(5, 30):
            _tensors(run, step, "gradient", inf=3)
            _tensors(run, step, "weight")

    assert told(log) == ["nan"]
    found = events()[0]["data"]
    assert (found["first_step"], found["step"], found["records"]) == (5, 14, 10)
    assert (found["tensor"], found["kind"], found["not_finite"]) == ("b", "gradient", 3)


def test_the_last_step_of_a_run_that_goes_on_is_looked_at(
    start: Start, events: Events, store_url: str
) -> None:
    """A training that hangs, or waits, after a NaN has the event while it is open."""
    run = start()
    _tensors(run, 1, nan=1)
    journal_of = run._recorder
    assert journal_of.flush(30)
    assert journal_of.flush(30)  # nothing has followed meanwhile
    with tachograph.open(store_url) as store:
        assert [e["kind"] for e in store.events(run.run_id) if e["kind"] == "health"] == ["health"]
    run.finish()
    assert len(events()) == 1


def test_both_ways_of_recording_tensors_are_seen(start: Start, events: Events) -> None:
    """Rows by hand, and statistics that stay packed."""
    keys = tuple(TensorKey(name, "weight", (2, 2), "float32", 4) for name in "xy")
    import struct

    with start() as run:
        numbers = [0.0, 1.0, -1.0, 1.0, 2.0, 0.0, 0.0, 0.0] * 2
        numbers[-2] = 4.0
        run.log_statistics(keys, struct.pack(f"<{2 * len(STATISTICS)}d", *numbers), step=3)
    with start() as other:
        _tensors(other, 7, nan=2)
    found = {event["run_id"]: event["data"] for event in events()}
    assert (found[run.run_id]["tensor"], found[run.run_id]["step"]) == ("y", 3)
    assert (found[other.run_id]["tensor"], found[other.run_id]["step"]) == ("b", 7)


# ---------------------------------------------------------------------------- settings


def test_rules_can_be_switched_off_and_tuned(told: Told, start: Start, events: Events) -> None:
    """Each by itself, and all of them."""

    def log(run: Run) -> None:
        for step in range(60):
            run.log({"loss": 1.0 if step < 30 else 4.0}, step=step)
        run.log({"loss": math.nan}, step=60)

    assert told(log) == ["divergence", "nan"]
    for settings, expected in (
        ({"nan": False}, ["divergence"]),
        ({"divergence": 5.0}, ["nan"]),
        ({"divergence": False, "nan": False}, []),
        ({"enabled": False}, []),
    ):
        with start(**settings) as run:
            log(run)
        rules = [e["data"]["rule"] for e in events() if e["run_id"] == run.run_id]
        assert rules == expected, settings


# ---------------------------------------------------------------------------- the monitor itself


def test_it_sees_what_lies_in_parts_that_are_deleted(
    told: Told, events: Events, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store that is quicker does not take a part of the journal away from it."""
    monkeypatch.setattr(journal, "PART_BYTES", 1 << 12)
    monkeypatch.setattr(drain_thread, "TICK_SECONDS", 0.01)

    def log(run: Run) -> None:
        for step in range(3000):
            run.log({"loss": math.nan if step == 1500 else 1.0}, step=step)
        assert run._recorder.journal.part > 10

    assert told(log) == ["nan"]
    assert events()[0]["data"]["step"] == 1500
    assert not list(tmp_path.rglob("*.journal"))


def test_no_part_is_deleted_before_it_was_looked_at(start: Start) -> None:
    """The monitor counts as a reader; one that has failed waits for nothing."""
    run = start()
    run.log({"loss": 1.0}, step=0)
    assert run._recorder.flush(30)
    drain: Any = run._recorder._drain
    confirmed = drain._read_by_all()
    assert confirmed > 0
    drain._monitor.seen = 3
    assert drain._read_by_all() == 3
    drain._monitor.seen = math.inf
    assert drain._read_by_all() == confirmed


def test_a_monitor_that_fails_is_one_warning(
    start: Start, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording goes on, and everything reaches the store."""

    def fail(*_: Any) -> None:
        raise RuntimeError("broken rule")

    monkeypatch.setattr("tachograph.health.rules.RunRules.points", fail)
    with pytest.warns(TachographWarning, match="broken rule") as caught, start() as run:
        for step in range(10):
            run.log({"loss": math.nan}, step=step)
            assert run._recorder.flush(30)
    assert len([w for w in caught if "broken rule" in str(w.message)]) == 1
    with tachograph.open(store_url) as store:
        assert len(store.series(run.run_id, "loss")) == 10
        assert store.row(run.run_id)["status"] == "finished"


def test_runs_are_forgotten_when_they_end(start: Start) -> None:
    """Thousands of trials may share a process."""
    with start() as study:
        for number in range(30):
            with study.child("trial", name=str(number)) as trial:
                trial.log({"loss": 1.0}, step=0)
                _tensors(trial, 0)
        assert study._recorder.flush(30)
        drain: Any = study._recorder._drain
        assert set(drain._monitor._runs) == {study.run_id}


def test_names_that_never_come_back_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of metrics whose names have a number in them not all are remembered."""
    from tachograph.health import not_finite, rules

    monkeypatch.setattr(not_finite, "_MOST_NAMES", 50)
    monkeypatch.setattr(rules, "_MOST_NAMES", 50)
    watched: Any = rules.RunRules(HealthConfig())
    for number in range(200):
        series = Series("r", (f"loss {number}", f"other {number}"))
        watched.points(MetricBlock.pack(series, [(number, 0, 0, None, (1.0, 1.0))]))
    assert len(watched._losses) <= 50
    assert len(watched._metric_rule._sound) <= 52


# ---------------------------------------------------------------------------- silence


class Times:
    """A clock, and the processor time of a process, that a test turns."""

    def __init__(self, run: Run, **settings: Any) -> None:
        self.now = self.processor = 0.0
        self.run = run
        more = {"clock": lambda: self.now, "processor": lambda: self.processor}
        self.monitor = Monitor(run._recorder.journal, HealthConfig(**settings), **more)

    def log(self, count: int, each: float, run: Run | None = None) -> None:
        """Log some points at a pace."""
        for step in range(count):
            (run or self.run).log({"accuracy": 0.5}, step=step)
            self.wait(each)

    def wait(self, seconds: float, load: float = 0.01) -> None:
        """Let time pass, in which the process has some load."""
        for _ in range(10):
            self.monitor.step()
            self.now += seconds / 10
            self.processor += load * seconds / 10
        self.monitor.step()


def _messages(events: Events) -> list[str]:
    return [event["message"] for event in events()]


def test_a_run_that_stalls_is_told_once(start: Start, events: Events) -> None:
    """A process that does nothing, five minutes after points came each second."""
    with start(enabled=False) as run:
        times = Times(run)
        times.log(50, 1.0)
        times.wait(280)
        times.wait(40)
        times.wait(4000)
        times.log(50, 1.0)
        times.wait(40_000)
    (event,) = events()
    assert event["message"].startswith("nothing new for 5 min, usually something each 1 s")
    assert event["data"]["rule"] == "stalled"
    assert json.dumps(event["data"])


@pytest.mark.parametrize(
    "pause",
    [
        lambda times: times.wait(290),
        lambda times: times.wait(1700, load=1.0),
        lambda times: (times.log(3, 200.0), times.wait(390)),
    ],
    ids=["a short one", "a long evaluation", "three times the longest so far"],
)
def test_pauses_of_a_healthy_run(
    pause: Callable[[Times], object], start: Start, events: Events
) -> None:
    """They are waited for."""
    with start(enabled=False) as run:
        times = Times(run)
        times.log(50, 1.0)
        pause(times)
    assert events() == []


def test_a_busy_process_is_given_longer(start: Start, events: Events) -> None:
    """Half an hour; a process can be busy waiting for others."""
    with start(enabled=False) as run:
        times = Times(run)
        times.log(50, 1.0)
        times.wait(1900, load=1.0)
    assert len(events()) == 1


def test_runs_without_a_pace_are_left_alone(start: Start, events: Events) -> None:
    """One long fit with a few points, and a run that records nothing."""
    with start(enabled=False) as run:
        times = Times(run)
        times.log(10, 1.0)
        times.wait(100_000)
    assert events() == []


def test_a_run_waits_for_its_parts(start: Start, events: Events) -> None:
    """A study whose trial goes on is alive; where the trial stalls, that is said of the trial."""
    with start(enabled=False) as study:
        times = Times(study)
        times.log(50, 1.0)
        trial = study.child("trial")
        times.log(50, 20.0, trial)
        times.wait(5000)
        trial.finish()
    assert [event["run_id"] for event in events()] == [trial.run_id]
