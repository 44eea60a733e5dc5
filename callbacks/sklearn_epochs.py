"""Estimators that can be seen at work without changing what they do: networks and boosting.

scikit-learn has no callbacks for them. Methods of the instance are watched for the time of its
fit; their names are private there, so an estimator without them is left alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Protocol

from tachograph.callbacks.sklearn_hook import Hook
from tachograph.callbacks.sklearn_tensors import Tensor, Tensors
from tachograph.callbacks.sklearn_trees import tree_metrics
from tachograph.callbacks.tensors_pace import Plan


class Observed(Protocol):
    """The fit that an estimator is seen in."""

    tensors: Tensors

    def observe(self, observer: Any) -> None:
        """Keep what observes the estimator, to remove it at the end."""
        ...

    def tell(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics of an iteration, once."""
        ...

    def guard(self, where: str) -> Any:
        """Keep what goes wrong in recording from the training."""
        ...


def watch(estimator: Any, rows: int | None, fit: Observed) -> None:
    """Watch an estimator that is about to fit `rows` rows, if it is one that can be watched."""
    has = {name: hasattr(estimator, name) for name in _METHODS}
    if has["_backprop"] and has["_update_no_improvement_count"]:
        Network(estimator, rows, fit)
    elif has["_fit_stages"]:
        Stages(estimator, fit)
    elif has["_get_loss"] and has["_bin_data"]:
        Rounds(estimator, fit)


_METHODS = ("_backprop", "_update_no_improvement_count", "_fit_stages", "_get_loss", "_bin_data")


# ---------------------------------------------------------------------------- networks


class Network:
    """An MLPClassifier or MLPRegressor: weights, gradients and updates of an epoch's last batch.

    With ``solver='lbfgs'`` there are no batches: each evaluation of the loss is a step, and what
    L-BFGS makes of it is not an update.
    """

    def __init__(self, estimator: Any, rows: int | None, fit: Observed) -> None:
        self._estimator = estimator
        self._fit = fit
        self._batches = _batches(estimator, rows)
        self._batch = 0
        self._plan: Plan | None = None
        self._planned = -1
        self._old: list[Any] | None = None
        self._seconds = 0.0
        self._gradients: tuple[Sequence[Any], Sequence[Any]] = ((), ())
        observe = self._evaluate if estimator.solver == "lbfgs" else self._train
        fit.observe(Hook(estimator, "_backprop", observe))
        fit.observe(Hook(estimator, "_update_no_improvement_count", self._end_epoch))

    def _train(self, backprop: Any, *args: Any, **kwargs: Any) -> Any:
        self._batch += 1
        if self._batch == self._batches:
            with self._fit.guard("last batch"):
                self._begin_record(len(self._estimator.loss_curve_))
        result = backprop(*args, **kwargs)
        self._gradients = result[1:3]
        return result

    def _begin_record(self, epoch: int) -> None:
        self._planned, self._old = epoch, None
        self._plan = self._fit.tensors.plan(epoch, 3 * self._size())
        if self._plan is not None and self._fit.tensors.settings.wants("update"):
            started = perf_counter()
            self._old = [array.copy() for array in self._weights()]
            self._seconds = perf_counter() - started

    def _end_epoch(self, decide: Any, *args: Any, **kwargs: Any) -> Any:
        result = decide(*args, **kwargs)
        with self._fit.guard("epoch"):
            self._record(len(self._estimator.loss_curve_) - 1)
        return result

    def _record(self, epoch: int) -> None:
        batches, self._batches, self._batch = self._batches, self._batch, 0
        if self._planned != epoch:  # how many batches an epoch has was not known
            self._begin_record(epoch)
        if batches != self._batches:
            self._old = None
        scores = self._estimator.validation_scores_
        metrics = {"loss_curve": self._estimator.loss_curve_[epoch]}
        if scores:
            metrics["validation_scores"] = scores[-1]
        self._fit.tell(metrics, epoch)
        if self._plan is not None:
            tensors = list(self._tensors(self._old))
            self._fit.tensors.record(epoch, self._plan, tensors, before=self._seconds)
        self._old, self._gradients, self._seconds = None, ((), ()), 0.0

    def _evaluate(self, backprop: Any, *args: Any, **kwargs: Any) -> Any:
        result = backprop(*args, **kwargs)
        with self._fit.guard("evaluation"):
            step, self._batch = self._batch, self._batch + 1
            self._gradients = result[1:3]
            plan = self._fit.tensors.plan(step, 2 * self._size())
            if plan is not None:
                self._fit.tensors.record(step, plan, list(self._tensors(None)))
            self._fit.tensors.last_step = self._batch  # the solver may end on earlier weights
        return result

    def _weights(self) -> list[Any]:
        return [*self._estimator.coefs_, *self._estimator.intercepts_]

    def _size(self) -> int:
        return sum(array.size for array in self._weights())

    def _tensors(self, old: list[Any] | None) -> Iterator[Tensor]:
        estimator = self._estimator
        names = [f"coefs_.{layer}" for layer in range(len(estimator.coefs_))]
        names += [f"intercepts_.{layer}" for layer in range(len(estimator.intercepts_))]
        before = old or [None] * len(names)
        for name, array, earlier in zip(names, self._weights(), before, strict=True):
            yield Tensor("weight", name, array, earlier)
        coefs, intercepts = self._gradients
        for name, array in zip(names, [*coefs, *intercepts], strict=False):
            yield Tensor("gradient", name, array)


def _batches(estimator: Any, rows: int | None) -> int:
    """How many batches an epoch has, as scikit-learn divides them; 0 where that is not known."""
    if not rows:
        return 0
    if estimator.early_stopping:
        rows -= math.ceil(estimator.validation_fraction * rows)
    size = min(200, rows) if estimator.batch_size == "auto" else min(estimator.batch_size, rows)
    return -(-rows // max(1, int(size)))


# ---------------------------------------------------------------------------- boosting

NAME = "objective"
"""What gradients and hessians are named: they are those of the loss, one for each row."""


class Stages:
    """A GradientBoosting estimator: gradients that a stage is fitted to, its loss and its trees."""

    def __init__(self, estimator: Any, fit: Observed) -> None:
        self._estimator = estimator
        self._fit = fit
        self._stage = 0
        self._hook = Hook(estimator, "_fit_stages", self._boost)
        fit.observe(self._hook)

    def _boost(self, fit_stages: Any, *args: Any, **kwargs: Any) -> Any:
        self._hook.remove()  # so that a monitor of the user sees the estimator as it is
        with self._fit.guard("boosting"):
            call = inspect.signature(fit_stages).bind(*args, **kwargs)
            call.apply_defaults()
            self._stage = call.arguments["begin_at_stage"]
            call.arguments["monitor"] = self._monitor(call.arguments["monitor"])
            _watch_loss(self._fit, self._estimator._loss, "gradient", self._gradient)
            args, kwargs = call.args, call.kwargs
        return fit_stages(*args, **kwargs)

    def _monitor(self, users: Any) -> Callable[..., Any]:
        def monitor(stage: int, estimator: Any, variables: Any) -> Any:
            with self._fit.guard("stage"):
                self._end_stage(stage, estimator)
            return users(stage, estimator, variables) if users is not None else None

        return monitor

    def _gradient(self, gradient: Any, *args: Any, **kwargs: Any) -> Any:
        found = gradient(*args, **kwargs)
        with self._fit.guard("gradients"):
            _record_gradients(self._fit.tensors, self._stage, found)
        return found

    def _end_stage(self, stage: int, estimator: Any) -> None:
        metrics = {"train_score": float(estimator.train_score_[stage])}
        if estimator.subsample < 1.0:
            metrics["oob_improvement"] = float(estimator.oob_improvement_[stage])
            if hasattr(estimator, "oob_scores_"):
                metrics["oob_scores"] = float(estimator.oob_scores_[stage])
        metrics |= tree_metrics(estimator.estimators_[stage])
        self._fit.tell(metrics, stage)
        self._stage = stage + 1


class Rounds:
    """A HistGradientBoosting estimator: gradients and hessians that a round is fitted to."""

    def __init__(self, estimator: Any, fit: Observed) -> None:
        self._estimator = estimator
        self._fit = fit
        fit.observe(Hook(estimator, "_get_loss", self._loss))

    def _loss(self, get_loss: Any, *args: Any, **kwargs: Any) -> Any:
        loss = get_loss(*args, **kwargs)
        with self._fit.guard("boosting"):
            _watch_loss(self._fit, loss, "gradient", self._gradient)
            _watch_loss(self._fit, loss, "gradient_hessian", self._gradient_hessian)
        return loss

    def _gradient(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        found = method(*args, **kwargs)
        self._record(found, None)
        return found

    def _gradient_hessian(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        found = method(*args, **kwargs)
        self._record(*found)
        return found

    def _record(self, gradient: Any, hessian: Any) -> None:
        with self._fit.guard("gradients"):
            step = len(getattr(self._estimator, "_predictors", ()))
            _record_gradients(self._fit.tensors, step, gradient, hessian)


def _watch_loss(fit: Observed, loss: Any, name: str, observer: Any) -> None:
    if hasattr(loss, name) and hasattr(loss, "__dict__"):
        fit.observe(Hook(loss, name, observer))


def _record_gradients(tensors: Tensors, step: int, gradient: Any, hessian: Any = None) -> None:
    """Record gradients of the loss by the predictions, one for each row, and class by class."""
    if not tensors.settings.wants("gradient"):
        return
    plan = tensors.plan(step, gradient.size * (1 if hessian is None else 2))
    if plan is None:
        return
    found = []
    for kind, values in (("gradient", gradient), ("hessian", hessian)):
        if values is None:
            continue
        if values.ndim == 1 or values.shape[1] == 1:
            found.append(Tensor(kind, NAME, values.reshape(-1)))
        else:
            columns = range(values.shape[1])
            found += [
                Tensor(kind, NAME, values[:, place], part={"class": place}) for place in columns
            ]
    tensors.record(step, plan, found)
