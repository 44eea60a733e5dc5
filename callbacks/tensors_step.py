"""The record of one step: tensors of some kinds, measured here or on an accelerator, then logged.

Knows torch tensors and `Run`, no optimizer and no trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tachograph.callbacks.tensors_pace import Plan
from tachograph.callbacks.tensors_torch import Measured, TorchMeter, key
from tachograph.run import Run
from tachograph.tensors.records import STATISTICS, TensorKey

_L2, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "nan", "inf"))
_REMEMBERED = 1_000

Where = tuple[int, float | None]
"""Step and epoch, where there are epochs."""


class Member(NamedTuple):
    """A tensor to measure: its name, the tensor as the framework has it, what is here of it."""

    name: str
    whole: Any
    part: Any


class Part(NamedTuple):
    """Tensors of one kind on one device, measured at one step."""

    kind: str
    stage: str
    keys: tuple[TensorKey, ...]
    measured: Measured


class Keys:
    """What tensors are, remembered from step to step: telling takes longer than measuring.

    Parameters
    ----------
    context : callable
        From a stage ('' or 'clipped') and a tensor to its context, canonical JSON.
    """

    def __init__(self, context: Callable[[str, Any], str]) -> None:
        self._context = context
        self._known: dict[tuple[Any, ...], tuple[TensorKey, ...]] = {}

    def of(self, kind: str, stage: str, members: Sequence[Member]) -> tuple[TensorKey, ...]:
        """The keys of some tensors; the same tuple for the same tensors."""
        mark = (kind, stage, *((name, part.shape, part.dtype) for name, _, part in members))
        found = self._known.get(mark)
        if found is None:
            if len(self._known) >= _REMEMBERED:  # sparse gradients have another shape each time
                self._known.clear()
            found = self._known[mark] = tuple(
                key(name, kind, whole, part, self._context(stage, whole))
                for name, whole, part in members
            )
        return found


@dataclass(slots=True)
class StepRecord:
    """What is recorded of one step.

    Attributes
    ----------
    where : (int, float or None)
        Step and epoch.
    plan : Plan
    number : int
        The step as its schedule counts.
    seconds, snapshot_seconds : float
        What it took of the training's time so far.
    """

    where: Where
    plan: Plan
    number: int
    seconds: float = 0.0
    snapshot_seconds: float = 0.0
    _parts: list[Part] = field(default_factory=list)

    def add(
        self, meter: TorchMeter, keys: Keys, kind: str, members: Sequence[Member], stage: str = ""
    ) -> None:
        """Measure tensors, with histograms where they are planned and nothing was clipped."""
        for group in _together(members):
            parts = [member.part for member in group]
            histograms = self.plan.histograms and not stage
            measured = meter.measure(parts, histograms=histograms)
            self._parts.append(Part(kind, stage, keys.of(kind, stage, group), measured))

    def add_changes(
        self, meter: TorchMeter, keys: Keys, members: Sequence[Member], old: Sequence[Any]
    ) -> None:
        """Measure weights, and the updates that made them out of `old`."""
        earlier = {id(member.whole): before for member, before in zip(members, old, strict=True)}
        for group in _together(members):
            weights, updates = meter.measure_changes(
                [member.part for member in group],
                [earlier[id(member.whole)] for member in group],
                histograms=self.plan.histograms,
            )
            for kind, measured in (("update", updates), ("weight", weights)):
                self._parts.append(Part(kind, "", keys.of(kind, "", group), measured))

    def start_over(self) -> None:
        """Forget what has been measured."""
        self._parts.clear()

    def has(self, kind: str) -> bool:
        """Whether tensors of a kind have been measured."""
        return any(part.kind == kind for part in self._parts)

    @property
    def histogram_seconds(self) -> float:
        """What histograms took of `seconds`."""
        return sum(part.measured.histogram_seconds for part in self._parts)

    def device_seconds(self) -> float:
        """What a device worked on it; known when it has arrived."""
        return sum(part.measured.device_seconds() for part in self._parts)

    def has_arrived(self, behind: int) -> bool:
        """Whether it can be logged without waiting; `behind` were sent to a device later."""
        return all(part.measured.has_arrived(behind) for part in self._parts)

    def log(self, run: Run, metric_context: Mapping[str, Any]) -> None:
        """Record it."""
        step, epoch = self.where
        squares: dict[str, float] = {}
        for part in self._parts:
            numbers = part.measured.numbers()
            histograms = part.measured.histograms()
            run.log_statistics(
                part.keys, numbers.tobytes(), step, epoch=epoch, histograms=histograms
            )
            if part.kind == "gradient":
                name = "gradient_norm_clipped" if part.stage == "clipped" else "gradient_norm"
                squares[name] = squares.get(name, 0.0) + _square_of_norm(numbers)
        if any('"scope"' in key.context for part in self._parts for key in part.keys):
            metric_context = {**metric_context, "scope": "rank"}  # a norm of what is here
        for name, square in squares.items():
            run.log({name: math.sqrt(square)}, step, epoch=epoch, context=metric_context)


def _square_of_norm(numbers: Any) -> float:
    if numbers[:, _NAN].any():
        return math.nan
    if numbers[:, _INF].any():
        return math.inf
    l2 = numbers[:, _L2]
    return float((l2[l2 == l2] ** 2).sum())  # NaN is that of a tensor without elements


def _together(members: Sequence[Member]) -> list[list[Member]]:
    """What can be measured in one go; apart from it what has another shape at each step."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault((member.part.device, member.whole.is_sparse), []).append(member)
    return list(groups.values())
