"""What all callbacks share: their keywords, opening and closing a run, and the guard of hooks.

Knows `Run`, and no framework.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, TypedDict, TypeVar

from tachograph.callbacks.tensors_pace import Schedule
from tachograph.config import is_disabled, load_config
from tachograph.current import current_run
from tachograph.identity import announce_launch
from tachograph.recording.cost import Spent
from tachograph.run import Run, status_of
from tachograph.start import InertRun, start_run
from tachograph.warning import warn_once

F = TypeVar("F", bound=Callable[..., Any])

KEYWORDS = """
    Parameters
    ----------
    run : Run or str, optional
        The run to record into, or its id; never ended by the callback. By default the current
        run takes the first fit inside it; any other fit starts a run of its own, as a child
        where a run is current.
    project, name : str, optional
        Of a run that the callback starts.
    tags : mapping or iterable of str, optional
    params : mapping, optional
        Configuration values to record beside those that the framework knows.
    notes : str, optional
        Recorded as a note.
    config : path or mapping, optional
        A config file, or a mapping of its shape.
    weights, gradients : {'off', 'stats', 'full'}, optional
        What to record of them; by default as configured.
    every : int or 'auto', optional
        Steps between records of weights and gradients.
    data : Any, optional
        Data to fingerprint where the framework does not show it; of a mapping each by its name,
        such as ``{"test": x_test}``, whose rows are then looked for among the training rows.
"""
"""The keywords of every callback, for their docstrings."""


class Keywords(TypedDict, total=False):
    """The keywords of every callback, for type checkers."""

    run: Run | str | None
    project: str | None
    name: str | None
    tags: Any
    params: Mapping[str, Any] | None
    notes: str | None
    config: Any
    weights: str | None
    gradients: str | None
    every: int | str | None
    data: Any


class Recording:
    """How one callback records: its keywords, and the run of the present fit.

    Pickles and copies as keywords only, with the run that was current where it was made.

    Attributes
    ----------
    run : Run or None
        The run of the present or last fit in this process.
    owned : bool
        Whether this callback started `run`, and so ends it.
    hook_seconds : float
        What the hooks of all fits took of the training's time so far.
    """

    def __init__(
        self,
        *,
        run: Run | str | None = None,
        project: str | None = None,
        name: str | None = None,
        tags: Any = None,
        params: Mapping[str, Any] | None = None,
        notes: str | None = None,
        config: Any = None,
        weights: str | None = None,
        gradients: str | None = None,
        every: int | str | None = None,
        data: Any = None,
    ) -> None:
        self.given = run
        self.project, self.name, self.tags, self.params = project, name, tags, params
        self.notes, self.config, self.data = notes, config, data
        self.weights, self.gradients, self.every = weights, gradients, every
        self.run: Run | None = None
        self.owned = False
        self.hook_seconds = 0.0
        self._hooked_at = 0.0
        self._schedules: list[Schedule] = []  # of the present fit
        self.around = None if is_disabled() else current_run()
        self._check()
        announce_launch()

    def _check(self) -> None:
        """Raise ConfigError for a wrong setting now: inside a training it would be a warning."""
        if not is_disabled() and (self.around is None or self.config is not None):
            names = ("project", "weights", "gradients", "every")
            load_config(self.config, arguments={name: getattr(self, name) for name in names})

    # ------------------------------------------------------------------ runs

    @property
    def active(self) -> bool:
        """Whether a run is open for recording."""
        return self.run is not None and self.run.is_open and not isinstance(self.run, InertRun)

    @property
    def is_off(self) -> bool:
        """Whether recording is switched off, so that a callback has nothing to prepare."""
        return is_disabled()

    @property
    def own_run_id(self) -> str | None:
        """Id of the run that this callback started, for a checkpoint; None where there is none."""
        if self.run is None or not self.owned or isinstance(self.run, InertRun):
            return None
        return self.run.run_id

    def open(
        self,
        framework: str,
        *,
        kind: str = "run",
        run_id: str | None = None,
        resume_id: str | None = None,
        rank: tuple[int, int, int] | None = None,
    ) -> Run:
        """Open the run of a fit that starts now, and make it `self.run`.

        Parameters
        ----------
        framework : str
            Name and version of what trains, such as 'xgboost 3.2.0'.
        kind : str
            Kind of a run that is started here.
        run_id : str, optional
            Id of a run that is started here, where what trains has an identity of its own.
        resume_id : str, optional
            Go on with that run as its next attempt, as a checkpoint says.
        rank : (int, int, int), optional
            Rank, local rank and world size, where the framework trains in several processes.
        """
        run = self._find(resume_id, rank)
        self.owned = run is None
        if run is None:
            run = self._start(framework, kind, run_id, resume_id, rank)
        else:
            run.fits += kind == "run"  # an evaluation does not take the place of a fit
            if rank is not None:
                run.set_rank(*rank)
            if rank is None or rank[0] == 0:
                run.update(framework=framework)
                self._describe(run)
        if self.data is not None:
            for name, data in _named(self.data):
                run.log_data(data, name)
            self.data = None  # no reference to data stays behind
        self.run = run
        self._schedules = []
        run.watch_cost(self._spent)
        return run

    def reopen(self) -> Run | None:
        """The run of the last fit, to record an evaluation of it; None where there is none.

        A run that this callback has ended takes points and events again, and stays ended.
        """
        return self.run

    def close(self, status: str = "finished", error: BaseException | str | None = None) -> None:
        """End the present run if it is this callback's; the stores get it in the background."""
        if self.run is not None:
            self.run.end_cost()
        if self.run is not None and self.owned:
            self.run.finish(status, error, wait=False)

    def fail(self, error: BaseException) -> None:
        """End the present run with the exception that ended the fit."""
        self.close(status_of(error), error)

    def _find(self, resume_id: str | None, rank: tuple[int, int, int] | None) -> Run | None:
        if is_disabled():
            return InertRun()
        if isinstance(self.given, Run):
            return self.given
        around = self._around()
        if isinstance(self.given, str) and around is not None and around.run_id == self.given:
            return around
        if self.given is not None or resume_id is not None or around is None:
            return None
        if not around.started_here and rank is None:
            return None  # of fits in several worker processes none is the run's own
        return around if around.by_user and around.kind == "run" and not around.fits else None

    def _around(self) -> Run | None:
        """The run that is current now, else the one that was where the callback was made."""
        around = current_run()
        if around is None and self.around is not None and self.around.is_open:
            around = self.around
        return around

    def _start(
        self,
        framework: str,
        kind: str,
        run_id: str | None,
        resume_id: str | None,
        rank: tuple[int, int, int] | None,
    ) -> Run:
        given = self.given if isinstance(self.given, str) else None
        return start_run(
            project=self.project,
            name=self.name,
            tags=self.tags,
            params=self.params,
            notes=self.notes,
            kind=kind,
            framework=framework,
            run_id=resume_id or given or run_id,
            parent=None if resume_id else self._around(),
            resume=resume_id is not None,
            config=self.config,
            by_user=False,
            make_current=False,
            rank=rank,
        )

    def _describe(self, run: Run) -> None:
        if self.name:
            run.update(name=self.name)
        if self.tags:
            run.set_tags(self.tags)
        if self.params:
            run.log_params(self.params)
        if self.notes:
            run.note(self.notes)

    # ------------------------------------------------------------------ weights and gradients

    def level(self, what: str) -> str:
        """'off', 'stats' or 'full' for 'weights' or 'gradients' in the present fit."""
        given = getattr(self, what)
        if given is None and self.run is not None:
            given = getattr(self.run.config.record, what)
        return given or "off"

    def schedule(self, estimate: float = 0.0, *, share: float = 1.0) -> Schedule | None:
        """When the present fit records tensors; None where it records none.

        Parameters
        ----------
        estimate : float, default 0.0
            Seconds that the first record of their moments will take about.
        share : float, default 1.0
            Of the budget, where a fit has several schedules.
        """
        levels = {self.level("weights"), self.level("gradients")}
        if not self.active or self.run is None or levels == {"off"}:
            return None
        settings = self.run.config.record
        schedule = Schedule(
            every=settings.every if self.every is None else self.every,
            histograms=settings.histograms,
            snapshots=settings.snapshots if "full" in levels else "off",
            budget=settings.budget * share,
            estimate=estimate,
        )
        self.count(schedule)
        return schedule

    def count(self, schedule: Schedule) -> None:
        """Count what a schedule spends to the cost of recording the present fit."""
        self._schedules.append(schedule)

    def took(self, started: float) -> None:
        """Count the time since `started`, of `perf_counter`, as what recording took."""
        self._hooked_at = perf_counter()
        self.hook_seconds += self._hooked_at - started

    def _spent(self) -> Spent:
        """What recording took so far, of which tensors those of the present fit."""
        paces = {id(pace): pace for schedule in self._schedules for pace in schedule.paces}
        moments = [schedule.moments for schedule in self._schedules]
        given = [pace.every for pace in paces.values() if isinstance(pace.every, int)]
        every = [pace.every for pace in moments if isinstance(pace.every, int)]
        return Spent(
            self.hook_seconds,
            self._hooked_at,
            tensor_seconds=sum(pace.spent_seconds for pace in paces.values()),
            device_seconds=sum(pace.late_seconds for pace in paces.values()),
            records=sum(pace.records for pace in moments),
            every=every[0] if every else None,
            fixed=bool(given),
        )

    # ------------------------------------------------------------------ problems and copies

    def call(self, where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what belongs to recording: whatever it raises stays here, and its time is counted.

        Returns
        -------
        Any
            What `function` returns; None where it failed.
        """
        started = perf_counter()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self.problem(error, where)
            return None
        finally:
            self.took(started)

    def problem(self, error: Exception, where: str) -> None:
        """Say once that a hook failed, or raise where the configuration says so."""
        if self.run is not None:
            self.run.report_problem(error, where)
        else:
            warn_once(f"{where}: {type(error).__name__}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        around = self.around if self.around is not None and self.around.is_open else None
        anew: dict[str, Any] = {
            "run": None,
            "owned": False,
            "data": None,
            "hook_seconds": 0.0,
            "_schedules": [],
        }
        return self.__dict__ | anew | {"around": around}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recording:
        twin = Recording.__new__(Recording)
        twin.__dict__.update(self.__getstate__() | {"data": self.data})
        memo[id(self)] = twin
        return twin


def _named(data: Any) -> list[tuple[str, Any]]:
    """Data with the names of its splits."""
    if isinstance(data, Mapping) and data and all(isinstance(name, str) for name in data):
        return list(data.items())
    return [("data", data)]


def hook(method: F) -> F:
    """Guard a hook: no exception of ours leaves it, and it does nothing where disabled.

    The callback has its `Recording` as the attribute ``_recording``. The hook returns None
    where it failed; a framework that wants something else back gets it from a hook that calls
    a guarded method.
    """

    where = method.__qualname__

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._recording.call(where, method, self, *args, **kwargs)

    return call  # type: ignore[return-value]
