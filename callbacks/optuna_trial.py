"""A trial whose objective runs here, and the rows of one that Optuna knows of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna import Trial
from optuna.trial import FrozenTrial

from tachograph.callbacks import optuna_facts as facts
from tachograph.callbacks.base import Recording, hook
from tachograph.run import Run

_CLOCKS_DIFFER_US = 2_000_000
FRAMEWORK = f"optuna {optuna.__version__}"


@dataclass(eq=False)
class OpenTrial:
    """A trial whose objective runs here, or ended and was not yet looked at.

    Attributes
    ----------
    steps : set of int
        What was reported.
    last_step : int
        The largest of them, -1 where there is none.
    late : list of (step, value)
        Reports that came after a larger step.
    status, reason : str or None
        How the objective ended, where that is known before Optuna says it.
    ended : float or None
        When it ended, by the monotonic clock.
    """

    number: int
    run: Run
    steps: set[int] = field(default_factory=set)
    last_step: int = -1
    late: list[tuple[int, float]] = field(default_factory=list)
    status: str | None = None
    reason: str | None = None
    ended: float | None = None


class Reports:
    """Takes the place of a trial's `report`, and passes on what goes through.

    Parameters
    ----------
    recording : Recording
        Says what went wrong in recording.
    trial : Trial
    opened : OpenTrial
    log : callable
        Gets step and value, and as `in_order` whether no larger step came before.
    """

    def __init__(
        self, recording: Recording, trial: Trial, opened: OpenTrial, log: Callable[..., None]
    ) -> None:
        self._recording = recording
        self._trial = trial
        self._opened = opened
        self._log = log
        trial.report = self  # type: ignore[method-assign]

    def __call__(self, value: float, step: int) -> None:
        """Report to Optuna, then record."""
        type(self._trial).report(self._trial, value, step)
        self._note(value, step)

    @hook
    def _note(self, value: float, step: int) -> None:
        opened, number = self._opened, int(step)
        if number in opened.steps:
            return  # Optuna keeps the first one
        opened.steps.add(number)
        in_order = number > opened.last_step
        if in_order:
            opened.last_step = number
        else:
            opened.late.append((number, float(value)))
        self._log(opened.run, number, float(value), in_order=in_order)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._trial, "report")


def release(trial: Trial) -> None:
    """Give a trial its own `report` back."""
    vars(trial).pop("report", None)


def shown(result: Any) -> str:
    """What an objective returned, in a few words and without a reference to it."""
    if result is None or isinstance(result, int | float | str):
        return f"{result!r:.80}"
    size = f" of {len(result)}" if isinstance(result, list | tuple) else ""
    return f"a {type(result).__name__}{size}"


def log_facts(run: Run, trial: FrozenTrial) -> None:
    """Record a trial's params, user attributes and origin."""
    if trial.params:
        run.log_params(trial.params, source="framework")
    if trial.user_attrs:
        run.log_params({"user_attrs": trial.user_attrs})
    if lineage := facts.lineage(trial):
        run.log_provenance("optuna.trial", lineage)


def write_rows(run: Run, trial: FrozenTrial, status: str | None, reason: str | None) -> None:
    """Record when a trial lived and how it ended."""
    lived = {
        "status": status,
        "started_at": facts.microseconds(trial.datetime_start),
        "ended_at": facts.microseconds(trial.datetime_complete),
        "attempt": 1,
    } | _at(trial)
    row = {
        "parent_id": run.parent_id,
        "root_id": run.root_id,
        "kind": "trial",
        "project": run.project,
        "name": run.name,
        "framework": FRAMEWORK,
        "error": reason,
    }
    run.record_rows("runs", lived | row)
    if trial.state.is_finished():
        run.record_rows("attempts", lived | {"first_step": 0})


def set_tags(run: Run, trial: FrozenTrial) -> None:
    """Tag a trial's run with its state and more."""
    rows = [{"key": key, "value": value} | _at(trial) for key, value in facts.tags(trial).items()]
    run.record_rows("tags", *rows)


def _at(trial: FrozenTrial) -> dict[str, int]:
    """When that was, for a trial that goes on: whoever runs it may have ended it since."""
    if trial.state.is_finished():
        return {}
    started = facts.microseconds(trial.datetime_start)
    return {"changed_at": 1 if started is None else started - _CLOCKS_DIFFER_US}
