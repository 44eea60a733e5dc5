"""What XGBoost does not tell its callbacks: with what it trains, and how the training ends.

Knows XGBoost's own frames and container of callbacks; records nothing itself.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from xgboost.callback import CallbackContainer

_NEAR = 12
"""Frames between a hook and `train`, or between `train` and `fit`, with room for decorators."""


@dataclass(frozen=True)
class Call:
    """The call of `xgboost.train` or `xgboost.cv` that a hook is called from.

    It refers to the data and the model: drop it before the hook returns.

    Attributes
    ----------
    arguments : mapping
        Arguments of the call; empty where the call was not found.
    container : CallbackContainer or None
        What calls the callbacks.
    estimator : mapping
        Locals of the `fit` of the scikit-learn interface; empty outside of it.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    container: CallbackContainer | None = None
    estimator: Mapping[str, Any] = field(default_factory=dict)


def find_call() -> Call:
    """Look for the call among the frames above a hook."""
    arguments, frame = _locals_of(sys._getframe(1), "xgboost.training", ("train", "cv"))
    estimator, _ = _locals_of(frame, "xgboost.sklearn", ("fit",))
    containers = (arguments.get("cb_container"), arguments.get("callbacks_container"))
    found = [one for one in containers if isinstance(one, CallbackContainer)]
    return Call(arguments, found[0] if found else None, estimator)


def _locals_of(
    frame: FrameType | None, module: str, functions: tuple[str, ...]
) -> tuple[Mapping[str, Any], FrameType | None]:
    for _ in range(_NEAR):
        if frame is None:
            break
        if frame.f_code.co_name in functions and frame.f_globals.get("__name__") == module:
            return frame.f_locals, frame.f_back
        frame = frame.f_back
    return {}, None


# ---------------------------------------------------------------------------- watching


class Watcher(Protocol):
    """What is told about a training as it goes on. Nothing it does may raise."""

    def round_begins(self, model: Any, matrix: Any) -> None:
        """A round of boosting starts now; every callback has been asked."""

    def tap(self, objective: Any) -> Any:
        """The objective of the user for this round, or what does the same and looks on."""

    def round_ends(self, model: Any, matrix: Any, history: Mapping[str, Any]) -> None:
        """A round is over, and every callback has seen it; `history` has its scores."""

    def rounds_end(self, model: Any) -> None:
        """There are no more rounds; callbacks may change the model now."""

    def folds_scored(self, scores: list[str]) -> None:
        """The folds of a cross-validation were evaluated, one text each."""

    def ends(self, model: Any) -> None:
        """The training is over, with this model."""

    def fails(self, error: BaseException) -> None:
        """An exception leaves the training."""

    def vanishes(self) -> None:
        """The training is gone without a word."""


def watch(container: CallbackContainer, watcher: Watcher) -> None:
    """Tell `watcher` what goes on in the training of `container`.

    XGBoost calls no callback after an exception, nor the later ones after the one that stops
    the training. So the container itself becomes one that tells, for this training alone;
    which callbacks it calls, and when, stays as it is.

    Raises
    ------
    TypeError
        The container is of another class than this was written for.
    """
    if not isinstance(container, _WatchedContainer):
        if type(container) is not CallbackContainer:
            raise TypeError(f"cannot watch a {type(container).__qualname__}")
        container.__class__ = _WatchedContainer
        container.watchers = _Watchers()  # type: ignore[attr-defined]
    container.watchers.append(watcher)  # type: ignore[attr-defined]
    weakref.finalize(container, watcher.vanishes).atexit = False


class _Watchers(list[Watcher]):
    """Watchers of one training; as a context, tells them of the exception that leaves it."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            for watcher in self:
                watcher.fails(error)


class _WatchedContainer(CallbackContainer):
    """XGBoost's container of callbacks, with watchers of the training."""

    watchers: _Watchers

    def before_iteration(self, model: Any, epoch: int, dtrain: Any, evals: Any) -> bool:
        """Ask the callbacks, then tell that the round begins, and wait for it."""
        with self.watchers:
            stop = super().before_iteration(model, epoch, dtrain, evals)
            if not stop:
                for watcher in self.watchers:
                    watcher.round_begins(model, dtrain)
                self._intercept(model)
        return bool(stop)

    def after_iteration(self, model: Any, epoch: int, dtrain: Any, evals: Any) -> bool:
        """Evaluate and ask the callbacks, then tell that the round is over."""
        with self.watchers:
            stop = super().after_iteration(model, epoch, dtrain, evals)
            for watcher in self.watchers:
                watcher.round_ends(model, dtrain, self.history)
        return bool(stop)

    def after_training(self, model: Any) -> Any:
        """Let the callbacks end, which may change the model, then tell of the end."""
        with self.watchers:
            for watcher in self.watchers:
                watcher.rounds_end(model)
            model = super().after_training(model)
            for watcher in self.watchers:
                watcher.ends(model)
        return model

    def _tap(self, argument: Any) -> Any:
        """An argument of `update`, of which only the objective can be called."""
        if callable(argument):
            for watcher in self.watchers:
                argument = watcher.tap(argument)
        return argument

    def _intercept(self, model: Any) -> None:
        """Stand in for the model's `update`, and for the `eval` of folds, until called once.

        On the instance, and only while no callback runs, so that nobody copies it along.
        """
        attributes = vars(model)

        def update(*arguments: Any, **keywords: Any) -> Any:
            del attributes["update"]
            with self.watchers:
                tapped = {name: self._tap(value) for name, value in keywords.items()}
                return model.update(*map(self._tap, arguments), **tapped)

        def evaluate(*arguments: Any, **keywords: Any) -> Any:
            del attributes["eval"]
            scores = model.eval(*arguments, **keywords)
            for watcher in self.watchers:
                watcher.folds_scored(scores)
            return scores

        attributes["update"] = update
        if self.is_cv:
            attributes["eval"] = evaluate
