"""Iterations of solvers that tell callbacks of them (scikit-learn 1.9), seen inside `track`.

Knows the names of that protocol, which is experimental there.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

_ATTRIBUTE = "_skl_callbacks"


class Observed(Protocol):
    """The fit that the solver works for."""

    def guard(self, where: str) -> Any:
        """Keep what goes wrong in recording from the training."""
        ...

    def observe(self, observer: Any) -> None:
        """Keep what observes the estimator, to remove it at the end."""
        ...

    def iteration(self, number: int, seconds: float, fitted: Any) -> None:
        """One iteration of a solver."""
        ...


def is_iteration(context: Any) -> bool:
    """Whether a task is one iteration of a solver."""
    return bool(context.task_name.endswith("-iter"))


def listen(estimator: Any, fit: Observed) -> None:
    """Have `fit` told of the iterations of an estimator, where it tells anybody of them."""
    if getattr(estimator, "solver", None) != "lbfgs" or not hasattr(estimator, "set_callbacks"):
        return
    if _ATTRIBUTE not in vars(estimator):  # there it is ours, or ones that may pickle it
        fit.observe(Listener(estimator, fit))


class Listener:
    """A callback of scikit-learn's protocol, on one estimator for the time of one fit."""

    def __init__(self, estimator: Any, fit: Observed) -> None:
        self._estimator: Any = estimator
        self._fit: Observed | None = fit
        self._started = 0.0
        vars(estimator)[_ATTRIBUTE] = [self]

    def remove(self) -> None:
        """Leave the estimator as it was. A second call does nothing."""
        estimator, self._estimator, self._fit = self._estimator, None, None
        if estimator is not None:
            vars(estimator).pop(_ATTRIBUTE, None)

    def setup(self, estimator: Any, context: Any) -> None:
        """The fit begins."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """The fit is over."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """An iteration begins."""
        self._started = time.perf_counter()

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None
    ) -> None:
        """An iteration ends; the one after the last has no estimator."""
        fit = self._fit
        if fit is not None and fitted_estimator is not None and is_iteration(context):
            seconds = time.perf_counter() - self._started
            with fit.guard("iteration"):
                fit.iteration(context.task_id, seconds, fitted_estimator)
