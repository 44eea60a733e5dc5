"""Estimators that are seen at work, every step of them: the same bits, and nothing left on them."""

from __future__ import annotations

import copy
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
from joblib.externals.loky import get_reusable_executor
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from tachograph.callbacks import SklearnCallback, track
from tachograph.testing.callback_contract import EACH_STEP, Broken, CallbackContract

X, y = load_breast_cancer(return_X_y=True)
X, y = StandardScaler().fit_transform(X[:160, :6]), y[:160]

Config = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def config(config: Config) -> Config:
    """Everything at every step."""
    return config | {"record": config["record"] | EACH_STEP}


def once(model: Any) -> Any:
    """Fit."""
    return model.fit(X, y)


def in_calls(model: Any) -> Any:
    """Fit in three calls."""
    for _ in range(3):
        model.partial_fit(X, y, classes=[0, 1])
    return model


def go_on(model: Any) -> Any:
    """Fit, then fit more."""
    model.fit(X, y)
    return model.set_params(n_estimators=6).fit(X, y)


def monitored(model: Any) -> Any:
    """Fit with a monitor that stops."""
    return model.fit(X, y, monitor=lambda stage, *_: stage == 2)


network = {"hidden_layer_sizes": (4,), "max_iter": 4}
boosting = {"n_estimators": 4, "max_depth": 2}
ESTIMATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "adam": (lambda: MLPClassifier(**network), once),
    "sgd": (lambda: MLPClassifier(**network, solver="sgd", learning_rate="adaptive"), once),
    "lbfgs": (lambda: MLPRegressor(**network, solver="lbfgs"), once),
    "early": (lambda: MLPRegressor(**network, early_stopping=True, n_iter_no_change=1), once),
    "float32": (lambda: Pipeline([("32", _Halve()), ("model", MLPClassifier(**network))]), once),
    "partial": (lambda: MLPClassifier(**network), in_calls),
    "partial sgd": (SGDClassifier, in_calls),
    "subsample": (lambda: GradientBoostingClassifier(**boosting, subsample=0.5), once),
    "huber": (lambda: GradientBoostingRegressor(**boosting, loss="huber"), once),
    "patience": (lambda: GradientBoostingClassifier(**boosting, n_iter_no_change=1), once),
    "monitor": (lambda: GradientBoostingClassifier(**boosting), monitored),
    "warm": (lambda: GradientBoostingClassifier(**boosting, warm_start=True), go_on),
    "histograms": (lambda: HistGradientBoostingClassifier(max_iter=4), once),
    "scored": (
        lambda: HistGradientBoostingRegressor(max_iter=4, early_stopping=True, scoring="r2"),
        once,
    ),
    "absolute": (lambda: HistGradientBoostingRegressor(max_iter=4, loss="absolute_error"), once),
    "logistic": (LogisticRegression, once),
    "poisson": (PoissonRegressor, once),
}


class _Halve(StandardScaler):
    """Makes float32 of its input."""

    def transform(self, X: Any, copy: Any = None) -> Any:
        """Scale and convert."""
        return super().transform(X).astype(np.float32)


def bits(model: Any) -> bytes:
    """All that a fit leaves behind, in the model and in the random state."""
    found = pickle.dumps((model, model.predict(X), np.random.get_state()))
    assert b"tachograph" not in found
    return found


@pytest.mark.parametrize("name", ESTIMATORS)
def test_track_changes_nothing(name: str, config: Config) -> None:
    """The model is the same to the bit, its attributes too, with every step recorded."""
    make, train = ESTIMATORS[name]
    np.random.seed(5)
    plain = bits(train(make()))
    np.random.seed(5)
    model = make()
    with track(model, config=config):
        train(model)
    assert bits(model) == plain


@pytest.mark.skipif(not hasattr(Pipeline, "set_callbacks"), reason="needs scikit-learn 1.9")
@pytest.mark.parametrize("name", [name for name, (_, train) in ESTIMATORS.items() if train is once])
def test_callback_changes_nothing(name: str, config: Config) -> None:
    """So it is as the last step of a pipeline with the callback."""
    make, _ = ESTIMATORS[name]
    np.random.seed(5)
    plain = bits(Pipeline([("scale", StandardScaler()), ("model", make())]).fit(X, y))
    np.random.seed(5)
    model = Pipeline([("scale", StandardScaler()), ("model", make())])
    model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert bits(model) == plain


def searched(way: str, config: Config) -> Any:
    """A search in two processes over networks and boosting, observed in one of the ways."""
    steps = [("scale", StandardScaler()), ("model", LogisticRegression())]
    models = [
        MLPClassifier(**network, random_state=0),
        GradientBoostingClassifier(**boosting, random_state=0),
    ]
    search = GridSearchCV(Pipeline(steps), {"model": models}, cv=2, n_jobs=2)
    if way == "callback":
        search.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    with track(search, config=config) if way == "track" else ExitStack():
        if way != "callback":
            search.fit(X, y)
    for name in ("cv_results_", "refit_time_"):
        vars(search).pop(name)
    return search


@pytest.mark.slow
def test_search_in_processes(config: Config) -> None:
    """Also where the models are fitted elsewhere."""
    ways = ["none", "track"] + ["callback"] * hasattr(Pipeline, "set_callbacks")
    first, *others = [joblib.hash(searched(way, config)) for way in ways]
    get_reusable_executor().shutdown(wait=True)
    assert others == [first] * len(others)


class TestEveryStep(CallbackContract):
    """The laws of all callbacks, for all that can be seen at work, at every step."""

    tensor_kinds = frozenset({"weight", "update", "gradient", "hessian"})

    @pytest.fixture
    def config(self, store_url: str) -> Config:
        """Everything at every step."""
        record = {"system": False, **EACH_STEP}
        return {"record": record, "backend": store_url, "project": "contract"}

    def make_callback(self, **keywords: Any) -> Any:
        """What `track` is called with."""
        return keywords

    def fit(self, callbacks: Sequence[Any], model: Any, data: Any = X) -> Any:
        """Fit inside as many blocks as there are callbacks."""
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for keywords in callbacks:
                stack.enter_context(track(model, **keywords))
            return model.fit(data, y)

    def voting(self) -> VotingClassifier:
        """One of each."""
        return VotingClassifier(
            [
                ("network", MLPClassifier((4,), max_iter=3)),
                ("boosting", GradientBoostingClassifier(n_estimators=2)),
                ("histograms", HistGradientBoostingClassifier(max_iter=2)),
                ("logistic", LogisticRegression(max_iter=5)),
            ]
        )

    def train(self, callbacks: Sequence[Any]) -> bytes:
        """All draw random numbers."""
        np.random.seed(3)
        return bits(self.fit(callbacks, self.voting()))

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        """Boosting that raises in its second stage, after a network that was fitted."""

        def monitor(stage: int, *_: Any) -> None:
            if stage:
                raise error

        model = GradientBoostingClassifier(n_estimators=3)
        with ExitStack() as stack:
            for keywords in callbacks:
                stack.enter_context(track(model, **keywords))
            try:
                model.fit(X, y, monitor=monitor)
            finally:
                assert not [name for name in ("_fit_stages", "_get_loss") if name in vars(model)]
                assert "gradient" not in vars(model._loss)

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        """The estimators and their data."""
        data = X.copy()
        model = self.fit(callbacks, self.voting(), data)
        return [weakref.ref(one) for one in (model, data, *model.estimators_)]


@pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
@pytest.mark.parametrize(
    "fault",
    [
        "tachograph.run.Run.log_statistics",
        "tachograph.callbacks.sklearn_tensors.Tensors.plan",
        "tachograph.callbacks.sklearn_tensors.Meter.measure",
        "tachograph.callbacks.sklearn_tensors.tensors_snapshot.save",
        "tachograph.callbacks.sklearn_epochs.Network._begin_record",
        "tachograph.callbacks.sklearn_epochs.Stages._end_stage",
        "tachograph.callbacks.sklearn_fit.listen",
        "tachograph.callbacks.sklearn_fit.coefficients",
    ],
)
def test_what_breaks_is_not_noticed(
    fault: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises while tensors are recorded, the model is the same, and its own alone."""
    contract = TestEveryStep()
    plain = contract.train([])

    def broken(*_: Any, **__: Any) -> Any:
        raise Broken(fault)

    monkeypatch.setattr(fault, broken)
    assert contract.train([{"config": config}]) == plain


def test_copies_in_the_middle_of_a_fit(config: Config) -> None:
    """A copy that is made while an estimator is seen at work is one that nobody watches."""
    copies: list[Any] = []

    class Copies(MLPClassifier):
        """A network that copies itself at each batch."""

        def _forward_pass(self, activations: Any) -> Any:
            copies.append(copy.deepcopy(self))
            return super()._forward_pass(activations)

    model = Copies((2,), max_iter=2, random_state=0)
    with track(model, config=config):
        model.fit(X, y)
    recorded = len(copies)
    assert all(isinstance(one, Copies) for one in copies)
    assert not [name for name in vars(model) if name in ("_backprop", "_fit_stages")]
    vars(copies[0])["coefs_"] = model.coefs_
    assert copies[0].fit(X, y).n_iter_ == 2
    assert len(copies) == 2 * recorded
