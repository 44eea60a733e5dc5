"""What trainings have made: the same bits have the same digests, in another process too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("keras")
pytest.importorskip("xgboost")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from tachograph.callbacks import track
from tachograph.callbacks.sklearn_pipeline import Tree
from tachograph.testing.callback_contract import Record

HERE = Path(__file__).parent
FRAMEWORKS = ("lightning", "keras", "xgboost", "sklearn", "optuna", "torch")
Config = dict[str, Any]
Documents = dict[str, Any]

X = np.random.default_rng(0).random((60, 4))
y = (X.sum(1) > 2).astype(int)


def documents(record: Record) -> Documents:
    """Section to document of all that is recorded on outcomes and pipelines, of the only run."""
    (run_id,) = {row["run_id"] for row in record.rows("runs") if row["parent_id"] is None}
    rows = record.rows("provenance", run_id=run_id)
    return {row["section"]: json.loads(row["document"]) for row in rows}


# ---------------------------------------------------------------------------- each framework


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each training, with another seed, with another row, and 'again' in another process."""
    folders = [str(tmp_path_factory.mktemp(name)) for name in ("here", "again")]
    command = [sys.executable, "-W", "ignore", str(HERE / "outcome_trainings.py"), folders[1]]
    keras = sys.modules.get("keras")
    backend = keras.backend.backend() if keras else os.environ.get("KERAS_BACKEND", "torch")
    environment = os.environ | {"PYTHONHASHSEED": "7", "KERAS_BACKEND": backend}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        import outcome_trainings

        found: dict[str, Any] = outcome_trainings.train_all(folders[0])
        output, _ = process.communicate()
    again = json.loads(output[output.index(b'{"lightning') :])
    return found | {f"{name.split()[0]} again": one for name, one in again.items()}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_same_training_has_the_same_digests(trained: dict[str, Any], framework: str) -> None:
    """In another process with another order of hashes: all documents are equal to the letter."""
    here, again = (trained[f"{framework} {which}"]["found"] for which in ("same", "again"))
    assert here == again
    assert here
    assert all(one.get("digest_of") == "content" for name, one in here.items() if "out" in name)


@pytest.mark.parametrize("variant", ["seed", "row"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_another_training_has_other_digests(
    trained: dict[str, Any], framework: str, variant: str
) -> None:
    """Of weights, predictions and trials, after another seed or with one changed row."""
    same, other = (trained[f"{framework} {which}"]["found"] for which in ("same", variant))
    sections = [name for name in same if name.startswith("outcome")]
    assert sections
    assert [name for name in sections if same[name]["digest"] == other[name]["digest"]] == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_digests_are_of_what_the_user_has(trained: dict[str, Any], framework: str) -> None:
    """Of the state of the model after the fit, and of what predicting has returned."""
    found, expected = (trained[f"{framework} same"][what] for what in ("found", "expected"))
    for section, document in expected.items():
        assert found[section]["digest"] == document["digest"]
        parts, of_user = (one.get("parts", {}) for one in (found[section], document))
        if framework != "keras":  # whose `get_weights` has no names
            assert parts == of_user
        assert sorted(parts.values()) == sorted(of_user.values())


def test_names_of_parts(trained: dict[str, Any]) -> None:
    """Tensors by their names in the framework, also where these look like names of secrets."""
    lightning, keras = (
        set(trained[f"{framework} same"]["found"]["outcome.weights"]["parts"])
        for framework in ("lightning", "keras")
    )
    assert {"token.weight", "norm.running_mean", "norm.num_batches_tracked"} <= lightning
    assert not {name for name in lightning if "passing" in name or "same" in name}
    assert {"dense/kernel", "batch_normalization/moving_mean"} <= keras
    trials = trained["optuna same"]["found"]["outcome.trials"]["parts"]
    assert set(trials) == {"0", "1", "2"}


def test_another_row_changes_what_depends_on_it(trained: dict[str, Any]) -> None:
    """The scaler and the models, not the encoder, which has not seen the changed columns."""
    same, other = (trained[f"sklearn {which}"]["found"]["pipeline"] for which in ("same", "row"))
    assert list(same) == list(other)
    changed = {path for path in same if same[path].get("fitted") != other[path].get("fitted")}
    assert {"columns.number", "model.forest", "model.line"} <= changed
    assert not changed & {".", "columns", "columns.kind"}


# ---------------------------------------------------------------------------- what is left out


def test_no_digests_without_weights(config: Config, record: Callable[[], Record]) -> None:
    """With ``weights="off"`` nothing that was learned is read, and the tree says the rest."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    with track(pipeline, config=config, weights="off"):
        pipeline.fit(X, y)
    found = documents(record())
    assert "outcome.weights" not in found
    assert [set(node) for node in found["pipeline"].values()].count({"class", "params"}) == 2


@pytest.mark.parametrize("framework", ["lightning", "xgboost", "torch"])
def test_no_weights_where_they_are_off(
    framework: str, config: Config, record: Callable[[], Record]
) -> None:
    """The same of other frameworks."""
    import outcome_trainings

    train = outcome_trainings.TRAININGS[framework]
    rows = X.astype("float32")
    train(config | {"record": {"system": False, "weights": "off"}}, 1, rows, rows.sum(1))
    assert "outcome.weights" not in documents(record())


def test_a_fit_that_fails_has_no_outcome(config: Config, record: Callable[[], Record]) -> None:
    """What an interrupted training left is no outcome."""
    pipeline = make_pipeline(StandardScaler(), Breaking())
    with pytest.raises(ZeroDivisionError), track(pipeline, config=config):
        pipeline.fit(X, y)
    assert not {name for name in documents(record()) if name.startswith(("outcome", "pipe"))}


def test_predictions_that_are_not_kept(config: Config, record: Callable[[], Record]) -> None:
    """Lightning keeps none with ``return_predictions=False``, and the record says so."""
    import lightning
    import outcome_trainings
    import torch

    from tachograph.callbacks import LightningCallback

    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[LightningCallback(config=config)],
    )
    data = torch.utils.data.TensorDataset(torch.tensor(X.astype("float32")))
    loader = torch.utils.data.DataLoader(data, 20)
    trainer.predict(outcome_trainings.Module(), loader, return_predictions=False)
    assert "return_predictions" in documents(record())["outcome.predictions"]["missing"]


def test_weights_that_are_spread_are_not_gathered(
    config: Config, record: Callable[[], Record]
) -> None:
    """FSDP leaves a process a part of all parameters in one."""
    import torch
    from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy

    from tachograph import start_run
    from tachograph.callbacks.lightning_facts import sharding
    from tachograph.callbacks.tensors_outcome import log_weights

    model = torch.nn.Linear(2, 2)
    model.weight._is_flat_param = True
    with start_run(config=config) as run:
        log_weights(run, model)
    assert documents(record())["outcome.weights"] == {"missing": "spread over processes"}
    for strategy, expected in ((FSDPStrategy, "FSDPStrategy"), (SingleDeviceStrategy, None)):
        trainer = SimpleNamespace(strategy=strategy.__new__(strategy))
        assert sharding(trainer) == expected


# ---------------------------------------------------------------------------- trees


class Breaking(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fails when it is fitted."""

    def fit(self, X: Any, y: Any) -> Breaking:
        raise ZeroDivisionError("planted")


class Odd(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Learns what others do not: itself, the state of a generator, whatever it is given."""

    def __init__(self, helper: Any = None, learn: Any = None) -> None:
        self.helper = helper
        self.learn = learn

    def fit(self, X: Any, y: Any = None) -> Odd:
        self.myself_ = self
        self.random_state_ = np.random.RandomState()
        self.extra_ = self.learn
        return self

    def transform(self, X: Any) -> Any:
        return X


def digest(estimator: Any) -> str:
    """Of all that an estimator has learned."""
    return str(Tree(estimator, fitted=True).outcome()["digest"])


def test_a_step_that_a_cache_has_served(
    config: Config, record: Callable[[], Record], tmp_path: Path
) -> None:
    """The tree and its digests are those of a fit without a cache."""
    plain = Pipeline([("scale", StandardScaler()), ("model", LogisticRegression())])
    cached = clone(plain).set_params(memory=str(tmp_path / "cache"))
    clone(cached).fit(X, y)
    with track(cached, config=config):
        cached.fit(X, y)
    found, expected = documents(record())["pipeline"], Tree(plain.fit(X, y), fitted=True).document
    assert found["scale"] == expected["scale"]
    assert found["model"] == expected["model"]
    assert found["."]["steps"] == ["scale", "model"]


def test_parts_of_parts(config: Config, record: Callable[[], Record]) -> None:
    """Searches, unions and ensembles; parameters that are not as by default."""
    union = FeatureUnion([("line", PCA(2)), ("range", MinMaxScaler())])
    pipeline = Pipeline([("both", union), ("skip", "passthrough"), ("near", LogisticRegression())])
    search = GridSearchCV(pipeline, {"near__C": [0.1, 0.2]}, cv=2)
    with track(search, config=config):
        search.fit(X, y)
    tree = documents(record())["pipeline"]
    assert tree["."]["steps"] == ["best_estimator_"]
    assert tree["best_estimator_"]["steps"] == ["both", "skip", "near"]
    assert tree["best_estimator_.both"]["steps"] == ["line", "range"]
    assert tree["best_estimator_.both.line"]["params"] == {"n_components": 2}
    assert tree["best_estimator_.skip"] == {"class": "passthrough"}
    assert tree["best_estimator_.near"]["params"] == {"C": search.best_params_["near__C"]}
    assert search.refit_time_ not in tree["."].values()
    assert digest(search) == digest(clone(search).fit(X, y))


def test_many_twins_are_bounded() -> None:
    """Ten of them have a place; the others count, and have a part in the digest."""
    bagging = BaggingClassifier(KNeighborsClassifier(), 15, random_state=0).fit(X, y)
    tree = Tree(bagging, fitted=True)
    assert tree.document["."]["more"] == 5
    assert len(tree.document) == 11
    before = digest(bagging)
    bagging.estimators_[14]._fit_X = bagging.estimators_[14]._fit_X + 1
    assert digest(bagging) != before
    deep: Any = StandardScaler()
    for _ in range(15):
        deep = Pipeline([("in", deep)])
    deep.fit(X)
    before = digest(deep)
    assert len(Tree(deep, fitted=True).document) == 11
    changed = digest(deep.fit(X + 1))
    assert changed != before


def test_pieces_are_the_final_state(config: Config, record: Callable[[], Record]) -> None:
    """Of an estimator that is fitted in pieces, after the last of them."""
    model = SGDClassifier(random_state=0)
    with track(model, config=config):
        for start in (0, 20, 40):
            model.partial_fit(X[start : start + 20], y[start : start + 20], classes=[0, 1])
    assert documents(record())["outcome.weights"]["digest"] == digest(model)


def test_what_is_learned_counts_and_nothing_else() -> None:
    """No order of sets, no random state, no address, nothing masked; each bit of all else."""
    assert digest(Odd().fit(X)) == digest(Odd().fit(X))
    assert list({0, 8}) != list({8, 0})
    assert digest(Odd(learn={0, 8}).fit(X)) == digest(Odd(learn={8, 0}).fit(X))
    masked = [np.ma.MaskedArray([number], mask=[True]) for number in (1, 2)]
    assert digest(Odd(learn=masked[0]).fit(X)) == digest(Odd(learn=masked[1]).fit(X))
    assert digest(Odd(learn=[1, 2]).fit(X)) != digest(Odd(learn=[1, 3]).fit(X))
    assert digest(Odd(learn={"a": X}).fit(X)) != digest(Odd(learn={"a": X + 1}).fit(X))
    different = [("a", 1.0), ("a", 1), 1, "1", 1.0, True, {"a": X}, {"b": X}, X, [X], X[0]]
    assert len({digest(Odd(learn=one).fit(X)) for one in different}) == len(different)
    generators = [np.random.RandomState(1), np.random.RandomState(2)]
    assert len({digest(Odd(learn=one).fit(X)) for one in generators}) == 1
    nodes = np.zeros(2, np.dtype([("left", "i1"), ("value", "f8")], align=True))
    dirty = nodes.copy()
    dirty.view("u1")[1:8] = 7  # between the fields
    assert digest(Odd(learn=nodes).fit(X)) == digest(Odd(learn=dirty).fit(X))
    words = CountVectorizer().fit(["time and time"]), CountVectorizer().fit(["tide and tide"])
    assert digest(words[0]) != digest(words[1])
    alike = [CountVectorizer(stop_words=["and"]).fit(["time and time"]) for _ in range(2)]
    assert digest(alike[0]) == digest(alike[1])  # which keep the addresses of their lists


def test_what_cannot_be_read_is_named() -> None:
    """By its attribute and type; the digest is of the rest. An estimator has one place."""
    odd = Odd(learn=np.random.default_rng(0).bit_generator).fit(X)
    document = Tree(make_pipeline(odd), fitted=True).outcome()
    assert document["digest_of"] == "part"
    assert set(document["parts"]) == {".", "odd"}
    assert document["missing"] == ["odd: extra_: numpy.random._pcg64.PCG64"]


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit samples of arrays, first and last values among them."""
    monkeypatch.setattr("tachograph.callbacks.sklearn_fitted.EXACT_BYTES", 1 << 10)
    rows = np.zeros((10_000, 4))
    models = [Odd(learn=rows).fit(X)]
    for place in (0, -1):
        other = rows.copy()
        other[place, place] = 1
        models.append(Odd(learn=other).fit(X))
    assert len(set(map(digest, models))) == 3
    assert Tree(models[0], fitted=True).outcome()["digest_of"] == "sample"
