"""scikit-learn's tree of callback contexts (1.9 and later), translated into fits.

Knows the names of its tasks, which are experimental there, and nothing else of scikit-learn.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
from typing import Any

from tachograph.callbacks.sklearn_fit import Fit
from tachograph.callbacks.sklearn_iterations import is_iteration
from tachograph.callbacks.sklearn_place import guard
from tachograph.callbacks.sklearn_search import Search

Key = tuple[uuid.UUID, tuple[int, ...]]
_GROUPS = ("search", "halving-iteration")  # tasks that only hold other tasks
_FOLD = "candidate-split-evaluation"
_STEP = "fit-transform-"
_LAST_STEP = "final-estimator"


class Tasks:
    """The tasks in progress of all fits of one callback.

    Pickles as what a worker process has to know: the searches in progress.
    """

    def __init__(self) -> None:
        self._fits: dict[Key, Fit] = {}
        self._searches: dict[Key, Search] = {}
        self._last: dict[Key, Fit] = {}  # the latest step of a pipeline
        self._last_name: dict[Key, str] = {}  # name of a pipeline's last step
        self._thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"_searches": dict(self._searches)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self._searches = state["_searches"]

    def open(self, context: Any, fit: Fit) -> None:
        """The outermost fit of a tree of contexts."""
        self._fits[_key(context)] = fit

    def begin(self, estimator: Any, context: Any, X: Any) -> Fit | None:
        """A task begins; returns its fit, None where it is no fit."""
        if is_iteration(context):
            self._thread.started = time.perf_counter()
            return None
        if _role(context) in _GROUPS:
            return None
        key = _key(context)
        fit = self._fits.get(key) if context.parent is None else self._enter(context, X)
        if fit is None:
            return None
        self._fits[key] = fit
        fitted = _fitted(estimator, context)
        fit.begin(fitted, X, deep=context.parent is None)
        with guard(fit.run, "begin of a fit"):
            fit.watch(fitted, listening=False)
        steps = getattr(fitted, "steps", None)
        if steps:
            self._last_name[key] = steps[-1][0]
        if fit.search is not None and fitted is estimator:
            self._searches[key] = fit.search
            estimator._run_search = _Watched(estimator, fit.search)
        return fit

    def _enter(self, context: Any, X: Any) -> Fit | None:
        role = _role(context)
        if role == _FOLD:
            search = self._search_above(context)
            return None if search is None else Fit(search.fold(context.task_id))
        outer = _key(context.parent)
        if outer not in self._fits:
            return None
        before = self._last.get(outer)
        if before is not None:
            before.produced(X)
        fit = self._fits[outer].child(self._name(role, outer))
        self._last[outer] = fit
        return fit

    def _name(self, role: str, outer: Key) -> str:
        if role.endswith(_LAST_STEP):
            return self._last_name.get(outer, role)
        return "best_estimator_" if role.startswith("refit") else role.removeprefix(_STEP)

    def _search_above(self, context: Any) -> Search | None:
        while context.parent is not None:
            context = context.parent
            if (search := self._searches.get(_key(context))) is not None:
                return search
        return None

    def iteration(self, context: Any, estimator: Any, inside: Fit | None) -> None:
        """An iteration of a solver ends, of the fit `inside` if that is known."""
        fit = inside or self._fits.get(_key(context.parent))
        if fit is None or estimator is None:  # one without an estimator trails the last
            return
        seconds = time.perf_counter() - self._thread.started
        fit.iteration(context.task_id, seconds, estimator)

    def end(self, estimator: Any, context: Any, X: Any) -> None:
        """A task ends well, or a fold in whatever way."""
        key = _key(context)
        fit = self._fits.get(key)
        if fit is None:
            return
        if not _is_merged(context):
            if _role(context).startswith(_STEP):
                fit.produced(X)
            fit.includes_scoring = _role(context) == _FOLD
        self._close_inside(key, None)
        self._close(key, _fitted(estimator, context), None)

    def close(self, context: Any, error: BaseException | None) -> None:
        """The outermost fit is over: whatever is still open ended with it."""
        key = _key(context)
        self._close_inside(key, error)
        fit = self._fits.get(key)
        if fit is not None:
            self._close(key, fit.subject(), error)

    def _close_inside(self, outer: Key, error: BaseException | None) -> None:
        tree, path = outer
        inside = [
            key
            for key in list(self._fits)
            if key[0] == tree and len(key[1]) > len(path) and key[1][: len(path)] == path
        ]
        for key in sorted(inside, key=lambda key: -len(key[1])):
            self._close(key, self._fits[key].subject(), error)

    def _close(self, key: Key, fitted: Any, error: BaseException | None) -> None:
        fit = self._fits.pop(key)
        self._last.pop(key, None)
        self._last_name.pop(key, None)
        if self._searches.pop(key, None) is not None and fitted is not None:
            fitted.__dict__.pop("_run_search", None)
        fit.end(fitted, error)


class _Watched:
    """Stands before a search's `_run_search` while it fits, to see its candidates.

    scikit-learn shows callbacks neither the candidates nor their scores. `_run_search` is where
    it lets others choose candidates. Pickles and copies as what it stands before.
    """

    def __init__(self, estimator: Any, search: Search) -> None:
        self._original = estimator._run_search
        self._search = search
        functools.update_wrapper(self, self._original)

    def __call__(self, evaluate_candidates: Any, *args: Any, **kwargs: Any) -> Any:
        estimator = self._original.__self__
        return self._original(self._search.watch(evaluate_candidates, estimator), *args, **kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._original.__self__, "_run_search")


def _key(context: Any) -> Key:
    path = []
    node = context
    while node is not None:
        path.append(node.task_id)
        node = node.parent
    return context.root_uuid, tuple(reversed(path))


def _is_merged(context: Any) -> bool:
    """Whether the estimator of a hook is the one that is fitted, and not the one around it."""
    return context.parent is None or context.source_task_name is not None


def _role(context: Any) -> str:
    """What the task is to the estimator around it."""
    return str(context.source_task_name or context.task_name)


def _fitted(estimator: Any, context: Any) -> Any:
    """The estimator that a task fits."""
    if _is_merged(context):
        return estimator
    role = _role(context)
    if role.startswith("refit"):
        return getattr(estimator, "best_estimator_", None)
    steps = getattr(estimator, "steps", None)
    if not steps:
        return None
    return steps[-1][1] if role.endswith(_LAST_STEP) else dict(steps).get(role.removeprefix(_STEP))
