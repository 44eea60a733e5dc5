"""A planted overlap of rows is found in each framework; a clean split raises nothing."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
optuna = pytest.importorskip("optuna")
xgboost = pytest.importorskip("xgboost")
pl = pytest.importorskip("lightning.pytorch")
from sklearn.linear_model import LinearRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, KFold, cross_validate  # noqa: E402
from sklearn.model_selection._search import BaseSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from torch.utils.data import (  # noqa: E402
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    random_split,
)

from tachograph import start_run  # noqa: E402
from tachograph.callbacks import (  # noqa: E402
    KerasCallback,
    LightningCallback,
    OptunaCallback,
    SklearnCallback,
    XGBoostCallback,
    track,
)
from tachograph.callbacks.sklearn_folds import WatchedFolds  # noqa: E402
from tachograph.start import InertRun  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
Read = Callable[[], Record]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype("float32")
Y = X.sum(1)
TRAIN = slice(0, 40)
CLEAN = slice(40, 60)
LEAKY = slice(33, 53)
"""7 of its 20 rows are training rows."""


def told(record: Record) -> list[tuple[str, str, int, int]]:
    """Names of splits, counted rows and all rows of each event on an overlap."""
    found = [json.loads(row["data"]) for row in record.rows("events", kind="warning")]
    keys = ("train", "evaluation", "rows", "of")
    return [tuple(data[key] for key in keys) for data in found if "evaluation" in data]


def checked(record: Record) -> set[tuple[str, str]]:
    """Names of splits that were compared."""
    rows = [row for row in record.rows("provenance") if row["section"].startswith("splits")]
    documents = [json.loads(row["document"]) for row in rows]
    pairs = [pair for document in documents for pair in document["overlaps"]]
    return {(pair["train"], pair["evaluation"]) for pair in pairs}


# ---------------------------------------------------------------------------- Lightning


class Net(pl.LightningModule):
    """The smallest model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, _: int) -> Any:
        return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

    def validation_step(self, batch: Any, _: int) -> None:
        """Nothing to compute."""

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Own(Dataset[Any]):
    """As people write them."""

    def __init__(self) -> None:
        self.features, self.labels = torch.from_numpy(X), torch.from_numpy(Y)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.features[index], self.labels[index]


class Splits(pl.LightningDataModule):
    """Splits of one data set by their rows."""

    def __init__(self, val: slice, test: slice) -> None:
        super().__init__()
        self.data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
        self.rows = {"train": TRAIN, "val": val, "test": test}

    def loader(self, split: str) -> DataLoader[Any]:
        subset = Subset(self.data, range(60)[self.rows[split]])
        return DataLoader(subset, batch_size=10, shuffle=split == "train")

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")


def trainer(callback: Any) -> Any:
    return pl.Trainer(
        callbacks=[callback],
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_lightning(config: dict[str, Any], record: Read) -> None:
    """Between loaders of a fit, and a test after it."""
    made = trainer(LightningCallback(config=config))
    net, data = Net(), Splits(val=CLEAN, test=LEAKY)
    made.fit(net, datamodule=data)
    made.test(net, datamodule=data, verbose=False)
    found = record()
    assert told(found) == [("train", "test", 7, 20)]
    assert checked(found) == {("train", "val"), ("train", "test")}


def test_lightning_clean(config: dict[str, Any], record: Read) -> None:
    """Also where the training data are looked at after the fit, and predicted; all is described."""
    data = Own()
    train, val = random_split(data, [40, 20], generator=torch.Generator().manual_seed(0))
    made, net = trainer(LightningCallback(config=config)), Net()
    made.fit(net, DataLoader(train, batch_size=10), DataLoader(val, batch_size=10))
    made.test(net, DataLoader(train, batch_size=10), verbose=False)
    made.predict(net, DataLoader(data, batch_size=10))
    found = record()
    assert told(found) == []
    assert len(checked(found)) == 3
    documents = {row["section"]: row["document"] for row in found.rows("provenance")}
    for name in ("train", "val", "test", "predict"):
        assert '"digest":"sha256:' in documents[f"data.{name}"].replace(" ", "")


# ---------------------------------------------------------------------------- Keras


def keras_model() -> Any:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(("val", "events"), [(LEAKY, [("train", "val", 7, 20)]), (CLEAN, [])])
def test_keras(val: slice, events: list[Any], config: dict[str, Any], record: Read) -> None:
    """Between the data of a fit and of its validation; what is evaluated after it counts too."""
    model, callback = keras_model(), KerasCallback(config=config)
    quiet = {"verbose": 0, "callbacks": [callback]}
    model.fit(X[TRAIN], Y[TRAIN], validation_data=(X[val], Y[val]), **quiet)
    model.evaluate(X[TRAIN], Y[TRAIN], **quiet)
    found = record()
    assert told(found) == events
    assert checked(found) == {("train", "val"), ("train", "test")}


def test_keras_splits_off_rows_that_are_twice(config: dict[str, Any], record: Read) -> None:
    """`validation_split` takes the last rows."""
    twice = np.concatenate([X, X[:4]])
    model = keras_model()
    settings = {"validation_split": 0.25, "verbose": 0}
    model.fit(twice, twice.sum(1), callbacks=[KerasCallback(config=config)], **settings)
    assert told(record()) == [("train", "val", 4, 16)]


def test_keras_streams_are_not_asked(config: dict[str, Any], record: Read) -> None:
    """The document says that they are not known."""
    model = keras_model()
    batches = ((X[:10], Y[:10]) for _ in range(2))
    model.fit(batches, steps_per_epoch=2, verbose=0, callbacks=[KerasCallback(config=config)])
    (row,) = record().rows("provenance", section="splits")
    assert "missing" in json.loads(row["document"])["splits"]["train"]


# ---------------------------------------------------------------------------- XGBoost


@pytest.mark.parametrize(("test", "events"), [(LEAKY, [("train", "test", 7, 20)]), (CLEAN, [])])
def test_xgboost(test: slice, events: list[Any], config: dict[str, Any], record: Read) -> None:
    """Between matrices; the training data may be watched, as they are or as a copy."""
    fitted = xgboost.DMatrix(X[TRAIN], Y[TRAIN])
    copy, seen = xgboost.DMatrix(X[TRAIN], Y[TRAIN]), xgboost.DMatrix(X[test], Y[test])
    evals = [(fitted, "train"), (copy, "again"), (seen, "test")]
    callback = XGBoostCallback(config=config)
    xgboost.train({}, fitted, 2, evals=evals, verbose_eval=False, callbacks=[callback])
    found = record()
    assert told(found) == events
    assert checked(found) == {("train", "again"), ("train", "test")}


def test_xgboost_estimator(config: dict[str, Any], record: Read) -> None:
    """Between frames given to `fit`, of whose labels nothing is compared."""
    frame = pd.DataFrame(X, columns=list("abcd"))
    pairs = [(frame[rows], Y[rows]) for rows in (TRAIN, LEAKY, CLEAN)]
    model = xgboost.XGBRegressor(n_estimators=2, callbacks=[XGBoostCallback(config=config)])
    model.fit(*pairs[0], eval_set=pairs, verbose=False)
    found = record()
    assert told(found) == [("train.X", "validation_1.X", 7, 20)]
    assert checked(found) == {("train.X", f"validation_{number}.X") for number in range(3)}


def test_xgboost_folds(config: dict[str, Any], record: Read) -> None:
    """Within each fold; rows of one fold may be in the training of another."""
    halves = [(np.arange(30), np.arange(30, 60)), (np.arange(30, 60), np.arange(26, 40))]
    callback = XGBoostCallback(config=config)
    data = xgboost.DMatrix(X, Y)
    xgboost.cv({}, data, 2, folds=halves, callbacks=[callback])
    assert told(record()) == [("train", "test", 10, 14)]


# ---------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize(("test", "events"), [(LEAKY, [("X", "test", 7, 20)]), (CLEAN, [])])
def test_sklearn(test: slice, events: list[Any], config: dict[str, Any], record: Read) -> None:
    """Test data that are named, of a fit that sees none."""
    pipeline = make_pipeline(StandardScaler(), LinearRegression())
    if not hasattr(pipeline, "set_callbacks"):
        pytest.skip("scikit-learn has no callbacks before 1.9")
    pipeline.set_callbacks(SklearnCallback(config=config, data={"test": X[test]}))
    pipeline.fit(X[TRAIN], Y[TRAIN])
    found = record()
    assert told(found) == events
    assert {"data.X", "data.test"} <= {row["section"] for row in found.rows("provenance")}


@pytest.mark.parametrize("named", [True, False])
def test_sklearn_track(named: bool, config: dict[str, Any], record: Read) -> None:
    """Test data that are named, or given to `score`."""
    model = LinearRegression()
    data = {"holdout": X[LEAKY], "val": X[CLEAN]} if named else None
    with track(model, config=config, data=data):
        model.fit(X[TRAIN], Y[TRAIN])
        if not named:
            model.score(X[TRAIN], Y[TRAIN])
            model.score(X[LEAKY], Y[LEAKY])
    assert told(record()) == [("X", "holdout" if named else "test", 7, 20)]


@pytest.mark.parametrize(("rows", "count"), [(X, 0), (np.concatenate([X, X[:6]]), 6)])
def test_sklearn_folds(rows: Any, count: int, config: dict[str, Any], record: Read) -> None:
    """Between the parts of each fold, of a cross-validation and of a search, once for a fold."""
    folds, fitted = KFold(3), LinearRegression()
    grid, scoring = {"positive": [True, False]}, "neg_mean_absolute_error"
    search = GridSearchCV(LinearRegression(), grid, cv=folds, scoring=scoring)
    with track(fitted, config=config):
        cross_validate(fitted, rows, rows.sum(1), cv=folds)
    with track(search, config=config):
        search.fit(rows, rows.sum(1))
    times = 2
    if hasattr(search, "set_callbacks"):  # since scikit-learn 1.9
        search.set_callbacks(SklearnCallback(config=config)).fit(rows, rows.sum(1))
        times = 3
    found = record()
    train = [(f"fold-{fold}.train", f"fold-{fold}.test") for fold in range(3)]
    assert checked(found) == set(train)
    of = len(rows) // 3
    events = [(*train[0], count, of), (*train[2], count, of)] if count else []
    assert sorted(told(found)) == sorted(events * times)


class Rounds(BaseSearchCV):  # type: ignore[misc]
    """A search of one's own, that gives each round a splitter."""

    def __init__(self, estimator: Any, cv: Any = None) -> None:
        super().__init__(estimator, cv=cv, refit=False)

    def _run_search(self, evaluate_candidates: Any) -> None:
        evaluate_candidates([{"positive": True}], None, {"round": [0]})
        evaluate_candidates([{"positive": False}], KFold(3, shuffle=True), {"round": [1]})


def test_searches_of_ones_own_are_handed_what_they_ask_for(
    config: dict[str, Any], record: Read
) -> None:
    """However they give it; and what is watched is the splitter in everything but its folds."""
    with track(Rounds(LinearRegression(), KFold(3)), config=config) as search:
        search.fit(X, Y)
    assert list(search.cv_results_["round"]) == [0, 1]
    assert type(search.cv) is KFold
    assert search.cv_results_["param_positive"]._fill_value is None  # as where nobody has read it
    assert len(checked(record())) == 3

    watched = WatchedFolds(KFold(3, shuffle=True), InertRun())
    assert (watched.n_splits, watched.shuffle, watched.get_n_splits()) == (3, True, 3)
    assert copy.deepcopy(watched).n_splits == 3


def test_of_very_many_sklearn_folds_the_first_are_looked_at(
    config: dict[str, Any], record: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a document."""
    monkeypatch.setattr("tachograph.callbacks.sklearn_folds._MOST_FOLDS", 2)
    with track(LinearRegression(), config=config) as fitted:
        cross_validate(fitted, X, Y, cv=KFold(3))
    assert checked(record()) == {(f"fold-{n}.train", f"fold-{n}.test") for n in range(2)}


# ---------------------------------------------------------------------------- Optuna and loops


def optimize(config: dict[str, Any], splits: Callable[[int], Any], **keywords: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    callback = OptunaCallback(config=config, **keywords)

    def objective(trial: Any) -> float:
        train, test = splits(trial.number)
        fitted, seen = xgboost.DMatrix(X[train], Y[train]), xgboost.DMatrix(X[test], Y[test])
        settings = {"evals": [(seen, "test")], "verbose_eval": False}
        xgboost.train({}, fitted, 1, callbacks=[XGBoostCallback()], **settings)
        return trial.suggest_float("a", 0, 1)

    study.optimize(callback.objective(objective), n_trials=3, callbacks=[callback])


def test_optuna(config: dict[str, Any], record: Read) -> None:
    """Test rows of one trial among the training rows of another: one event, on the study."""
    rows = np.arange(60)
    trials = [(rows[:40], rows[50:55]), (rows[:50], rows[55:]), (rows[:52], rows[55:])]
    optimize(config, lambda number: trials[number])
    found = record()
    assert told(found) == [("train", "test", 2, 5)]
    (study,) = found.runs(kind="study")
    assert len(found.rows("events", kind="warning", run_id=study["run_id"])) == 1


def test_optuna_clean(config: dict[str, Any], record: Read) -> None:
    """A split that all trials share; test data of the study are compared with all of them."""
    optimize(config, lambda _: (TRAIN, CLEAN), data={"test": X[CLEAN]})
    found = record()
    assert told(found) == []
    (study,) = found.runs(kind="study")
    (row,) = found.rows("provenance", section="splits", run_id=study["run_id"])
    (across,) = json.loads(row["document"])["across_runs"]
    assert (across["evaluation"], across["rows"], across["finding"]) == ("test", 0, "none")


@pytest.mark.parametrize(("test", "events"), [(LEAKY, [("train", "test", 7, 20)]), (CLEAN, [])])
def test_loops(test: slice, events: list[Any], config: dict[str, Any], record: Read) -> None:
    """With whatever holds the rows."""
    with start_run(config=config) as run:
        run.log_data(torch.from_numpy(X[TRAIN]), "train")
        run.log_data(X[test], "test")
    assert told(record()) == events
