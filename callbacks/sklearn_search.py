"""What is recorded of a search: its candidates, their folds and scores.

Knows runs and the attributes of searches; not how a search comes to be seen.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tachograph.callbacks.sklearn_facts import named
from tachograph.callbacks.sklearn_folds import WatchedFolds, count_folds, default_splitter
from tachograph.callbacks.sklearn_place import Place, guard
from tachograph.identity import derived_id
from tachograph.run import Run, status_of
from tachograph.start import attach_run


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
                self._begin(candidates, count_folds(evaluate, estimator))
            args, kwargs = self._watch_folds(evaluate, estimator, args, kwargs)
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

    def _watch_folds(
        self, evaluate: Callable[..., Any], estimator: Any, args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """The arguments with a splitter that is observed: all candidates have the same folds."""
        with guard(self.place.run, "folds"):
            signature = inspect.signature(evaluate)
            if "cv" in signature.parameters and self._first == 0 and self.place.context is None:
                given = signature.bind(None, *args, **kwargs)
                splitter = given.arguments.get("cv") or default_splitter(evaluate, estimator)
                if splitter is not None:
                    given.arguments["cv"] = WatchedFolds(splitter, self.place.run)
                    return given.args[1:], given.kwargs
        return args, kwargs

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
            return self.place.at(self._runs[local], {"fold": fold})
        facts = {
            "run_id": run_id,
            "kind": "candidate",
            "name": name,
            "parent_id": self.place.run.run_id,
            "root_id": self.place.run.root_id,
            "by_user": False,
        }
        return self.place.at(attach_run(self.place.run.config, facts), {"fold": fold})

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
