"""Trainings inside trials are children of their trial, whatever framework and thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")
from optuna.trial import Trial  # noqa: E402

from tachograph.callbacks import OptunaCallback  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.CRITICAL)

MakeRecord = Callable[[], Record]


@pytest.fixture
def callback(config: dict[str, Any]) -> OptunaCallback:
    """A callback that records into the test's store."""
    return OptunaCallback(config=config)


def trials(record: Record) -> dict[int, dict[str, Any]]:
    """Trial runs by number."""
    return {int(row["name"].split("-")[1]): row for row in record.rows("runs", kind="trial")}


def test_trainings_inside_are_children_of_their_trial(
    callback: OptunaCallback, record: MakeRecord
) -> None:
    """XGBoost inside trials in threads: its runs hang under the right trial; pruning too."""
    xgboost = pytest.importorskip("xgboost")
    from tachograph.callbacks import XGBoostCallback

    data = xgboost.DMatrix(np.random.default_rng(0).normal(size=(40, 3)), label=np.arange(40) % 2)

    class Pruning(xgboost.callback.TrainingCallback):  # type: ignore[name-defined,misc]
        def __init__(self, trial: Trial) -> None:
            self.trial = trial

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            self.trial.report(evals_log["train"]["rmse"][-1], epoch)
            if self.trial.number == 1 and epoch == 1:
                raise optuna.TrialPruned
            return False

    def training(trial: Trial) -> float:
        depth = trial.suggest_int("max_depth", 1, 3)
        xgboost.train(
            {"max_depth": depth, "nthread": 1},
            data,
            3,
            evals=[(data, "train")],
            verbose_eval=False,
            callbacks=[XGBoostCallback(), Pruning(trial)],
        )
        return 0.0

    study = optuna.create_study()
    study.optimize(callback.objective(training), 4, n_jobs=2, callbacks=[callback])
    found = record()
    rows = trials(found)
    for number, row in rows.items():
        (child,) = found.runs(parent_id=row["run_id"])
        depth = study.trials[number].params["max_depth"]
        assert found.params(child["run_id"])["max_depth"] == depth
        assert child["status"] == row["status"] == ("pruned" if number == 1 else "finished")
        assert child["root_id"] == found.run()["run_id"]


X, Y = np.random.default_rng(0).normal(size=(16, 2)), np.arange(16) % 2


def fit_lightning(trial: Trial) -> None:
    """Two epochs of a linear model; the trial with number 3 is pruned after the first."""
    lightning, torch = pytest.importorskip("lightning"), pytest.importorskip("torch")
    from tachograph.callbacks import LightningCallback

    class Model(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def on_train_epoch_end(self) -> None:
            trial.report(0.5, self.current_epoch)
            if trial.number == 3:
                raise optuna.TrialPruned

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    dataset = torch.utils.data.TensorDataset(torch.randn(16, 2))
    lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback()],
    ).fit(Model(), torch.utils.data.DataLoader(dataset, 8))


def fit_keras(_: Trial) -> None:
    """Two epochs of a dense layer."""
    keras = pytest.importorskip("keras")
    from tachograph.callbacks import KerasCallback

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[KerasCallback()])


def fit_sklearn(_: Trial) -> None:
    """A logistic regression."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    from tachograph.callbacks import track

    with track(linear_model.LogisticRegression()) as estimator:
        estimator.fit(X, Y)


@pytest.mark.slow
def test_each_frameworks_training_is_a_child_of_its_trial(
    callback: OptunaCallback, record: MakeRecord
) -> None:
    """Lightning, Keras and scikit-learn in trials side by side; a pruned trial prunes its fit."""

    def training(trial: Trial) -> float:
        [fit_lightning, fit_keras, fit_sklearn][trial.number % 3](trial)
        return 0.0

    study = optuna.create_study()
    study.optimize(callback.objective(training), 6, n_jobs=3, callbacks=[callback])
    found = record()
    for number, row in trials(found).items():
        children = found.runs(parent_id=row["run_id"])
        assert children, number
        framework = ["lightning", "keras", "scikit-learn"][number % 3]
        assert all(framework in child["framework"] for child in children)
        expected = "pruned" if number == 3 else "finished"
        assert {row["status"], *(child["status"] for child in children)} == {expected}
        assert {child["root_id"] for child in children} == {found.run()["run_id"]}
    assert len(found.runs()) == len(found.runs(kind="trial")) * 2 + 1


@pytest.mark.slow
def test_a_search_inside_a_trial(callback: OptunaCallback, record: MakeRecord) -> None:
    """A grid search with XGBoost in its pipeline, tracked inside a trial, hangs under it whole."""
    xgboost = pytest.importorskip("xgboost")
    model_selection = pytest.importorskip("sklearn.model_selection")
    from tachograph.callbacks import track

    x, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2

    def searching(trial: Trial) -> float:
        grid = {"max_depth": [1, 2]}
        estimator = xgboost.XGBClassifier(n_estimators=2, n_jobs=1)
        search = model_selection.GridSearchCV(estimator, grid, cv=2, n_jobs=2)
        with track(search):
            search.fit(x, y)
        return float(search.best_score_)

    optuna.create_study().optimize(callback.objective(searching), 2, callbacks=[callback])
    found = record()
    for row in trials(found).values():
        assert found.runs(parent_id=row["run_id"])
    parents = {row["run_id"] for row in found.runs()}
    others = [row for row in found.runs() if row["kind"] != "study"]
    assert all(row["parent_id"] in parents for row in others)
    assert {row["root_id"] for row in found.runs()} == {found.run()["run_id"]}
