"""SklearnCallback through scikit-learn's own protocol."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.9")

from joblib import parallel_backend
from joblib.externals.loky import get_reusable_executor
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from tachograph import start_run
from tachograph.callbacks import SklearnCallback
from tachograph.testing.callback_contract import CallbackContract, Record

X, y = load_breast_cancer(return_X_y=True)
X, y = X[:200, :8], y[:200]

Reader = Callable[[], Record]
Config = dict[str, Any]


class Fails(TransformerMixin, BaseEstimator):
    """A step that raises when it is fitted, from `least` rows on."""

    def __init__(self, error: BaseException | None = None, least: int = 0) -> None:
        self.error = error
        self.least = least

    def fit(self, X: Any, y: Any = None) -> Fails:
        """Raise."""
        if self.error is not None and len(X) >= self.least:
            raise self.error
        self.seen_ = len(X)
        return self

    def transform(self, X: Any) -> Any:
        """Pass on."""
        return X


def pipeline() -> Pipeline:
    """A scaler and a solver with callbacks, and between them a step without."""
    return Pipeline(
        [
            ("scale", StandardScaler()),
            ("select", SelectKBest(k=4)),
            ("model", LogisticRegression(max_iter=200)),
        ]
    )


def search(jobs: int | None = None, **keywords: Any) -> GridSearchCV:
    """Two candidates, two folds."""
    grid = {"model__C": [0.1, 10.0]}
    return GridSearchCV(pipeline(), grid, cv=2, n_jobs=jobs, **keywords)


def end_workers() -> None:
    """Let joblib's worker processes end, so that their journals are drained."""
    get_reusable_executor().shutdown(wait=True)


class TestContract(CallbackContract):
    """The laws of all callbacks."""

    tensor_kinds = frozenset({"gradient", "update", "weight"})

    tensor_kinds = frozenset({"weight", "update", "gradient"})

    def make_callback(self, **keywords: Any) -> Any:
        """A new callback."""
        return SklearnCallback(**keywords)

    def train(self, callbacks: Sequence[Any]) -> bytes:
        """A pipeline whose last step draws random numbers."""
        np.random.seed(3)
        model = Pipeline([("scale", StandardScaler()), ("model", MLPClassifier((4,), max_iter=5))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            model.set_callbacks(*callbacks).fit(X, y)
        return pickle.dumps((model, model.predict_proba(X), np.random.get_state()))

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        """A pipeline whose second step raises."""
        model = Pipeline([("scale", StandardScaler()), ("fails", Fails(error)), ("last", PCA(2))])
        model.set_callbacks(*callbacks).fit(X, y)

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        """A pipeline and its data."""
        data = X.copy()
        model = pipeline().set_callbacks(*callbacks).fit(data, y)
        return [weakref.ref(model), weakref.ref(model["model"]), weakref.ref(data)]


# ---------------------------------------------------------------------------- the record


def test_pipeline_is_a_tree_of_steps(config: Config, record: Reader) -> None:
    """Each step is a run with its time, shapes, parameters and what it learned."""
    pipeline().set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    root = found.run()
    steps = {run["name"]: run for run in found.runs(kind="step")}
    assert list(steps) == ["scale", "select", "model"]
    assert {run["parent_id"] for run in steps.values()} == {root["run_id"]}
    assert {run["status"] for run in found.runs()} == {"finished"}
    select = steps["select"]["run_id"]
    point = {row["name"]: row["value"] for row in found.rows("metrics", run_id=select)}
    assert point.pop("time/fit_seconds") > 0
    assert point == {"X/rows_in": 200, "X/columns_in": 8, "X/columns_out": 4}
    assert found.params(select) == {
        "class": "sklearn.feature_selection.SelectKBest",
        "k": 4,
        "score_func": "sklearn.feature_selection._univariate_selection.f_classif",
    }
    assert found.params(root["run_id"])["model__max_iter"] == 200
    (document,) = found.rows("provenance", run_id=select, section="learned")
    assert json.loads(document["document"])["scores_"]["shape"] == [8]
    assert found.rows("provenance", run_id=root["run_id"], section="data.X")


def test_iterations_of_lbfgs(config: Config, record: Reader) -> None:
    """Each iteration of the solver is a point, as many as it says it has made."""
    model = pipeline().set_callbacks(SklearnCallback(config=config)).fit(X, y)["model"]
    found = record()
    steps = [step for step, _ in found.series("coef_norm")]
    assert steps == list(range(model.n_iter_[0]))
    assert found.series("coef_norm")[-1][1] == pytest.approx(np.linalg.norm(model.coef_))
    assert found.series("n_iter") == [(0, model.n_iter_[0])]


def test_histories_of_estimators(config: Config, record: Reader) -> None:
    """A loss per iteration that the estimator keeps is a series."""
    model = Pipeline([("model", MLPClassifier((4,), max_iter=6, random_state=0))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert record().series("loss_curve") == list(enumerate(model["model"].loss_curve_))


def assert_search_is_recorded(found: Record, fitted: Any, phase_scores: bool = True) -> None:
    """Every candidate with its parameters and scores, every fold with score and time."""
    results = fitted.cv_results_
    root = found.run()
    candidates = {run["name"]: run for run in found.runs(kind="candidate")}
    assert len(candidates) == len(results["params"])
    for index, params in enumerate(results["params"]):
        run = candidates[f"candidate-{index}"]
        run_id = run["run_id"]
        assert (run["parent_id"], run["status"]) == (root["run_id"], "finished")
        assert params.items() <= found.params(run_id).items()
        points = found.rows("metrics", run_id=run_id)
        values = {(row["name"], row["context"]): row["value"] for row in points}
        assert values["score/mean_test", "{}"] == results["mean_test_score"][index]
        assert values["score/std_test", "{}"] == results["std_test_score"][index]
        for fold in range(fitted.n_splits_):
            score = values["score", f'{{"fold":{fold},"phase":"test"}}']
            assert score == results[f"split{fold}_test_score"][index]
            assert values["time/fit_seconds", f'{{"fold":{fold}}}'] > 0
            for step in ("scale", "select", "model"):
                context = f'{{"fold":{fold},"step":"{step}"}}'
                assert values["time/fit_seconds", context] > 0
    assert found.params(root["run_id"])["best.model__C"] == fitted.best_params_["model__C"]
    assert found.series("best_score") == [(0, fitted.best_score_)]
    (tag,) = found.rows("tags", run_id=root["run_id"], key="best_candidate")
    assert tag["value"] == f"candidate-{fitted.best_index_}"
    names = [run["name"] for run in found.runs(kind="step")]
    assert names == ["best_estimator_", "scale", "select", "model"]


def test_search(config: Config, record: Reader) -> None:
    """A search records what it says itself in `cv_results_`, and more, in few runs."""
    fitted = search().set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert_search_is_recorded(record(), fitted)


def test_search_in_worker_processes(config: Config, record: Reader) -> None:
    """Two processes record into the runs that the parent opened, each through its journal."""
    fitted = search(2).set_callbacks(SklearnCallback(config=config)).fit(X, y)
    end_workers()
    found = record()
    assert_search_is_recorded(found, fitted)
    assert len({row["writer"] for row in found.rows("metrics")}) >= 2
    counts = [len(found.series("n_iter", fold=fold)) for fold in range(2)]
    assert counts == [2, 2]


def test_search_in_threads(config: Config, record: Reader) -> None:
    """So do threads."""
    fitted = search(2).set_callbacks(SklearnCallback(config=config))
    with parallel_backend("threading"):
        fitted.fit(X, y)
    assert_search_is_recorded(record(), fitted)


def test_workers_go_to_the_run_of_their_search(config: Config, record: Reader) -> None:
    """joblib uses its processes again; a second search is not recorded into the first."""
    for _ in range(2):
        search(2).set_callbacks(SklearnCallback(config=config)).fit(X, y)
    end_workers()
    found = record()
    for run in found.runs(kind="candidate"):
        assert len(found.rows("metrics", run_id=run["run_id"], name="n_iter")) == 2


@pytest.mark.parametrize("kind", ["random", "halving"])
def test_other_searches(kind: str, config: Config, record: Reader) -> None:
    """Candidates are as the search chose them, with the same random numbers."""

    def make() -> Any:
        grid = {"model__C": [0.01, 0.1, 1.0, 10.0]}
        if kind == "random":
            return RandomizedSearchCV(pipeline(), grid, n_iter=3, cv=2, random_state=0)
        return HalvingGridSearchCV(pipeline(), grid, cv=2, factor=2, random_state=0)

    fitted = make().set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert_search_is_recorded(record(), fitted)
    plain = make().fit(X, y)
    np.testing.assert_array_equal(
        fitted.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


def test_search_over_an_estimator_without_callbacks(config: Config, record: Reader) -> None:
    """Only the time of a fold can be seen then, with the scoring in it; scores are complete."""
    fitted = GridSearchCV(RandomForestClassifier(3, random_state=0), {"max_depth": [1, 2]}, cv=2)
    fitted.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    assert len(found.series("time/fit_and_score_seconds")) == 4
    assert len(found.series("score", phase="test")) == 4
    assert [run["name"] for run in found.runs(kind="step")] == ["best_estimator_"]


def test_several_scorers_and_training_scores(config: Config, record: Reader) -> None:
    """Each scorer has its series, of test and training data."""
    fitted = search(scoring=["accuracy", "f1"], refit="f1", return_train_score=True).set_callbacks(
        SklearnCallback(config=config)
    )
    fitted.fit(X, y)
    found = record()
    assert len(found.series("accuracy", phase="test")) == 4
    assert len(found.series("f1", phase="train")) == 4
    assert len(found.series("f1/mean_test")) == 2


def test_candidate_without_scores_has_failed(config: Config, record: Reader) -> None:
    """A candidate that scikit-learn goes on without is a failed run; the search is not."""
    model = Pipeline([("fails", Fails()), ("model", LogisticRegression())])
    grid = {"fails__error": [None, ValueError("planted")]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        GridSearchCV(model, grid, cv=2).set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    assert [run["status"] for run in found.runs(kind="candidate")] == ["finished", "failed"]
    assert found.run()["status"] == "finished"


def test_search_as_a_step(config: Config, record: Reader) -> None:
    """A search inside a pipeline has its candidates below its step."""
    model = Pipeline([("outer", MinMaxScaler()), ("search", search())])
    model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    (step,) = found.runs(name="search")
    assert {run["parent_id"] for run in found.runs(kind="candidate")} == {step["run_id"]}
    assert "_run_search" not in vars(model["search"])


def test_failing_step(config: Config, record: Reader) -> None:
    """The step that raised is failed, those before it finished, those after it not there."""
    model = Pipeline([("a", StandardScaler()), ("b", Fails(ValueError("planted"))), ("c", PCA(2))])
    with pytest.raises(ValueError, match="planted"):
        model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    assert [(run["name"], run["status"]) for run in found.runs(kind="step")] == [
        ("a", "finished"),
        ("b", "failed"),
    ]
    assert not hasattr(model, "_skl_callbacks")


def test_fit_inside_an_except_block_has_not_failed(config: Config, record: Reader) -> None:
    """An exception that is being handled around a fit is not the fit's.

    liblinear sends no end event, so that only the exception could tell.
    """
    model = LogisticRegression(solver="liblinear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not support callbacks fully
        model.set_callbacks(SklearnCallback(config=config))
    try:
        raise KeyError("handled")
    except KeyError:
        model.fit(X, y)
    assert {run["status"] for run in record().runs()} == {"finished"}


def test_solver_that_never_says_it_is_done(config: Config, record: Reader) -> None:
    """liblinear sends no end event; its run ends all the same, with what it learned."""
    model = Pipeline([("a", StandardScaler()), ("b", LogisticRegression(solver="liblinear"))])
    model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    assert {run["status"] for run in found.runs()} == {"finished"}
    (step,) = found.runs(name="b")
    assert found.rows("provenance", run_id=step["run_id"], section="learned")


def test_cached_steps(config: Config, record: Reader, tmp_path: Path) -> None:
    """A cache hits as it would without us; a step from it is marked."""
    memory = str(tmp_path / "cache")
    pipeline().set_params(memory=memory).fit(X, y)
    model = pipeline().set_params(memory=memory)
    model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
    found = record()
    cached = {row["run_id"] for row in found.rows("tags", key="cached")}
    assert len(cached) == 2
    assert cached == {run["run_id"] for run in found.runs() if run["name"] in ("scale", "select")}
    for run_id in cached:
        assert found.rows("provenance", run_id=run_id, section="learned")


def test_two_threads_share_a_callback(config: Config, record: Reader) -> None:
    """Each fit is a tree of its own."""
    callback = SklearnCallback(config=config)
    threads = [
        threading.Thread(target=pipeline().set_callbacks(callback).fit, args=(X, y))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = record()
    roots = [run for run in found.runs() if run["parent_id"] is None]
    assert len(roots) == 3
    for root in roots:
        children = found.rows("runs", parent_id=root["run_id"])
        assert sorted(run["name"] for run in children) == ["model", "scale", "select"]


def test_current_run_is_the_parent_of_a_second_fit(config: Config, record: Reader) -> None:
    """The first fit inside a user's run is recorded into it, the second as its child."""
    with start_run(config=config) as run:
        for _ in range(2):
            StandardScaler().set_callbacks(SklearnCallback()).fit(X)
    children = record().rows("runs", parent_id=run.run_id)
    assert [row["kind"] for row in children] == ["run"]


# ---------------------------------------------------------------------------- laws


def test_no_warning_that_was_not_there(config: Config) -> None:
    """scikit-learn warns of steps without callbacks; the user never asked for any there."""
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(2).set_callbacks(SklearnCallback(config=config)).fit(X, y)
        model = Pipeline([("a", StandardScaler()), ("b", LogisticRegression(solver="liblinear"))])
        model.set_callbacks(SklearnCallback(config=config)).fit(X, y)
        inside = list(warnings.filters)
    assert list(warnings.filters) == before
    assert len(inside) == 1 or inside[0][0] == "error"


def test_takes_itself_off_unless_kept(config: Config) -> None:
    """After the fit the estimator is as if there had been no callback; another one stays."""
    other = SklearnCallback(config=config, keep=True)
    model = pipeline().set_callbacks(SklearnCallback(config=config), other).fit(X, y)
    assert model._skl_callbacks == [other]
    twin = pipeline().set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert vars(twin).keys() == vars(pipeline().fit(X, y)).keys()


LOADER = """
import pickle, sys  # noqa: E402
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'tachograph':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
for name in [name for name in sys.modules if name.partition('.')[0] == 'tachograph']:
    del sys.modules[name]
model = pickle.load(open(sys.argv[1], 'rb'))
print(model.predict([[1.0] * 8])[0])
"""


def loads_without_us(model: Any, path: Path) -> bool:
    """Whether a pickle of the model predicts the same where Tachograph cannot be imported."""
    path.write_bytes(pickle.dumps(model))
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return bool(int(done.stdout) == model.predict([[1.0] * 8])[0])


def test_fitted_search_loads_without_us(config: Config, tmp_path: Path) -> None:
    """A model trained with us is anybody's."""
    fitted = search().set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert loads_without_us(fitted, tmp_path / "model.pickle")


def test_clones_and_copies_fit(config: Config, record: Reader) -> None:
    """scikit-learn's clones share the callback, deep copies have their own; both record."""
    model = pipeline().set_callbacks(SklearnCallback(config=config))
    for twin in (clone(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.fit(X, y)
    roots = [run for run in record().runs() if run["parent_id"] is None]
    assert [run["status"] for run in roots] == ["finished"] * 3


def test_no_secret_in_a_kept_callback(config: Config) -> None:
    """What a pickle of it holds is configuration, of a size that does not grow with fits."""
    callback = SklearnCallback(config=config, keep=True)
    model = StandardScaler().set_callbacks(callback)
    size = len(pickle.dumps(callback))
    for _ in range(3):
        model.fit(X)
    assert len(pickle.dumps(callback)) == size


@pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
@pytest.mark.parametrize("hook", ["begin", "end", "iteration", "close", "open"])
def test_broken_hook_costs_no_candidate(
    hook: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn makes a candidate NaN when a hook raises; none of ours does."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(hook)

    monkeypatch.setattr(f"tachograph.callbacks.sklearn_tasks.Tasks.{hook}", broken)
    fitted = search().set_callbacks(SklearnCallback(config=config)).fit(X, y)
    assert np.isfinite(fitted.cv_results_["mean_test_score"]).all()
    gc.collect()
    assert loads_without_us_in_process(fitted)


def loads_without_us_in_process(model: Any) -> bool:
    """Whether a pickle of the model mentions us."""
    return b"tachograph" not in pickle.dumps(model)
