"""What XGBoostCallback records of a training: rounds, scores, params, data, model, folds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tachograph.start import start_run
from tachograph.testing.callback_contract import Record

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback  # noqa: E402
from tachograph.callbacks import xgboost_facts as facts  # noqa: E402

QUIET = {"verbose_eval": False}
BINARY = {"objective": "binary:logistic", "nthread": 1, "max_depth": 3}


def matrices() -> tuple[Any, Any]:
    """Data to train with, and data to validate with."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((400, 4)).astype(np.float32)
    labels = (features[:, 0] + generator.standard_normal(400) > 0).astype(np.float32)
    names = ["a", "b", "c", "d"]
    return tuple(
        xgboost.DMatrix(features[part], labels[part], feature_names=names)
        for part in (slice(300), slice(300, 400))
    )


def train(
    callbacks: list[Any], rounds: int = 5, params: dict[str, Any] | None = None, **arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """A booster, and the scores that XGBoost itself keeps."""
    training, validation = matrices()
    scores: dict[str, Any] = {}
    evals = [(training, "train"), (validation, "valid")]
    booster = xgboost.train(
        BINARY | (params or {}),
        training,
        rounds,
        evals=evals,
        evals_result=scores,
        callbacks=callbacks,
        **QUIET | arguments,
    )
    return booster, scores


def provenance(record: Record, run_id: str, section: str) -> Any:
    """One document of a run."""
    (row,) = record.rows("provenance", run_id=run_id, section=section)
    return json.loads(row["document"])


def test_rounds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Each score of each round is there as XGBoost has it, and so are duration and rate."""
    _, scores = train([XGBoostCallback(config=config)], params={"eval_metric": ["logloss", "auc"]})
    held = record()
    for dataset in ("train", "valid"):
        for metric in ("logloss", "auc"):
            values = scores[dataset][metric]
            assert held.series(metric, dataset=dataset) == list(enumerate(values))
    assert held.series("lr") == [(step, 0.3) for step in range(5)]
    seconds = held.series("time/round_seconds")
    assert [step for step, _ in seconds] == list(range(5))
    assert all(0 < value < 10 for _, value in seconds)


def test_params(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """What the user gave, what XGBoost made of it, and which of the two a value is."""
    scheduler = xgboost.callback.LearningRateScheduler([0.4, 0.2])
    train(
        [XGBoostCallback(config=config), scheduler],
        2,
        {"learning_rate": 0.7, "monotone_constraints": "(1,0,0,0)"},
        early_stopping_rounds=4,
    )
    held = record()
    params = held.params(held.run()["run_id"])
    assert params["learning_rate"] == params["eta"] == 0.7
    assert params["num_boost_round"] == 2
    assert params["early_stopping.rounds"] == 4
    assert params["callbacks"] == [
        "xgboost.callback.LearningRateScheduler",
        "xgboost.callback.EarlyStopping",
    ]
    assert (params["subsample"], params["seed"], params["reg_lambda"]) == (1, 0, 1)
    assert params["eval_metric"] == ["logloss"]
    assert 0.3 < params["base_score"] < 0.7
    sources = {row["path"]: row["source"] for row in held.rows("params")}
    assert sources["eta"] == sources["max_depth"] == "framework"
    assert sources["subsample"] == sources["base_score"] == "default"


def test_pairs_as_params(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Params may be pairs, with several metrics among them."""
    pairs = [*BINARY.items(), ("eval_metric", "auc"), ("eval_metric", "error")]
    training, _ = matrices()
    callback = XGBoostCallback(config=config)
    xgboost.train(pairs, training, 1, evals=[(training, "t")], callbacks=[callback], **QUIET)
    held = record()
    assert held.params(held.run()["run_id"])["eval_metric"] == ["auc", "error"]


def test_scheduled_rate_is_the_one_used(
    config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """A scheduler sets the next round's rate; recorded is the rate that the round used."""
    rates = [0.5, 0.25, 0.125, 0.0625]
    for callbacks in (
        lambda one, other: [one, other],
        lambda one, other: [other, one],
    ):
        scheduler = xgboost.callback.LearningRateScheduler(rates)
        train(callbacks(XGBoostCallback(config=config), scheduler), 4, {"eta": 0.9})
    assert record().series("lr") == [(0, 0.9), (1, 0.5), (2, 0.25), (3, 0.125)] * 2


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("save_best", [True, False])
def test_early_stopping(
    first: bool, save_best: bool, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """In either order of callbacks the last round, the best one and the final model are there."""
    stopping = xgboost.callback.EarlyStopping(rounds=3, save_best=save_best)
    callbacks = [XGBoostCallback(config=config), stopping]
    booster, scores = train(callbacks if first else callbacks[::-1], 90, {"eta": 1.0})
    held = record()
    run_id = held.run()["run_id"]
    values = scores["valid"]["logloss"]
    assert 3 < len(values) < 90
    assert held.series("logloss", dataset="valid") == list(enumerate(values))
    assert len(held.series("time/round_seconds")) == len(values)
    best = int(np.argmin(values))
    assert held.series("best_iteration") == [(best, best)]
    assert held.series("best_score") == [(best, values[best])]
    (event,) = held.rows("events", kind="status")
    assert event["message"].startswith(f"stopped after {len(values)} of 90 rounds; round {best}")
    assert provenance(held, run_id, "model")["rounds"] == booster.num_boosted_rounds()
    assert booster.num_boosted_rounds() == (best + 1 if save_best else len(values))


def test_stopped_by_another_callback(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Whoever stops the training, the round in which it happens is recorded."""

    class Stop(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return epoch == 2

    train([Stop(), XGBoostCallback(config=config)])
    held = record()
    assert len(held.series("logloss", dataset="train")) == 3
    (event,) = held.rows("events", kind="status")
    assert event["message"] == "stopped after 3 of 5 rounds"


def test_continued_training_counts_on(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A training that goes on with a model is a new run whose steps follow that model's."""
    booster, _ = train([XGBoostCallback(config=config)], 3)
    train([XGBoostCallback(config=config)], 2, xgb_model=booster)
    held = record()
    assert [step for step, _ in held.series("logloss", dataset="train")] == [0, 1, 2, 3, 4]
    assert len(held.runs()) == 2
    assert not held.series("best_iteration")


def test_without_evals(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A training that evaluates nothing has rounds all the same; one of no round has a run."""
    training, _ = matrices()
    for rounds in (2, 0):
        xgboost.train(BINARY, training, rounds, callbacks=[XGBoostCallback(config=config)])
    held = record()
    assert [step for step, _ in held.series("time/round_seconds")] == [0, 1]
    assert [run["status"] for run in held.runs()] == ["finished", "finished"]


def test_documents(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Data, library and model are described; equal data has equal digests."""
    booster, _ = train([XGBoostCallback(config=config)])
    train([XGBoostCallback(config=config)], 1)
    held = record()
    first, second = (run["run_id"] for run in held.runs())
    data = provenance(held, first, "data.train")
    assert data["shape"] == [300, 4]
    assert data["feature_names"] == ["a", "b", "c", "d"]
    assert data["weight"] is None
    assert data == provenance(held, second, "data.train")
    assert data["digest_of"] == "content"
    assert data["digest"] != provenance(held, first, "data.valid")["digest"]
    assert data["label"]["digest"] != provenance(held, first, "data.valid")["label"]["digest"]
    model = provenance(held, first, "model")
    assert (model["rounds"], model["trees"], model["features"]) == (5, 5, 4)
    assert model["bytes"] == len(booster.save_raw("ubj"))
    assert model["importance"]["gain"] == booster.get_score(importance_type="gain")
    assert provenance(held, first, "xgboost")["build"] == xgboost.build_info()


def test_digest_of_large_data() -> None:
    """Of many rows a fixed sample is digested; a changed label or row in it changes the digest."""
    features = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    labels = features[:, 0].copy()

    def documents() -> Any:
        return facts.matrix_document(xgboost.DMatrix(features, labels))

    first = documents()
    assert (first["digest_of"], first["label"]["digest_of"]) == ("sample", "content")
    assert documents() == first
    features[-1, 0] += 1
    assert documents()["digest"] != first["digest"]
    labels[1] += 1
    assert documents()["label"] != first["label"]


def test_booster_kinds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """DART and linear models have their params and a document too."""
    train([XGBoostCallback(config=config)], 2, {"booster": "dart", "rate_drop": 0.25})
    training, _ = matrices()
    linear = {"booster": "gblinear", "eta": 0.5}
    xgboost.train(linear, training, 2, callbacks=[XGBoostCallback(config=config)])
    held = record()
    dart, linear_run = (run["run_id"] for run in held.runs())
    assert held.params(dart)["rate_drop"] == 0.25
    assert held.params(dart)["one_drop"] == 0
    assert provenance(held, dart, "model")["trees"] == 2
    model = provenance(held, linear_run, "model")
    assert model["booster"] == "gblinear"
    assert set(model["importance"]["weight"]) == {"a", "b", "c", "d"}


def test_custom_metric(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A metric of the user's is recorded beside XGBoost's own, NaN included."""

    def strange(predictions: Any, matrix: Any) -> list[tuple[str, float]]:
        return [("strange-one", float("nan")), ("other", float(len(predictions)))]

    train([XGBoostCallback(config=config)], 2, custom_metric=strange)
    held = record()
    assert held.series("other", dataset="valid") == [(0, 100.0), (1, 100.0)]
    rows = held.rows("metrics", name="strange-one")
    assert [row["special"] for row in rows] == ["nan"] * 4


def test_folds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A cross-validation is a run with means and deviations, and a child for each fold."""
    training, _ = matrices()
    callback = XGBoostCallback(config=config)
    table = xgboost.cv(BINARY, training, 4, nfold=3, seed=2, callbacks=[callback])
    held = record()
    run = held.run()
    own = [row for row in held.rows("metrics", run_id=run["run_id"])]
    for column, name in (("test-logloss-mean", "logloss"), ("test-logloss-std", "logloss/std")):
        values = [
            row["value"]
            for row in own
            if row["name"] == name and json.loads(row["context"]) == {"dataset": "test"}
        ]
        assert values == pytest.approx(list(table[column]), abs=0)
    folds = [run for run in held.runs(kind="fold")]
    assert [(fold["name"], fold["parent_id"]) for fold in folds] == [
        (f"fold {number}", run["run_id"]) for number in range(3)
    ]
    assert {fold["status"] for fold in folds} == {"finished"}
    context = '{"dataset":"test"}'
    scores = [
        [row["value"] for row in held.rows("metrics", run_id=fold["run_id"], context=context)]
        for fold in folds
    ]
    assert np.mean(scores, axis=0) == pytest.approx(table["test-logloss-mean"].to_numpy())
    assert [provenance(held, fold["run_id"], "data.test")["shape"] for fold in folds] == [
        [100, 4]
    ] * 3
    params = held.params(run["run_id"])
    assert (params["cv.nfold"], params["cv.seed"], params["seed"]) == (3, 2, 0)


def test_early_stopping_of_folds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A cross-validation that stops early has all its rounds too."""
    training, _ = matrices()
    stopping = xgboost.callback.EarlyStopping(rounds=2)
    callbacks = [stopping, XGBoostCallback(config=config)]
    table = xgboost.cv(BINARY | {"eta": 1.0}, training, 80, nfold=2, callbacks=callbacks)
    held = record()
    run_id = held.run()["run_id"]
    ((best, _),) = held.series("best_iteration")
    assert best == len(table) - 1  # the table ends at the best round
    steps = {row["step"] for row in held.rows("metrics", run_id=run_id, name="logloss")}
    assert steps == set(range(best + 3))


def test_estimator(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """An estimator's own params and data are recorded, and its datasets have XGBoost's names."""
    features, labels = np.random.default_rng(0).standard_normal((60, 3)), np.arange(60) % 2
    model = xgboost.XGBClassifier(
        n_estimators=3, random_state=9, callbacks=[XGBoostCallback(config=config)]
    )
    model.fit(features, labels, eval_set=[(features, labels)], verbose=False)
    held = record()
    run_id = held.run()["run_id"]
    params = held.params(run_id)
    assert params["estimator"] == "xgboost.sklearn.XGBClassifier"
    assert (params["n_estimators"], params["random_state"], params["seed"]) == (3, 9, 9)
    assert len(held.series("logloss", dataset="validation_0")) == 3
    assert provenance(held, run_id, "data.train.X")["shape"] == [60, 3]
    assert provenance(held, run_id, "data.train")["shape"] == [60, 3]


def test_inside_other_runs(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A trial's training is its child; a user's run takes the first fit, and has the second."""
    with start_run(kind="trial", config=config) as trial:
        train([XGBoostCallback()], 1)
    with start_run(config=config, name="mine") as mine:
        train([XGBoostCallback()], 1)
        train([XGBoostCallback()], 1)
    held = record()
    (child,) = held.runs(parent_id=trial.run_id)
    assert held.rows("metrics", run_id=child["run_id"], name="logloss")
    assert held.rows("metrics", run_id=mine.run_id, name="logloss")
    assert len(held.runs(parent_id=mine.run_id)) == 1


def test_two_callbacks_in_one_training(
    config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """Each of two callbacks records the whole training."""
    train([XGBoostCallback(config=config, name="a"), XGBoostCallback(config=config, name="b")], 2)
    assert {run["name"]: run["status"] for run in record().runs()} == {
        "a": "finished",
        "b": "finished",
    }
    assert len(record().series("logloss", dataset="train")) == 4
