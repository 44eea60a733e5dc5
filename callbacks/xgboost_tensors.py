"""When the gradients, trees and weights of a training are recorded, and from what.

One training has a booster, or one for each fold of a cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy
import xgboost

from tachograph.callbacks.base import Recording, hook
from tachograph.callbacks.tensors_pace import Plan
from tachograph.callbacks.xgboost_facts import pairs
from tachograph.callbacks.xgboost_gradients import NAME, GradientRecord, Tap, tables_of
from tachograph.callbacks.xgboost_growth import GrowthRecord
from tachograph.callbacks.xgboost_linear import LinearRecord
from tachograph.callbacks.xgboost_objective import Settings
from tachograph.run import Run

_SECONDS_A_ROW = 1e-8
"""What statistics of gradients take about; the first time, before it has been measured."""


_KEPT_ROWS = 1_000_000
"""Of so many rows labels and weights are read once; to read them takes longer than a round may."""

_GRADIENTS_SHARE = 0.4
"""Of the budget, where trees are recorded too."""


@dataclass
class _Part:
    """What records one booster, and what is known of it: settings, labels and weights."""

    gradients: GradientRecord
    growth: GrowthRecord
    linear: LinearRecord
    settings: Settings | None = None
    kept: tuple[Any, Any] | None = None

    def labels_and_weights(self, matrix: Any) -> tuple[Any, Any]:
        """Those of all rows; weights are empty where there are none."""
        found = self.kept or (_on_host(matrix.get_label()), _on_host(matrix.get_weight()))
        if matrix.num_row() <= _KEPT_ROWS:
            self.kept = found
        return found


class TensorRecord:
    """The tensors of one training.

    A method returns True, and None where it failed: then the training is not to ask again.

    Parameters
    ----------
    recording : Recording
    runs : sequence of Run
        Of the training, or of each fold.
    model : Booster or what holds a booster for each fold
    matrix : DMatrix or None
        What it is trained with; without it there are no gradients.
    first : int
        The step of the first round.
    has_objective : bool
        Whether the objective is the user's own.
    """

    def __init__(
        self,
        recording: Recording,
        runs: Sequence[Run],
        model: Any,
        matrix: Any,
        first: int,
        has_objective: bool,
    ) -> None:
        self._recording = recording
        self._has_objective = has_objective
        self._wants_weights = recording.level("weights") != "off"
        self._wants_gradients = recording.level("gradients") != "off"
        shares = (
            (_GRADIENTS_SHARE, 1 - _GRADIENTS_SHARE)
            if self._wants_weights and self._wants_gradients
            else (1.0, 1.0)
        )
        rows = sum(one.num_row() for _, one in pairs(model, matrix) if one is not None)
        self._schedule = recording.schedule(rows * _SECONDS_A_ROW, share=shares[0])
        self._plan: Plan | None = None
        self._seconds = self._histogram_seconds = self._snapshot_seconds = 0.0
        self._objective_calls = 0
        self.seconds_in_round = 0.0
        self._parts = [self._part(run, first, shares[1] / len(runs)) for run in runs]

    def _part(self, run: Run, first: int, share: float) -> _Part:
        record = run.config.record
        given = self._recording.every
        every = record.every if given is None else given
        is_shard = xgboost.collective.get_world_size() > 1
        return _Part(
            GradientRecord(
                run,
                {"scope": "rank"} if is_shard else {},
                self._recording.level("gradients") == "full",
            ),
            GrowthRecord(run, first, every, record.budget * share),
            LinearRecord(run, self._recording.level("weights") == "full"),
        )

    # ------------------------------------------------------------------ rounds

    @hook
    def round_begins(self, step: int, model: Any, matrix: Any) -> bool:
        """Plan the round, and record the gradients that it will use, where they are known."""
        started = perf_counter()
        self._seconds = self._histogram_seconds = self._snapshot_seconds = 0.0
        self._objective_calls, self.seconds_in_round = 0, 0.0
        self._plan = None if self._schedule is None else self._schedule.plan(step)
        if self._plan is not None:
            for part, (booster, data) in zip(self._parts, pairs(model, matrix), strict=True):
                self._begin(part, booster, data, step)
        self._seconds += perf_counter() - started
        return True

    def _begin(self, part: _Part, booster: xgboost.Booster, matrix: Any, step: int) -> None:
        if step == 0:  # XGBoost estimates the base then; and being asked, it seeds its generator
            return
        if part.settings is None:
            part.settings = Settings.read(booster.save_config())
        if self._wants_weights and part.settings.booster == "gblinear":
            part.linear.round_begins(booster)
        if self._computes_gradients(matrix):
            predicted = booster.predict(
                matrix, output_margin=True, training=False, validate_features=False
            )
            margin = numpy.ascontiguousarray(predicted.reshape(matrix.num_row(), -1).T)
            self._log_gradients(part, part.settings, margin, matrix, step)

    def tap(self, objective: Any, step: int) -> Any:
        """The user's objective, so that its gradients are recorded where that is planned."""
        if self._plan is None or not self._wants_gradients:
            return objective
        return Tap(objective, partial(self._saw, step))

    @hook
    def _saw(self, step: int, found: Any, matrix: Any) -> None:
        started = perf_counter()
        part = self._parts[self._objective_calls % len(self._parts)]
        self._objective_calls += 1
        tables = tables_of(found, matrix)
        if tables:
            self._log(part, tables, NAME, step)
        self.seconds_in_round += perf_counter() - started

    @hook
    def round_ended(self, step: int, model: Any, matrix: Any) -> bool:
        """Record what the round made."""
        started = perf_counter()
        plan = self._plan
        for part, (booster, data) in zip(self._parts, pairs(model, matrix), strict=True):
            if part.settings is None:
                part.settings = Settings.read(booster.save_config())
                if plan is not None:
                    self._begin_late(part, part.settings, data, step)
            if plan is not None:
                self._end(part, part.settings, booster, step, plan)
        self._seconds += perf_counter() - started + self.seconds_in_round
        if plan is not None and self._schedule is not None:
            histograms, snapshot = self._histogram_seconds, self._snapshot_seconds
            moments = max(0.0, self._seconds - histograms - snapshot)  # some is beside the training
            self._schedule.spent(step, moments, histograms, snapshot)
        self._grow(step + 1, model)
        return True

    def _begin_late(self, part: _Part, settings: Settings, matrix: Any, step: int) -> None:
        """Record the gradients of the first round, whose margins are known only after it."""
        if self._computes_gradients(matrix):
            margin = settings.first_margin(matrix.num_row(), _on_host(matrix.get_base_margin()))
            self._log_gradients(part, settings, margin, matrix, step)

    def _end(
        self, part: _Part, settings: Settings, booster: xgboost.Booster, step: int, plan: Plan
    ) -> None:
        if not self._wants_weights:
            return
        if settings.booster == "gblinear":
            histograms, snapshot = part.linear.round_ended(booster, step, plan)
            self._histogram_seconds += histograms
            self._snapshot_seconds += snapshot
        elif plan.histograms:
            part.growth.want_histogram(step)

    # ------------------------------------------------------------------ the end

    @hook
    def ended(self, end: int, model: Any) -> bool:
        """Record the trees that have not been read yet; `end` is the step after the last."""
        self._grow(end, model, final=True)
        return True

    def _grow(self, end: int, model: Any, *, final: bool = False) -> None:
        if not self._wants_weights:
            return
        for part, (booster, _) in zip(self._parts, pairs(model), strict=True):
            if part.settings is None or part.settings.booster == "gblinear":
                continue
            if final:
                part.growth.flush(booster, end, final=True)
            else:
                part.growth.round_ended(booster, end)

    # ------------------------------------------------------------------ gradients

    def _computes_gradients(self, matrix: Any) -> bool:
        """Whether gradients are to be found from margins; a user's objective shows its own."""
        return self._wants_gradients and not self._has_objective and _has_all_columns(matrix)

    def _log_gradients(
        self, part: _Part, settings: Settings, margin: Any, matrix: Any, step: int
    ) -> None:
        if not settings.is_known:
            self._log(part, {"activation": margin}, "margin", step)
            return
        gradient, hessian = settings.gradients(margin, *part.labels_and_weights(matrix))
        self._log(part, {"gradient": gradient, "hessian": hessian}, NAME, step)

    def _log(self, part: _Part, tables: dict[str, Any], name: str, step: int) -> None:
        if self._plan is not None:
            histograms, snapshot = part.gradients.log(tables, name, step, self._plan)
            self._histogram_seconds += histograms
            self._snapshot_seconds += snapshot


def _has_all_columns(matrix: Any) -> bool:
    """Whether this process can predict alone; of columns spread over several it cannot."""
    if matrix is None or xgboost.collective.get_world_size() == 1:
        return matrix is not None
    return bool(matrix.data_split_mode() == xgboost.core.DataSplitMode.ROW)


def _on_host(array: Any) -> Any:
    """An array of numpy, which XGBoost gives unless the data came from an accelerator."""
    return array if isinstance(array, numpy.ndarray) else array.get()
