"""scikit-learn: a callback for its own protocol (1.9 and later), and `track` for everything else.

Knows the protocol. What is recorded of a fit stands in `sklearn_fit`, how scikit-learn's tasks
become fits in `sklearn_tasks`, how `track` sees inside an estimator in `sklearn_track`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from contextlib import AbstractContextManager
from typing import Any, TypeVar, Unpack

import sklearn

from tachograph.callbacks.base import KEYWORDS, Keywords, Recording, hook
from tachograph.callbacks.sklearn_fit import Fit
from tachograph.callbacks.sklearn_iterations import is_iteration
from tachograph.callbacks.sklearn_place import Place
from tachograph.callbacks.sklearn_tasks import Tasks
from tachograph.callbacks.sklearn_tensors import Settings
from tachograph.callbacks.sklearn_track import current_fit, observe

E = TypeVar("E")
FRAMEWORK = f"scikit-learn {sklearn.__version__}"


class SklearnCallback:
    """Records the fits of an estimator: ``pipeline.set_callbacks(SklearnCallback())``.

    A fit is a run; each step of a pipeline and each candidate of a search is a run inside it,
    with durations, shapes, parameters and learned attributes. For scikit-learn 1.9 and later;
    inside estimators that do not support callbacks only `track` can see.
    """

    max_propagation_depth = None
    """scikit-learn's protocol: hand this callback to estimators at every depth."""

    def __init__(self, *, keep: bool = False, **keywords: Unpack[Keywords]) -> None:
        self._recording = Recording(**keywords)
        self._keep = keep
        self._tasks = Tasks()
        self._handled: dict[Any, BaseException | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handled": {}}

    # ------------------------------------------------------------------ scikit-learn's protocol

    def setup(self, estimator: Any, context: Any) -> None:
        """A fit begins: open its run."""
        _quiet.enter()
        # Inside an `except` block there is an exception although nothing fails.
        self._handled[context.root_uuid] = sys.exc_info()[1]
        self._open(context)

    def teardown(self, estimator: Any, context: Any) -> None:
        """The fit is over, well or not: end its run, and take the callback off."""
        _quiet.leave()
        error = sys.exc_info()[1]
        if error is self._handled.pop(context.root_uuid, None):
            error = None
        self._close(context, error)
        if not self._keep:
            others = [one for one in estimator._skl_callbacks if one is not self]
            estimator._skl_callbacks = others  # a new list: clones share the old one
            if not others:
                del estimator._skl_callbacks

    @hook
    def _open(self, context: Any) -> None:
        if self._recording.is_off or current_fit() is not None:
            return  # `track` records it already, and sees more
        run = self._recording.open(FRAMEWORK)
        if self._recording.active:
            place = Place(run, settings=Settings.of(self._recording))
            owned = self._recording.owned
            fit = Fit(place, owns_run=owned, recording=self._recording)
            self._tasks.open(context, fit)

    @hook
    def _close(self, context: Any, error: BaseException | None) -> None:
        self._tasks.close(context, error)

    @hook
    def on_fit_task_begin(
        self, estimator: Any, context: Any, *, X: Any = None, y: Any = None
    ) -> None:
        """A task of a fit begins: a step, a fold of a candidate, an iteration."""
        fit = self._tasks.begin(estimator, context, X)
        if fit is not None and context.parent is None:
            fit.run.log_data(X, "X")
            if y is not None:
                fit.run.log_data(y, "y")

    @hook
    def on_fit_task_end(
        self, estimator: Any, context: Any, *, X: Any = None, fitted_estimator: Any = None
    ) -> None:
        """A task of a fit ends."""
        if is_iteration(context):
            self._tasks.iteration(context, fitted_estimator, current_fit())
        else:
            self._tasks.end(estimator, context, X)


def track(estimator: E, **keywords: Unpack[Keywords]) -> AbstractContextManager[E]:
    """Record every fit of `estimator` and of what is inside it, while the block lasts.

    ``with track(search): search.fit(X, y)`` works with all estimators and all versions, with
    `cross_validate` and its kin, and in the threads and processes of joblib. The estimator is
    the same before and after, and whatever is pickled in between.
    """
    return observe(estimator, Recording(**keywords), FRAMEWORK)


SklearnCallback.__doc__ = f"""{SklearnCallback.__doc__}{KEYWORDS}    keep : bool, default False
        Leave the callback on the estimator after the fit. By default it takes itself off, so
        that the fitted estimator can be unpickled where Tachograph is not installed.
    """
track.__doc__ = f"{track.__doc__}{KEYWORDS}"


class _Quiet:
    """Silences what scikit-learn says of estimators that do not support callbacks.

    The user has not asked for any. One filter for as long as some fit lasts; scikit-learn takes
    the filters along to its workers.
    """

    MESSAGE = "The estimator .* does not support callbacks|Callbacks are only supported in "

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fits = 0
        self._filter: Any = None

    def enter(self) -> None:
        """A fit begins."""
        with self._lock:
            self._fits += 1
            if self._fits == 1:
                warnings.filterwarnings("ignore", self.MESSAGE, UserWarning)
                self._filter = warnings.filters[0]

    def leave(self) -> None:
        """A fit is over."""
        with self._lock:
            self._fits -= 1
            if self._fits == 0:
                with contextlib.suppress(ValueError, AttributeError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_quiet = _Quiet()
