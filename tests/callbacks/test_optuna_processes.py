"""Several processes on one study: killed, side by side, syncing at once; each thing once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")
from optuna.trial import Trial, TrialState  # noqa: E402

import tachograph  # noqa: E402
from tachograph import registry  # noqa: E402
from tachograph.callbacks import OptunaCallback  # noqa: E402
from tachograph.levels.level import assess  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402
from tachograph.transfer.copying import copy_store  # noqa: E402

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


WORKER = """
import sys, optuna
from tachograph.callbacks import OptunaCallback
optuna.logging.set_verbosity(optuna.logging.CRITICAL)
storage, backend, count, mode = sys.argv[1:]
if storage.endswith(".log"):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    storage = JournalStorage(JournalFileBackend(storage))
study = optuna.create_study(study_name="shared", storage=storage, load_if_exists=True)
callback = OptunaCallback(config={"backend": backend, "record": {"system": False}})
def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    choice = trial.suggest_categorical("choice", ["a", "b"])
    for step in range(3):
        trial.report(x + step, step)
        if mode == "die" and trial.number == 1 and step == 1:
            import os, signal, time
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
    if trial.number % 4 == 3:
        raise optuna.TrialPruned
    return x * x
if mode == "sync":
    callback.sync(study)
elif mode == "plain":
    study.optimize(objective, n_trials=int(count))
else:
    study.optimize(callback.objective(objective), n_trials=int(count), callbacks=[callback])
    callback.sync(study)
callback.close()
"""


def start_worker(storage: str, backend: str, count: int, mode: str = "run") -> Any:
    """A process that works on the shared study."""
    arguments = [sys.executable, "-c", WORKER, storage, backend, str(count), mode]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def finish(*workers: Any) -> None:
    """Wait for them; each must have ended well."""
    for worker in workers:
        _, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, errors


def load(storage: str) -> optuna.Study:
    """The shared study."""
    if storage.endswith(".log"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return optuna.load_study(
            study_name="shared", storage=JournalStorage(JournalFileBackend(storage))
        )
    return optuna.load_study(study_name="shared", storage=storage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("store", ["sqlite", "parquet"])
def test_processes_on_one_storage_meet_in_one_record(tmp_path: Path, kind: str, store: str) -> None:
    """Two processes with hooks, then some without, then two that sync at once: each thing once."""
    storage = f"sqlite:///{tmp_path}/o.db" if kind == "sqlite" else f"{tmp_path}/o.log"
    backend = f"{store}:///{tmp_path}/store"
    load_first = start_worker(storage, backend, 1)
    finish(load_first)
    finish(start_worker(storage, backend, 4), start_worker(storage, backend, 4))
    finish(start_worker(storage, backend, 3, "plain"))
    finish(start_worker(storage, backend, 0, "sync"), start_worker(storage, backend, 0, "sync"))
    study = load(storage)
    assert len(study.trials) == 12
    check_complete(Record(backend), study)
    with tachograph.open(backend) as found:
        limits = [finding.what for finding in assess(found.run("latest"), found).missing]
    assert any(what.startswith("trials were recorded by") for what in limits)
    other = {"sqlite": "parquet", "parquet": "sqlite"}[store]
    copied = f"{other}:///{tmp_path}/copy"
    source, destination = (registry.open_backend(url, create=True) for url in (backend, copied))
    copy_store(source, destination)
    source.close()
    destination.close()
    check_complete(Record(copied), study)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "parquet"])
def test_another_process_syncs_between_the_end_of_a_trial_and_its_callback(
    tmp_path: Path, store: str
) -> None:
    """Both record the trial, neither knows of the other, and each point is there once."""
    storage, backend = f"sqlite:///{tmp_path}/o.db", f"{store}:///{tmp_path}/store"
    callback = OptunaCallback(config={"backend": backend, "record": {"system": False}})
    study = optuna.create_study(study_name="shared", storage=storage)

    def sync_elsewhere(*_: Any) -> None:
        finish(start_worker(storage, backend, 0, "sync"))

    study.optimize(callback.objective(objective), 1, callbacks=[sync_elsewhere, callback])
    study.optimize(objective, 1, callbacks=[sync_elsewhere, callback])
    found = Record(backend)
    check_complete(found, study)
    best = points(found, found.run()["run_id"], "best_value")
    assert len(best) == len(set(best)) >= 1


@pytest.mark.slow
def test_processes_that_start_together_find_one_id(tmp_path: Path) -> None:
    """Whoever opens the study first, all its trials are under one run."""
    storage, backend = f"{tmp_path}/o.log", f"sqlite:///{tmp_path}/store"
    finish(*(start_worker(storage, backend, 3) for _ in range(3)))
    check_complete(Record(backend), load(storage))


@pytest.mark.slow
def test_a_killed_trial(tmp_path: Path) -> None:
    """What was reported until the kill is there; the run is lost, and `sync` repeats nothing."""
    storage, backend = f"sqlite:///{tmp_path}/o.db", f"sqlite:///{tmp_path}/store"
    worker = start_worker(storage, backend, 3, "die")
    worker.wait(100)
    finish(start_worker(storage, backend, 0, "sync"))
    found = Record(backend)
    row = trials(found)[1]
    assert row["status"] == "lost"
    reports = load(storage).trials[1].intermediate_values
    assert points(found, row["run_id"], "intermediate_value") == sorted(reports.items())
    assert len(reports) == 2


def test_a_stale_trial_that_is_tried_again(
    callback: OptunaCallback, record: MakeRecord, tmp_path: Path
) -> None:
    """A trial failed by the heartbeat comes by `sync`; the new one names the one it repeats."""
    retry = getattr(optuna.storages, "RetryHeartbeatStaleTrialCallback", None)
    retry = retry or optuna.storages.RetryFailedTrialCallback
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{tmp_path}/o.db",
        heartbeat_interval=1,
        grace_period=1,
        **{"heartbeat_stale_trial_callback" if _is_new() else "failed_trial_callback": retry()},
    )
    study = optuna.create_study(storage=storage)
    stale = study.ask()
    stale.suggest_float("x", 0, 1)
    stale.report(0.5, 0)
    storage.record_heartbeat(stale._trial_id)
    time.sleep(2.5)
    study.optimize(callback.objective(objective), n_trials=1, callbacks=[callback])
    callback.sync(study)
    found = record()
    rows = trials(found)
    assert rows[0]["status"] == "failed"
    assert points(found, rows[0]["run_id"], "intermediate_value") == [(0, 0.5)]
    tags = {tag["key"]: tag["value"] for tag in found.rows("tags", run_id=rows[1]["run_id"])}
    assert tags["retry_of"] == "0"


def _is_new() -> bool:
    return hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback")
