"""Weights and gradients of one fit: when they are recorded, from where, and what cannot be.

Steps are tapped; where they cannot be, the weights are recorded at the ends of epochs. Gradients
are always those of the training's own steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import keras
import numpy as np

from tachograph.callbacks import keras_facts as facts
from tachograph.callbacks import tensors_host, tensors_snapshot
from tachograph.callbacks.base import Recording, hook
from tachograph.callbacks.keras_record import (
    Found,
    Named,
    Part,
    frozen_weights,
    key,
    log,
    named,
    not_trained,
)
from tachograph.callbacks.keras_tap import Tap, obstacle
from tachograph.callbacks.tensors_host import Meter
from tachograph.callbacks.tensors_pace import Plan, Schedule
from tachograph.run import Run


@dataclass(frozen=True, slots=True)
class _Pending:
    """What a step has put out, before it is recorded."""

    found: Found
    number: int
    epoch: int
    snapshot_seconds: float


class KerasTensors:
    """Records weights and gradients of one fit.

    Parameters
    ----------
    recording : Recording
    run : Run
    model : keras.Model
        About to be trained; no reference to it is kept.

    Attributes
    ----------
    waits : bool
        Whether the device is waited for at recorded steps, so that their cost is known.
    """

    def __init__(self, recording: Recording, run: Run, model: Any) -> None:
        self._recording = recording
        self._run = run
        self._weights = recording.level("weights")
        self._gradients = recording.level("gradients")
        self._schedule: Schedule | None = recording.schedule()
        self._pending: deque[_Pending] = deque()
        self._accumulates = facts.batches_per_step(model)
        self._batches = 0  # that the optimizer has been given, with those of the next call
        self._epoch = 0
        self._said: set[str] = set()
        self._meter = Meter()
        self._tap: Tap | None = None
        self.waits = self._schedule is not None and self._schedule.moments.is_auto
        self._has_begun = not self.waits
        reason = obstacle(model)
        if reason is None:
            self._install(model)
        else:
            self.without_steps(reason)

    def _install(self, model: Any) -> None:
        wanted = {"weights": self._weights != "off", "gradients": self._gradients != "off"}
        try:
            self._tap = Tap(self, model, **wanted)
        except Exception as error:  # a model with a way of its own to make its functions
            self.without_steps(str(error))
        else:
            model.train_function.call = self._tap

    # ------------------------------------------------------------------ what the fit tells

    @hook
    def epoch_begins(self, model: Any, epoch: int, step: int) -> None:
        """Count from here; `step` are the optimizer's steps so far."""
        done = facts.batches_done(model)
        self._batches = step * self._accumulates if done is None else done
        self._epoch = epoch
        if self._tap is not None:
            self._tap.mark()

    @hook
    def batch_ended(self) -> None:
        """Record what has arrived."""
        pending = self._pending
        while pending and pending[0].found.has_arrived(behind=len(pending) - 1):
            self._record(pending.popleft())

    @hook
    def epoch_ended(self, model: Any, step: int, epoch: int) -> None:
        """Record weights where no step is tapped; no callback has changed them yet."""
        self._arrive()
        if self._tap is None and self._schedule is not None and self._weights != "off":
            plan = self._schedule.plan(step)
            if plan is not None:
                self._record_weights(model, named(model.variables), plan, step, epoch)

    @hook
    def ended(self, model: Any, step: int, epoch: int) -> None:
        """Record what has not been yet, and what the fit has led to."""
        self._arrive()
        if self._schedule is None or self._weights == "off" or model is None:
            return
        has_records = bool(self._schedule.moments.records)
        variables = frozen_weights(model) if has_records else named(model.variables)
        plan = Plan(histograms=True, snapshot=False)
        if variables:
            self._record_weights(model, variables, plan, step, epoch)
        if self._weights == "full":
            self._snapshot_weights(model, step)

    @hook
    def close(self) -> None:
        """Record what has arrived or is about to, and let go of everything."""
        self._arrive()
        self._tap, self._schedule = None, None

    # ------------------------------------------------------------------ what the tap tells

    def plan(self, batches: int) -> Plan | None:
        """What to record of the call that comes next and takes so many batches."""
        self._batches += batches
        if not self._has_begun or self._schedule is None or self._batches % self._accumulates:
            return None
        plan: Plan | None = self._recording.call(
            "KerasCallback, before a step", self._schedule.plan, self._number
        )
        return plan

    @hook
    def begun(self, moments: float, others: float) -> None:
        """The first step has been done; a first record will take about so many seconds."""
        if not self._has_begun:
            self._has_begun = True
            self._schedule = self._recording.schedule(moments)
            rest = self._recording.schedule(others)
            if self._schedule is not None and rest is not None:
                self._schedule.histograms, self._schedule.snapshots = (
                    rest.histograms,
                    rest.snapshots,
                )

    @hook
    def take(self, found: Found, plan: Plan, seconds: float) -> None:
        """What a tapped call has found, and how much longer it took than others."""
        found.moment_seconds += seconds
        self._recording.hook_seconds += seconds
        snapshot = self._snapshot(found) if plan.snapshot else 0.0
        self._pending.append(_Pending(found, self._number, self._epoch, snapshot))

    @hook
    def without_gradients(self, reason: str) -> None:
        """Say once why steps are recorded without gradients."""
        self._say(reason, "gradients are not recorded")

    @hook
    def without_steps(self, reason: str) -> None:
        """Say once why no step is recorded; weights are at the ends of epochs."""
        self._tap = None
        self._say(reason, "weights are recorded at the ends of epochs, and gradients not at all")

    def _say(self, reason: str, what: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self._run.event(
                "warning", f"{what}: {reason}", level="warning", data={"reason": reason}
            )

    @property
    def _number(self) -> int:
        """The optimizer's step that the present call does, or the last of several."""
        return self._batches // self._accumulates

    # ------------------------------------------------------------------ the record

    def _arrive(self) -> None:
        while self._pending:
            self._record(self._pending.popleft())

    def _record(self, pending: _Pending) -> None:
        found = pending.found
        started, before = perf_counter(), found.moment_seconds + found.histogram_seconds
        parts = list(found.parts())
        step = found.step()
        log(self._run, parts, pending.number if step is None else step, pending.epoch)
        measured = found.moment_seconds + found.histogram_seconds - before
        moments = found.moment_seconds + max(0.0, perf_counter() - started - measured)
        if self._schedule is not None:
            self._schedule.spent(
                pending.number, moments, found.histogram_seconds, pending.snapshot_seconds
            )

    def _record_weights(
        self, model: Any, variables: Sequence[Named], plan: Plan, step: int, epoch: int
    ) -> None:
        started = perf_counter()
        arrays = [np.asarray(keras.ops.convert_to_numpy(one.value)) for _, one in variables]
        keys = tuple(key(name, "weight", one) for name, one in variables)
        numbers = self._meter.measure_all(arrays)
        moments, started = perf_counter() - started, perf_counter()
        found = [tensors_host.histogram(array) for array in arrays] if plan.histograms else None
        histograms = perf_counter() - started if plan.histograms else 0.0
        log(self._run, [Part(keys, numbers, found)], step, epoch)
        snapshot = self._snapshot_weights(model, step) if plan.snapshot else 0.0
        if self._schedule is not None:
            self._schedule.spent(step, moments, histograms, snapshot)

    def _snapshot(self, found: Found) -> float:
        started, later = perf_counter(), 0.0
        levels = {"weights": self._weights, "gradients": self._gradients}
        for kind, tensors in found.tensors().items():
            if levels[kind] == "full" and tensors:
                later += tensors_snapshot.save(self._run, tensors, kind, self._number)
        return perf_counter() - started + later

    def _snapshot_weights(self, model: Any, step: int) -> float:
        started = perf_counter()
        variables = [*named(model.trainable_variables), *not_trained(model), *frozen_weights(model)]
        tensors = {name: keras.ops.convert_to_numpy(one.value) for name, one in variables}
        later = tensors_snapshot.save(self._run, tensors, "weights", step)
        return perf_counter() - started + later
