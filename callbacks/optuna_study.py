"""What one process records of one study: its run, and a run per trial, each thing once."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from optuna import Study, Trial
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tachograph.callbacks import optuna_facts as facts
from tachograph.callbacks.base import Recording, hook
from tachograph.callbacks.optuna_points import Points
from tachograph.callbacks.optuna_trial import (
    FRAMEWORK,
    OpenTrial,
    Reports,
    log_facts,
    set_tags,
    shown,
    write_rows,
)
from tachograph.identity import derived_id
from tachograph.run import Run, status_of

ATTRIBUTE = "tachograph:study"
"""Where a study keeps its id."""

_MANY = 10_000  # trials; finding the best of several objectives compares all with all
_ASSERT_SECONDS = 10.0
_SETTLE_SECONDS = 1.0

_recorded: dict[tuple[Any, ...], set[int]] = {}  # of each study in this process's life


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
        self._names: set[str] = set()  # of all parameters that trials had
        self.study_id = ""
        self.run = self._open(study)
        self.points = Points(self.run, self.names, self.shared)
        self._recorded = _recorded.setdefault((self.study_id, self.run.config.backend), set())

    # ------------------------------------------------------------------ the study's run

    def _open(self, study: Study) -> Run:
        known = study.user_attrs.get(ATTRIBUTE)
        if known is not None and self.recording.given is None:
            self.recording.given = known
        run_id = None if known else facts.new_study_id(study)
        run = self.recording.open(FRAMEWORK, kind="study", run_id=run_id)
        if not self.recording.active:
            return run
        if known is None:
            study.set_user_attr(ATTRIBUTE, run.run_id)
            known = study.user_attrs[ATTRIBUTE]  # of two processes that start, one is heard
            if self.recording.owned and not self.recording.name:
                run.update(name=study.study_name)
        self.study_id = known
        self._describe(run, study)
        return run

    def _describe(self, run: Run, study: Study) -> None:
        run.log_params(facts.study_params(study), source="framework")
        started = facts.microseconds(facts.started(study))
        if self.recording.owned and started is not None:  # opened again, it is as old as before
            run.record_rows("runs", {"started_at": started})
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
            self.run.log_outcome(facts.results(study), "trials")
        with self._lock:
            left = [one for one in self.opened.values() if one.ended]
        for opened in left:  # never told
            opened.run.finish(opened.status or "finished", opened.reason, wait=False)
        self.recording.close(status_of(error), error)

    def log_best(self, study: Study) -> None:
        """Say on the study's run which trials are best."""
        if len(self.names) > 1 and len(study.get_trials(deepcopy=False)) <= _MANY:
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
            framework=FRAMEWORK,
            by_user=False,
        )
        opened = OpenTrial(trial.number, run)
        with self._lock:
            self.opened[trial.number] = opened
        Reports(self.recording, trial, opened, self.points.log_report)
        return opened

    def end_trial(self, opened: OpenTrial, error: BaseException | None, result: Any) -> None:
        """Note how the objective ended; Optuna's verdict comes later."""
        opened.ended = time.monotonic()
        if error is not None:
            opened.status = status_of(error)
            pruned = opened.status == "pruned"  # which is no error
            opened.run.finish(opened.status, str(error) or None if pruned else error, wait=False)
        elif type(result) is not float or result != result:
            opened.reason = f"the objective returned {shown(result)}"  # counts if Optuna minds

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
        self.points.log_trial(run, trial, opened.steps if opened else (), is_best=best)
        if opened is not None:
            self.points.log_late(run, opened.late)
        self._names.update(trial.params)
        if best:
            self._log_best(trial)
        log_facts(run, trial)
        self._log_space(run, trial.distributions)
        self._end(run, trial, opened, reason)
        self._stay_running()
        return True

    def _log_best(self, trial: FrozenTrial) -> None:
        found = {"trial": trial.number, "value": trial.value, "params": trial.params}
        self.run.log_params({"best": found}, source="framework")
        gone = self._names.difference(trial.params)  # of a former best trial, perhaps
        rows = ({"path": f"best.params.{name}", "deleted": 1} for name in sorted(gone))
        self.run.record_rows("params", *rows)

    def sync(self, study: Study) -> int:
        """Record what hooks did not see; return how many trials that were."""
        known = self.run.stored_tags("trial_state")
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
        run = Run(
            self.run.config,
            self.run_id(trial.number),
            kind="trial",
            name=f"trial-{trial.number}",
            parent=self.run,
            by_user=False,
        )
        run.project = self.run.project
        return run

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
            write_rows(run, trial, status, reason)
        elif run.is_open:
            run.finish(status or "finished", reason, wait=False)
        elif opened.status == "finished" != status:  # asked and told: the verdict came later
            write_rows(run, trial, status, reason)
        set_tags(run, trial)  # last: who finds it knows that all is there

    def _stay_running(self) -> None:
        """Say again that the study runs, where another process may have said that it ended."""
        if self.shared and time.monotonic() - self._asserted > _ASSERT_SECONDS:
            self._asserted = time.monotonic()
            if self.recording.owned:
                self.run.record_rows("runs", {"status": "running"})


def _closed(
    record: StudyRecord, bar: weakref.ref[Any], close: Callable[[Any], None], *_: Any
) -> None:
    present = bar()
    record.ends(present)
    if present is not None:
        close(present)
