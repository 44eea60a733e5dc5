"""The tensors of one fit: which records the budget allows, and making them.

Knows arrays and `Run`; not what in an estimator is worth measuring, nor when it is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from tachograph.callbacks import tensors_snapshot
from tachograph.callbacks.base import Recording
from tachograph.callbacks.tensors_host import Meter, histogram, key, pack
from tachograph.callbacks.tensors_pace import FREE_SECONDS, Every, Plan, Schedule
from tachograph.run import Run
from tachograph.tensors.records import STATISTICS, Pairs, TensorKey
from tachograph.values import canonical_json

_SECONDS_PER_VALUE = 1.5e-9  # of moments; a first guess, before anything was measured
_SECONDS_PER_TENSOR = 2e-5
_ALWAYS = 1e-3  # seconds that the last weights of a fit may take in any case
_HISTOGRAM = 4.0  # how many times as long as the moments it takes
_L2, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "nan", "inf"))
_OF_LEVEL = {
    "weight": "weights",
    "update": "weights",
    "gradient": "gradients",
    "hessian": "gradients",
}
_SNAPSHOTS = {"weight": "weights", "gradient": "gradients"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What to record of tensors. Pickles, so that worker processes record the same."""

    weights: str = "off"
    gradients: str = "off"
    every: Every = "auto"
    histograms: Every = "auto"
    snapshots: Every = "auto"
    budget: float = 0.02
    updates: bool = True

    @classmethod
    def of(cls, recording: Recording) -> Settings:
        """What the keywords of a callback and the configuration of its run say."""
        if not recording.active or recording.run is None:
            return cls()
        configured = recording.run.config.record
        return cls(
            recording.level("weights"),
            recording.level("gradients"),
            configured.every if recording.every is None else recording.every,
            configured.histograms,
            configured.snapshots,
            configured.budget,
            configured.updates,
        )

    @property
    def is_off(self) -> bool:
        """Whether no tensors are recorded."""
        return self.weights == self.gradients == "off"

    def wants(self, kind: str) -> bool:
        """Whether tensors of a kind are recorded."""
        if kind == "update" and not self.updates:
            return False
        return bool(getattr(self, _OF_LEVEL[kind]) != "off")

    def schedule(self, estimate: float) -> Schedule:
        """The schedule of a fit whose first record will take about `estimate` seconds."""
        return Schedule(
            every=self.every,
            histograms=self.histograms,
            snapshots=self.snapshots if "full" in (self.weights, self.gradients) else "off",
            budget=self.budget,
            estimate=estimate,
        )


class Tensor(NamedTuple):
    """A tensor to record: an update is recorded too where `old` says what a weight was before."""

    kind: str
    name: str
    array: Any
    old: Any = None
    part: Mapping[str, Any] = {}
    """What sets it apart from others of that name, such as a class."""


class _Measured(NamedTuple):
    """What was found of a tensor, or of its update."""

    kind: str
    of: Tensor
    numbers: tuple[float, ...]


class Tensors:
    """The tensors of one fit. For one thread.

    Parameters
    ----------
    run : Run
    settings : Settings
    context : mapping or None
        What sets this fit apart in its run, as for its metrics.

    Attributes
    ----------
    last_step : int or None
        Of the latest iteration that was seen.
    count : callable or None
        Is told of the schedule, to count what it spends.
    """

    def __init__(self, run: Run, settings: Settings, context: Mapping[str, Any] | None) -> None:
        self.settings = settings
        self.last_step: int | None = None
        self.count: Callable[[Schedule], None] | None = None
        self._run = run
        self._context = dict(context or {})
        self._began = perf_counter()
        self._schedule: Schedule | None = None
        self._meter: Meter | None = None
        self._keys: dict[Any, tuple[TensorKey, ...]] = {}
        self._recorded: set[int] = set()
        self._names: frozenset[str] = frozenset()
        self._kept: set[int] = set()

    def plan(self, step: int, size: int) -> Plan | None:
        """What to record at an iteration; `size` is how many values that would be, about."""
        self.last_step = step
        return self._plan(step, size)

    def _plan(self, step: int, size: int) -> Plan | None:
        if self.settings.is_off:
            return None
        if self._schedule is None:
            self._schedule = self.settings.schedule(size * _SECONDS_PER_VALUE)
            if self.count is not None:
                self.count(self._schedule)
        return self._schedule.plan(step)

    def record(
        self, step: int, plan: Plan, tensors: Sequence[Tensor], *, before: float = 0.0
    ) -> None:
        """Record an iteration; getting ready for it took `before` seconds."""
        started = perf_counter()
        tensors = [one for one in tensors if self.settings.wants(one.kind)]
        measured = self._measure(tensors)
        histograms, histogram_seconds = _histograms(tensors) if plan.histograms else (None, 0.0)
        self._log(step, measured, histograms)
        gradients = [one.numbers for one in measured if one.kind == "gradient"]
        if gradients:
            norm = {"gradient_norm": _global_norm(gradients)}
            self._run.log(norm, step=step, context=self._context)
        seconds = before + perf_counter() - started - histogram_seconds
        snapshot_seconds = self._snapshot(step, tensors) if plan.snapshot else 0.0
        self._recorded.add(step)
        self._names = frozenset(one.name for one in tensors if one.kind == "weight")
        if self._schedule is not None:
            self._schedule.spent(step, seconds, histogram_seconds, snapshot_seconds)

    def record_final(self, step: int, weights: Mapping[str, Any], *, goes_on: bool = False) -> None:
        """Record what the estimator has learned, but for what is recorded at that step already.

        Within the budget, of which a short fit has something too; as an iteration where the
        estimator `goes_on`, and this may not be the end.
        """
        tensors = [Tensor("weight", name, array) for name, array in weights.items()]
        if not tensors or not self.settings.wants("weight"):
            return
        if goes_on:
            size = sum(one.array.size for one in tensors)
            plan = self._plan(step, size) if self.last_step is None else None
            if plan is not None:
                self.record(step, plan, tensors)
            return
        known = self._names if step in self._recorded else ()
        self._record_within_budget(step, [one for one in tensors if one.name not in known])
        if isinstance(self.settings.snapshots, int | str) and self.settings.snapshots != "off":
            self._snapshot(step, tensors)

    def _record_within_budget(self, step: int, tensors: Sequence[Tensor]) -> None:
        size = sum(one.array.size for one in tensors)
        expected = size * _SECONDS_PER_VALUE + len(tensors) * _SECONDS_PER_TENSOR
        left = self._left()
        if not tensors or (self.settings.every == "auto" and expected > left):
            return
        wanted = self.settings.histograms
        wants_histograms = expected * _HISTOGRAM <= left if wanted == "auto" else wanted != "off"
        histograms = _histograms(tensors)[0] if wants_histograms else None
        self._log(step, self._measure(tensors), histograms)

    def _left(self) -> float:
        """Seconds that the budget has left for the last weights, which are worth some."""
        spent = 0.0 if self._schedule is None else self._schedule.spent_seconds
        earned = self.settings.budget * (perf_counter() - self._began)
        return max(_ALWAYS, FREE_SECONDS + earned - spent)

    def _measure(self, tensors: Sequence[Tensor]) -> list[_Measured]:
        meter = self._meter = self._meter or Meter()
        measured = []
        for one in tensors:
            if one.old is None:
                measured.append(_Measured(one.kind, one, meter.measure(one.array)))
            else:
                weight, update = meter.measure_change(one.array, one.old)
                measured += [_Measured(one.kind, one, weight), _Measured("update", one, update)]
        return measured

    def _log(
        self, step: int, measured: Sequence[_Measured], histograms: list[Pairs] | None
    ) -> None:
        if measured:
            statistics = pack([one.numbers for one in measured])
            keys = self._keys_of(measured)
            self._run.log_statistics(keys, statistics, step, histograms=histograms)

    def _keys_of(self, measured: Sequence[_Measured]) -> tuple[TensorKey, ...]:
        mark = tuple(
            (kind, one.name, one.array.shape, *one.part.values()) for kind, one, _ in measured
        )
        found = self._keys.get(mark)
        if found is None:
            found = self._keys[mark] = tuple(
                key(one.name, kind, one.array, canonical_json({**self._context, **one.part}))
                for kind, one, _ in measured
            )
        return found

    def _snapshot(self, step: int, tensors: Sequence[Tensor]) -> float:
        """Keep whole tensors; returns seconds, also those of writing that come later."""
        if step in self._kept:
            return 0.0
        self._kept.add(step)
        seconds = 0.0
        apart = [f"{name}-{value}" for name, value in self._context.items()]
        for kind, level in _SNAPSHOTS.items():
            arrays = {
                ".".join([one.name, *map(str, one.part.values())]): one.array
                for one in tensors
                if one.kind == kind
            }
            if arrays and getattr(self.settings, level) == "full":
                started = perf_counter()
                folder = "/".join([level, *apart])
                seconds += tensors_snapshot.save(self._run, arrays, folder, step)
                seconds += perf_counter() - started
        return seconds


def _histograms(tensors: Sequence[Tensor]) -> tuple[list[Pairs], float]:
    """Histograms in the order of what is measured, and the seconds that they took."""
    started = perf_counter()
    found: list[Pairs] = []
    for one in tensors:
        found.append(histogram(one.array))
        if one.old is not None:
            with np.errstate(all="ignore"):
                found.append(histogram(np.subtract(one.array, one.old)))
    return found, perf_counter() - started


def _global_norm(numbers: Sequence[tuple[float, ...]]) -> float:
    """The norm of tensors taken together, from their statistics."""
    if any(one[_NAN] for one in numbers):
        return math.nan
    if any(one[_INF] for one in numbers):
        return math.inf
    return math.sqrt(sum(one[_L2] ** 2 for one in numbers if one[_L2] == one[_L2]))
