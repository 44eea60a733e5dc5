"""What recording cost: the shares, where they stand, and the one warning beyond the budget."""

from __future__ import annotations

import os
import pickle
import time
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

import tachograph
from tachograph import recorder
from tachograph.callbacks.base import Recording, hook
from tachograph.errors import TachographWarning
from tachograph.recording import cost as cost_module
from tachograph.recording.cost import Spent
from tachograph.records import Row

NAMES = ("share", "milliseconds", "bytes", "lag_seconds", "waiting_bytes", "dropped")


class Callback:
    """A callback of a framework with steps that take as long as the test wants."""

    def __init__(self, **keywords: Any) -> None:
        self._recording = Recording(**keywords)
        self._schedule = None

    @hook
    def begin(self) -> None:
        """The fit begins."""
        self._recording.open("nothing 1.0")
        self._schedule = self._recording.schedule()

    @hook
    def step(self, step: int, seconds: float, tensors: float = 0.0) -> None:
        """A step was done; recording it takes so many seconds, of which tensors some."""
        time.sleep(seconds)
        assert self._recording.run is not None
        self._recording.run.log({"loss": 1.0}, step=step)
        if tensors and self._schedule is not None and self._schedule.plan(step):
            self._schedule.spent(step, tensors)

    @hook
    def end(self) -> None:
        """The fit ends."""
        self._recording.close()


def configuration(folder: Path, **record: Any) -> dict[str, Any]:
    """A store in `folder` and settings of recording."""
    return {"backend": f"sqlite:///{folder}/runs.sqlite", "record": record}


def recorded(folder: Path, run_id: str) -> list[Row]:
    """The points on what recording cost, in order of time."""
    store = tachograph.open(f"sqlite:///{folder}/runs.sqlite")
    try:
        text = "select * from metrics where run_id = ? and name like 'recording/%' order by time"
        return list(store.sql(text, [run_id]))
    finally:
        store.close()


def last_of(folder: Path, run_id: str) -> dict[str, float]:
    """The last value of each."""
    return {row["name"].partition("/")[2]: row["value"] for row in recorded(folder, run_id)}


def train(callback: Callback, steps: int = 20, *, ours: float = 0.002, theirs: float = 0.01) -> str:
    """A fit in which a known part of the time is ours; the id of its run."""
    callback.begin()
    for step in range(steps):
        time.sleep(theirs)
        callback.step(step, ours, 0.001)
    callback.end()
    assert callback._recording.run is not None
    return callback._recording.run.run_id


def test_a_short_fit_has_one_point_of_each(tmp_path: Path) -> None:
    """With the share of the hooks in the time since the fit began, and what a step took."""
    callback = Callback(config=configuration(tmp_path), every=5)
    began = perf_counter()
    run_id = train(callback)
    elapsed = perf_counter() - began
    recorder.close_all()
    rows = recorded(tmp_path, run_id)
    assert sorted(row["name"] for row in rows) == sorted(
        f"recording/{name}" for name in (*NAMES, "tensor_milliseconds")
    )
    assert {row["context"] for row in rows} == {'{"phase":"recording"}'}
    assert {row["step"] for row in rows} == {None}
    values = last_of(tmp_path, run_id)
    took = callback._recording.hook_seconds
    assert 0.04 / elapsed < values["share"] <= 1.0
    assert values["milliseconds"] <= 1e3 * took / 20
    assert values["milliseconds"] == pytest.approx(1e3 * values["share"] * elapsed / 20, rel=0.3)
    assert values["tensor_milliseconds"] == pytest.approx(1.0)
    assert values["bytes"] > 1000
    assert values["dropped"] == 0


def test_a_long_fit_has_points_as_it_goes_on(tmp_path: Path) -> None:
    """At the interval of the machine's use, and only while something is recorded."""
    callback = Callback(config=configuration(tmp_path, system_interval=0.5))
    run_id = train(callback, steps=250)
    shares = [row for row in recorded(tmp_path, run_id) if row["name"] == "recording/share"]
    assert len(shares) >= 2


def test_the_fit_of_a_users_run_is_measured_to_its_last_hook(tmp_path: Path) -> None:
    """What comes between the fit and the end of the run is not part of the fit."""
    with tachograph.start_run(config=configuration(tmp_path)) as run:
        callback = Callback(run=run)
        callback.begin()
        for step in range(10):
            callback.step(step, 0.01)
        time.sleep(0.5)
    values = last_of(tmp_path, run.run_id)
    assert values["share"] > 0.5
    assert "tensor_milliseconds" not in values


def test_each_fit_of_a_run_has_its_own_share(tmp_path: Path) -> None:
    """The second does not count what the first took."""
    with tachograph.start_run(config=configuration(tmp_path)) as run:
        callback = Callback(run=run)
        train(callback, steps=5, ours=0.05, theirs=0.0)
        train(callback, steps=20, ours=0.0, theirs=0.01)
    rows = [row for row in recorded(tmp_path, run.run_id) if row["name"] == "recording/share"]
    assert rows[0]["value"] > 0.8
    assert rows[-1]["value"] < 0.4


def test_without_the_machine_there_are_no_points(tmp_path: Path) -> None:
    """`record.system` switches them off with the use of the machine."""
    run_id = train(Callback(config=configuration(tmp_path, system=False)), steps=5)
    recorder.close_all()
    assert recorded(tmp_path, run_id) == []


def test_nothing_is_watched_after_the_end(tmp_path: Path) -> None:
    """No tick stays behind, also where the callback goes into another process."""
    callback = Callback(config=configuration(tmp_path))
    train(callback, steps=3)
    run = callback._recording.run
    assert run is not None
    assert not [task for task in run._recorder.each_tick if "Cost" in repr(task)]
    twin = pickle.loads(pickle.dumps(callback._recording))
    assert (twin.hook_seconds, twin._schedules) == (0.0, [])


def test_a_fork_leaves_the_cost_to_its_parent(tmp_path: Path) -> None:
    """It neither records it again nor waits for a lock that its parent held."""
    callback = Callback(config=configuration(tmp_path))
    callback.begin()
    callback.step(0, 0.01)
    run = callback._recording.run
    assert run is not None
    assert run._cost is not None
    with run._cost._lock:
        child = os.fork()
        if child == 0:
            run.end_cost()
            recorder.close_all()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    callback.step(1, 0.01)
    callback.end()
    recorder.close_all()
    names = [row["name"] for row in recorded(tmp_path, run.run_id)]
    assert len(names) == len(set(names)) == len(NAMES)


def test_a_store_that_lags_is_seen(tmp_path: Path) -> None:
    """Seconds and bytes that the slowest store is behind, and none when it has caught up."""
    (tmp_path / "file").write_text("in the way")
    url = f"sqlite:///{tmp_path}/file/runs.sqlite"
    settings = {"backend": url, "journal": f"{tmp_path}/journal", "record": {"exit_deadline": 0.1}}
    with pytest.warns(TachographWarning):
        run = tachograph.start_run(config=settings)
        for step in range(30):
            run.log({"loss": 1.0}, step=step)
            time.sleep(0.1)
        behind = run._recorder.backlog()
        run.finish()
        run._recorder.close(0.1)
    assert 1.0 < behind["lag_seconds"] < 60.0
    with tachograph.start_run(config=configuration(tmp_path)) as run:
        run.log({"loss": 1.0}, step=0)
        run._recorder.flush(20)
        time.sleep(1.5)
        even = run._recorder.backlog()
    assert even["lag_seconds"] < 1.5
    assert even["bytes"] > even["waiting_bytes"]


# ---------------------------------------------------------------------------- the budget


def watch(folder: Path, spent: Spent) -> list[str]:
    """What is said of a fit that has taken this."""
    run = tachograph.start_run(config=configuration(folder, system=False), make_current=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [Spent(0.0, 0.0), spent, spent._replace(seconds=spent.seconds + 1)]
        cost = cost_module.RecordingCost(run, run._recorder, lambda: found.pop(0))
        cost._record()
        cost._record()
        run.finish(wait=False)
    return [str(one.message) for one in said]


def after(seconds: float, **spent: Any) -> Spent:
    """What was spent in a fit that has gone on for so long."""
    return Spent(1.0, perf_counter() + seconds, **spent)


def test_a_budget_that_is_not_kept_is_said_once(tmp_path: Path) -> None:
    """With what would keep to it."""
    spent = after(100.0, tensor_seconds=11.0, records=100, every=1)
    (said,) = watch(tmp_path, spent)
    assert "takes 11 % of the training (budget 2 %)" in said
    assert "every='auto' or every=6 would keep to it" in said


def test_a_given_interval_of_histograms_is_named(tmp_path: Path) -> None:
    """Where it, and not the moments, is what takes the time."""
    (said,) = watch(tmp_path, after(100.0, tensor_seconds=8.0, records=100, fixed=True))
    assert "histograms and snapshots that are 'auto'" in said


def test_auto_that_cannot_keep_to_the_budget_says_so(tmp_path: Path) -> None:
    """Where even seldom records are too dear."""
    (said,) = watch(tmp_path, after(20.0, tensor_seconds=1.5, records=3))
    assert "one record takes 500 ms" in said


@pytest.mark.parametrize(
    ("seconds", "spent"),
    [
        (5.0, {"tensor_seconds": 4.0, "records": 9, "every": 1}),  # too early to say
        (100.0, {"tensor_seconds": 2.2, "records": 9, "every": 1}),  # hardly more than the budget
        (100.0, {"tensor_seconds": 0.0}),  # metrics alone
    ],
)
def test_a_budget_that_is_kept_is_not_spoken_of(
    seconds: float, spent: dict[str, Any], tmp_path: Path
) -> None:
    """Nor is one in the first seconds."""
    assert watch(tmp_path, after(seconds, **spent)) == []
