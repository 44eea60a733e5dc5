"""Laws of the Optuna callback: what a study leaves in the store, and that nothing else changes."""

from __future__ import annotations

import gc
import json
import pickle
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import Trial, TrialState

from tachograph import recorder
from tachograph.callbacks import OptunaCallback
from tachograph.testing.callback_contract import CallbackContract, Record

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


class TestContract(CallbackContract):
    """The laws of all callbacks."""

    def make_callback(self, **keywords: Any) -> OptunaCallback:
        """A callback for studies."""
        return OptunaCallback(**keywords)

    def train(self, callbacks: Sequence[Any]) -> bytes:
        """A seeded TPE search over a noisy function, with pruning and a failure."""
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=3), pruner=optuna.pruners.MedianPruner(2)
        )
        random = np.random.default_rng(0)

        def noisy(trial: Trial) -> float:
            value = objective(trial) + random.normal()
            if trial.should_prune():
                raise optuna.TrialPruned
            if trial.number == 4:
                raise ArithmeticError
            return value

        function = noisy
        for one in callbacks:
            function = one.objective(function)
        study.optimize(function, 15, catch=(ArithmeticError,), callbacks=list(callbacks))
        told = [(t.state.name, t.values, t.params, t.intermediate_values) for t in study.trials]
        state = study.sampler._rng.rng.get_state()[1].tobytes()  # type: ignore[attr-defined]
        return pickle.dumps((told, random.bit_generator.state)) + state

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        """A study whose second trial raises."""

        def failing(trial: Trial) -> float:
            if trial.number == 1:
                raise error
            return objective(trial)

        function = failing
        for one in callbacks:
            function = one.objective(function)
        optuna.create_study().optimize(function, 3, callbacks=list(callbacks))

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        """A study and what its objective holds."""
        data = np.zeros(3)
        study = optuna.create_study()
        (one,) = callbacks
        study.optimize(one.objective(lambda t: objective(t) + data[0]), 2, callbacks=[one])
        return weakref.ref(study), weakref.ref(data)


# ---------------------------------------------------------------------------- what is recorded


def test_the_study_says_how_it_searches(callback: OptunaCallback, record: MakeRecord) -> None:
    """Sampler, pruner, directions, storage, distributions and the best trial are on its run."""
    study = optuna.create_study(
        study_name="search",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=1),
        pruner=optuna.pruners.PercentilePruner(30.0),
    )
    study.set_metric_names(["accuracy"])
    study.optimize(callback.objective(objective), n_trials=5, callbacks=[callback])
    found = record()
    run = found.run()
    assert (run["kind"], run["name"], run["status"]) == ("study", "search", "finished")
    assert run["run_id"] == study.user_attrs["tachograph:study"]
    assert run["framework"] == f"optuna {optuna.__version__}"
    params = found.params(run["run_id"])
    assert params["directions"] == ["maximize"]
    assert params["sampler.class"].endswith("RandomSampler")
    assert params["pruner.percentile"] == 30.0
    assert params["storage.class"].endswith("InMemoryStorage")
    assert (params["optimize.n_trials"], params["optimize.n_jobs"]) == (5, 1)
    assert (params["best.trial"], params["best.value"]) == (
        study.best_trial.number,
        study.best_value,
    )
    documents = {row["section"]: row["document"] for row in found.rows("provenance")}
    assert json.loads(documents["optuna.distributions"])["x"]["name"] == "FloatDistribution"
    assert "sha256" in json.loads(documents["optuna.random_state"])
    best = points(found, run["run_id"], "best_value")
    assert best[-1] == (study.best_trial.number, study.best_value)
    accuracy = [row["value"] for row in found.rows("metrics", name="accuracy")]
    assert accuracy == [trial.value for trial in study.trials]


def test_each_way_to_end(callback: OptunaCallback, record: MakeRecord) -> None:
    """Complete, pruned, failed with its reason, and a return that Optuna refuses."""

    def ending(trial: Trial) -> float:
        value = objective(trial)
        if trial.number == 1:
            raise optuna.TrialPruned("hopeless")
        if trial.number == 2:
            raise ValueError("no such thing")
        return float("nan") if trial.number == 3 else value

    study = optuna.create_study()
    study.optimize(callback.objective(ending), 4, catch=(ValueError,), callbacks=[callback])
    found = record()
    rows = trials(found)
    assert [rows[i]["status"] for i in range(4)] == ["finished", "pruned", "failed", "failed"]
    assert [rows[i]["error"] for i in range(4)] == [
        None,
        "hopeless",
        "ValueError: no such thing",
        "the objective returned nan",
    ]
    assert found.run()["status"] == "finished"
    check_complete(found, study)
    (event,) = found.rows("events", kind="error")
    assert event["run_id"] == rows[2]["run_id"]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [(ZeroDivisionError("0"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_an_exception_that_leaves_optimize(
    callback: OptunaCallback,
    record: MakeRecord,
    wrapped: bool,
    error: BaseException,
    status: str,
) -> None:
    """The trial and the study end with it, although Optuna calls no callback then."""

    def failing(trial: Trial) -> float:
        if trial.number == 2:
            raise error
        return objective(trial)

    study = optuna.create_study()
    function = callback.objective(failing) if wrapped else failing
    with pytest.raises(type(error)):
        study.optimize(function, n_trials=5, callbacks=[callback])
    found = record()
    assert found.run()["status"] == status
    row = trials(found)[2]
    assert row["status"] == (status if wrapped else "failed")
    assert type(error).__name__ in row["error"]


def test_secrets_in_reasons_stay_out(callback: OptunaCallback, record: MakeRecord) -> None:
    """What an exception says is kept without the password in it, however it was learnt."""

    def failing(trial: Trial) -> float:
        if trial.number == 1:
            raise OSError("cannot reach postgresql://me:hunter2secret@db/data")
        return objective(trial)

    for function in (callback.objective(failing), failing):
        with pytest.raises(OSError, match="hunter2secret"):
            optuna.create_study().optimize(function, 2, callbacks=[callback])
    errors = [row["error"] for row in record().rows("runs") if row["error"]]
    assert len(errors) == 4
    assert not [error for error in errors if "hunter2secret" in error]


def test_system_exit_in_a_trial(callback: OptunaCallback, record: MakeRecord) -> None:
    """Optuna leaves the trial running for ever; its run and the study's end."""
    study = optuna.create_study()
    with pytest.raises(SystemExit):
        study.optimize(callback.objective(lambda _: sys.exit(3)), 2, callbacks=[callback])
    found = record()
    assert found.run()["status"] == "failed"
    assert trials(found)[0]["status"] == "failed"


def test_an_exception_handled_outside_is_not_the_studys(
    callback: OptunaCallback, record: MakeRecord
) -> None:
    """Called while an older exception is being handled, a good study is still finished."""
    study = optuna.create_study()
    try:
        raise OSError
    except OSError:
        study.optimize(callback.objective(objective), n_trials=1, callbacks=[callback])
    assert record().run()["status"] == "finished"


def test_the_objective_alone_or_the_callback_alone(
    config: dict[str, Any], record: MakeRecord
) -> None:
    """Each records the values, params and states of all trials that ended."""
    for use in (
        lambda study, one: study.optimize(one.objective(objective), n_trials=3),
        lambda study, one: study.optimize(objective, n_trials=3, callbacks=[one]),
    ):
        study = optuna.create_study()
        use(study, OptunaCallback(config=config))
        found = record()
        run_id = study.user_attrs["tachograph:study"]
        rows = [row for row in found.runs(kind="trial") if row["parent_id"] == run_id]
        assert [row["status"] for row in rows] == ["finished"] * 3
        assert {row["project"] for row in rows} == {"tests"}
        assert all(row["ended_at"] >= row["started_at"] for row in rows)
        values = [points(found, row["run_id"], "value")[0][1] for row in rows]
        assert values == [trial.value for trial in study.trials]


def test_the_callback_alone_says_once_what_it_cannot_see(
    config: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on stderr tells of `objective`, and no second one."""
    monkeypatch.setattr("tachograph.callbacks.optuna._hinted", False)
    for _ in range(2):
        optuna.create_study().optimize(objective, 2, callbacks=[OptunaCallback(config=config)])
    assert capfd.readouterr().err.count("callback.objective(fn)") == 1


def test_reports_are_recorded_as_they_come(
    callback: OptunaCallback, config: dict[str, Any], tmp_path: Path
) -> None:
    """A report is in the record before its trial has ended, on a shared storage as well."""
    from tachograph import open as open_store

    seen: list[list[float]] = []

    def looking(trial: Trial) -> float:
        trial.report(0.5, 3)
        trial.report(0.5, 3)  # Optuna keeps the first one
        store = open_store(config["backend"], config=config)
        runs = store.runs(where='kind == "trial"', children=True)["run_id"]
        seen.append(store.series(runs[0], "intermediate_value")["value"])
        store.close()
        return 1.0

    for place in (None, f"sqlite:///{tmp_path}/optuna.db"):
        study = optuna.create_study(storage=place)
        study.optimize(callback.objective(looking), n_trials=1, callbacks=[callback])
    assert seen == [[0.5], [0.5]]


def test_reports_out_of_order_are_kept(
    callback: OptunaCallback, record: MakeRecord, tmp_path: Path
) -> None:
    """Steps may go back, on either kind of storage."""

    def jumping(trial: Trial) -> float:
        for step in (5, 2, 7, 2, 1):
            trial.report(step / 10, step)
        return 0.0

    for place in (None, f"sqlite:///{tmp_path}/optuna.db"):
        study = optuna.create_study(storage=place)
        study.optimize(callback.objective(jumping), n_trials=1, callbacks=[callback])
    found = record()
    for row in found.runs(kind="trial"):
        steps = sorted(step or 0 for step, _ in points(found, row["run_id"], "intermediate_value"))
        assert steps == [1, 2, 5, 7]


def test_several_objectives_and_constraints(callback: OptunaCallback, record: MakeRecord) -> None:
    """Each objective is a metric of its own; constraints too; the best trials are named."""
    study = optuna.create_study(directions=["minimize", "maximize"])

    def both(trial: Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        if hasattr(trial, "set_constraint"):
            trial.set_constraint("small", x - 2)
        return x, 1 - x

    study.optimize(callback.objective(both), n_trials=4, callbacks=[callback])
    found = record()
    for number, row in trials(found).items():
        trial = study.trials[number]
        values = [points(found, row["run_id"], f"value_{i}")[0][1] for i in range(2)]
        assert values == trial.values
        if hasattr(trial, "set_constraint"):
            assert points(found, row["run_id"], "constraint/small")[0][1] == values[0] - 2
    params = found.params(found.run()["run_id"])
    assert params["best.trials"] == [trial.number for trial in study.best_trials]


def test_an_infeasible_trial_is_not_the_best(callback: OptunaCallback, record: MakeRecord) -> None:
    """A value that breaks a constraint does not count."""

    def constrained(trial: Trial) -> float:
        trial.set_constraint("c", 1.0 if trial.number == 1 else -1.0)
        return [3.0, 1.0, 2.0][trial.number]

    if not hasattr(Trial, "set_constraint"):
        pytest.skip("Optuna before 5")
    optuna.create_study().optimize(callback.objective(constrained), 3, callbacks=[callback])
    found = record()
    assert points(found, found.run()["run_id"], "best_value") == [(0, 3.0), (2, 2.0)]


def test_user_attributes_of_any_type(callback: OptunaCallback, record: MakeRecord) -> None:
    """In-memory storage takes any object; what JSON cannot hold is described."""

    def attributed(trial: Trial) -> float:
        trial.set_user_attr("array", np.zeros((2, 3)))
        trial.set_user_attr("thing", OptunaCallback)
        trial.set_user_attr("note", "hello")
        return 0.0

    optuna.create_study().optimize(callback.objective(attributed), 2, callbacks=[callback])
    found = record()
    params = found.params(trials(found)[0]["run_id"])
    assert params["user_attrs.note"] == "hello"
    assert any(name.startswith("user_attrs.array") for name in params)


def test_passwords_of_storages_stay_out(config: dict[str, Any], tmp_path: Path) -> None:
    """The URL of a storage is recorded without its password."""
    from tachograph.callbacks import optuna_facts
    from tachograph.security.redaction import redact_value

    class Backend:
        url = "postgresql://me:hunter2secret@db/optuna"

    class Study:
        _storage = Backend()

    storage = optuna_facts.storage(Study())  # type: ignore[arg-type]
    assert "hunter2secret" in storage["url"]
    assert "hunter2secret" not in redact_value("storage.url", storage["url"])
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db")
    study.optimize(objective, 1, callbacks=[OptunaCallback(config=config)])
    found = Record(config["backend"])
    assert found.params(found.run()["run_id"])["storage.url"].endswith("optuna.db")


def test_pickles_as_its_keywords(callback: OptunaCallback, config: dict[str, Any]) -> None:
    """Nothing of a study goes into a pickle; a wrapped objective pickles too."""
    study = optuna.create_study()
    study.optimize(callback.objective(objective), n_trials=1, callbacks=[callback])
    text = pickle.dumps(callback)
    assert study.study_name.encode() not in text
    wrapped = pickle.loads(pickle.dumps(callback.objective(objective)))
    study.optimize(wrapped, n_trials=1)
    del study
    recorder.close_all()
    gc.collect()


def test_the_best_parameters_are_those_of_one_trial(tmp_path: Path) -> None:
    """A parameter that only a former best trial had is gone."""
    import tachograph

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            return trial.suggest_float("first", 0.0, 1.0) + 5
        return trial.suggest_float("second", 0.0, 1.0)

    url = f"sqlite:///{tmp_path}/runs.sqlite"
    callback = OptunaCallback(config={"backend": url})
    study = optuna.create_study()
    study.optimize(objective, n_trials=2, callbacks=[callback])
    recorder.close_all()
    with tachograph.open(url) as store:
        params = store.run("latest").params
    assert {name for name in params if name.startswith("best.params")} == {"best.params.second"}
