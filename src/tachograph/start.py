"""Starting a run, attaching to one, and ending what is still open at exit."""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from tachograph import host
from tachograph.config import Config, RecordConfig, is_disabled, load_config
from tachograph.current import activate, current_run, deactivate
from tachograph.identity import PARENT_VARIABLE, derived_id, new_run_id
from tachograph.recorder import get_recorder
from tachograph.recording import origin
from tachograph.records import Row
from tachograph.run import Run, open_runs, status_of
from tachograph.warning import warn_once

P = ParamSpec("P")
T = TypeVar("T")
_FITS = ("run", "validate", "test", "predict")
_ordinal = 0


class InertRun(Run):
    """A run that records nothing: recording is switched off or impossible here."""

    def __init__(self) -> None:
        self.run_id = self.root_id = "disabled"
        self.parent = self.parent_id = self.name = None
        self.kind, self.attempt, self.fits = "run", 1, 0
        self.by_user = self.is_open = True
        self.config = Config(None, (), None, {}, None, 0, RecordConfig(), None, {})

    def log(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    log_params = set_tags = note = event = update = log
    log_provenance = log_tensors = log_statistics = log_artifact = log_table = log
    log_image = log_figure = log_data = log_outcome = compare_rows = set_first_step = set_rank = log
    rebind = report_problem = log_derived = watch_cost = end_cost = log

    def child(self, *_: Any, **__: Any) -> Run:
        """Return a run as inert as this one."""
        return InertRun()

    def finish(self, *_: Any, **__: Any) -> None:
        """End it."""
        self.is_open = False
        deactivate(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return InertRun, ()


def start_run(
    *,
    project: str | None = None,
    name: str | None = None,
    tags: Mapping[str, Any] | Iterable[str] | None = None,
    params: Mapping[str, Any] | None = None,
    notes: str | None = None,
    description: str | None = None,
    hypothesis: str | None = None,
    kind: str = "run",
    framework: str | None = None,
    run_id: str | None = None,
    parent: Run | str | None = None,
    resume: bool = False,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    by_user: bool = True,
    make_current: bool = True,
    rank: tuple[int, int, int] | None = None,
) -> Run:
    """Start a run and make it the current one.

    Inside an open run it becomes that run's child. Use it as a context manager, or call
    `Run.finish`; a run still open at exit ends as the process ends.

    Parameters
    ----------
    project, name, description, hypothesis : str, optional
        What a person should know it by.
    tags : mapping or iterable of str, optional
    params : mapping, optional
        Configuration values; see `Run.log_params`.
    notes : str, optional
        Recorded as a note.
    kind : str, default 'run'
    framework : str, optional
        Name and version of what trains.
    run_id : str, optional
        1 to 64 letters, digits, '_' or '-'. By default a UUIDv7, or for a rank of a launcher
        an id that all ranks derive.
    parent : Run or str, optional
        The run it is part of; by default the current one.
    resume : bool, default False
        Go on with the run `run_id` as its next attempt.
    config : path or mapping, optional
        A config file, or a mapping of its shape.
    by_user : bool, default True
        False for a run that a callback starts.
    make_current : bool, default True
        Whether callbacks and `current_run` find it from now on.
    rank : (int, int, int), optional
        Rank, local rank and world size, where a framework knows them and its launcher's
        variables do not say so.

    Raises
    ------
    ConfigError
        A setting is wrong.
    RecordError
        `run_id` is not usable.
    """
    outer = parent if isinstance(parent, Run) else None
    if parent is None and not resume:
        outer = current_run()
    if is_disabled() or isinstance(outer, InertRun) or not _can_record():
        return InertRun()
    settings = _settings(config, project, outer)
    if outer is None and settings.record.code == "refuse":
        origin.refuse_uncommitted()
    if rank is not None:
        get_recorder(settings).set_rank(*rank)
    run = _make_run(settings, run_id, kind, name, outer, parent, resume, by_user)
    row: Row = {
        "project": settings.project or origin.default_project(),
        "user": settings.user or origin.user_name(),
        "framework": framework,
        "description": description,
        "hypothesis": hypothesis,
    }
    run.project = row["project"]
    resumed = resume and run.run_id == run_id  # a reproduction has an id of its own
    run.begin({key: value for key, value in row.items() if value is not None}, resumed=resumed)
    if get_recorder(settings).identity.rank == 0:
        _describe(run, tags, params, notes)
    open_runs.add(run)
    if make_current:
        activate(run)
        if run.parent_id is None:
            os.environ[PARENT_VARIABLE] = run.run_id
    return run


def _can_record() -> bool:
    if not host.can_record():
        warn_once(host.UNSUPPORTED)
        return False
    return True


def _describe(
    run: Run,
    tags: Mapping[str, Any] | Iterable[str] | None,
    params: Mapping[str, Any] | None,
    notes: str | None,
) -> None:
    if run.parent_id is None and run.config.tags:
        run.set_tags(run.config.tags)
    if tags:
        run.set_tags(tags)
    if params:
        run.log_params(params)
    if notes:
        run.note(notes)


def _settings(config: Any, project: str | None, outer: Run | None) -> Config:
    if outer is not None and config is None:
        return outer.config if project is None else outer.config._replace(project=project)
    return load_config(config, arguments={"project": project})


def _make_run(
    config: Config,
    run_id: str | None,
    kind: str,
    name: str | None,
    outer: Run | None,
    parent: Run | str | None,
    resume: bool,
    by_user: bool,
) -> Run:
    global _ordinal
    recorder = get_recorder(config)
    identity = recorder.identity
    parent_id = root_id = parent if isinstance(parent, str) else None
    if run_id is not None and (by_user or outer is None):
        run_id = origin.own_id(config, run_id)
    if outer is None and parent_id is None and not identity.launched:
        inherited = os.environ.get(PARENT_VARIABLE)
        own = {run_id, *(run.run_id for run in tuple(open_runs))}  # left there for processes
        # Only roots are left there, so no store has to be asked, which may be far and away.
        parent_id = root_id = inherited if inherited not in own else None
    elif parent_id is not None:
        root_id = origin.root_of(config, parent_id)
    if run_id is None:
        if outer is not None and identity.launched:
            run_id = derived_id(outer.run_id, f"child-{outer.next_child()}")
        else:
            joined = os.environ.get(PARENT_VARIABLE) if identity.follows else None
            run_id = joined or new_run_id(identity, _ordinal)
            _ordinal += outer is None
    attempt = 1 + identity.restarts
    if resume:
        attempt = max(attempt, origin.last_attempt(config, run_id) + 1)
    return Run(
        config,
        run_id,
        kind=kind,
        name=name,
        parent=outer,
        parent_id=parent_id,
        root_id=root_id,
        attempt=attempt,
        owned=identity.rank == 0,
        by_user=by_user,
    )


def attach_run(config: Config, facts: Mapping[str, Any]) -> Run:
    """A run that another process started, for recording into it from here; never ends it."""
    if is_disabled() or not host.can_record():
        return InertRun()
    for run in tuple(open_runs):  # threads start and end runs meanwhile
        if run.run_id == facts["run_id"]:
            return run
    run = Run(config, owned=False, **facts)
    run.set_elsewhere()
    return run


def tracked(**arguments: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: each call of the function is a run; see `start_run` for the arguments."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with start_run(**{"name": function.__name__} | arguments):
                return function(*args, **kwargs)

        return call

    return decorate


@atexit.register
def _finish_open_runs() -> None:
    """End what is still open as the process ends: with its exception, or well.

    A framework that ends a fit without telling its callback has not ended it well: so do ranks
    that are spawned, where one of them fails.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    for run in sorted(open_runs, key=lambda run: run.run_id, reverse=True):
        if error is None and not run.by_user and run.kind in _FITS:
            run.finish("failed", "the process ended before the training did", wait=False)
        else:
            run.finish(status_of(error), error, wait=False)
