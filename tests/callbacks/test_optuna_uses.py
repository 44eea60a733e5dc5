"""Each way to use the Optuna callback: ask and tell, threads, resuming, enqueued trials."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")
from optuna.trial import Trial, TrialState  # noqa: E402

from tachograph.callbacks import OptunaCallback  # noqa: E402
from tachograph.start import start_run  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.CRITICAL)

MakeRecord = Callable[[], Record]


@pytest.fixture
def callback(config: dict[str, Any]) -> OptunaCallback:
    """A callback that records into the test's store."""
    return OptunaCallback(config=config)


def objective(trial: Trial) -> float:
    """Suggest, report twice, return."""
    x = trial.suggest_float("x", -1, 1)
    choice = trial.suggest_categorical("choice", ["a", "b"])
    for step in range(2):
        trial.report(x + step, step)
    return x * x + (choice == "a")


def trials(record: Record) -> dict[int, dict[str, Any]]:
    """Trial runs by number."""
    return {int(row["name"].split("-")[1]): row for row in record.rows("runs", kind="trial")}


def points(record: Record, run_id: str, name: str) -> list[tuple[int | None, float]]:
    """Steps and values of one metric of one run."""
    return [(row["step"], row["value"]) for row in record.rows("metrics", run_id=run_id, name=name)]


def check_complete(record: Record, study: optuna.Study) -> None:
    """Every finished trial of the study is in the store, whole, and once."""
    found = trials(record)
    for trial in study.trials:
        row = found[trial.number]
        run_id = row["run_id"]
        expected = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
        assert row["status"] == expected.get(trial.state, "failed")
        steps = points(record, run_id, "intermediate_value")
        assert sorted(steps) == sorted(trial.intermediate_values.items()), trial.number
        complete = trial.state == TrialState.COMPLETE
        assert [v for _, v in points(record, run_id, "value")] == [trial.value] * complete
        params = record.params(run_id)
        assert {name: params[name] for name in trial.params} == trial.params
    assert len(found) == len(study.trials)
    assert len(record.runs(kind="study")) == 1


def test_ask_and_tell(callback: OptunaCallback, record: MakeRecord) -> None:
    """`trial` records what runs in its block, also interleaved; `sync` adds what was told."""
    study = optuna.create_study()
    asked = [study.ask() for _ in range(3)]
    for trial in asked:
        with callback.trial(trial) as run:
            assert run is not None
            value = objective(trial)
        if trial.number < 2:
            study.tell(trial, value)
    study.tell(study.ask(), state=TrialState.FAIL)
    with pytest.raises(ArithmeticError), callback.trial(study.ask()):
        raise ArithmeticError("in the block")
    assert callback.sync(study) == 3
    assert callback.sync(study) == 0
    callback.close()
    found = record()
    rows = trials(found)
    statuses = [rows[i]["status"] for i in range(5)]
    assert statuses == ["finished", "finished", "finished", "failed", "failed"]
    assert points(found, rows[1]["run_id"], "value")[0][1] == study.trials[1].value
    assert not points(found, rows[2]["run_id"], "value")
    assert found.run()["status"] == "finished"


@pytest.mark.parametrize("shared", [False, True])
def test_sync_while_a_trial_runs(
    callback: OptunaCallback, record: MakeRecord, tmp_path: Path, shared: bool
) -> None:
    """Trials asked for without us may be synced at any time; what they report is there once."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db" if shared else None)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    for step in range(3):
        trial.report(0.1 * step, step)
        callback.sync(study)
    (row,) = trials(record()).values()
    assert row["status"] == "running"
    study.tell(trial, 1.0)
    callback.sync(study)
    callback.sync(study)
    check_complete(record(), study)


def test_enqueued_and_added_trials(callback: OptunaCallback, record: MakeRecord) -> None:
    """An enqueued trial says so, waiting or run; an added one comes by `sync`."""
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.25})
    study.add_trial(
        optuna.trial.create_trial(
            params={"x": 0.5},
            distributions={"x": optuna.distributions.FloatDistribution(-1, 1)},
            value=0.125,
            intermediate_values={0: 1.0, 4: 0.5},
        )
    )
    study.optimize(callback.objective(objective), n_trials=1, callbacks=[callback])
    study.enqueue_trial({"x": 0.75})
    assert callback.sync(study) == 2
    found = record()
    rows = trials(found)
    tags = {
        number: {tag["key"]: tag["value"] for tag in found.rows("tags", run_id=row["run_id"])}
        for number, row in rows.items()
    }
    assert tags[0] == {"trial_state": "COMPLETE", "enqueued": ""}
    assert tags[1] == {"trial_state": "COMPLETE"}
    assert tags[2] == {"trial_state": "WAITING", "enqueued": ""}
    assert rows[2]["status"] is None
    assert found.params(rows[0]["run_id"])["x"] == 0.25
    assert points(found, rows[1]["run_id"], "intermediate_value") == [(0, 1.0), (4, 0.5)]


def test_resume_in_one_process(callback: OptunaCallback, record: MakeRecord) -> None:
    """Calling `optimize` again goes on with the study's run, and repeats nothing."""
    study = optuna.create_study()
    for _ in range(2):
        study.optimize(callback.objective(objective), n_trials=2, callbacks=[callback])
    assert callback.sync(study) == 0
    check_complete(record(), study)


def test_two_callbacks_on_one_study(config: dict[str, Any], record: MakeRecord) -> None:
    """What one recorded, the other leaves."""
    study = optuna.create_study()
    one, other = OptunaCallback(config=config), OptunaCallback(config=config)
    study.optimize(one.objective(objective), n_trials=3, callbacks=[one, other])
    check_complete(record(), study)


def test_threads_run_side_by_side(callback: OptunaCallback, record: MakeRecord) -> None:
    """With n_jobs=4 objectives overlap as ever, and every trial has its own points."""
    barrier = threading.Barrier(4)

    def meeting(trial: Trial) -> float:
        barrier.wait(20)  # breaks if objectives were run one after the other
        return objective(trial)

    study = optuna.create_study()
    study.optimize(callback.objective(meeting), n_trials=16, n_jobs=4, callbacks=[callback])
    found = record()
    check_complete(found, study)
    params = found.params(found.run()["run_id"])
    assert params["optimize.n_jobs"] == 4


def test_inside_a_users_run(
    config: dict[str, Any], callback: OptunaCallback, record: MakeRecord
) -> None:
    """The study takes the run as its own; trials are its children; only the user ends it."""
    study = optuna.create_study()
    with start_run(config=config) as run:
        for _ in range(2):
            study.optimize(callback.objective(objective), n_trials=1, callbacks=[callback])
        assert run.is_open
    found = record()
    assert study.user_attrs["tachograph:study"] == run.run_id
    assert [row["parent_id"] for row in found.runs(kind="trial")] == [run.run_id] * 2
    assert found.run()["status"] == "finished"


def test_trials_are_not_listed_anew(callback: OptunaCallback) -> None:
    """The cost of a trial does not grow with their number: 600 reads of all trials would."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler())
    reads = 0
    original = study.get_trials

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal reads
        reads += 1
        return original(*args, **kwargs)

    study.get_trials = counted  # type: ignore[method-assign]
    study.optimize(callback.objective(objective), n_trials=300, callbacks=[callback])
    assert reads < 10
