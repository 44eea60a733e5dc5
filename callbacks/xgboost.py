"""Records what XGBoost trains: `train`, `cv`, and the estimators of its scikit-learn interface.

A point's step is the round of boosting, from 0; a training that goes on with a model counts on
from that model's rounds. Scores have the context ``{"dataset": name}``.
"""

from __future__ import annotations

import copy
import pickle
import pydoc
from collections.abc import Callable
from typing import Any, Unpack

import xgboost
from xgboost.callback import TrainingCallback

from tachograph.callbacks import xgboost_facts as facts
from tachograph.callbacks.base import KEYWORDS, Keywords, Recording, hook
from tachograph.callbacks.xgboost_fit import Fit
from tachograph.callbacks.xgboost_watch import find_call, watch


class XGBoostCallback(TrainingCallback):
    __doc__ = f"""Record each training that this callback is given to.

    ``xgboost.train(..., callbacks=[XGBoostCallback()])``, `xgboost.cv` alike, and
    ``XGBClassifier(callbacks=[XGBoostCallback()])``. Pickled with an estimator, it loads as a
    callback that does nothing where Tachograph is not installed.
    {KEYWORDS}
    """

    def __init__(self, **keywords: Unpack[Keywords]) -> None:
        super().__init__()
        self._recording = Recording(**keywords)
        self._unwatched: Fit | None = None

    # ------------------------------------------------------------------ hooks of XGBoost

    def before_training(self, model: Any) -> Any:
        """Open a run, and look at what is trained with."""
        self._begin(model)
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Begin a round, where the container does not tell of it."""
        if self._unwatched is not None:
            self._unwatched.round_begins(model, None)
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Record a round, where the container does not tell of it."""
        if self._unwatched is not None:
            self._unwatched.round_ends(model, None, evals_log)
        return False

    def after_training(self, model: Any) -> Any:
        """End the run, where the container does not tell of it."""
        fit, self._unwatched = self._unwatched, None
        if fit is not None:
            fit.rounds_end(model)
            fit.ends(model)
        return model

    @hook
    def _begin(self, model: Any) -> None:
        world = xgboost.collective.get_world_size()
        if xgboost.collective.get_rank() != 0:
            return  # all ranks see the same scores and the same model
        if self._unwatched is not None:
            self._unwatched.vanishes()
        recording = copy.deepcopy(self._recording)  # threads may share a callback
        self._recording.data = None
        self._recording.run = recording.open(
            facts.FRAMEWORK, rank=(0, 0, world) if world > 1 else None
        )
        if not recording.active:
            return
        call = find_call()
        fit = Fit(recording, self._recording.run, model, call, XGBoostCallback)
        try:
            if call.container is None:
                raise TypeError("called by no container of callbacks")
            watch(call.container, fit)
        except TypeError as error:
            self._unwatched = fit
            self._recording.problem(error, "a training that fails will not be recorded as failed")
        fit.describe(call)

    # ------------------------------------------------------------------ copies

    def __deepcopy__(self, memo: dict[int, Any]) -> XGBoostCallback:
        """A callback with the same keywords, as scikit-learn's `clone` asks for."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__getstate__().items():
            setattr(twin, name, copy.deepcopy(value, memo))
        return twin

    def __copy__(self) -> XGBoostCallback:
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_unwatched": None}

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if type(self) is not XGBoostCallback:
            return super().__reduce_ex__(protocol)
        home = _LoadTime(pydoc.locate, __name__)
        found = _LoadTime(getattr, home, "XGBoostCallback", TrainingCallback)
        return object.__new__, (found,), {"tachograph": _pickle(self._recording)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pickled = state.pop("tachograph", None)
        self._unwatched = None
        if pickled is not None:
            self._recording = pickle.loads(pickled)
        self.__dict__.update(state)


class _LoadTime:
    """A call that is made where a pickle is loaded, and whose result then stands here.

    An estimator keeps its callbacks, and is pickled with them. It has to load where Tachograph
    is not installed: there `pydoc.locate` finds nothing, and a callback of XGBoost's own base
    class, which does nothing, takes the place.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _pickle(recording: Recording) -> bytes:
    """The keywords, without those that cannot be pickled: a model is worth more than a note."""
    kept = copy.deepcopy(recording)
    for name, value in recording.__getstate__().items():
        try:
            pickle.dumps(value)
        except Exception:
            setattr(kept, name, None)
    return pickle.dumps(kept)
