"""What the steps of one torch optimizer do: gradients, weights and updates, at chosen steps.

Knows an optimizer of torch by its parameters, and no trainer: who trains says when the gradients
are there, and when a step begins and has been done.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from tachograph.callbacks import tensors_snapshot
from tachograph.callbacks.tensors_pace import Plan, Schedule
from tachograph.callbacks.tensors_step import Keys, Member, StepRecord, Where
from tachograph.callbacks.tensors_torch import TorchMeter, is_capturing, is_sharded, local_part
from tachograph.run import Run
from tachograph.values import canonical_json

_SECONDS_AN_ELEMENT = 5e-9  # of moments of gradient, weight and update together, about
_SECONDS_A_TENSOR = 60e-6


@dataclass(frozen=True, slots=True)
class Settings:
    """What of an optimizer's steps is recorded, and how it is told apart.

    Attributes
    ----------
    weights, gradients : str
        'off', 'stats' or 'full'.
    updates : bool
        Whether updates of the weights are recorded with them; takes a copy of the weights.
    context : mapping
        What sets these tensors apart from those of another optimizer.
    metric_context : mapping
        Context of the metrics `gradient_norm` and `gradient_norm_clipped`.
    clips : bool
        Whether gradients may change between `gradients_ready` and the step.
    rank : int
        Other ranks than 0 record what they alone hold.
    sharded : bool
        Whether each rank holds parts of tensors that do not say so themselves.
    """

    weights: str = "stats"
    gradients: str = "stats"
    updates: bool = True
    context: Mapping[str, Any] = field(default_factory=dict)
    metric_context: Mapping[str, Any] = field(default_factory=dict)
    clips: bool = False
    rank: int = 0
    sharded: bool = False

    def holds_alone(self, tensor: Any) -> bool:
        """Whether this rank has another part of a tensor than the other ranks."""
        return self.sharded or is_sharded(tensor)

    def folders(self) -> list[str]:
        """What sets snapshots apart from those of other optimizers and ranks at the same step."""
        apart = dict(self.context) | ({"rank": self.rank} if self.rank else {})
        return [f"{name}-{number}" for name, number in apart.items()]

    def context_of(self, stage: str, tensor: Any) -> str:
        """The context of a tensor in the record."""
        found = dict(self.context)
        if stage:
            found["stage"] = stage
        if self.holds_alone(tensor):
            found["scope"] = "rank"
        return canonical_json(found)


def estimate(parameters: Sequence[Any]) -> float:
    """Seconds that a record of these parameters will take about, where no device helps."""
    elements = sum(parameter.numel() for parameter in parameters if parameter.is_cpu)
    return float(elements * _SECONDS_AN_ELEMENT + len(parameters) * _SECONDS_A_TENSOR)


class OptimizerWatch:
    """Records what the steps of one optimizer do.

    Parameters
    ----------
    run : Run
    optimizer : torch.optim.Optimizer
    names : mapping of int to str
        Name of each parameter by its `id`.
    schedule : Schedule
        Which of the optimizer's steps are recorded, by their number from 1.
    settings : Settings
    done : int, default 0
        Steps that the optimizer has done before.
    """

    def __init__(
        self,
        run: Run,
        optimizer: Any,
        names: Mapping[int, str],
        schedule: Schedule,
        settings: Settings,
        *,
        done: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self._run = run
        self._names = names
        self._schedule = schedule
        self._settings = settings
        self._meter = TorchMeter()
        self._keys = Keys(settings.context_of)
        self._number = self._first = done + 1  # of the step that comes next
        self._is_planned = False
        self._is_begun = False
        self._step: StepRecord | None = None
        self._copies: list[Any] = []  # memory for the weights before a step
        self._old: list[Any] | None = None
        self._waiting: deque[StepRecord] = deque()
        self._kept_step = -1  # of the last snapshot

    @property
    def number(self) -> int:
        """Number of the step that comes next."""
        return self._number

    # ------------------------------------------------------------------ what happens in a step

    def plan(self, where: Callable[[], Where]) -> StepRecord | None:
        """The record of the step that comes next; None where it is not recorded.

        Decided once for each step, at whatever of it is seen first; where it belongs to is what
        was said last.
        """
        if not self._is_planned:
            self._is_planned = True
            plan = None if is_capturing() else self._schedule.plan(self._number)
            self._step = None if plan is None else StepRecord(where(), plan, self._number)
        elif self._step is not None:
            self._step.where = where()
        return self._step

    def gradients_ready(self) -> None:
        """Measure the gradients that are there now, before they are clipped."""
        self._is_begun = True
        step = self._step
        if step is not None and not step.has("gradient"):
            with _timed(step):
                self._measure_gradients(step)

    def step_begins(self) -> None:
        """Keep the weights as they are before the step."""
        self._is_begun = True
        step = self._step
        if step is not None and self._settings.weights != "off" and self._settings.updates:
            with _timed(step):
                self._old = self._copy([member.part for member in self._weights()])

    def step_ended(self, frozen: Sequence[Member] = ()) -> None:
        """Measure what the step has done; `frozen` are further weights to record.

        Does nothing where no step has begun: an optimizer whose step calls that of its base class
        tells of each step twice.
        """
        if not self._is_begun:
            return
        step, self._step = self._step, None
        self._number += 1
        self._is_planned = self._is_begun = False
        if step is None:
            return
        try:
            with _timed(step):
                if not step.has("gradient"):
                    self._measure_gradients(step)
                elif self._settings.clips:
                    self._measure_gradients(step, "clipped")
                self._measure_weights(step, frozen)
            if step.plan.snapshot:
                step.snapshot_seconds = self._snapshot(step.where[0])
        finally:
            self._finish(step)

    def start_over(self) -> None:
        """Forget what was measured of a step that begins again: one that failed may be tried anew.

        So begins, too, the step of an optimizer that calls that of its base class.
        """
        if self._step is not None:
            self._step.start_over()

    @property
    def has_begun(self) -> bool:
        """Whether a step has begun and is not done."""
        return self._is_begun

    @property
    def has_stepped(self) -> bool:
        """Whether a step has been done since the watch began."""
        return self._number > self._first

    def leave_out(self) -> None:
        """Record what there is of a step that has begun and is not going to be done.

        A scaler of gradients does not let a step be done where some are infinite.
        """
        step, self._step, self._old = self._step, None, None
        if step is not None:
            self._finish(step)
        self._is_planned = self._is_begun = False

    def add_activation(self, member: Member) -> None:
        """Measure the output of a module in the step that comes next, if that is recorded."""
        if self._step is not None:
            with _timed(self._step):
                self._step.add(self._meter, self._keys, "activation", [member])

    # ------------------------------------------------------------------ the record

    def arrive(self, *, wait: bool = False) -> None:
        """Record what has come from a device by now; all that is on its way with `wait`."""
        waiting = self._waiting
        while waiting and (wait or waiting[0].has_arrived(behind=len(waiting) - 1)):
            step, started = waiting.popleft(), perf_counter()
            try:
                step.log(self._run, self._settings.metric_context)
            finally:
                self._schedule.late(step.device_seconds(), perf_counter() - started)

    def end(self, where: Where) -> None:
        """Record what is on its way, and the weights where no step has been recorded."""
        self._copies, self._old = [], None
        self.arrive(wait=True)
        if not self.has_stepped:
            return
        if not self._schedule.moments.records:
            step = StepRecord(where, Plan(histograms=True, snapshot=False), self._number)
            self._measure_weights(step, ())
            step.log(self._run, self._settings.metric_context)
        self._snapshot(where[0])

    def _finish(self, step: StepRecord) -> None:
        histograms = step.histogram_seconds
        moments = step.seconds - histograms
        self._schedule.spent(step.number, moments, histograms, step.snapshot_seconds)
        self._waiting.append(step)
        self.arrive()

    def _snapshot(self, step: int) -> float:
        if step == self._kept_step:
            return 0.0
        self._kept_step = step
        seconds, started = 0.0, perf_counter()
        levels = {"weights": self._settings.weights, "gradients": self._settings.gradients}
        for kind, members in (("weights", self._weights()), ("gradients", self._gradients())):
            if levels[kind] != "full":
                continue
            tensors = {member.name: member.part for member in members}
            for name, whole, _ in members:
                if whole.is_sparse:
                    tensors[f"{name}.indices"] = whole.detach().coalesce().indices()
            if tensors:
                folder = "/".join((kind, *self._settings.folders()))
                seconds += tensors_snapshot.save(self._run, tensors, folder, step)
        return seconds + perf_counter() - started

    # ------------------------------------------------------------------ measuring

    def _measure_gradients(self, step: StepRecord, stage: str = "") -> None:
        if self._settings.gradients != "off":
            step.add(self._meter, self._keys, "gradient", self._gradients(), stage)

    def _measure_weights(self, step: StepRecord, frozen: Sequence[Member]) -> None:
        old, self._old = self._old, None
        if self._settings.weights == "off":
            return
        members = self._weights()
        if old is not None and _alike(old, [member.part for member in members]):
            step.add_changes(self._meter, self._keys, members, old)
        else:
            step.add(self._meter, self._keys, "weight", members)
        if frozen:
            step.add(self._meter, self._keys, "weight", frozen)

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        """Parameters and their names; one that the model does not name has its number."""
        groups = self.optimizer.param_groups
        for number, parameter in enumerate(one for group in groups for one in group["params"]):
            if not self._settings.rank or self._settings.holds_alone(parameter):
                yield self._names.get(id(parameter), f"parameter_{number}"), parameter

    def _weights(self) -> list[Member]:
        return [
            Member(name, parameter, part)
            for name, parameter in self._parameters()
            if (part := local_part(parameter)) is not None
        ]

    def _gradients(self) -> list[Member]:
        return [
            Member(name, parameter.grad, part)
            for name, parameter in self._parameters()
            if (part := local_part(parameter.grad)) is not None
        ]

    def _copy(self, parts: list[Any]) -> list[Any]:
        torch = sys.modules["torch"]
        if not _alike(self._copies, parts):
            self._copies = [torch.empty_like(part) for part in parts]
        if parts:
            torch._foreach_copy_(self._copies, parts)
        return self._copies


@contextlib.contextmanager
def _timed(step: StepRecord) -> Iterator[None]:
    started = perf_counter()
    try:
        yield
    finally:
        step.seconds += perf_counter() - started


def _alike(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape and one.device == other.device and one.dtype == other.dtype
        for one, other in zip(some, others, strict=True)
    )
