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
from tachograph.callbacks.xgboost_gradients import (
    NAME,
    GradientRecord,
    Seconds,
    Tables,
    Tap,
    tables_of,
)
from tachograph.callbacks.xgboost_growth import GrowthRecord
from tachograph.callbacks.xgboost_linear import LinearRecord
from tachograph.callbacks.xgboost_objective import Settings
from tachograph.run import Run

BATCH_SECONDS = 1.0
"""Trees are read at most this often."""

_SECONDS_A_ROW = 1e-8
"""What statistics of gradients take about; the first time, before it has been measured."""


BESIDE_VALUES = 50_000
"""Of so many margins, gradients are computed beside the round that XGBoost computes them for."""

_KEPT_ROWS = 1_000_000
"""Of so many rows labels and weights are read once; to read them takes longer than a round may."""

_SHARES = (0.4, 0.5)
"""Of the budget for gradients and for trees, where both are recorded; the rest is for looking
whether something is due."""


@dataclass
class _Part:
    """What records one booster, and what is known of it: settings, labels and weights."""

    gradients: GradientRecord
    growth: GrowthRecord
    linear: LinearRecord
    settings: Settings | None = None
    kept: tuple[Any, Any] | None = None

    def settings_of(self, booster: xgboost.Booster) -> Settings:
        """The settings; not to be asked for before the first round."""
        self.settings = self.settings or Settings.read(booster.save_config())
        return self.settings

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
        self._first = first
        self._has_objective = has_objective
        self._wants_weights = recording.level("weights") != "off"
        self._wants_gradients = recording.level("gradients") != "off"
        both = self._wants_weights and self._wants_gradients
        shares = _SHARES if both else (0.9, 0.9)
        rows = sum(one.num_row() for _, one in pairs(model, matrix) if one is not None)
        self._schedule = recording.schedule(rows * _SECONDS_A_ROW, share=shares[0])
        self._plan: Plan | None = None
        self._spent = Seconds()
        self._objective_calls = 0
        self.seconds_in_round = 0.0
        self._read_at = perf_counter()
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
        self._objective_calls, self.seconds_in_round = 0, 0.0
        self._plan = None if self._schedule is None else self._schedule.plan(step)
        # Before the first round XGBoost has estimated no base; and asked, it seeds its generator.
        if self._plan is not None and step > 0:
            for part, (booster, data) in zip(self._parts, pairs(model, matrix), strict=True):
                self._begin(part, booster, data, step, self._plan)
        return True

    def _begin(
        self, part: _Part, booster: xgboost.Booster, matrix: Any, step: int, plan: Plan
    ) -> None:
        if self._schedule is not None:
            self._schedule.late(sum(part.gradients.collect(wait=True)))
        started = perf_counter()
        settings = part.settings_of(booster)
        if self._wants_weights and settings.booster == "gblinear":
            part.linear.round_begins(booster)
        if self._computes_gradients(matrix):
            predicted = booster.predict(
                matrix, output_margin=True, training=False, validate_features=False
            )
            margin = predicted.reshape(matrix.num_row(), -1).T
            self._record_margin(part, settings, margin, matrix, step, plan, started)

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
        if tables and self._plan is not None:  # at once: they are the user's, who may change them
            part.gradients.record(lambda: tables, NAME, step, self._plan, beside=False)
        self.seconds_in_round += perf_counter() - started

    @hook
    def round_ended(self, step: int, model: Any, matrix: Any) -> bool:
        """Record what the round made."""
        plan = self._plan
        may_read = perf_counter() - self._read_at >= BATCH_SECONDS
        if plan is None and not may_read and step > 0:
            return True  # as most rounds do, where they are fast
        for part, (booster, data) in zip(self._parts, pairs(model, matrix), strict=True):
            is_first = part.settings is None
            settings = part.settings_of(booster)
            if plan is not None:
                if is_first and self._computes_gradients(data):
                    started = perf_counter()
                    rows, base = data.num_row(), _on_host(data.get_base_margin())
                    margin = settings.first_margin(rows, base)
                    self._record_margin(part, settings, margin, data, step, plan, started)
                self._end(part, settings, booster, step, plan)
        if plan is not None and self._schedule is not None:
            self._schedule.spent(step, *self._spent)
            self._spent = Seconds()
        if may_read:
            self._read_trees(step + 1, model)
        return True

    def _end(
        self, part: _Part, settings: Settings, booster: xgboost.Booster, step: int, plan: Plan
    ) -> None:
        self._spent = self._spent.and_more(part.gradients.collect())
        if not self._wants_weights:
            return
        if settings.booster == "gblinear":
            self._spent = self._spent.and_more(part.linear.round_ended(booster, step, plan))
        elif plan.histograms:
            part.growth.want_histogram(step)

    # ------------------------------------------------------------------ the end

    @hook
    def ended(self, end: int, model: Any) -> bool:
        """Record what has not been recorded yet; `end` is the step after the last."""
        for part in self._parts:
            part.gradients.close()
        self._read_trees(end, model, final=True)
        return True

    def _read_trees(self, end: int, model: Any, *, final: bool = False) -> None:
        self._read_at = perf_counter()
        if not self._wants_weights or end == self._first:
            return
        for part, (booster, _) in zip(self._parts, pairs(model), strict=True):
            if part.settings_of(booster).booster != "gblinear":
                part.growth.read(booster, end, final=final)

    # ------------------------------------------------------------------ gradients

    def _computes_gradients(self, matrix: Any) -> bool:
        """Whether gradients are to be found from margins; a user's objective shows its own."""
        return self._wants_gradients and not self._has_objective and _has_all_columns(matrix)

    def _record_margin(
        self,
        part: _Part,
        settings: Settings,
        margin: Any,
        matrix: Any,
        step: int,
        plan: Plan,
        started: float,
    ) -> None:
        """Record what follows from margins (class, row), which were asked for at `started`."""
        labels, weights = part.labels_and_weights(matrix)

        def tables() -> Tables:
            table = numpy.ascontiguousarray(margin)
            if not settings.is_known:
                return {"activation": table}
            pair = settings.gradients(table, labels, weights)
            return dict(zip(("gradient", "hessian"), pair, strict=True))

        self._spent = self._spent.and_more(Seconds(perf_counter() - started))
        name = NAME if settings.is_known else "margin"
        beside = margin.size >= BESIDE_VALUES
        part.gradients.record(tables, name, step, plan, beside=beside)


def _has_all_columns(matrix: Any) -> bool:
    """Whether this process can predict alone; of columns spread over several it cannot."""
    if matrix is None or xgboost.collective.get_world_size() == 1:
        return matrix is not None
    return bool(matrix.data_split_mode() == xgboost.core.DataSplitMode.ROW)


def _on_host(array: Any) -> Any:
    """An array of numpy, which XGBoost gives unless the data came from an accelerator."""
    return array if isinstance(array, numpy.ndarray) else array.get()
