"""The points of a trial, each once, whoever records them.

Points of a study that other processes may see go under a writer derived from the trial, where
the number of a report is its step, and the values come behind: whichever process sends them
first, and however often, a store takes them once. A study in this process's memory needs none of
that, and costs less: who records here is known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from tachograph.callbacks import optuna_facts as facts
from tachograph.identity import derived_id
from tachograph.records import now_us
from tachograph.run import Run

INTERMEDIATE = "intermediate_value"
_LARGEST_STEP = 1 << 37  # a store numbers no more records of a writer


@dataclass(frozen=True)
class Points:
    """Records the points of trials of one study.

    Attributes
    ----------
    study_run : Run
        Gets the best values.
    names : sequence of str
        Of the objectives.
    shared : bool
        Whether other processes may see the study.
    """

    study_run: Run
    names: Sequence[str]
    shared: bool

    def log_report(self, run: Run, step: int, value: float, *, in_order: bool) -> None:
        """Record an intermediate value as it is reported, unless it has to wait for `log_late`."""
        if not self.shared:
            run.log({INTERMEDIATE: value}, step=step)
        elif in_order:
            _log_derived(run, [(step, value)], now_us())

    def log_late(self, run: Run, reports: Iterable[tuple[int, float]]) -> None:
        """Record reports whose step was behind an earlier one's, and so their number."""
        if self.shared:
            _log_derived(run, sorted(reports), now_us(), "late")

    def log_trial(
        self, run: Run, trial: FrozenTrial, sent: Collection[int], *, is_best: bool
    ) -> None:
        """Record what a trial reported, but for the steps `sent`, and its values."""
        reports = sorted(pair for pair in trial.intermediate_values.items() if pair[0] not in sent)
        values = self._values(trial)
        last = trial.last_step or 0
        if self.shared:
            at = facts.microseconds(trial.datetime_complete) or now_us()
            _log_derived(run, reports, at)
            self._log_values(run, trial, values, at, is_best=is_best)
        elif trial.state.is_finished():
            for step, value in reports:
                run.log({INTERMEDIATE: value}, step=step)
            if values:
                run.log(values, step=last)
            if is_best:
                self.study_run.log({"best_value": values[self.names[0]]}, step=trial.number)

    def _log_values(
        self, run: Run, trial: FrozenTrial, values: dict[str, float], at: int, *, is_best: bool
    ) -> None:
        last = trial.last_step
        behind = 0 if last is None else min(last, _LARGEST_STEP) + 1
        if values:
            row = (behind, at, last or 0, None, [*values.values()])
            run.log_derived(derived_id(run.run_id, "points"), [*values], [row])
        if is_best:  # which depends on who looks, so it is numbered apart
            best = (0, at, trial.number, None, [values[self.names[0]]])
            writer = derived_id(run.run_id, "best")
            self.study_run.log_derived(writer, ["best_value"], [best])

    def _values(self, trial: FrozenTrial) -> dict[str, float]:
        """Objectives and constraints; a pruned trial's value is only its last report."""
        if trial.state != TrialState.COMPLETE or trial.values is None:
            return {}
        held = {f"constraint/{name}": v for name, v in facts.constraints(trial).items()}
        return dict(zip(self.names, trial.values, strict=False)) | held


def _log_derived(
    run: Run, reports: Iterable[tuple[int, float]], at: int, name: str = "points"
) -> None:
    rows = [(step, at, step, None, [value]) for step, value in reports if step < _LARGEST_STEP]
    if rows:
        run.log_derived(derived_id(run.run_id, name), [INTERMEDIATE], rows)
