"""Weights and gradients of the trainings inside a trial, found from the trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")
from optuna.trial import Trial  # noqa: E402

import tachograph  # noqa: E402
from tachograph.callbacks import OptunaCallback  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.CRITICAL)

MakeRecord = Callable[[], Record]
X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    """Tensors at every step."""
    return config | {"record": config["record"] | {"every": 1}}


def fit_xgboost(_: Trial) -> None:
    """Two rounds."""
    xgboost = pytest.importorskip("xgboost")
    from tachograph.callbacks import XGBoostCallback

    data = xgboost.DMatrix(X, Y)
    params = {"objective": "binary:logistic", "nthread": 1}
    xgboost.train(params, data, 2, callbacks=[XGBoostCallback()])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def fit_sklearn(trial: Trial) -> None:
    """Two epochs of a network as wide as the trial says."""
    network = pytest.importorskip("sklearn.neural_network")
    from tachograph.callbacks import track

    width = trial.suggest_int("width", 2, 4)
    with track(network.MLPClassifier((width,), max_iter=2)) as estimator:
        estimator.fit(X, Y)


def fit_lightning(_: Trial) -> None:
    """Two steps of a linear model."""
    lightning, torch = pytest.importorskip("lightning"), pytest.importorskip("torch")
    from tachograph.callbacks import LightningCallback

    class Model(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    dataset = torch.utils.data.TensorDataset(torch.randn(16, 2))
    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback()],
    ).fit(Model(), torch.utils.data.DataLoader(dataset, 8))


def fit_search(trial: Trial) -> None:
    """A search in two worker processes."""
    selection = pytest.importorskip("sklearn.model_selection")
    linear_model = pytest.importorskip("sklearn.linear_model")
    from tachograph.callbacks import track

    search = selection.GridSearchCV(linear_model.Ridge(), {"alpha": [0.1, 1.0]}, cv=2, n_jobs=2)
    with track(search):
        search.fit(X, Y)


TRAININGS: dict[str, tuple[Callable[[Trial], None], str, set[str]]] = {
    "xgboost": (fit_xgboost, "objective", {"gradient", "hessian"}),
    "sklearn": (fit_sklearn, "coefs_.0", {"weight", "update", "gradient"}),
    "lightning": (fit_lightning, "layer.weight", {"weight", "update", "gradient"}),
    "processes": (fit_search, "coef_", {"weight"}),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "framework",
    [
        *("xgboost", "sklearn"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lightning", "processes")),
    ],
)
def test_tensors_are_found_from_the_trial(
    framework: str, config: dict[str, Any], record: MakeRecord
) -> None:
    """Each trial has those of its own trainings, the study those of all; no run has its own."""
    training, name, kinds = TRAININGS[framework]
    callback = OptunaCallback(config=config)

    def objective(trial: Trial) -> float:
        training(trial)
        return 0.0

    study = optuna.create_study()
    study.optimize(callback.objective(objective), 2, callbacks=[callback])
    if framework == "processes":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)
    found = record()
    trials = {row["name"]: row["run_id"] for row in found.runs(kind="trial")}
    with tachograph.open(found.url) as store:
        of_trials = {}
        for trial, run_id in trials.items():
            rows = store.tensors(run_id, name=name).to_pylist()
            assert {row["kind"] for row in rows} == kinds
            descendants = _below(found, run_id)
            assert {row["run_id"] for row in rows} <= descendants
            of_trials[trial] = rows
        if framework == "sklearn":
            for number, (_, rows) in enumerate(sorted(of_trials.items())):
                width = study.trials[number].params["width"]
                assert {row["shape"] for row in rows} == {(3, width)}
        whole = store.tensors(found.run()["run_id"], name=name).to_pylist()
        assert len(whole) == sum(map(len, of_trials.values()))


def _below(found: Record, run_id: str) -> set[str]:
    """Ids of all runs inside a run."""
    children = {row["run_id"] for row in found.runs(parent_id=run_id)}
    return children.union(*(_below(found, child) for child in children))
