"""Records how the trees of one booster grew, and which features they use.

Trees are only ever added, so those of several rounds are read together, about once a second: most
of what reading takes is the same for one tree as for many.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import xgboost

from tachograph.callbacks import xgboost_ubjson
from tachograph.callbacks.tensors_host import Meter, histogram, key, pack
from tachograph.callbacks.xgboost_gradients import class_context
from tachograph.callbacks.xgboost_trees import Growth, growth
from tachograph.run import Run
from tachograph.tensors.records import TensorKey
from tachograph.values import canonical_json

MAX_FEATURES = 50
"""Of so many features, those with the largest gain, the importance is recorded."""

_IMPORTANCES = ("gain", "weight", "cover")
_GROWN = 1.1
"""The importance is recorded again where there are so many times the rounds of the last time."""

_FREE_SECONDS = 0.002
"""What may be taken before any time has passed to have a share of."""

_REMEMBERED = 500


class GrowthRecord:
    """Logs the trees of one booster.

    Parameters
    ----------
    run : Run
    first : int
        The step of the first round.
    every : int or 'auto'
        At which steps; 'auto' leaves out as many as the budget asks for.
    budget : float
        Share of the time that reading trees may take, where `every` is 'auto'.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        run: Run,
        first: int,
        every: int | str,
        budget: float,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._run = run
        self._next = first
        self._every = every
        self._budget = budget
        self._clock = clock
        self._begun = clock()
        self._spent = 0.0
        self._seconds_a_round = 5e-4
        self._importance_seconds = 1e-3
        self._importance_rounds = first
        self._histogram_steps: set[int] = set()
        self._meter = Meter()
        self._keys: dict[tuple[int, ...], tuple[TensorKey, ...]] = {}

    def want_histogram(self, step: int) -> None:
        """Let the leaves of a step have a histogram, if they are recorded at all."""
        self._histogram_steps.add(step)

    def read(self, booster: xgboost.Booster, end: int, *, final: bool = False) -> None:
        """Record the rounds that have not been seen yet, and the importance of features.

        Parameters
        ----------
        booster : Booster
        end : int
            The step after the last round.
        final : bool, default False
            Whether there will be no other time.
        """
        stride = self._stride(end - self._next, final)
        if stride is not None:
            try:
                self._read_rounds(booster, end, stride)
            except xgboost.core.XGBoostError:  # while old trees are updated nobody may look
                return
        if self._importance_due(end, final):
            self._log_importance(booster, end)

    def _read_rounds(self, booster: xgboost.Booster, end: int, stride: int) -> None:
        started = self._clock()
        count = self._log_rounds(booster, -(-self._next // stride) * stride, end, stride)
        seconds = self._clock() - started
        self._spent += seconds
        if count:
            self._seconds_a_round = seconds / count
        self._next = end
        self._histogram_steps.clear()

    # ------------------------------------------------------------------ pace

    @property
    def _allowance(self) -> float:
        """Seconds that may be taken now."""
        if self._every != "auto":
            return math.inf
        earned = self._budget * (self._clock() - self._begun)
        return _FREE_SECONDS + earned - self._spent

    def _stride(self, rounds: int, final: bool) -> int | None:
        """Steps between those that are recorded; None where nothing is now."""
        if rounds <= 0:
            return None
        if not isinstance(self._every, str):
            return self._every
        affordable = int(self._allowance / self._seconds_a_round)
        if affordable < 1 and not final:
            return None
        # a power of two, so that ranks and runs of different speed have steps in common
        return 1 << (-(-rounds // max(1, affordable)) - 1).bit_length()

    def _importance_due(self, end: int, final: bool) -> bool:
        if final:
            return end > self._importance_rounds
        has_grown = end >= self._importance_rounds * _GROWN
        return has_grown and self._allowance >= self._importance_seconds

    # ------------------------------------------------------------------ what is recorded

    def _log_rounds(self, booster: xgboost.Booster, first: int, end: int, stride: int) -> int:
        """Record rounds from the `first` on, each `stride`-th; return how many."""
        steps = range(first, end, stride)
        whole = (end - first) // stride  # XGBoost slices whole strides only
        slices = [slice(first, first + whole * stride, stride)] if whole > 0 else []
        if len(steps) > max(0, whole):
            slices.append(slice(steps[-1], steps[-1] + 1))
        found = [one for part in slices for one in growth(_learner(booster[part]))]
        for step, one in zip(steps, found, strict=True):
            self._run.log(one.metrics, step)
            self._log_leaves(one, step)
        return len(found)

    def _log_leaves(self, grown: Growth, step: int) -> None:
        sizes = tuple(len(values) for values in grown.leaves)
        keys = self._keys.get(sizes)
        if keys is None:
            if len(self._keys) >= _REMEMBERED:
                self._keys.clear()
            keys = self._keys[sizes] = tuple(
                key("leaves", "weight", values, canonical_json(class_context(number, grown.leaves)))
                for number, values in enumerate(grown.leaves)
            )
        numbers = [self._meter.measure(values) for values in grown.leaves]
        wanted = step in self._histogram_steps
        pairs = [histogram(values) for values in grown.leaves] if wanted else None
        self._run.log_statistics(keys, pack(numbers), step, histograms=pairs)

    def _log_importance(self, booster: xgboost.Booster, end: int) -> None:
        started = self._clock()
        self._importance_rounds = end
        with contextlib.suppress(xgboost.core.XGBoostError):
            scores: dict[str, Any] = {
                kind: booster.get_score(importance_type=kind) for kind in _IMPORTANCES
            }
            gains = scores["gain"]
            for feature in sorted(gains, key=gains.__getitem__, reverse=True)[:MAX_FEATURES]:
                values = {f"importance/{kind}": scores[kind][feature] for kind in _IMPORTANCES}
                self._run.log(values, end - 1, context={"feature": feature})
        self._importance_seconds = self._clock() - started
        self._spent += self._importance_seconds


def _learner(booster: xgboost.Booster) -> Any:
    return xgboost_ubjson.read(booster.save_raw("ubj"))["learner"]
