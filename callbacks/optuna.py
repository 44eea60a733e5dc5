"""Records Optuna studies: the study as a run, each trial as a child of it.

``study.optimize(fn, callbacks=[cb])`` tells of trials that ended; Optuna calls no callback for one
whose exception leaves `optimize`, nor before a trial ends, nor for ``ask`` and ``tell``.
``cb.objective(fn)`` sees what happens inside, ``cb.trial(trial)`` does the same around code of
your own, and ``cb.sync(study)`` records what is in the storage and was not seen.

A trial's run has the params with their distributions on the study's run, an
``intermediate_value`` per report, the objectives by name (`value` where they have none) and
``constraint/<name>``, both at the last reported step. The study's run has ``best_value``, whose
step is the number of the trial. Its id is in the study's user attribute ``tachograph:study``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

from optuna import Study, Trial
from optuna.trial import FrozenTrial

from tachograph.callbacks.base import KEYWORDS, Keywords, Recording, hook
from tachograph.callbacks.optuna_study import StudyRecord
from tachograph.callbacks.optuna_trial import OpenTrial, release
from tachograph.current import using
from tachograph.run import Run
from tachograph.warning import say

_opening = threading.RLock()
_hint = (
    "study.optimize(fn, callbacks=[callback]) shows trials when they ended; pass "
    "callback.objective(fn) to see reasons of failures, values as they come, and trainings inside"
)
_hinted = False


class OptunaCallback:
    __doc__ = f"""Record studies that this callback is given to.

    Also a context manager, which ends the runs of its studies. Without it a study's run ends
    with the call of `optimize`; one that is only asked and told ends with the process.
    {KEYWORDS}
    """

    def __init__(self, **keywords: Unpack[Keywords]) -> None:
        self._recording = Recording(**keywords)
        self._studies: weakref.WeakKeyDictionary[Study, StudyRecord] = weakref.WeakKeyDictionary()

    # ------------------------------------------------------------------ hooks of Optuna

    @hook
    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Record a trial that ended."""
        record = self._record_of(study)
        if record is None:
            return
        if trial.number not in record.opened:
            _say_once()
        record.watch(study)
        record.record(trial)

    def objective(self, function: Callable[..., Any]) -> Objective:
        """The objective function, with its trials recorded while they run.

        Callbacks of frameworks that train inside record children of the trial.

        Parameters
        ----------
        function : callable
            As `optimize` takes it.
        """
        return Objective(self, function)

    @contextlib.contextmanager
    def trial(self, trial: Trial) -> Iterator[Run | None]:
        """Record an asked trial while the block runs; what it is told afterwards, `sync` adds."""
        opened = self._enter(trial)
        if opened is None:
            yield None
            return
        try:
            with using(opened.run):
                yield opened.run
        except BaseException as error:
            self._leave(trial, opened, error)
            raise
        self._leave(trial, opened)
        self._put_aside(trial, opened)

    @hook
    def sync(self, study: Study) -> int:
        """Record trials of the storage that no hook saw, and how others ended.

        May be called again at any time, by any process. Returns how many trials were recorded.
        """
        record = self._record_of(study)
        return 0 if record is None else record.sync(study)

    def close(self) -> None:
        """End the runs of the studies."""
        for record in list(self._studies.values()):
            if record.is_usable:
                record.ends()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ trials

    @hook
    def _enter(self, trial: Trial) -> OpenTrial | None:
        record = self._record_of(trial.study)
        if record is None:
            return None
        record.watch(trial.study)
        record.settle(trial.study)
        return record.begin_trial(trial)

    @hook
    def _leave(
        self,
        trial: Trial,
        opened: OpenTrial,
        error: BaseException | None = None,
        result: Any = 0.0,
    ) -> None:
        release(trial)
        record = self._record_of(trial.study)
        if error is not None and trial.params:
            opened.run.log_params(trial.params, source="framework")
        if record is not None:
            record.end_trial(opened, error, result)

    @hook
    def _put_aside(self, trial: Trial, opened: OpenTrial) -> None:
        """End an asked trial as far as it is known; it may never be told."""
        opened.status = "finished"
        if trial.params:
            opened.run.log_params(trial.params, source="framework")
        opened.run.finish(wait=False)

    def _record_of(self, study: Study) -> StudyRecord | None:
        """The record of a study, with its run open; None where nothing is recorded."""
        if self._recording.is_off:
            return None
        record = self._studies.get(study)
        if record is not None and record.is_usable:
            return record
        with _opening:
            record = self._studies.get(study)
            if record is None or not record.is_usable:
                recording = copy.deepcopy(self._recording)  # threads may record several studies
                self._recording.data = None
                record = self._studies[study] = StudyRecord(recording, study)
                self._recording.run = record.run
        return record if record.is_usable else None

    def __getstate__(self) -> dict[str, Any]:
        return {"_recording": self._recording}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._studies = weakref.WeakKeyDictionary()


class Objective:
    """An objective function whose trials are recorded while they run."""

    def __init__(self, callback: OptunaCallback, function: Callable[..., Any]) -> None:
        self.callback = callback
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the function; what it returns and raises is Optuna's."""
        opened = self.callback._enter(trial) if isinstance(trial, Trial) else None
        if opened is None:
            return self.function(trial, *args, **kwargs)
        try:
            with using(opened.run):
                result = self.function(trial, *args, **kwargs)
        except BaseException as error:
            self.callback._leave(trial, opened, error)
            raise
        self.callback._leave(trial, opened, None, result)
        return result


def _say_once() -> None:
    global _hinted
    if not _hinted:
        _hinted = True
        say(_hint)


def _after_fork() -> None:
    global _opening
    _opening = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
