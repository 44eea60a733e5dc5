"""What is recorded of a fit and of the fits inside it, however they are observed.

Knows runs and the attributes of estimators; not how a fit comes to be seen.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from tachograph.callbacks.base import Recording
from tachograph.callbacks.sklearn_epochs import watch
from tachograph.callbacks.sklearn_facts import (
    is_search,
    learned,
    numbers,
    parameters,
    series,
    shape,
)
from tachograph.callbacks.sklearn_iterations import listen
from tachograph.callbacks.sklearn_learned import coefficients, step_of_best
from tachograph.callbacks.sklearn_pipeline import Tree
from tachograph.callbacks.sklearn_place import Place, guard
from tachograph.callbacks.sklearn_search import Search
from tachograph.callbacks.sklearn_tensors import Tensor, Tensors
from tachograph.callbacks.sklearn_trees import (
    MOST_IN_A_FOLD,
    MOST_TREES,
    importances,
    tree_series,
)
from tachograph.identity import derived_id
from tachograph.run import Run, status_of


class Removable(Protocol):
    """What observes an estimator while it fits."""

    def remove(self) -> None:
        """Leave the estimator as it was."""
        ...


class Fit:
    """One fit in progress.

    Parameters
    ----------
    place : Place
    owns_run : bool
        Whether the run ends with this fit.
    ordinal : int
        How many fits of that name the enclosing fit has seen before: the step of its metrics.
    recording : Recording, optional
        To which the time is counted that seeing the estimator at work takes.

    Attributes
    ----------
    search : Search or None
        The candidates, if the estimator is a search.
    includes_scoring : bool
        Whether its end was seen only after the scoring that follows.
    goes_on : bool
        Whether the estimator is fitted in many calls, as by `partial_fit`.
    tensors : Tensors
    subject : callable
        Gives the estimator, None when it is gone.
    """

    def __init__(
        self,
        place: Place,
        *,
        owns_run: bool = False,
        ordinal: int = 0,
        outer: Fit | None = None,
        name: str = "",
        recording: Recording | None = None,
    ) -> None:
        self.place = place
        self._outer, self._name = outer, name
        self.run = place.run
        self.owns_run = owns_run
        self.ordinal = ordinal
        self.search: Search | None = None
        self.includes_scoring = False
        self.goes_on = False
        self._is_outermost = False
        # Iterations of a part that is fitted again are not those of its first fit.
        self._within = {**(place.context or {}), **({"fit": ordinal} if ordinal else {})}
        self.tensors = Tensors(place.run, place.settings, self._within)
        self._recording = recording
        if recording is not None and place.context is None and ordinal == 0:
            self.tensors.count = recording.count
        self.is_open = True
        self.started = time.perf_counter()
        self.subject: Callable[[], Any] = _nothing
        self._has_produced = False
        self._in: tuple[int | None, int | None] = (None, None)
        self._counts: dict[str, itertools.count[int]] = {}
        self._runs: dict[str, Run] = {}
        self._unlearned: dict[str, Run] = {}
        self._told: dict[str, int] = {}
        self._observers: list[Removable] = []
        self._before: dict[str, Any] = {}

    # ------------------------------------------------------------------ inside

    def child(self, name: str) -> Fit:
        """A fit of that name inside this one: as a run of its own, or inside a fold without."""
        ordinal = next(self._counts.setdefault(name, itertools.count()))
        if self.place.context is not None:
            return Fit(self.place.below(name), ordinal=ordinal, recording=self._recording)
        if name in self._runs:  # fitted again: its run tells the first fit, its metrics all
            place = self.place.at(self._runs[name])
            return Fit(place, ordinal=ordinal, recording=self._recording)
        run = self.run.child("step", name, run_id=derived_id(self.run.run_id, name))
        self._runs[name] = run
        place = self.place.at(run)
        return Fit(place, owns_run=True, outer=self, name=name, recording=self._recording)

    def again(self) -> None:
        """The same estimator goes on, as `partial_fit` does."""
        self.is_open = True
        self.ordinal += 1

    # ------------------------------------------------------------------ begin and end

    def begin(self, estimator: Any, X: Any = None, *, deep: bool = False) -> None:
        """The estimator starts to fit; `deep` records the parameters of all inside it too."""
        self._in = shape(X)
        self._is_outermost = deep
        with contextlib.suppress(TypeError):
            self.subject = weakref.ref(estimator)
        if is_search(estimator):
            self.search = Search(self.place, id(estimator.estimator))
        if self._tells_all:
            self.run.log_params(parameters(estimator, deep=deep), source="framework")
        self.started = time.perf_counter()

    def watch(self, estimator: Any, *, listening: bool) -> None:
        """See the estimator at work, until `stop_observing`.

        With `listening` also through scikit-learn's callbacks, where nobody else does.
        """
        try:
            watch(estimator, self._in[0], self)
            if listening:
                listen(estimator, self)
        except Exception:
            self.stop_observing()
            raise

    def observe(self, observer: Removable) -> None:
        """Keep what observes the estimator, to remove it at the end."""
        self._observers.append(observer)

    def stop_observing(self) -> None:
        """Leave the estimator as it was. A second call does nothing."""
        while self._observers:
            self._observers.pop().remove()

    @contextlib.contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Keep what goes wrong in recording from the training, and count its time."""
        started = time.perf_counter()
        try:
            with guard(self.run, where):
                yield
        finally:
            if self._recording is not None:
                self._recording.took(started)

    def tell(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of an iteration, that the end of the fit need not record again."""
        self.run.log(metrics, step=step, context=self._within)
        self._told.update(dict.fromkeys(metrics, step + 1))

    def iteration(self, number: int, seconds: float, fitted: Any) -> None:
        """One iteration of a solver: how long it took, and the weights that it has reached."""
        flat = fitted.coef_.reshape(-1)
        metrics = {"time/iteration_seconds": seconds, "coef_norm": float(flat @ flat) ** 0.5}
        self.run.log(metrics, step=number, context=self._within)
        weights = {"coef_": fitted.coef_, "intercept_": fitted.intercept_}
        old: dict[str, Any] = {}
        if self.tensors.settings.wants("update"):
            old, self._before = self._before, weights  # the arrays of each iteration are new
        plan = self.tensors.plan(number, 2 * flat.size)
        if plan is not None:
            tensors = [Tensor("weight", name, weights[name], old.get(name)) for name in weights]
            self.tensors.record(number, plan, tensors)

    def produced(self, X: Any) -> None:
        """The estimator has made `X` of its input."""
        rows, columns = shape(X)
        if columns is not None and rows == self._in[0] and not self._has_produced:
            self._has_produced = True
            self.run.log({"X/columns_out": columns}, step=self.ordinal, context=self.place.context)

    def end(self, estimator: Any = None, error: BaseException | None = None) -> None:
        """The fit is over; without `estimator` nothing is known of what it has learned."""
        if not self.is_open:
            return
        self.is_open = False
        seconds = time.perf_counter() - self.started
        self._before = {}
        with guard(self.run, "end of a fit"):
            self.stop_observing()
        with guard(self.run, "end of a fit"):
            self._log_facts(estimator, seconds, error)
        if self.owns_run:
            self.run.finish(status_of(error), error, wait=False)
        elif error is not None and "step" not in (self.place.context or {}):
            self._log_error(error)

    def _log_facts(self, estimator: Any, seconds: float, error: BaseException | None) -> None:
        context = self.place.context
        rows, columns = self._in
        what = "fit_and_score" if self.includes_scoring else "fit"
        metrics: dict[str, float] = {f"time/{what}_seconds": seconds}
        if rows is not None:
            metrics["X/rows_in"] = rows
        if columns is not None:
            metrics["X/columns_in"] = columns
        self.run.log(metrics, step=self.ordinal, context=context)
        if self.search is not None:
            self.search.close(estimator, error)
        if estimator is None or error is not None:
            return
        if found := numbers(estimator):
            self.run.log(found, step=self.ordinal, context=context)
        for name, values in series(estimator):
            for number in range(self._told.get(name, 0), len(values)):
                self.tell({name: values[number]}, number)
        self._log_trees(estimator)
        self._log_tensors(estimator)
        if self._tells_all:
            self._log_learned(estimator)
        if self._is_outermost and not self.goes_on:
            self.log_outcome(estimator)

    def log_outcome(self, estimator: Any) -> None:
        """Record the tree of the fitted estimator, with digests of what its parts have learned."""
        if estimator is None:
            return
        with self.guard("outcome of a fit"):
            fitted = self.tensors.settings.wants("weight")
            tree = Tree(estimator, fitted=fitted)
            self.run.log_provenance("pipeline", tree.document)
            if fitted:
                self.run.log_provenance("outcome.weights", tree.outcome())

    def _log_trees(self, estimator: Any) -> None:
        most = MOST_TREES if self.place.context is None else MOST_IN_A_FOLD
        if "trees/depth" not in self._told:
            for number, metrics in tree_series(estimator, most):
                self.run.log(metrics, step=number, context=self._within)
        if self._tells_all:
            for feature, metrics in importances(estimator):
                self.run.log(metrics, step=0, context={"feature": feature})

    def _log_tensors(self, estimator: Any) -> None:
        """Record the weights that the fit has led to, at the step of their iteration."""
        if not self.tensors.settings.wants("weight"):
            return
        weights = coefficients(estimator, self._in[0])
        last = self.tensors.last_step
        if last is not None:
            step = step_of_best(estimator, last)
        else:
            step = self.ordinal if self.goes_on else 0
        self.tensors.record_final(step, weights, goes_on=self.goes_on)

    def _log_learned(self, estimator: Any) -> None:
        if found := learned(estimator):
            self.run.log_provenance("learned", found)
        elif self._outer is not None:
            self._outer._unlearned[self._name] = self.run
        for name, step in list(getattr(estimator, "steps", ())):
            if name in self._unlearned:  # behind a cache only the finished pipeline shows it
                self._unlearned[name].log_provenance("learned", learned(step))
            elif name not in self._counts and hasattr(step, "fit"):
                cached = self.child(name)
                cached.run.log_params(parameters(step), source="framework")
                cached.run.set_tags({"cached": "true"})
                cached.run.log_provenance("learned", learned(step))
                cached.run.finish(wait=False)

    def _log_error(self, error: BaseException) -> None:
        fold = (self.place.context or {}).get("fold")
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        message = f"{type(error).__name__}: {error}"
        self.run.event(
            "error",
            message if fold is None else f"fold {fold}: {message}",
            level="error",
            data={"fold": fold, "traceback": "".join(lines)[-20_000:]},
        )

    @property
    def _tells_all(self) -> bool:
        return self.place.context is None and self.ordinal == 0


def _nothing() -> None:
    return None
