"""`track`: any estimator, observed for the time of a block, and the same afterwards."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
from joblib.externals.loky import get_reusable_executor
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import RFE, SelectFromModel
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from tachograph import start_run
from tachograph.callbacks import SklearnCallback, track
from tachograph.testing.callback_contract import CallbackContract, Record

X, y = load_breast_cancer(return_X_y=True)
X, y = X[:200, :8], y[:200]

Reader = Callable[[], Record]
Config = dict[str, Any]


class Fails(TransformerMixin, BaseEstimator):
    """A step that raises when it is fitted."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def fit(self, X: Any, y: Any = None) -> Fails:
        """Raise."""
        if self.error is not None:
            raise self.error
        return self

    def transform(self, X: Any) -> Any:
        """Pass on."""
        return X


def pipeline() -> Pipeline:
    """A scaler and a solver."""
    return Pipeline([("scale", StandardScaler()), ("model", LogisticRegression(max_iter=200))])


def search(jobs: int | None = None, **keywords: Any) -> GridSearchCV:
    """Two candidates, two folds."""
    return GridSearchCV(pipeline(), {"model__C": [0.1, 10.0]}, cv=2, n_jobs=jobs, **keywords)


def end_workers() -> None:
    """Let joblib's worker processes end, so that their journals are drained."""
    get_reusable_executor().shutdown(wait=True)


class TestContract(CallbackContract):
    """The laws of all callbacks; the keywords of `track` stand for it."""

    tensor_kinds = frozenset({"gradient", "update", "weight"})

    tensor_kinds = frozenset({"weight", "update", "gradient"})

    def make_callback(self, **keywords: Any) -> Any:
        """What `track` is called with."""
        return keywords

    def fit(self, callbacks: Sequence[Any], model: Any, data: Any = X) -> Any:
        """Fit inside as many blocks as there are callbacks."""
        with ExitStack() as stack:
            for keywords in callbacks:
                stack.enter_context(track(model, **keywords))
            return model.fit(data, y)

    def train(self, callbacks: Sequence[Any]) -> bytes:
        """A pipeline whose last step draws random numbers."""
        np.random.seed(3)
        model = Pipeline([("scale", StandardScaler()), ("model", MLPClassifier((4,), max_iter=5))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            self.fit(callbacks, model)
        return pickle.dumps((model, model.predict_proba(X), np.random.get_state()))

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        """A pipeline whose second step raises."""
        steps = [("scale", StandardScaler()), ("fails", Fails(error)), ("last", PCA(2))]
        self.fit(callbacks, Pipeline(steps))

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        """A pipeline and its data."""
        data = X.copy()
        model = self.fit(callbacks, pipeline(), data)
        return [weakref.ref(model), weakref.ref(model["model"]), weakref.ref(data)]


# ---------------------------------------------------------------------------- the record


def tree(found: Record) -> dict[str, Any]:
    """Names of runs inside the names of runs that they are part of."""
    runs = found.runs()

    def inside(run_id: str | None) -> dict[str, Any]:
        return {run["name"]: inside(run["run_id"]) for run in runs if run["parent_id"] == run_id}

    (whole,) = inside(None).values()
    return dict(whole)


def test_sees_inside_everything(config: Config, record: Reader) -> None:
    """Steps of column transformers, unions and votes are in the tree under their names."""
    union = FeatureUnion([("pca", PCA(2)), ("same", FunctionTransformer())])
    columns = ColumnTransformer([("left", union, [0, 1, 2]), ("right", MinMaxScaler(), [3, 4])])
    vote = VotingClassifier([("bayes", GaussianNB()), ("tree", DecisionTreeClassifier())])
    model = make_pipeline(columns, vote)
    with track(model, config=config):
        model.fit(X, y)
    found = record()
    assert tree(found) == {
        "columntransformer": {"left": {"pca": {}, "same": {}}, "right": {}},
        "votingclassifier": {"bayes": {}, "tree": {}},
    }
    (left,) = found.runs(name="left")
    point = {row["name"]: row["value"] for row in found.rows("metrics", run_id=left["run_id"])}
    assert point.pop("time/fit_seconds") > 0
    assert point == {"X/rows_in": 200, "X/columns_in": 3, "X/columns_out": 5}


def test_repeated_fits_are_points_of_one_run(config: Config, record: Reader) -> None:
    """Ten bagged trees are ten points of a run, not ten runs."""
    model = BaggingClassifier(DecisionTreeClassifier(), n_estimators=10, random_state=0)
    with track(model, config=config):
        model.fit(X, y)
    found = record()
    assert tree(found) == {"estimator": {}}
    (run,) = found.runs(name="estimator")
    times = found.rows("metrics", run_id=run["run_id"], name="time/fit_seconds")
    assert [row["step"] for row in times] == list(range(10))


@pytest.mark.parametrize("jobs", [None, 2])
def test_search(jobs: int | None, config: Config, record: Reader) -> None:
    """Each fold is recorded where it belongs, also from other processes."""
    model = search(jobs)
    with track(model, config=config):
        model.fit(X, y)
    end_workers()
    found = record()
    results = model.cv_results_
    candidates = {run["name"]: run for run in found.runs(kind="candidate")}
    assert len(candidates) == 2
    for index, run in enumerate(candidates.values()):
        run_id = run["run_id"]
        points = [
            row
            for row in found.rows("metrics", run_id=run_id)
            if row["name"] not in ("coef_norm", "time/iteration_seconds")  # of each iteration
        ]
        values = {(row["name"], row["context"]): row["value"] for row in points}
        assert len(points) == len(values)
        assert found.params(run_id)["model__C"] == results["params"][index]["model__C"]
        for fold in range(2):
            context = f'{{"fold":{fold},"step":"model"}}'
            twin = clone(model.estimator).set_params(**results["params"][index])
            train = list(StratifiedKFold(2).split(X, y))[fold][0]
            twin.fit(X[train], y[train])
            assert values["n_iter", context] == twin["model"].n_iter_[0]
            score = values["score", f'{{"fold":{fold},"phase":"test"}}']
            assert score == results[f"split{fold}_test_score"][index]
    assert list(tree(found)) == ["candidate-0", "candidate-1", "best_estimator_"]
    assert {run["status"] for run in found.runs()} == {"finished"}


def test_reason_of_a_failed_fold(config: Config, record: Reader) -> None:
    """scikit-learn goes on without a fold that raised; the record says why it did."""
    grid = {"fails__error": [None, ValueError("planted")]}
    model = GridSearchCV(
        Pipeline([("fails", Fails()), ("model", GaussianNB())]), grid, cv=2, n_jobs=2
    )
    with warnings.catch_warnings(), track(model, config=config):
        warnings.simplefilter("ignore")
        model.fit(X, y)
    end_workers()
    found = record()
    good, bad = found.runs(kind="candidate")
    assert (good["status"], bad["status"]) == ("finished", "failed")
    events = found.rows("events", kind="error")
    assert {row["run_id"] for row in events} == {bad["run_id"]}
    assert sorted(row["message"] for row in events) == [
        "fold 0: ValueError: planted",
        "fold 1: ValueError: planted",
    ]
    assert "Traceback" in json.loads(events[0]["data"])["traceback"]


@pytest.mark.parametrize("jobs", [None, 2])
def test_cross_validation(jobs: int | None, config: Config, record: Reader) -> None:
    """Folds of a function are points of one run, with the score where the estimator gives it."""
    model = pipeline()
    with track(model, config=config):
        result = cross_validate(model, X, y, cv=3, n_jobs=jobs, return_train_score=True)
    end_workers()
    found = record()
    assert len(found.runs()) == 1
    assert found.run()["status"] == "finished"
    assert found.params(found.run()["run_id"])["model__max_iter"] == 200
    sections = {row["section"] for row in found.rows("provenance")}
    data = {section for section in sections if section.startswith("data.")}
    assert data == {f"data.fold-{fold}.{name}" for fold in range(2) for name in "Xy"}
    assert sorted(found.series("score", phase="test")) == list(enumerate(result["test_score"]))
    assert sorted(found.series("score", phase="train")) == list(enumerate(result["train_score"]))
    for fold in range(3):
        assert len(found.series("time/fit_seconds", fold=fold, step="scale")) == 1


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_parallel_parts(backend: str, config: Config, record: Reader) -> None:
    """Parts that joblib fits elsewhere find the fit that they are part of."""
    parts = [("svm", SVC()), ("tree", make_pipeline(MinMaxScaler(), DecisionTreeClassifier()))]
    model = StackingClassifier(parts, cv=2, n_jobs=2)
    with track(model, config=config), joblib.parallel_backend(backend):
        model.fit(X, y)
    end_workers()
    found = record()
    shape = tree(found)
    assert shape["svm"] == {}
    assert shape["tree"] == {"minmaxscaler": {}, "decisiontreeclassifier": {}}
    assert {run["status"] for run in found.runs()} == {"finished"}
    (run,) = found.runs(name="svm")
    times = found.rows("metrics", run_id=run["run_id"], name="time/fit_seconds")
    assert len(times) == 3  # once on everything, twice for the folds


def test_clones_made_in_a_worker(config: Config, record: Reader) -> None:
    """An estimator that is sent as it is and cloned there is recorded too."""
    model = OneVsRestClassifier(LogisticRegression(), n_jobs=2)
    with track(model, config=config):
        model.fit(X, np.arange(len(y)) % 3)
    end_workers()
    found = record()
    (run,) = found.runs(name="estimator")
    assert run["parent_id"] == found.run()["run_id"]
    times = found.rows("metrics", run_id=run["run_id"], name="time/fit_seconds")
    assert len(times) == 3


def test_score_after_the_fit(config: Config, record: Reader) -> None:
    """A score of the fitted estimator goes to its run, said of which data it is."""
    model = pipeline()
    with track(model, config=config):
        model.fit(X[:100], y[:100])
        score = model.score(X[100:], y[100:])
    found = record()
    assert found.series("score", phase="test") == [(0, score)]
    assert len([run for run in found.runs() if run["parent_id"] is None]) == 1


def test_partial_fit_is_one_run(config: Config, record: Reader) -> None:
    """Calls that go on with an estimator are points of one run, which the block ends."""
    model = SGDClassifier(random_state=0)
    with track(model, config=config):
        for _ in range(4):
            model.partial_fit(X, y, classes=[0, 1])
    found = record()
    assert found.run()["status"] == "finished"
    assert [step for step, _ in found.series("time/fit_seconds")] == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(Pipeline, "set_callbacks"), reason="needs scikit-learn 1.9")
def test_native_callback_inside_records_once(config: Config, record: Reader) -> None:
    """With both, `track` records the tree, the callback the iterations that only it sees."""
    model = pipeline().set_callbacks(SklearnCallback(config=config))
    with track(model, config=config):
        model.fit(X, y)
    found = record()
    assert tree(found) == {"scale": {}, "model": {}}
    (run,) = found.runs(name="model")
    iterations = found.rows("metrics", run_id=run["run_id"], name="coef_norm")
    assert len(iterations) == model["model"].n_iter_[0]


def test_nested_callbacks_find_their_parent(config: Config, record: Reader) -> None:
    """A run that is started inside a step is a child of that step."""

    def transform(data: Any) -> Any:
        with start_run(name="inner"):
            return data

    model = Pipeline([("own", FunctionTransformer(transform)), ("model", GaussianNB())])
    with track(model, config=config):
        model.fit(X, y)
    assert tree(record()) == {"own": {"inner": {}}, "model": {}}


# ---------------------------------------------------------------------------- laws


def models() -> list[Any]:
    """Estimators of many kinds."""
    tree_ = DecisionTreeClassifier(max_depth=2, random_state=0)
    logistic = LogisticRegression(max_iter=300)
    return [
        logistic,
        tree_,
        SVC(),
        KNeighborsClassifier(),
        GaussianNB(),
        MLPClassifier((3,), max_iter=5, random_state=0),
        SGDClassifier(random_state=0),
        RandomForestClassifier(4, random_state=0, n_jobs=2),
        GradientBoostingClassifier(n_estimators=4, random_state=0),
        HistGradientBoostingClassifier(max_iter=4, random_state=0),
        AdaBoostClassifier(tree_, n_estimators=4, random_state=0),
        BaggingClassifier(tree_, n_estimators=4, random_state=0),
        VotingClassifier([("a", tree_), ("b", GaussianNB())]),
        StackingClassifier([("a", tree_), ("b", GaussianNB())], cv=2),
        OneVsRestClassifier(logistic),
        CalibratedClassifierCV(GaussianNB(), cv=2),
        TransformedTargetRegressor(Ridge()),
        make_pipeline(SelectFromModel(tree_), GaussianNB()),
        make_pipeline(RFE(tree_, n_features_to_select=3), logistic),
        make_pipeline(StandardScaler().set_output(transform="pandas"), PCA(3), logistic),
        search(),
    ]


def without_times(model: Any) -> Any:
    """The model without what differs between any two fits of it."""
    for name in ("cv_results_", "refit_time_"):
        vars(model).pop(name, None)
    return model


@pytest.mark.parametrize("number", range(len(models())))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_any_estimator_is_unchanged(number: int, config: Config) -> None:
    """The fitted model is the same bytes, of its own class throughout, the random state too."""
    plain, tracked = models()[number], models()[number]
    np.random.seed(0)
    plain.fit(X, y)
    state = pickle.dumps(np.random.get_state())
    np.random.seed(0)
    with track(tracked, config=config):
        assert tracked.fit(X, y) is tracked
        inside = pickle.dumps(tracked)
    assert pickle.dumps(np.random.get_state()) == state
    assert b"tachograph" not in inside
    assert type(tracked) is type(plain)
    assert joblib.hash(without_times(tracked)) == joblib.hash(without_times(plain))
    np.testing.assert_array_equal(tracked.predict(X), plain.predict(X))
    assert repr(tracked) == repr(plain)


def observed_inside(value: Any, seen: set[int]) -> Iterable[type]:
    """Classes of all objects that can be reached from a value."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield type(value)
    items: Iterable[Any] = ()
    if isinstance(value, dict):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        items = value.ravel()
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        items = vars(value).values()
    for item in items:
        yield from observed_inside(item, seen)


@pytest.mark.parametrize("fails", [False, True])
def test_every_class_is_restored(fails: bool, config: Config) -> None:
    """Also in fitted attributes, in helpers that are no estimators, and after an exception."""
    last: Any = Fails(ValueError("planted")) if fails else GaussianNB()
    model = make_pipeline(
        SelectFromModel(CalibratedClassifierCV(GaussianNB(), cv=2), importance_getter=_ones),
        BaggingClassifier(DecisionTreeClassifier(), n_estimators=2) if not fails else PCA(1),
        last,
    )
    model = model if fails else model[:2]
    try:
        with track(model, config=config):
            assert "Observed" not in repr(model)
            model.fit(X, y)
    except ValueError:
        assert fails
    for found in observed_inside(model, set()):
        assert not hasattr(found, "__slots__") or found.__name__ != found.__base__.__name__


def _ones(estimator: Any) -> Any:
    return np.ones(8)


def test_estimator_is_the_same_inside_the_block(config: Config) -> None:
    """It says it is its class, has no new attribute, and copies and pickles as itself."""
    model = pipeline()
    attributes = {name: dir(step) for name, step in model.steps}
    with track(model, config=config):
        assert model.__class__ is Pipeline
        assert isinstance(model, Pipeline)
        assert vars(model).keys() == vars(pipeline()).keys()
        assert {name: dir(step) for name, step in model.steps} == attributes
        for protocol in (1, 2, 5):
            assert pickle.dumps(model, protocol) == pickle.dumps(pipeline(), protocol)
        assert joblib.hash(model) == joblib.hash(pipeline())
        assert type(copy.deepcopy(model)) is Pipeline
        assert hasattr(model, "score")
        assert not hasattr(make_pipeline(PCA()), "predict")


def test_what_a_class_has_declined_stays_declined(config: Config) -> None:
    """A class is not given what scikit-learn gives to each new class by default."""

    class Declines(Fails, auto_wrap_output_keys=None):
        """Wants its output as it is."""

        def get_feature_names_out(self, names: Any = None) -> Any:
            """Give the names of columns, which is what scikit-learn's wrapping needs."""
            return names

    model = Declines()
    with track(model, config=config):
        assert not hasattr(model, "set_output")


def test_caches_hit_as_without(config: Config, tmp_path: Path) -> None:
    """A cache that was filled without `track` hits with it, and the other way round."""
    calls: list[int] = []

    class Counts(Fails):
        """A step that counts its fits."""

        def fit(self, X: Any, y: Any = None) -> Counts:
            """Count."""
            calls.append(1)
            return self

    def fit(tracked: bool) -> None:
        model = make_pipeline(Counts(), GaussianNB(), memory=str(tmp_path))
        if tracked:
            with track(model, config=config):
                model.fit(X, y)
        else:
            model.fit(X, y)

    Counts.__module__, Counts.__qualname__ = __name__, "Counts"
    globals()["Counts"] = Counts
    try:
        for tracked in (True, False, True):
            fit(tracked)
    finally:
        del globals()["Counts"]
    assert len(calls) == 1


def test_blocks_may_nest(config: Config, record: Reader) -> None:
    """The inner block records while it lasts, the outer one goes on after it."""
    model = pipeline()
    with track(model, config=config, name="outer"):
        with track(model, config=config, name="inner"):
            model.fit(X, y)
        model.fit(X, y)
    assert type(model) is Pipeline
    names = [run["name"] for run in record().runs() if run["parent_id"] is None]
    assert names == ["inner", "outer"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [MinMaxScaler(), LogisticRegression(), DecisionTreeClassifier(), SGDClassifier()],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.slow
def test_conventions_hold(estimator: Any, config: Config) -> None:
    """scikit-learn's own checks find what they find without us."""

    def verdicts(one: Any) -> set[tuple[str, str]]:  # how often each runs goes by `type(one)`
        found = check_estimator(one, on_fail=None)
        return {(row["check_name"], row["status"]) for row in found}

    plain = verdicts(clone(estimator))
    with track(estimator, config=config):
        assert verdicts(estimator) == plain


@pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
@pytest.mark.parametrize(
    "part",
    [
        *("fit.Fit.begin", "fit.Fit.child", "fit.Fit.watch", "fit.Fit.end"),
        *("search.Search._begin", "search.Search._score", "search.Search.next_fold"),
    ],
)
def test_broken_recording_costs_no_candidate(
    part: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in recording, all candidates have their scores."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(part)

    monkeypatch.setattr(f"tachograph.callbacks.sklearn_{part}", broken)
    model = search()
    with track(model, config=config):
        model.fit(X, y)
    assert np.isfinite(model.cv_results_["mean_test_score"]).all()
    assert cross_val_score(model.best_estimator_, X, y).shape == (5,)
    assert type(model) is GridSearchCV
