"""Whatever XGBoost trains, it comes out the same with and without XGBoostCallback."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tachograph.testing.callback_contract import Record

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback, xgboost_tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error::tachograph.errors.TachographWarning")

COMMON = {"seed": 1, "nthread": 1, "max_depth": 3, "subsample": 0.8, "colsample_bytree": 0.7}
PARAMS = {
    "binary": {"objective": "binary:logistic"},
    "classes": {"objective": "multi:softprob", "num_class": 3},
    "regression": {"objective": "reg:squarederror", "eval_metric": ["rmse", "mae"]},
    "adaptive leaves": {"objective": "reg:absoluteerror"},
    "ranking": {"objective": "rank:ndcg"},
    "dart": {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3},
    "approx": {"objective": "binary:logistic", "tree_method": "approx"},
    "exact": {"objective": "binary:logistic", "tree_method": "exact"},
    "forest": {"objective": "binary:logistic", "num_parallel_tree": 3},
    "vector leaves": {"multi_strategy": "multi_output_tree"},
}


def matrix_for(params: dict[str, Any]) -> Any:
    """Data with labels, groups and weights that suit an objective."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((300, 5)).astype(np.float32)
    labels = (features[:, 0] + generator.standard_normal(300) > 0).astype(int)
    if "num_class" in params:
        labels += features[:, 1] > 0
    if "multi_strategy" in params:
        labels = np.stack([labels, features[:, 1]], axis=1)
    matrix = xgboost.DMatrix(features, labels)
    if params.get("objective") == "rank:ndcg":
        matrix.set_group([100, 100, 100])
    else:
        matrix.set_weight(generator.uniform(0.5, 1.5, 300))
    return matrix


def train(callbacks: list[Any], params: dict[str, Any], rounds: int = 6, **arguments: Any) -> Any:
    """Train, and return a model as bytes with its predictions and its scores."""
    matrix, scores = matrix_for(params), {}
    evals = [(matrix, "train"), (matrix_for(params), "valid")]
    booster = xgboost.train(
        params,
        matrix,
        rounds,
        evals=evals,
        evals_result=scores,
        callbacks=callbacks,
        verbose_eval=False,
        **arguments,
    )
    return bytes(booster.save_raw("ubj")), booster.predict(matrix).tobytes(), scores


def logistic(margins: Any, matrix: Any) -> tuple[Any, Any]:
    """A custom objective."""
    probabilities = 1 / (1 + np.exp(-margins))
    return probabilities - matrix.get_label(), probabilities * (1 - probabilities)


def error_rate(predictions: Any, matrix: Any) -> tuple[str, float]:
    """A custom metric."""
    return "wrong", float(np.mean((predictions > 0.5) != matrix.get_label()))


def gblinear(callbacks: list[Any]) -> Any:
    """A linear model, in an order of features that is fixed."""
    return train(callbacks, {"booster": "gblinear", "updater": "coord_descent", "nthread": 1})


def custom(callbacks: list[Any]) -> Any:
    """An objective and a metric of the user's."""
    return train(callbacks, COMMON, obj=logistic, custom_metric=error_rate)


def continued(callbacks: list[Any]) -> Any:
    """A training that goes on with a model."""
    params = COMMON | PARAMS["binary"]
    return train(callbacks, params, xgb_model=xgboost.train(params, matrix_for(params), 3))


def refreshed(callbacks: list[Any]) -> Any:
    """A training that adds nothing to a model, and updates its trees."""
    before = {"seed": 1, "nthread": 1, "max_depth": 3}
    params = before | {"process_type": "update", "updater": "refresh"}
    return train(callbacks, params, 3, xgb_model=xgboost.train(before, matrix_for(before), 3))


def scheduled(callbacks: list[Any]) -> Any:
    """A learning rate that changes, which is read before the first round."""
    scheduler = xgboost.callback.LearningRateScheduler(lambda round_: 0.5 * 0.9**round_)
    return train([*callbacks, scheduler], COMMON | PARAMS["binary"])


def stopped(callbacks: list[Any]) -> Any:
    """A training that stops early, and keeps the best rounds."""
    stopping = xgboost.callback.EarlyStopping(rounds=2, save_best=True, min_delta=0.02)
    return train([*callbacks, stopping], COMMON | PARAMS["binary"], 60)


def validated(callbacks: list[Any]) -> Any:
    """A cross-validation, which shuffles with numpy's random numbers."""
    params = COMMON | PARAMS["binary"] | {"eval_metric": ["logloss", "auc"]}
    scores = xgboost.cv(params, matrix_for(params), 5, nfold=3, callbacks=callbacks)
    return scores.to_csv()


def estimated(callbacks: list[Any]) -> Any:
    """The scikit-learn interface."""
    features = matrix_for({}).get_data().toarray()
    model = xgboost.XGBRegressor(n_estimators=5, n_jobs=1, subsample=0.8, callbacks=callbacks)
    model.fit(features, features[:, 1], eval_set=[(features, features[:, 1])], verbose=False)
    return bytes(model.get_booster().save_raw("ubj")), model.predict(features).tobytes()


WAYS = (gblinear, custom, continued, refreshed, scheduled, stopped, validated, estimated)
TRAININGS: dict[str, Callable[[list[Any]], Any]] = {way.__name__: way for way in WAYS}


def _seeded(training: Callable[[list[Any]], Any], callbacks: list[Any]) -> Any:
    np.random.seed(5)
    return training(callbacks), pickle.dumps(np.random.get_state())


def _assert_neutral(training: Callable[[list[Any]], Any], config: dict[str, Any]) -> None:
    without = _seeded(training, [])
    assert without == _seeded(training, []), "not deterministic by itself"
    callback = XGBoostCallback(config=config, every=1, weights="full", gradients="full")
    assert without == _seeded(training, [callback])


@pytest.fixture(autouse=True)
def _each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees are read after each round, not once a second, and gradients in another thread."""
    monkeypatch.setattr(xgboost_tensors, "BATCH_SECONDS", 0.0)
    monkeypatch.setattr(xgboost_tensors, "BESIDE_VALUES", 0)


@pytest.mark.parametrize("kind", PARAMS)
def test_model_is_unchanged(
    kind: str, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """Model, predictions, scores and random numbers are the same bits; and there is a record."""
    _assert_neutral(lambda callbacks: train(callbacks, COMMON | PARAMS[kind]), config)
    assert len(record().series("time/round_seconds")) == 6
    assert record().run()["status"] == "finished"
    assert {row["step"] for row in record().rows("tensors", name="leaves")} == set(range(6))


@pytest.mark.filterwarnings("ignore:.*manually specified the `updater`:UserWarning")
@pytest.mark.parametrize("way", TRAININGS)
def test_way_of_training_is_unchanged(
    way: str, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """The same holds for each way to train."""
    _assert_neutral(TRAININGS[way], config)
    assert {run["status"] for run in record().runs()} == {"finished"}
    assert record().rows("tensors", kind="gradient")
