"""Records the weights of a linear booster, and how a round updates them."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy
import xgboost

from tachograph.callbacks import tensors_snapshot
from tachograph.callbacks.tensors_host import Meter, Numbers, histogram, key, pack
from tachograph.callbacks.tensors_pace import Plan
from tachograph.callbacks.xgboost_gradients import Seconds, class_context
from tachograph.callbacks.xgboost_trees import linear_weights
from tachograph.callbacks.xgboost_ubjson import read
from tachograph.run import Run
from tachograph.tensors.records import TensorKey
from tachograph.values import canonical_json

Array = Any  # numpy.ndarray
Tensors = list[tuple[str, str, Array]]
"""Name, context and values of each."""


class LinearRecord:
    """Logs the weights of one booster.

    Parameters
    ----------
    run : Run
    keeps_snapshots : bool
        Whether the weights themselves are kept too, where it is planned.
    """

    def __init__(self, run: Run, keeps_snapshots: bool) -> None:
        self._run = run
        self._keeps_snapshots = keeps_snapshots
        self._meter = Meter()
        self._keys: tuple[TensorKey, ...] = ()
        self._old: Tensors | None = None

    def round_begins(self, booster: xgboost.Booster) -> None:
        """Remember the weights that the round will update; not called before the first one."""
        self._old = _tensors(booster)

    def round_ended(self, booster: xgboost.Booster, step: int, plan: Plan) -> Seconds:
        """Record weights and updates; tell what that has taken."""
        began = perf_counter()
        new = _tensors(booster)
        old = self._old or [(name, context, numpy.zeros_like(now)) for name, context, now in new]
        self._old = None
        numbers: list[Numbers] = []
        for (_, _, now), (_, _, before) in zip(new, old, strict=True):
            numbers += self._meter.measure_change(now, before)
        started = perf_counter()
        pairs = None
        if plan.histograms:
            changes = (
                (one, one - before) for (*_, one), (*_, before) in zip(new, old, strict=True)
            )
            pairs = [histogram(array) for both in changes for array in both]
        histogram_seconds = perf_counter() - started if plan.histograms else 0.0
        if not self._keys:
            self._keys = tuple(
                key(name, kind, array, context)
                for name, context, array in new
                for kind in ("weight", "update")
            )
        self._run.log_statistics(self._keys, pack(numbers), step, histograms=pairs)
        moments = perf_counter() - began - histogram_seconds
        return Seconds(moments, histogram_seconds, self._keep(new, step) if plan.snapshot else 0.0)

    def _keep(self, tensors: Tensors, step: int) -> float:
        if not self._keeps_snapshots:
            return 0.0
        started = perf_counter()
        arrays: dict[str, list[Array]] = {}
        for name, _, array in tensors:
            arrays.setdefault(name, []).append(array)
        whole = {name: numpy.stack(many) for name, many in arrays.items()}
        written = tensors_snapshot.save(self._run, whole, "weights", step)
        return perf_counter() - started + written


def _tensors(booster: xgboost.Booster) -> Tensors:
    weights, bias = linear_weights(read(booster.save_raw("ubj"))["learner"])
    return [
        (name, canonical_json(class_context(number, bias)), numpy.asarray(array))
        for name, table in (("weight", weights.T), ("bias", bias))
        for number, array in enumerate(table)
    ]
