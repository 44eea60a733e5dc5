"""Records what XGBoost trains: `train`, `cv`, and the estimators of its scikit-learn interface.

A point's step is the round of boosting, from 0; a training that goes on with a model counts on
from that model's rounds. Scores have the context ``{"dataset": name}``.
"""

from __future__ import annotations

import copy
import pickle
import pydoc
import weakref
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Unpack

import xgboost
from xgboost.callback import EarlyStopping, EvaluationMonitor, TrainingCallback, TrainingCheckPoint

from tachograph.callbacks import xgboost_facts as facts
from tachograph.callbacks.base import KEYWORDS, Keywords, Recording, hook
from tachograph.callbacks.xgboost_tensors import TensorRecord
from tachograph.callbacks.xgboost_watch import Call, find_call, watch
from tachograph.run import Run, status_of

_FRAMEWORK = f"xgboost {xgboost.__version__}"
_VANISHED = "the training was left without an end that XGBoost told of"


class XGBoostCallback(TrainingCallback):
    __doc__ = f"""Record each training that this callback is given to.

    ``xgboost.train(..., callbacks=[XGBoostCallback()])``, `xgboost.cv` alike, and
    ``XGBClassifier(callbacks=[XGBoostCallback()])``. Pickled with an estimator, it loads as a
    callback that does nothing where Tachograph is not installed.
    {KEYWORDS}
    """

    def __init__(self, **keywords: Unpack[Keywords]) -> None:
        super().__init__()
        self._recording = Recording(**keywords)
        self._unwatched: _Fit | None = None

    # ------------------------------------------------------------------ hooks of XGBoost

    def before_training(self, model: Any) -> Any:
        """Open a run, and look at what is trained with."""
        self._begin(model)
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Begin a round, where the container does not tell of it."""
        if self._unwatched is not None:
            self._unwatched.round_begins(model, None)
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Record a round, where the container does not tell of it."""
        if self._unwatched is not None:
            self._unwatched.round_ends(model, None, evals_log)
        return False

    def after_training(self, model: Any) -> Any:
        """End the run, where the container does not tell of it."""
        fit, self._unwatched = self._unwatched, None
        if fit is not None:
            fit.rounds_end(model)
            fit.ends(model)
        return model

    @hook
    def _begin(self, model: Any) -> None:
        world = xgboost.collective.get_world_size()
        if xgboost.collective.get_rank() != 0:
            return  # all ranks see the same scores and the same model
        if self._unwatched is not None:
            self._unwatched.vanishes()
        recording = copy.deepcopy(self._recording)  # threads may share a callback
        self._recording.data = None
        self._recording.run = recording.open(_FRAMEWORK, rank=(0, 0, world) if world > 1 else None)
        if not recording.active:
            return
        call = find_call()
        fit = _Fit(recording, self._recording.run, model, call)
        try:
            if call.container is None:
                raise TypeError("called by no container of callbacks")
            watch(call.container, fit)
        except TypeError as error:
            self._unwatched = fit
            self._recording.problem(error, "a training that fails will not be recorded as failed")
        fit.describe(call)

    # ------------------------------------------------------------------ copies

    def __deepcopy__(self, memo: dict[int, Any]) -> XGBoostCallback:
        """A callback with the same keywords, as scikit-learn's `clone` asks for."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__getstate__().items():
            setattr(twin, name, copy.deepcopy(value, memo))
        return twin

    def __copy__(self) -> XGBoostCallback:
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_unwatched": None}

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if type(self) is not XGBoostCallback:
            return super().__reduce_ex__(protocol)
        home = _LoadTime(pydoc.locate, __name__)
        found = _LoadTime(getattr, home, "XGBoostCallback", TrainingCallback)
        return object.__new__, (found,), {"tachograph": _pickle(self._recording)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pickled = state.pop("tachograph", None)
        self._unwatched = None
        if pickled is not None:
            self._recording = pickle.loads(pickled)
        self.__dict__.update(state)


class _LoadTime:
    """A call that is made where a pickle is loaded, and whose result then stands here.

    An estimator keeps its callbacks, and is pickled with them. It has to load where Tachograph
    is not installed: there `pydoc.locate` finds nothing, and a callback of XGBoost's own base
    class, which does nothing, takes the place.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _pickle(recording: Recording) -> bytes:
    """The keywords, without those that cannot be pickled: a model is worth more than a note."""
    kept = copy.deepcopy(recording)
    for name, value in recording.__getstate__().items():
        try:
            pickle.dumps(value)
        except Exception:
            setattr(kept, name, None)
    return pickle.dumps(kept)


_HARMLESS = {EarlyStopping, EvaluationMonitor, TrainingCheckPoint, XGBoostCallback}
"""Callbacks that leave the learning rate alone."""


class _Fit:
    """One training as it is recorded, from its run's start to its end."""

    def __init__(self, recording: Recording, run: Run, model: Any, call: Call) -> None:
        callbacks = call.container.callbacks if call.container is not None else None
        self._recording = recording
        self._run = run
        self._folds: list[Run] = []
        self._is_open = True
        self._is_cv = not isinstance(model, xgboost.Booster)
        self._offset = facts.rounds_done(model)
        self._planned: int | None = call.arguments.get("num_boost_round")
        self._callbacks = None if callbacks is None else {type(one) for one in callbacks}
        self._given: dict[str, Any] = {}
        self._eta: float | None = None
        self._rounds = 0
        self._recorded = 0
        self._started = perf_counter()
        self._history: Mapping[str, Any] = {}
        self._contexts: dict[str, dict[str, str]] = {}
        self._has_objective = call.arguments.get("obj") is not None
        self._tensors: TensorRecord | None = None
        self._model: Callable[[], Any] = lambda: None

    # ------------------------------------------------------------------ before the first round

    @hook
    def describe(self, call: Call) -> None:
        """Record params and data; what of them is not known yet comes after the first round."""
        self._given = facts.given_params(call.arguments, call.estimator)
        if call.container is not None:
            others = [
                one for one in call.container.callbacks if not isinstance(one, XGBoostCallback)
            ]
            self._given |= facts.callback_params(others)
        self._run.log_params(self._given, source="framework")
        self._run.log_provenance("xgboost", facts.library_document())
        for name, matrix in facts.matrices(call.arguments):
            self._run.log_provenance(f"data.{name}", facts.matrix_document(matrix))
        for name, data in facts.estimator_data(call.estimator):
            self._run.log_data(data, name)

    @hook
    def _start_folds(self, model: Any) -> None:
        for number, fold in enumerate(model.cvfolds):
            run = self._run.child("fold", f"fold {number}", framework=_FRAMEWORK, by_user=False)
            self._folds.append(run)
            for name, matrix in (("train", fold.dtrain), ("test", fold.dtest)):
                run.log_provenance(f"data.{name}", facts.matrix_document(matrix))

    # ------------------------------------------------------------------ rounds

    def round_begins(self, model: Any, matrix: Any) -> None:
        """Prepare the round, and note when it begins."""
        self._prepare_round(model, matrix)
        self._ask_tensors("round_begins", self._step, model, matrix)
        self._started = perf_counter()

    @hook
    def _prepare_round(self, model: Any, matrix: Any) -> None:
        """Note the learning rate that the round will use; before the first, start what records."""
        if not self._rounds:
            if self._is_cv:
                self._start_folds(model)
            runs = self._folds or [self._run]
            self._tensors = TensorRecord(
                self._recording, runs, model, matrix, self._offset, self._has_objective
            )
            self._model = weakref.ref(model)
        if self._eta_may_change:
            self._eta = facts.read_eta(model)

    def tap(self, objective: Any) -> Any:
        """Look on while the user's objective computes gradients."""
        return objective if self._tensors is None else self._tensors.tap(objective, self._step)

    def round_ends(self, model: Any, matrix: Any, history: Mapping[str, Any]) -> None:
        """Record the round."""
        step, ended = self._step, perf_counter()
        self._log_round(model, history, ended - self._started)
        self._ask_tensors("round_ended", step, model, matrix)

    @hook
    def _log_round(self, model: Any, history: Mapping[str, Any], seconds: float) -> None:
        """Record the scores of the round, its duration and its learning rate."""
        recording = 0.0 if self._tensors is None else self._tensors.seconds_in_round
        values = {"time/round_seconds": seconds - recording}
        self._history = history
        self._rounds += 1
        if self._rounds == 1:
            self._configured(model)
        if self._eta is not None:
            values["lr"] = self._eta
        self._run.log(values, self._step - 1)
        self._log_scores()

    @hook
    def folds_scored(self, scores: list[str]) -> None:
        """Record the scores of each fold; `round_ends` comes after it."""
        for run, text in zip(self._folds, scores, strict=True):
            for dataset, values in facts.parse_scores(text).items():
                run.log(values, self._step, context=self._context(dataset))

    def rounds_end(self, model: Any) -> None:
        """Record what is left to record of the rounds, before callbacks change the model."""
        self._ask_tensors("ended", self._step, model)

    def _ask_tensors(self, method: str, *arguments: Any) -> None:
        """Call a method of what records tensors, and no other after one that failed."""
        if self._tensors is not None and not getattr(self._tensors, method)(*arguments):
            self._tensors = None

    @property
    def _step(self) -> int:
        """The step of the round that is under way, or to come."""
        return self._offset + self._rounds

    def _configured(self, model: Any) -> None:
        """Record what XGBoost made of the params; only after a round are they all there."""
        effective = facts.effective_params(facts.first_booster(model).save_config())
        if not self._eta_may_change:
            self._eta = effective.get("eta")
        left = {name: value for name, value in effective.items() if name not in self._given}
        self._run.log_params(left, source="default")

    def _log_scores(self) -> None:
        """Record the scores of the rounds that are not recorded yet."""
        while self._recorded < self._rounds:
            index, self._recorded = self._recorded, self._recorded + 1
            for dataset, metrics in self._history.items():
                values = facts.values_at(index, metrics)
                self._run.log(values, self._offset + index, context=self._context(dataset))

    def _context(self, dataset: str) -> dict[str, str]:
        return self._contexts.setdefault(dataset, {"dataset": dataset})

    # ------------------------------------------------------------------ the end

    def ends(self, model: Any) -> None:
        """Record the model, and end the run."""
        self._summarise(model)
        self._close()

    def fails(self, error: BaseException) -> None:
        """End the run with the exception; an owner of it who goes on finds an event."""
        model = self._model()
        if model is not None:
            self.rounds_end(model)
        self._close(status_of(error), error)

    def vanishes(self) -> None:
        """End the run, unless it has ended; from another thread, as any may collect garbage."""
        if self._is_open:
            self._run.in_background(lambda: self._close("failed", _VANISHED))

    @hook
    def _close(self, status: str = "finished", error: BaseException | str | None = None) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._tensors = None
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        for run in self._folds:
            run.finish(status, text, wait=False)
        if text is not None and not self._recording.owned:
            self._run.event("error", text, level="error")
        self._recording.close(status, error)

    @hook
    def _summarise(self, model: Any) -> None:
        self._rounds = max(self._rounds, facts.scored_rounds(self._history))
        self._log_scores()
        best = facts.best_round(model) if EarlyStopping in (self._callbacks or ()) else None
        if best is not None:
            names = ("best_iteration", "best_score")
            self._run.log(dict(zip(names, best, strict=True)), best[0])
        if self._planned is not None and self._rounds < self._planned:
            message = f"stopped after {self._rounds} of {self._planned} rounds"
            message += "" if best is None else f"; round {best[0]} was best with {best[1]:.6g}"
            self._run.event("status", message, data={"rounds": self._rounds, "best": best})
        if not self._is_cv:
            self._run.log_provenance("model", facts.model_document(model))
        for run, fold in zip(self._folds, model.cvfolds if self._folds else (), strict=True):
            run.log_provenance("model", facts.model_document(fold.bst))

    @property
    def _eta_may_change(self) -> bool:
        return self._callbacks is None or not self._callbacks <= _HARMLESS
