"""The parts of folds, looked through for rows that they have in common.

Knows runs, and how a search asks a splitter for its folds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from tachograph.callbacks.sklearn_facts import shape
from tachograph.callbacks.sklearn_place import Place, guard
from tachograph.run import Run

_MOST_VALUES = 8 << 20
_MOST_FOLDS = 64  # each is a document


def is_small(X: Any) -> bool:
    """Whether there are few enough values to look at them fold by fold."""
    rows, columns = shape(X)
    return (rows or 0) * (columns or 1) <= _MOST_VALUES


def compare_fold(place: Place, X: Any, name: str) -> None:
    """Look for rows of one part of a fold in the other; not of large ones, which would be kept.

    Of a search `WatchedFolds` has seen all parts. Of very many folds, as where each row is left
    out once, the first ones are looked at.
    """
    context = place.context or {}
    if "step" in context or place.run.kind == "candidate" or not is_small(X):
        return
    if context.get("fold", _MOST_FOLDS) < _MOST_FOLDS:
        place.run.compare_rows(X, name, fold=context["fold"])


class WatchedFolds:
    """Stands before a splitter while a search asks for its folds, and compares their parts.

    Each fold comes from the splitter itself, once. So all parts are seen here, in one process,
    however they are fitted and scored.

    Parameters
    ----------
    splitter : cross-validation splitter
    run : Run
        Of the search.
    """

    def __init__(self, splitter: Any, run: Run) -> None:
        self._splitter, self._run = splitter, run

    def __getattr__(self, name: str) -> Any:
        """What a search asks a splitter for beside its folds."""
        if name.startswith("_"):  # such as what copying looks for in one that is not made yet
            raise AttributeError(name)
        return getattr(self._splitter, name)

    def split(self, X: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The folds of the splitter."""
        seen: list[Any] = []
        for fold in self._splitter.split(X, *args, **kwargs):
            if len(seen) < _MOST_FOLDS:
                seen.append(fold)
            yield fold
        with guard(self._run, "folds"):
            if is_small(X):
                self._run.compare_folds(X, [(train, test) for train, test in seen])


def default_splitter(evaluate: Callable[..., Any], estimator: Any) -> Any:
    """What a search splits by where it is not told otherwise; None where that is not known."""
    return getattr(estimator, "_checked_cv_orig", None) or _inside(evaluate, "cv_orig")


def count_folds(evaluate: Callable[..., Any], estimator: Any) -> int:
    """How many folds each candidate of a search will have."""
    return int(_inside(evaluate, "n_splits") or estimator.n_splits_)


def _inside(evaluate: Callable[..., Any], name: str) -> Any:
    """What the function knows by which a search evaluates candidates.

    Before scikit-learn 1.9 it alone knows: attributes are set at the end, and those of an earlier
    fit may be others.
    """
    return inspect.getclosurevars(evaluate).nonlocals.get(name)
