"""What is recorded of a fit, of the fits inside it, and of a search, however they are observed.

Knows runs and the attributes of estimators; not how a fit comes to be seen.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tachograph.callbacks.sklearn_facts import (
    is_search,
    learned,
    named,
    numbers,
    parameters,
    series,
    shape,
)
from tachograph.identity import derived_id
from tachograph.run import Run, status_of
from tachograph.start import attach_run


@contextlib.contextmanager
def guard(run: Run, where: str) -> Iterator[None]:
    """Keep what goes wrong in recording from the training."""
    try:
        yield
    except Exception as error:
        run.report_problem(error, f"SklearnCallback, {where}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fit is recorded. Pickles, so that a worker process records there too.

    Attributes
    ----------
    run : Run
    context : mapping or None
        Inside a fold fits are told apart by the context of their metrics, because a run for
        each step of each fold of each candidate would be more than anybody can look at.
        Elsewhere None, and each step has a run.
    """

    run: Run
    context: Mapping[str, Any] | None = None

    def below(self, name: str) -> Place:
        """The place of a step inside a fold."""
        outer = self.context or {}
        path = f"{outer['step']}/{name}" if "step" in outer else name
        return Place(self.run, {**outer, "step": path})


class Fit:
    """One fit in progress.

    Parameters
    ----------
    place : Place
    owns_run : bool
        Whether the run ends with this fit.
    ordinal : int
        How many fits of that name the enclosing fit has seen before: the step of its metrics.

    Attributes
    ----------
    search : Search or None
        The candidates, if the estimator is a search.
    includes_scoring : bool
        Whether its end was seen only after the scoring that follows.
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
    ) -> None:
        self.place = place
        self._outer, self._name = outer, name
        self.run = place.run
        self.owns_run = owns_run
        self.ordinal = ordinal
        self.search: Search | None = None
        self.includes_scoring = False
        self.is_open = True
        self.started = time.perf_counter()
        self.subject: Callable[[], Any] = _nothing
        self._has_produced = False
        self._in: tuple[int | None, int | None] = (None, None)
        self._counts: dict[str, itertools.count[int]] = {}
        self._runs: dict[str, Run] = {}
        self._unlearned: dict[str, Run] = {}

    # ------------------------------------------------------------------ inside

    def child(self, name: str) -> Fit:
        """A fit of that name inside this one: as a run of its own, or inside a fold without."""
        ordinal = next(self._counts.setdefault(name, itertools.count()))
        if self.place.context is not None:
            return Fit(self.place.below(name), ordinal=ordinal)
        if name in self._runs:  # fitted again: its run tells the first fit, its metrics all
            return Fit(Place(self._runs[name]), ordinal=ordinal)
        run = self.run.child("step", name, run_id=derived_id(self.run.run_id, name))
        self._runs[name] = run
        return Fit(Place(run), owns_run=True, ordinal=ordinal, outer=self, name=name)

    def again(self) -> None:
        """The same estimator goes on, as `partial_fit` does."""
        self.is_open = True
        self.ordinal += 1

    # ------------------------------------------------------------------ begin and end

    def begin(self, estimator: Any, X: Any = None, *, deep: bool = False) -> None:
        """The estimator starts to fit; `deep` records the parameters of all inside it too."""
        self._in = shape(X)
        with contextlib.suppress(TypeError):
            self.subject = weakref.ref(estimator)
        if is_search(estimator):
            self.search = Search(self.place, id(estimator.estimator))
        if self._tells_all:
            self.run.log_params(parameters(estimator, deep=deep), source="framework")
        self.started = time.perf_counter()

    def iteration(self, number: int, seconds: float, coefficients: Any) -> None:
        """One iteration of a solver: how long it took, and how large the weights are."""
        flat = coefficients.reshape(-1)
        metrics = {"time/iteration_seconds": seconds, "coef_norm": float(flat @ flat) ** 0.5}
        self.run.log(metrics, step=number, context=self.place.context)

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
            for number, value in enumerate(values):
                self.run.log({name: value}, step=number, context=context)
        if self._tells_all:
            self._log_learned(estimator)

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


def _count_folds(evaluate: Callable[..., Any], estimator: Any) -> int:
    """How many folds each candidate will have.

    Before scikit-learn 1.9 only the function itself knows: the attribute is set at the end, and
    that of an earlier fit may be another.
    """
    known = inspect.getclosurevars(evaluate).nonlocals
    return int(known.get("n_splits", None) or estimator.n_splits_)


class Search:
    """The candidates of a search in progress, each a run, and their folds.

    Pickles without its runs: a worker process attaches to the one that it needs.

    Parameters
    ----------
    place : Place
        Of the search itself.
    template : int
        `id` of the estimator that the candidates are cloned from.
    """

    def __init__(self, place: Place, template: int) -> None:
        self.place = place
        self.template = template
        self.base: int | None = None  # id of the clone that all candidates are clones of
        self.n_splits = 1
        self._first = 0
        self._runs: list[Run] = []
        self._all: list[Run] = []
        self._tasks = itertools.count()
        self._waiting = 0

    def __getstate__(self) -> dict[str, Any]:
        kept = ("place", "template", "base", "n_splits", "_first", "_waiting")
        return {name: self.__dict__[name] for name in kept} | {"_runs": [], "_all": []}

    def watch(self, evaluate: Callable[..., Any], estimator: Any) -> Callable[..., Any]:
        """The function by which a search evaluates candidates, observed."""

        @functools.wraps(evaluate)
        def evaluate_candidates(candidate_params: Any, *args: Any, **kwargs: Any) -> Any:
            candidates = list(candidate_params)
            with guard(self.place.run, "candidates"):
                self._begin(candidates, _count_folds(evaluate, estimator))
            results = evaluate(candidates, *args, **kwargs)
            self._waiting = 0
            with guard(self.place.run, "scores"):
                self._score(results)
            return results

        return evaluate_candidates

    def _begin(self, candidates: Sequence[Mapping[str, Any]], n_splits: int) -> None:
        self._first += len(self._runs)
        self.n_splits = n_splits
        self._runs = []
        self._tasks = itertools.count()
        if self.place.context is None:
            for index, params in enumerate(candidates, self._first):
                run_id, name = self._identity(index)
                run = self.place.run.child("candidate", name, run_id=run_id)
                run.log_params(named(params), source="framework")
                self._runs.append(run)
            self._all += self._runs
        self._waiting = len(candidates) * n_splits

    def _identity(self, index: int) -> tuple[str, str]:
        name = f"candidate-{index}"
        return derived_id(self.place.run.run_id, name), name

    def next_fold(self) -> Place | None:
        """The place of the next candidate and fold in order, None where all are given out."""
        task = next(self._tasks)
        return self.fold(task) if task < self._waiting else None

    def fold(self, task: int) -> Place:
        """The place of a candidate's fold; `task` counts the folds of all candidates."""
        local, fold = divmod(task, self.n_splits)
        run_id, name = self._identity(self._first + local)
        if self.place.context is not None:
            return self.place.below(f"{name}/fold-{fold}")
        if self._runs:
            return Place(self._runs[local], {"fold": fold})
        facts = {
            "run_id": run_id,
            "kind": "candidate",
            "name": name,
            "parent_id": self.place.run.run_id,
            "root_id": self.place.run.root_id,
            "by_user": False,
        }
        return Place(attach_run(self.place.run.config, facts), {"fold": fold})

    # ------------------------------------------------------------------ results

    def _score(self, results: Mapping[str, Any]) -> None:
        scorers = [key[10:] for key in results if key.startswith("mean_test_")]
        for index, run in enumerate(self._runs, self._first):
            means = [float(results[f"mean_test_{scorer}"][index]) for scorer in scorers]
            for scorer, mean in zip(scorers, means, strict=True):
                self._log_scores(run, results, scorer, index, mean)
            times = {
                f"time/mean_{what}_seconds": float(results[f"mean_{what}_time"][index])
                for what in ("fit", "score")
            }
            run.log(times, step=0)
            if "n_resources" in results:  # of successive halving
                halving = {key: int(results[key][index]) for key in ("iter", "n_resources")}
                run.log_params(halving, source="framework")
            failed = bool(means) and all(mean != mean for mean in means)
            problem = "not every fold has a score" if failed else None
            run.finish("failed" if failed else "finished", problem, wait=False)

    def _log_scores(
        self, run: Run, results: Mapping[str, Any], scorer: str, index: int, mean: float
    ) -> None:
        summary = {f"{scorer}/mean_test": mean}
        for what in ("std", "rank"):
            summary[f"{scorer}/{what}_test"] = float(results[f"{what}_test_{scorer}"][index])
        run.log(summary, step=0)
        for phase in ("test", "train"):
            for fold in range(self.n_splits):
                values = results.get(f"split{fold}_{phase}_{scorer}")
                if values is not None:
                    context = {"fold": fold, "phase": phase}
                    run.log({scorer: float(values[index])}, step=fold, context=context)

    def close(self, estimator: Any, error: BaseException | None) -> None:
        """The search is over: record the best candidate, and end what is still open."""
        for run in self._all:
            run.finish(status_of(error), wait=False)
        index = getattr(estimator, "best_index_", None)
        if index is None or error is not None:
            return
        run, context = self.place.run, self.place.context
        best = {"best_index": float(index)}
        if hasattr(estimator, "best_score_"):
            best["best_score"] = float(estimator.best_score_)
        run.log(best, step=0, context=context)
        if context is None:
            run.log_params({"best": named(estimator.best_params_)}, source="framework")
            run.set_tags({"best_candidate": self._identity(int(index))[1]})
            self._all[int(index)].set_tags({"best": "true"})
