"""One training with XGBoost as it is recorded, from its run's start to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import xgboost
from xgboost.callback import EarlyStopping, EvaluationMonitor, TrainingCallback, TrainingCheckPoint

from tachograph.callbacks import xgboost_facts as facts
from tachograph.callbacks.base import Recording, hook
from tachograph.callbacks.xgboost_tensors import TensorRecord
from tachograph.callbacks.xgboost_watch import Call
from tachograph.run import Run, status_of

VANISHED = "the training was left without an end that XGBoost told of"

_HARMLESS = {EarlyStopping, EvaluationMonitor, TrainingCheckPoint}
"""Callbacks that leave the learning rate alone."""


class Fit:
    """Is told of a training as `xgboost_watch.Watcher` says, and records it.

    Parameters
    ----------
    recording : Recording
    run : Run
    model : Booster or what holds a booster for each fold
    call : Call
        Not kept: it refers to the data.
    own : type
        The class of callbacks that are ours.
    """

    def __init__(
        self,
        recording: Recording,
        run: Run,
        model: Any,
        call: Call,
        own: type[TrainingCallback],
    ) -> None:
        callbacks = call.container.callbacks if call.container is not None else None
        self._recording = recording
        self._run = run
        self._folds: list[Run] = []
        self._is_open = True
        self._is_cv = not isinstance(model, xgboost.Booster)
        self._offset = facts.rounds_done(model)
        self._planned: int | None = call.arguments.get("num_boost_round")
        self._own = own
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
            others = [one for one in call.container.callbacks if not isinstance(one, self._own)]
            self._given |= facts.callback_params(others)
        self._run.log_params(self._given, source="framework")
        self._run.log_provenance("xgboost", facts.library_document())
        for name, matrix in facts.matrices(call.arguments):
            self._log_matrix(self._run, name, matrix, compare=not call.estimator)
        for name, data in facts.estimator_data(call.estimator):
            self._run.log_data(data, name, role=facts.role(name))

    def _log_matrix(self, run: Run, name: str, matrix: Any, *, compare: bool = True) -> None:
        document = facts.matrix_document(matrix)
        run.log_provenance(f"data.{name}", document)
        on_device = str(self._given.get("device") or "cpu") != "cpu"
        if not compare or on_device or not facts.is_readable(matrix, document):
            return
        if facts.is_small(document):
            run.log_data(matrix, name, role=facts.role(name))
        else:
            run.compare_rows(matrix, name, role=facts.role(name))

    @hook
    def _start_folds(self, model: Any) -> None:
        for number, fold in enumerate(model.cvfolds):
            run = self._run.child(
                "fold", f"fold {number}", framework=facts.FRAMEWORK, by_user=False
            )
            self._folds.append(run)
            for name, matrix in (("train", fold.dtrain), ("test", fold.dtest)):
                self._log_matrix(run, name, matrix)

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
            self._start_tensors(model, matrix)
        if self._eta_may_change:
            self._eta = facts.read_eta(model)

    def _start_tensors(self, model: Any, matrix: Any) -> None:
        if {self._recording.level("weights"), self._recording.level("gradients")} == {"off"}:
            return
        runs, offset = self._folds or [self._run], self._offset
        self._tensors = TensorRecord(
            self._recording, runs, model, matrix, offset, self._has_objective
        )
        self._model = weakref.ref(model)

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
            self._run.in_background(lambda: self._close("failed", VANISHED))

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
            self._log_model(self._run, model)
        for run, fold in zip(self._folds, model.cvfolds if self._folds else (), strict=True):
            self._log_model(run, fold.bst)

    def _log_model(self, run: Run, model: Any) -> None:
        document = facts.model_document(model)
        run.log_provenance("model", document)
        if self._recording.level("weights") != "off":
            run.log_provenance("outcome.weights", facts.weights_document(document))

    @property
    def _eta_may_change(self) -> bool:
        return self._callbacks is None or not self._callbacks <= _HARMLESS | {self._own}
