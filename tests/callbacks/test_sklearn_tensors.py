"""Weights, gradients and trees of scikit-learn: the true ones, where they belong, once each."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from joblib.externals.loky import get_reusable_executor
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

import tachograph
from tachograph.callbacks import SklearnCallback, track
from tachograph.callbacks.sklearn_tensors import Settings, Tensors
from tachograph.start import start_run
from tachograph.tensors import histograms
from tachograph.testing.callback_contract import Record

X, y = load_breast_cancer(return_X_y=True)
X, y = StandardScaler().fit_transform(X[:240, :8]), y[:240]
FLOWERS, KINDS = load_iris(return_X_y=True)

Reader = Callable[[], Record]
Config = dict[str, Any]
Rows = dict[tuple[str, str, int], Any]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def config(config: Config) -> Config:
    """Everything at every step."""
    record = config["record"] | {"every": 1, "histograms": 1}
    return config | {"record": record}


def tensors(found: Record, context: str | None = None) -> Rows:
    """Rows of the table by name, kind and step; none is there twice."""
    rows = [row for row in found.rows("tensors") if context in (None, row["context"])]
    by_key = {(row["name"], row["kind"], row["step"]): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def assert_is_of(row: Any, array: Any, rtol: float = 1e-6) -> None:
    """Whether a row says of an array what numpy says of it."""
    array = np.asarray(array)
    wide = array.astype(np.float64)
    assert json.loads(row["shape"]) == list(array.shape)
    assert (row["dtype"], row["size"]) == (str(array.dtype), array.size)
    expected = [wide.mean(), wide.std(), wide.min(), wide.max(), np.sqrt((wide**2).sum())]
    found = [row[name] for name in ("mean", "std", "min", "max", "l2")]
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(wide).max())
    assert (row["zeros"], row["nan"], row["inf"]) == (np.count_nonzero(wide == 0), 0, 0)
    if row["histogram"] is not None:
        assert sum(histograms.from_text(row["histogram"]).values()) == array.size


def fit(estimator: Any, config: Config, X: Any = X, y: Any = y, **keywords: Any) -> Any:
    """Fit inside `track`."""
    with track(estimator, config=config, **keywords):
        estimator.fit(X, y)
    return estimator


# ---------------------------------------------------------------------------- networks


class Watched(MLPClassifier):
    """A network that keeps copies of what it sees at each batch, independently of us."""

    def _backprop(self, *args: Any) -> Any:
        before = self._copy()
        found = super()._backprop(*args)
        self.batches_seen.append((before, [array.copy() for part in found[1:] for array in part]))
        return found

    def _update_no_improvement_count(self, *args: Any) -> None:
        super()._update_no_improvement_count(*args)
        self.epochs_seen.append((*self.batches_seen[-1], self._copy()))

    def _copy(self) -> list[Any]:
        return [array.copy() for array in [*self.coefs_, *self.intercepts_]]


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"batch_size": 7}])
def test_network(options: dict[str, Any], config: Config, record: Reader) -> None:
    """Each epoch has its weights, and the gradient and update of its last batch."""
    model = Watched((4,), max_iter=4, random_state=0, **{"batch_size": 50, **options})
    model.batches_seen, model.epochs_seen = [], []
    fit(model, config)
    found = record()
    rows = tensors(found)
    names = ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"]
    assert len(rows) == 4 * 3 * 4
    for epoch, (before, gradients, after) in enumerate(model.epochs_seen):
        for name, old, gradient, new in zip(names, before, gradients, after, strict=True):
            assert_is_of(rows[name, "weight", epoch], new)
            assert_is_of(rows[name, "gradient", epoch], gradient)
            assert_is_of(rows[name, "update", epoch], new - old)
        norm = np.sqrt(sum(float(np.vdot(one, one)) for one in gradients))
        assert found.series("gradient_norm")[epoch] == (epoch, pytest.approx(norm))
    assert found.series("loss_curve") == list(enumerate(model.loss_curve_))
    scores = model.validation_scores_ or []
    assert found.series("validation_scores") == list(enumerate(scores))


def test_weights_of_a_network_that_stopped_early(config: Config, record: Reader) -> None:
    """The weights that it is left with are recorded at the epoch that they are of."""
    options = {"early_stopping": True, "n_iter_no_change": 3, "learning_rate_init": 0.03}
    model = MLPClassifier((3,), max_iter=30, random_state=0, **options)
    config["record"]["every"] = 1_000
    model = fit(model, config)
    best = int(np.argmax(model.validation_scores_))
    rows = tensors(record())
    assert 0 < best < model.n_iter_ - 1
    assert {step for _, _, step in rows} == {0, best}
    for layer, array in enumerate(model.coefs_):
        assert_is_of(rows[f"coefs_.{layer}", "weight", best], array)


def test_network_by_lbfgs(config: Config, record: Reader) -> None:
    """A step is an evaluation of the loss; the weights that are kept come after the last."""
    model = MLPRegressor(hidden_layer_sizes=(3,), solver="lbfgs", max_iter=4, random_state=0)
    fit(model, config)
    rows = tensors(record())
    last = max(step for _, _, step in rows)
    assert last > 4
    assert {kind for _, kind, step in rows if step == last} == {"weight"}
    assert {kind for _, kind, step in rows if step < last} == {"weight", "gradient"}
    assert_is_of(rows["coefs_.0", "weight", last], model.coefs_[0])


def test_partial_fit(config: Config, record: Reader) -> None:
    """Epochs count on over the calls, and each is recorded once."""
    model = MLPClassifier((3,), random_state=0)
    with track(model, config=config):
        for _ in range(3):
            model.partial_fit(X, y, classes=[0, 1])
    found = record()
    rows = tensors(found)
    assert {step for _, _, step in rows} == {0, 1, 2}
    assert_is_of(rows["coefs_.1", "weight", 2], model.coefs_[1])
    assert found.series("loss_curve") == list(enumerate(model.loss_curve_))


def test_partial_fit_of_what_cannot_be_seen(config: Config, record: Reader) -> None:
    """Then each call is a step."""
    model = SGDClassifier(random_state=0)
    with track(model, config=config):
        for _ in range(3):
            model.partial_fit(X, y, classes=[0, 1])
    rows = tensors(record())
    assert {step for _, _, step in rows} == {0, 1, 2}
    assert_is_of(rows["coef_", "weight", 2], model.coef_)


# ---------------------------------------------------------------------------- boosting


def sigmoid(values: Any) -> Any:
    """Probability of the second class."""
    return 1 / (1 + np.exp(-values))


def test_gradient_boosting(config: Config, record: Reader) -> None:
    """Gradients are those that each stage is fitted to; the loss and the trees are the stage's."""
    model = fit(GradientBoostingClassifier(n_estimators=4, random_state=0), config)
    found = record()
    rows = tensors(found)
    prior = np.log(y.mean() / (1 - y.mean()))
    raw = [np.full(len(y), prior), *(one[:, 0] for one in _staged(model))]
    for stage in range(4):
        gradient = sigmoid(raw[stage]) - y
        assert_is_of(rows["objective", "gradient", stage], gradient)
        norm = float(np.linalg.norm(gradient))
        assert found.series("gradient_norm")[stage] == (stage, pytest.approx(norm))
    assert found.series("train_score") == list(enumerate(model.train_score_))
    inner = [tree.tree_ for tree in model.estimators_[:, 0]]
    for name, values in {
        "depth": [tree.max_depth for tree in inner],
        "leaves": [tree.n_leaves for tree in inner],
        "nodes": [tree.node_count for tree in inner],
        "features": [len(set(tree.feature[tree.feature >= 0])) for tree in inner],
    }.items():
        assert found.series(f"trees/{name}") == list(enumerate(values))


def _staged(model: Any) -> Iterator[Any]:
    for raw in model.staged_decision_function(X):
        yield raw.reshape(len(X), -1)


def test_gradient_boosting_of_classes(config: Config, record: Reader) -> None:
    """Each class has its gradients, also where a later fit goes on with an earlier one."""
    model = GradientBoostingClassifier(
        n_estimators=2, random_state=0, warm_start=True, subsample=0.5
    )
    fit(model, config, FLOWERS, KINDS)
    fit(model.set_params(n_estimators=5), config, FLOWERS, KINDS)
    found = record()
    _, later = [run["run_id"] for run in found.runs()]
    rows = found.rows("tensors", run_id=later, kind="gradient")
    expected = [(step, f'{{"class":{kind}}}') for step in (2, 3, 4) for kind in range(3)]
    assert sorted((row["step"], row["context"]) for row in rows) == expected
    raw = list(model.staged_decision_function(FLOWERS))
    for row in rows:
        scores = np.exp(raw[row["step"] - 1])
        share = scores / scores.sum(axis=1, keepdims=True)
        kind = json.loads(row["context"])["class"]
        assert_is_of(row, share[:, kind] - (kind == KINDS))
    scores = [step for step, _ in found.series("train_score")]
    assert scores == [0, 1, 2, 3, 4]
    assert len(found.series("oob_improvement")) == 5


def test_monitor_of_the_user(config: Config) -> None:
    """It sees what it would see without us, and stops the fit when it says so."""
    seen: list[Any] = []

    def monitor(stage: int, estimator: Any, variables: Any) -> bool:
        seen.append((stage, float(estimator.train_score_[stage]), sorted(variables)))
        assert b"tachograph" not in pickle.dumps(estimator)
        return stage == 2

    def train(tracked: bool) -> Any:
        model = GradientBoostingClassifier(n_estimators=6, random_state=0)
        if not tracked:
            return model.fit(X, y, monitor=monitor)
        with track(model, config=config):
            return model.fit(X, y, monitor=monitor)

    models = train(False), train(True)
    assert seen[:3] == seen[3:]
    assert [len(one.estimators_) for one in models] == [3, 3]


def test_histogram_boosting(config: Config, record: Reader) -> None:
    """Gradients and hessians of each round, as the trees are grown on them: in float32."""
    model = HistGradientBoostingClassifier(max_iter=4, random_state=0, early_stopping=False)
    fit(model, config)
    found = record()
    rows = tensors(found)
    prior = np.log(y.mean() / (1 - y.mean()))
    raw = [np.full(len(y), prior), *(one[:, 0] for one in _staged(model))]
    for round_ in range(4):
        share = sigmoid(raw[round_])
        gradient, hessian = share - y, share * (1 - share)
        assert_is_of(rows["objective", "gradient", round_], gradient.astype(np.float32), 1e-4)
        assert_is_of(rows["objective", "hessian", round_], hessian.astype(np.float32), 1e-4)
    predictors = [stage[0] for stage in model._predictors]
    leaves = [one.get_n_leaf_nodes() for one in predictors]
    assert found.series("trees/leaves") == list(enumerate(leaves))


def test_histogram_boosting_with_a_constant_hessian(config: Config, record: Reader) -> None:
    """There the hessian is no array."""
    fit(HistGradientBoostingRegressor(max_iter=3, early_stopping=True, random_state=0), config)
    rows = tensors(record())
    assert {kind for _, kind, _ in rows} == {"gradient"}
    assert {step for _, _, step in rows} == {0, 1, 2}


# ---------------------------------------------------------------------------- trees


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(5, random_state=0),
        AdaBoostClassifier(n_estimators=4, random_state=0),
        GradientBoostingClassifier(n_estimators=3, random_state=0),
        DecisionTreeClassifier(random_state=0),
    ],
    ids=lambda one: type(one).__name__,
)
def test_importances(model: Any, config: Config, record: Reader) -> None:
    """They are those that scikit-learn computes, and each tree has its shape."""
    fit(model, config)
    found = record()
    for place, importance in enumerate(model.feature_importances_):
        ((step, value),) = found.series("importance/gain", feature=f"x{place}")
        assert (step, value) == (0, pytest.approx(importance))
    splits = sum(value for _, value in found.series("importance/weight"))
    leaves, nodes = found.series("trees/leaves"), found.series("trees/nodes")
    assert splits == sum(value for _, value in nodes) - sum(value for _, value in leaves)
    assert len(nodes) == len(getattr(model, "estimators_", [model]))


def test_importances_with_categories(config: Config, record: Reader) -> None:
    """Features are told apart as the user has them, not in the order inside."""
    data = np.column_stack([X[:, 0], np.arange(len(X)) % 3])
    model = HistGradientBoostingClassifier(max_iter=5, categorical_features=[1], random_state=0)
    fit(model, config, data, y)
    found = record()
    ((_, first),) = found.series("importance/gain", feature="x0")
    ((_, second),) = found.series("importance/gain", feature="x1")
    assert first > 0.8
    assert first + second == pytest.approx(1)


def test_many_trees_are_few_points(config: Config, record: Reader) -> None:
    """At equal distances."""
    model = RandomForestClassifier(600, max_depth=1, random_state=0)
    fit(model, config)
    found = record().series("trees/nodes")
    assert [step for step, _ in found] == list(range(0, 600, 3))


# ---------------------------------------------------------------------------- what is learned

LEARNED = [
    (LinearRegression(), {"coef_", "intercept_", "singular_"}),
    (Ridge(), {"coef_", "intercept_"}),
    (StandardScaler(), {"mean_", "scale_", "var_"}),
    (KMeans(2, n_init=1, random_state=0), {"cluster_centers_"}),
    (GaussianNB(), {"theta_", "var_", "class_prior_"}),
    (
        GaussianMixture(2, random_state=0),
        {"weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"},
    ),
    (
        PCA(3),
        {"components_", "mean_", "singular_values_"}
        | {"explained_variance_", "explained_variance_ratio_"},
    ),
    (SVC(kernel="linear"), {"coef_", "dual_coef_", "intercept_"}),
    (SVC(), {"dual_coef_", "intercept_"}),
    (KNeighborsClassifier(), set()),
    (GaussianProcessRegressor(), set()),
    (RandomForestClassifier(2, oob_score=True, bootstrap=True), set()),
]


@pytest.mark.filterwarnings("ignore:Some inputs do not have OOB scores")
@pytest.mark.parametrize(("model", "names"), LEARNED, ids=lambda one: type(one).__name__)
def test_what_is_learned(model: Any, names: set[str], config: Config, record: Reader) -> None:
    """Coefficients under their own names; no training data and nothing for each row of it."""
    fit(model, config)
    rows = tensors(record())
    assert set(rows) == {(name, "weight", 0) for name in names}
    for name in names:
        assert_is_of(rows[name, "weight", 0], getattr(model, name))


@pytest.mark.skipif(not hasattr(Pipeline, "set_callbacks"), reason="needs scikit-learn 1.9")
@pytest.mark.parametrize("way", ["track", "callback"])
def test_iterations_of_lbfgs(way: str, config: Config, record: Reader) -> None:
    """Each has its coefficients and what it changed; the last ones are the model's."""
    seen: list[Any] = []

    class See:
        """A callback of one's own."""

        def setup(self, estimator: Any, context: Any) -> None:
            """Nothing."""

        teardown = on_fit_task_begin = setup

        def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> None:
            """Keep the coefficients."""
            if context.task_name == "lbfgs-iter" and fitted_estimator is not None:
                seen.append(fitted_estimator.coef_.copy())

    LogisticRegression().set_callbacks(See()).fit(X, y)
    model = LogisticRegression()
    if way == "track":
        fit(model, config)
    else:
        model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    rows = tensors(record())
    assert len(seen) == model.n_iter_[0] > 3
    for step, coef in enumerate(seen):
        assert_is_of(rows["coef_", "weight", step], coef)
        if step:
            assert_is_of(rows["coef_", "update", step], coef - seen[step - 1])
    assert_is_of(rows["coef_", "weight", len(seen) - 1], model.coef_)
    assert max(step for _, _, step in rows) == len(seen) - 1


# ---------------------------------------------------------------------------- where it goes


@pytest.mark.parametrize("way", ["track", "callback"])
def test_folds_and_steps(way: str, config: Config, record: Reader) -> None:
    """Tensors of a fold have the context of its metrics; other steps have runs of their own."""
    if way == "callback" and not hasattr(Pipeline, "set_callbacks"):
        pytest.skip("needs scikit-learn 1.9")
    steps = [("scale", StandardScaler()), ("model", MLPClassifier((3,), max_iter=2))]
    search = GridSearchCV(Pipeline(steps), {"model__alpha": [0.1, 0.2]}, cv=2, n_jobs=2)
    if way == "track":
        fit(search, config, gradients="off")
    else:
        search.set_callbacks(SklearnCallback(config=config, gradients="off")).fit(X, y)
    get_reusable_executor().shutdown(wait=True)
    found = record()
    for candidate in found.runs(kind="candidate"):
        rows = found.rows("tensors", run_id=candidate["run_id"])
        for name, step in (("mean_", "scale"), ("coefs_.1", "model")):
            contexts = {f'{{"fold":{fold},"step":"{step}"}}' for fold in range(2)}
            assert {row["context"] for row in rows if row["name"] == name} == contexts
        assert {row["kind"] for row in rows} == {"weight", "update"}
    (model,) = found.runs(name="model")
    best = found.rows("tensors", run_id=model["run_id"], name="coefs_.1", kind="weight")
    assert {(row["step"], row["context"]) for row in best} == {(0, "{}"), (1, "{}")}
    last = max(best, key=lambda row: row["step"])
    assert_is_of(last, search.best_estimator_["model"].coefs_[1])


def test_parts_that_are_fitted_again(config: Config, record: Reader) -> None:
    """Iterations of each fit are apart: no row is there twice."""
    model = BaggingClassifier(MLPClassifier((2,), max_iter=2, random_state=0), 3, random_state=0)
    fit(model, config)
    found = record()
    rows = found.rows("tensors", name="coefs_.0", kind="weight")
    contexts = ["{}", '{"fit":1}', '{"fit":2}']
    assert sorted((row["context"], row["step"]) for row in rows) == sorted(
        (context, step) for context in contexts for step in (0, 1)
    )
    for number, part in enumerate(model.estimators_):
        assert_is_of(tensors(found, contexts[number])["coefs_.0", "weight", 1], part.coefs_[0])


# ---------------------------------------------------------------------------- how much


@pytest.mark.parametrize("what", ["weights", "gradients"])
def test_off(what: str, config: Config, record: Reader) -> None:
    """What is switched off is not recorded."""
    fit(MLPClassifier((2,), max_iter=2, random_state=0), config, **{what: "off"})
    kinds = {kind for _, kind, _ in tensors(record())}
    assert kinds == ({"gradient"} if what == "weights" else {"weight", "update"})


def test_all_off(config: Config, record: Reader) -> None:
    """The metrics stay."""
    model = make_pipeline(StandardScaler(), MLPClassifier((2,), max_iter=2))
    fit(model, config, weights="off", gradients="off")
    found = record()
    assert found.rows("tensors") == []
    assert len(found.series("loss_curve")) == 2
    assert found.series("gradient_norm") == []


def test_every(config: Config, record: Reader) -> None:
    """An interval is exact; the last weights come in any case."""
    fit(MLPClassifier((2,), max_iter=8, random_state=0, tol=0), config, every=3)
    rows = tensors(record())
    assert {step for _, _, step in rows} == {0, 3, 6, 7}
    assert {kind for _, kind, step in rows if step == 7} == {"weight"}


def test_auto_leaves_out_what_the_budget_does_not_have(config: Config, record: Reader) -> None:
    """Many quick epochs: not all of them."""
    config["record"] |= {"every": "auto", "histograms": "auto", "budget": 0.001}
    fit(MLPClassifier((2,), max_iter=60, random_state=0, tol=0), config)
    steps = {step for _, _, step in tensors(record())}
    assert {0, 59} <= steps
    assert len(steps) < 20


def test_what_is_too_large_for_the_budget(config: Config, record: Reader) -> None:
    """Measuring it would take longer than a short fit may cost."""
    array = np.zeros(20_000_000, np.float32)
    with start_run(config=config) as run:
        for every in ("auto", 1):
            settings = Settings(weights="stats", every=every)
            Tensors(run, settings, {"every": every}).record_final(0, {"coef_": array})
    (row,) = record().rows("tensors")
    assert row["context"] == '{"every":1}'


def test_whole_tensors(config: Config, record: Reader) -> None:
    """``'full'`` keeps them as files, at the steps for that; the last weights in any case."""
    load = pytest.importorskip("safetensors.numpy").load
    model = MLPClassifier((2,), max_iter=4, random_state=0)
    config["record"]["snapshots"] = 2
    fit(model, config, weights="full", gradients="full")
    with tachograph.open(record().url) as store:
        run_id = store.runs().to_pylist()[0]["run_id"]
        rows = [row for row in store.artifacts(run_id) if row["kind"] == "snapshot"]
        kept = {row["path"]: row["sha256"] for row in rows}
        expected = {f"{kind}/{step}" for kind in ("weights", "gradients") for step in (0, 2)}
        assert set(kept) == {f"{name}.safetensors" for name in expected | {"weights/3"}}
        with store.open_artifact(kept["weights/3.safetensors"]) as file:
            stored = load(file.read())
    assert stored.keys() == {"coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"}
    np.testing.assert_array_equal(stored["coefs_.0"], model.coefs_[0])


def test_what_recording_costs(config: Config, record: Reader) -> None:
    """The share of the fit that it took is recorded with it."""
    config["record"]["system"] = True
    fit(MLPClassifier((2,), max_iter=20, random_state=0, tol=0), config)
    found = record()
    ((_, share),) = found.series("recording/share")
    ((_, milliseconds),) = found.series("recording/tensor_milliseconds")
    assert 0 < share < 1
    assert milliseconds > 0
