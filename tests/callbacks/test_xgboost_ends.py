"""How a training that XGBoostCallback records ends, and what becomes of the callback itself."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tachograph.query import open_store
from tachograph.run import Run
from tachograph.start import start_run
from tachograph.testing.callback_contract import Record

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback  # noqa: E402
from tachograph.callbacks import xgboost as module  # noqa: E402
from tachograph.callbacks.xgboost_fit import VANISHED  # noqa: E402
from tachograph.callbacks.xgboost_watch import Call  # noqa: E402

QUIET = {"verbose_eval": False}


def matrix(bad: bool = False) -> Any:
    """Data for two classes; bad labels make the first round fail."""
    features = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    return xgboost.DMatrix(features, (features[:, 0] > 0) + 5.0 * bad)


def train(callbacks: list[Any], **arguments: Any) -> Any:
    """Train four rounds."""
    data = arguments.pop("data", None) or matrix()
    params = {"objective": "binary:logistic", "nthread": 1}
    evals = [(data, "train")]
    return xgboost.train(params, data, 4, evals=evals, callbacks=callbacks, **QUIET | arguments)


class Raiser(xgboost.callback.TrainingCallback):
    """Raises in one of its hooks."""

    def __init__(self, hook: str, error: BaseException) -> None:
        super().__init__()
        self.hook, self.error = hook, error

    def _do(self, hook: str, result: Any) -> Any:
        if hook == self.hook:
            raise type(self.error)(*self.error.args)
        return result

    def before_training(self, model: Any) -> Any:
        return self._do("before_training", model)

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        return bool(epoch == 2 and self._do("before_iteration", False))

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        return bool(epoch == 2 and self._do("after_iteration", False))

    def after_training(self, model: Any) -> Any:
        return self._do("after_training", model)


class TrialPruned(Exception):
    """Named as Optuna's."""


HOOKS = ("before_iteration", "after_iteration", "after_training")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_failing_callback(
    hook: str, first: bool, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """What another callback raises ends the run as failed, wherever and in whichever order."""
    callbacks = [XGBoostCallback(config=config), Raiser(hook, ZeroDivisionError("planted"))]
    with pytest.raises(ZeroDivisionError):
        train(callbacks if first else callbacks[::-1])
    run = record().run()
    assert (run["status"], run["error"]) == ("failed", "ZeroDivisionError: planted")


def test_pruned(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A trial that is pruned from a callback ends the run as pruned, with its points."""
    with pytest.raises(TrialPruned):
        train([Raiser("after_iteration", TrialPruned()), XGBoostCallback(config=config)])
    held = record()
    assert held.run()["status"] == "pruned"
    assert len(held.series("logloss", dataset="train")) == 2


def test_error_of_xgboost(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """What XGBoost itself raises, as for wrong labels, is in the run."""
    with pytest.raises(xgboost.core.XGBoostError):
        train([XGBoostCallback(config=config)], data=matrix(bad=True))
    held = record()
    assert held.run()["status"] == "failed"
    assert "Check failed" in held.run()["error"]
    (event,) = held.rows("events", kind="error")
    assert "Traceback" in json.loads(event["data"])["traceback"]


def test_failing_metric_of_folds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A cross-validation that fails ends with all its folds."""

    def metric(predictions: Any, data: Any) -> tuple[str, float]:
        raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError):
        xgboost.cv(
            {},
            matrix(),
            3,
            nfold=2,
            custom_metric=metric,
            callbacks=[XGBoostCallback(config=config)],
        )
    assert [run["status"] for run in record().runs()] == ["failed"] * 3


def test_failure_before_the_first_round(
    config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """A training that nothing tells the end of is failed as soon as it is gone."""
    callbacks = [XGBoostCallback(config=config), Raiser("before_training", ZeroDivisionError())]
    with pytest.raises(ZeroDivisionError):
        train(callbacks)
    gc.collect()
    run = record().run()
    assert (run["status"], run["error"]) == ("failed", VANISHED)


@pytest.mark.filterwarnings("error")
def test_params_that_are_not_valid(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """XGBoost refuses them when it is asked something: not in our hook, and not as a warning."""
    with pytest.raises(xgboost.core.XGBoostError, match="nonsense"):
        params = {"objective": "nonsense"}
        xgboost.train(params, matrix(), 4, callbacks=[XGBoostCallback(config=config)], **QUIET)
    found = record().run()
    assert (found["status"], "nonsense" in found["error"]) == ("failed", True)


def test_failure_inside_a_run_of_the_user(
    config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """A user who goes on after a failed fit keeps the run, with an event that tells of it."""
    with start_run(config=config), pytest.raises(xgboost.core.XGBoostError):
        train([XGBoostCallback()], data=matrix(bad=True))
    held = record()
    assert held.run()["status"] == "finished"
    (event,) = held.rows("events", kind="error")
    assert event["message"].startswith("XGBoostError")


SCRIPT = """
import json, sys
import numpy as np, xgboost
from tachograph.callbacks import XGBoostCallback  # noqa: E402
data = xgboost.DMatrix(np.random.rand(50, 2), np.random.rand(50))
class Raise(xgboost.callback.TrainingCallback):
    def before_training(self, model):
        raise KeyboardInterrupt
xgboost.train({}, data, callbacks=[XGBoostCallback(config=json.loads(sys.argv[1])), Raise()])
"""


def test_interrupted_script(
    config: dict[str, Any], record: Callable[[], Record], tmp_path: Path
) -> None:
    """Where nothing but the end of the process tells of an exception, that does."""
    code = [sys.executable, "-c", SCRIPT, json.dumps(config)]
    assert subprocess.run(code, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    assert record().run()["status"] == "interrupted"


@pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
def test_unknown_container(
    config: dict[str, Any],
    record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where XGBoost's container cannot be watched, its plain hooks still record everything."""
    stopping = xgboost.callback.EarlyStopping(rounds=2)
    monkeypatch.setattr(module, "find_call", Call)
    constant = matrix()
    constant.set_label(np.zeros(200))
    train([stopping, XGBoostCallback(config=config)])
    xgboost.cv({}, matrix(), 3, nfold=2, callbacks=[XGBoostCallback(config=config)])
    held = record()
    assert {run["status"] for run in held.runs()} == {"finished"}
    assert len(held.series("logloss", dataset="train")) == 4
    assert len(held.series("lr")) == 7
    assert len(held.runs(kind="fold")) == 2


def test_threads_share_a_callback(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Trainings side by side with one callback are runs of their own."""
    callback = XGBoostCallback(config=config)
    threads = [threading.Thread(target=train, args=([callback],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = record()
    assert [run["status"] for run in held.runs()] == ["finished"] * 3
    for run in held.runs():
        points = held.rows("metrics", run_id=run["run_id"], name="logloss")
        assert [point["step"] for point in points] == [0, 1, 2, 3]


# ---------------------------------------------------------------------------- copies and pickles


def _fitted(callback: Any, **arguments: Any) -> Any:
    features = np.random.default_rng(0).standard_normal((60, 3))
    model = xgboost.XGBClassifier(n_estimators=3, n_jobs=1, callbacks=[callback], **arguments)
    return model.fit(features, features[:, 0] > 0)


LOAD = """
import pickle, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'tachograph':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
import numpy as np
with open(sys.argv[1], 'rb') as file:
    model = pickle.load(file)
features = np.random.default_rng(0).standard_normal((60, 3))
before = model.predict(features)
model.fit(features, features[:, 0] > 0)
assert (model.predict(features) == before).all()
assert type(model.callbacks[0]).__module__ == 'xgboost.callback'
with open(sys.argv[1], 'wb') as file:
    pickle.dump(model, file)
"""


def test_model_loads_without_tachograph(config: dict[str, Any], tmp_path: Path) -> None:
    """An estimator trained with us loads, predicts and trains where we are not installed."""
    run = start_run(config=config)
    model = _fitted(XGBoostCallback(run=run, params={"cannot be pickled": lambda: 0}))
    run.finish()
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    subprocess.run([sys.executable, "-I", "-c", LOAD, str(path)], check=True, cwd=tmp_path)
    back = pickle.loads(path.read_bytes())
    assert back.predict(np.eye(3)).tolist() == model.predict(np.eye(3)).tolist()


def test_loaded_model_records(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Where we are installed, a loaded estimator records its next training."""
    model = pickle.loads(pickle.dumps(_fitted(XGBoostCallback(config=config, name="again"))))
    assert type(model.callbacks[0]) is XGBoostCallback
    model.fit(np.eye(8), np.arange(8) % 2)
    assert [run["name"] for run in record().runs()] == ["again", "again"]


class Extended(XGBoostCallback):
    """A user's own, with something of its own."""

    extra: int = 0


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_subclasses_are_copied(twin: Callable[[Any], Any], config: dict[str, Any]) -> None:
    """A subclass is copied as any object is, with what it adds."""
    callback = Extended(config=config)
    callback.extra = 3
    assert (type(twin(callback)), twin(callback).extra) == (Extended, 3)


def test_pickle_holds_no_run(config: dict[str, Any]) -> None:
    """What is pickled is configuration: no run that is over, and nothing of its training."""
    callback = XGBoostCallback(config=config)
    _fitted(callback)
    with start_run(config=config):
        inside = XGBoostCallback(config=config)
    assert b"attach_run" not in pickle.dumps([callback, inside])
    assert isinstance(callback._recording.run, Run)


@pytest.mark.slow
def test_grid_search_in_processes(config: dict[str, Any], store_url: str) -> None:
    """Each fit of a search records itself, in whichever process, inside the user's run."""
    search = pytest.importorskip("sklearn.model_selection")
    features = np.random.default_rng(0).standard_normal((60, 3))
    with start_run(config=config) as run:
        model = xgboost.XGBClassifier(n_estimators=2, n_jobs=1, callbacks=[XGBoostCallback()])
        grid = search.GridSearchCV(model, {"max_depth": [1, 2]}, cv=2, n_jobs=2, refit=False)
        grid.fit(features, features[:, 0] > 0)
    with open_store(store_url) as store:  # the workers live on, and their journals with them
        children = [store.run(child) for child in store.children(run.run_id)["run_id"]]
        assert [child.status for child in children] == ["finished"] * 4
        assert sorted(child.params["max_depth"] for child in children) == [1, 1, 2, 2]
