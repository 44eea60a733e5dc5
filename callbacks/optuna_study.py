"""What one process records of one study: its run, and a run per trial, each thing once.

Points of a study that other processes may see go under a writer derived from the trial, where
the number of a report is its step, and the values come behind: whichever process sends them
first, and however often, a store takes them once. A study in this process's memory needs none of
that: who records here is known here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tachograph.callbacks import optuna_facts as facts
from tachograph.callbacks.base import Recording, hook
from tachograph.identity import derived_id
from tachograph.origin import tagged
from tachograph.run import Run, status_of

ATTRIBUTE = "tachograph:study"
"""Where a study keeps its id."""

INTERMEDIATE = "intermediate_value"
_FRAMEWORK = f"optuna {optuna.__version__}"
_LARGEST_STEP = 1 << 37  # a store numbers no more records of a writer
_MANY = 10_000  # trials; finding the best of several objectives compares all with all
_ASSERT_SECONDS = 10.0
_SETTLE_SECONDS = 1.0

_recorded: dict[tuple[Any, ...], set[int]] = {}  # of each study in this process's life


@dataclass(eq=False)
class OpenTrial:
    """A trial whose objective runs here, or ended and was not yet looked at."""

    number: int
    run: Run
    steps: set[int] = field(default_factory=set)
    last_step: int = -1
    late: list[tuple[int, float]] = field(default_factory=list)
    status: str | None = None
    reason: str | None = None
    ended: float | None = None


class Reports:
    """Takes the place of a trial's `report`, and records what goes through."""

    def __init__(self, record: StudyRecord, trial: Trial, opened: OpenTrial) -> None:
        self._recording = record.recording
        self._record = record
        self._trial = trial
        self._opened = opened
        trial.report = self  # type: ignore[method-assign]

    def __call__(self, value: float, step: int) -> None:
        """Report to Optuna, then record."""
        type(self._trial).report(self._trial, value, step)
        self._note(value, step)

    def close(self) -> None:
        """Give the trial its own method back."""
        vars(self._trial).pop("report", None)

    @hook
    def _note(self, value: float, step: int) -> None:
        opened, number = self._opened, int(step)
        if number in opened.steps:
            return  # Optuna takes the first one
        opened.steps.add(number)
        if number < opened.last_step:
            opened.late.append((number, float(value)))
        opened.last_step = max(number, opened.last_step)
        self._record.log_report(opened, number, float(value))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._trial, "report")


class StudyRecord:
    """What this process records of one study.

    Parameters
    ----------
    recording : Recording
        The callback's keywords, for this study alone.
    study : Study
        Kept by a weak reference.

    Attributes
    ----------
    pid : int
        The process that this belongs to.
    run : Run
        The study's run, or one that the user gave.
    study_id : str
        What the ids of the trials derive from.
    """

    def __init__(self, recording: Recording, study: Study) -> None:
        self.pid = os.getpid()
        self.recording = self._recording = recording
        self.shared = facts.is_shared(study)
        self.names = facts.metric_names(study)
        self.opened: dict[int, OpenTrial] = {}
        self._study = weakref.ref(study)
        self._maximize = study.directions[0] == StudyDirection.MAXIMIZE
        self._lock = threading.RLock()
        self._space: dict[str, BaseDistribution] = {}
        self._best: tuple[float | None, int] = (None, -1)
        self._bar: weakref.ref[Any] | None = None
        self._asserted = time.monotonic()
        self.study_id = ""
        self.run = self._open(study)
        self._recorded = _recorded.setdefault((self.study_id, self.run.config.backend), set())

    # ------------------------------------------------------------------ the study's run

    def _open(self, study: Study) -> Run:
        known = study.user_attrs.get(ATTRIBUTE)
        if known is not None and self.recording.given is None:
            self.recording.given = known
        run_id = None if known else facts.new_study_id(study)
        run = self.recording.open(_FRAMEWORK, kind="study", run_id=run_id)
        if not self.recording.active:
            return run
        if known is None:
            study.set_user_attr(ATTRIBUTE, run.run_id)
            known = study.user_attrs[ATTRIBUTE]  # of two processes that start, one is heard
        self.study_id = known
        self._describe(run, study)
        return run

    def _describe(self, run: Run, study: Study) -> None:
        run.log_params(facts.study_params(study), source="framework")
        if self.recording.owned:
            started = facts.microseconds(facts.started(study))
            name = {} if self.recording.name else {"name": study.study_name}
            run.record_rows("runs", name | ({"started_at": started} if started else {}))
        if state := facts.random_state(study.sampler):
            run.log_provenance("optuna.random_state", state)
        if attributes := {k: v for k, v in study.user_attrs.items() if k != ATTRIBUTE}:
            run.log_params({"user_attrs": attributes})
        if len(self.names) == 1:
            with contextlib.suppress(ValueError):  # none is complete yet
                best = study.best_trial
                self._best = (best.value, best.number)

    @property
    def is_usable(self) -> bool:
        """Whether trials can be recorded: in this process, under a run that is open."""
        return self.pid == os.getpid() and self.recording.active

    def watch(self, study: Study) -> None:
        """Learn of the end of the call of `optimize` that this thread works for.

        Optuna has no hook for it; a call closes its progress bar last, shown or not.
        """
        if self._bar is not None and self._bar() is not None:
            return
        bar = facts.progress_bar(study)
        if bar is None:
            return
        with self._lock:
            if self._bar is not None and self._bar() is bar:
                return
            self._bar = weakref.ref(bar)
            bar.close = functools.partial(_closed, self, weakref.ref(bar), type(bar).close)
        self.run.log_params({"optimize": facts.optimize_arguments(bar)}, source="framework")

    @hook
    def ends(self, bar: Any = None) -> None:
        """End the study's run, with the exception that leaves `optimize`, if one does."""
        error, number = facts.ended_by(sys.exc_info()[1], bar)
        study = self._study()
        self._bar = None
        if study is not None:
            self.settle(study, at_once=True)
            if number is not None:
                trial = study.get_trials(deepcopy=False)[number]
                self.record(trial, None if error is None else f"{type(error).__name__}: {error}")
            self.log_best(study)
        for opened in [one for one in self.opened.values() if one.ended]:
            opened.run.finish(opened.status or "finished", opened.reason, wait=False)
        self.recording.close(status_of(error), error)

    def log_best(self, study: Study) -> None:
        """Say on the study's run which trials are best."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(self.names) > 1 and 0 < len(trials) <= _MANY:
            numbers = [trial.number for trial in study.best_trials]
            self.run.log_params({"best": {"trials": numbers}}, source="framework")

    # ------------------------------------------------------------------ a trial while it runs

    def run_id(self, number: int) -> str:
        """The id of a trial's run, the same in every process."""
        return derived_id(self.study_id, f"trial-{number}")

    def begin_trial(self, trial: Trial) -> OpenTrial:
        """Open the run of a trial whose objective starts now."""
        run = self.run.child(
            "trial",
            f"trial-{trial.number}",
            run_id=self.run_id(trial.number),
            framework=_FRAMEWORK,
            by_user=False,
        )
        opened = self.opened[trial.number] = OpenTrial(trial.number, run)
        return opened

    def end_trial(self, opened: OpenTrial, error: BaseException | None, result: Any) -> None:
        """Note how the objective ended; Optuna's verdict comes later."""
        opened.ended = time.monotonic()
        if error is not None:
            opened.status = status_of(error)
            pruned = opened.status == "pruned"  # which is no error
            opened.run.finish(opened.status, str(error) or None if pruned else error, wait=False)
        elif type(result) is not float or result != result:
            opened.reason = f"the objective returned {_shown(result)}"  # counts if Optuna minds

    def log_report(self, opened: OpenTrial, step: int, value: float) -> None:
        """Record an intermediate value as it is reported."""
        if not self.shared:
            opened.run.log({INTERMEDIATE: value}, step=step)
        elif step == opened.last_step:
            self._log_reports(opened.run, [(step, value)], opened.run._recorder.now_us())

    def settle(self, study: Study, *, at_once: bool = False) -> None:
        """Record trials that ended here, and that no callback was called for."""
        latest = time.monotonic() - (0.0 if at_once else _SETTLE_SECONDS)
        with self._lock:
            waiting = [one for one in self.opened.values() if one.ended and one.ended <= latest]
        if not waiting:
            return
        trials = study.get_trials(deepcopy=False)
        for opened in waiting:
            trial = trials[opened.number]
            if trial.state.is_finished():
                self.record(trial)

    # ------------------------------------------------------------------ a trial as Optuna has it

    def record(self, trial: FrozenTrial, reason: str | None = None) -> bool:
        """Record all that is known of a trial; False where that was done before."""
        with self._lock:
            opened = self.opened.get(trial.number)
            finished = trial.state.is_finished()
            if trial.number in self._recorded or (opened is not None and not finished):
                return False
            if finished:
                self._recorded.add(trial.number)
                self.opened.pop(trial.number, None)
            best = self._is_best(trial)
        run = opened.run if opened is not None else self._attach(trial)
        log_points = self._log_shared if self.shared else self._log_alone
        log_points(run, trial, opened, best)
        if best:
            found = {"trial": trial.number, "value": trial.value, "params": trial.params}
            self.run.log_params({"best": found}, source="framework")
        self._log_facts(run, trial)
        self._end(run, trial, opened, reason)
        self._stay_running()
        return True

    def sync(self, study: Study) -> int:
        """Record what hooks did not see; return how many trials that were."""
        known = tagged(self.run.config, "trial_state")
        count = 0
        for trial in study.get_trials(deepcopy=False):
            if known.get(self.run_id(trial.number)) == trial.state.name:
                if trial.state.is_finished() and trial.number not in self.opened:
                    self._recorded.add(trial.number)
                continue
            count += self.record(trial)
        self.log_best(study)
        return count

    def _attach(self, trial: FrozenTrial) -> Run:
        """A run for a trial that did not run under our eyes."""
        return Run(
            self.run.config,
            self.run_id(trial.number),
            kind="trial",
            name=f"trial-{trial.number}",
            parent=self.run,
            by_user=False,
        )

    def _is_best(self, trial: FrozenTrial) -> bool:
        if trial.state != TrialState.COMPLETE or len(self.names) > 1 or trial.value is None:
            return False
        if any(value > 0.0 for value in facts.constraints(trial).values()):
            return False
        (best, number), value = self._best, trial.value
        if number == trial.number:  # was found so when the record began
            return True
        if best is not None and (value <= best if self._maximize else value >= best):
            return False
        self._best = value, trial.number
        return True

    # ------------------------------------------------------------------ points

    def _log_alone(
        self, run: Run, trial: FrozenTrial, opened: OpenTrial | None, best: bool
    ) -> None:
        seen = opened.steps if opened is not None else ()
        for step, value in sorted(trial.intermediate_values.items()):
            if step not in seen:
                run.log({INTERMEDIATE: value}, step=step)
        if values := self._values(trial):
            run.log(values, step=trial.last_step or 0)
        if best:
            self.run.log({"best_value": trial.value or 0.0}, step=trial.number)

    def _log_shared(
        self, run: Run, trial: FrozenTrial, opened: OpenTrial | None, best: bool
    ) -> None:
        at = facts.microseconds(trial.datetime_complete) or run._recorder.now_us()
        sent = opened.steps if opened is not None else ()
        reports = sorted(trial.intermediate_values.items())
        self._log_reports(run, [pair for pair in reports if pair[0] not in sent], at)
        if opened is not None:  # out of order: their numbers are behind what went out already
            self._log_reports(run, sorted(opened.late), at, "late")
        last = trial.last_step
        behind = 0 if last is None else min(last, _LARGEST_STEP) + 1
        writer = derived_id(run.run_id, "points")
        if values := self._values(trial):
            row = (behind, at, last or 0, None, list(values.values()))
            run.log_derived(writer, list(values), [row])
        if best:
            row = (behind + 1, at, trial.number, None, [trial.value or 0.0])
            self.run.log_derived(writer, ["best_value"], [row])

    def _log_reports(
        self, run: Run, reports: Sequence[tuple[int, float]], at: int, name: str = "points"
    ) -> None:
        rows = [(step, at, step, None, [value]) for step, value in reports if step < _LARGEST_STEP]
        if rows:
            run.log_derived(derived_id(run.run_id, name), [INTERMEDIATE], rows)

    def _values(self, trial: FrozenTrial) -> dict[str, float]:
        """Objectives and constraints; a pruned trial's value is only its last report."""
        if trial.state != TrialState.COMPLETE or trial.values is None:
            return {}
        held = {f"constraint/{name}": v for name, v in facts.constraints(trial).items()}
        return dict(zip(self.names, trial.values, strict=False)) | held

    # ------------------------------------------------------------------ facts

    def _log_facts(self, run: Run, trial: FrozenTrial) -> None:
        if trial.params:
            run.log_params(trial.params, source="framework")
        if trial.user_attrs:
            run.log_params({"user_attrs": trial.user_attrs})
        if lineage := facts.lineage(trial):
            run.log_provenance("optuna.trial", lineage)
        self._log_space(run, trial.distributions)

    def _log_space(self, run: Run, distributions: Mapping[str, BaseDistribution]) -> None:
        """Distributions go to the study's run; those that differ there, to the trial's."""
        with self._lock:
            new = distributions.keys() - self._space.keys()
            self._space.update({name: distributions[name] for name in new})
            space = dict(self._space) if new else None
        if space is not None:
            self.run.log_provenance("optuna.distributions", facts.distributions(space))
        if any(self._space[name] != one for name, one in distributions.items()):
            run.log_provenance("optuna.distributions", facts.distributions(distributions))

    def _end(
        self, run: Run, trial: FrozenTrial, opened: OpenTrial | None, reason: str | None
    ) -> None:
        status = facts.STATUSES[trial.state]
        if status == "failed" and reason is None:
            reason = opened.reason if opened is not None else None
        if opened is None:
            self._write_rows(run, trial, status, reason)
        elif run.is_open:
            run.finish(status or "finished", reason, wait=False)
        elif opened.status == "finished" != status:  # asked and told: the verdict came later
            self._write_rows(run, trial, status, reason)
        run.set_tags(facts.tags(trial))  # last: who finds it knows that all is there

    def _write_rows(
        self, run: Run, trial: FrozenTrial, status: str | None, reason: str | None
    ) -> None:
        lived = {
            "status": status,
            "started_at": facts.microseconds(trial.datetime_start),
            "ended_at": facts.microseconds(trial.datetime_complete),
            "error": reason,
            "attempt": 1,
        }
        row = {"parent_id": run.parent_id, "root_id": run.root_id, "kind": "trial"}
        run.record_rows("runs", lived | row | {"name": run.name, "framework": _FRAMEWORK})
        if trial.state.is_finished():
            run.record_rows("attempts", lived | {"first_step": 0})

    def _stay_running(self) -> None:
        """Say again that the study runs, where another process may have said that it ended."""
        if self.shared and time.monotonic() - self._asserted > _ASSERT_SECONDS:
            self._asserted = time.monotonic()
            if self.recording.owned:
                self.run.record_rows("runs", {"status": "running"})


def _shown(result: Any) -> str:
    if result is None or isinstance(result, int | float | str):
        return f"{result!r:.80}"
    size = f" of {len(result)}" if isinstance(result, list | tuple) else ""
    return f"a {type(result).__name__}{size}"


def _closed(
    record: StudyRecord, bar: weakref.ref[Any], close: Callable[[Any], None], *_: Any
) -> None:
    present = bar()
    record.ends(present)
    if present is not None:
        close(present)
