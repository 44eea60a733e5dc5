"""A run: its identity, its life from start to end, and what is logged into it.

Everything goes to the process's recorder as rows and points. Knows no store and no framework.
No method raises into the training unless the configuration says ``on_error = "raise"``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tachograph import host
from tachograph.config import Config
from tachograph.current import activate, current_run, deactivate, using
from tachograph.errors import RecordError
from tachograph.identity import PARENT_VARIABLE
from tachograph.journal import DerivedRow, SeriesHandle
from tachograph.recorder import Recorder, get_recorder
from tachograph.recording import origin
from tachograph.recording.cost import RecordingCost, Spent
from tachograph.recording.endings import error_data, error_line
from tachograph.recording.endings import status_of as status_of
from tachograph.recording.run_facts import Facts, context_text, guarded
from tachograph.recording.run_groups import Gathered, record_group
from tachograph.records import Row, Series, check_run_id
from tachograph.values import canonical_json

_USAGE = {"phase": "system"}
_COST = {"phase": "recording"}
_END_STATUSES = ("finished", "failed", "interrupted", "pruned")
open_runs: set[Run] = set()  # not weak: a run that nobody holds still has to be ended


class Run(Facts):
    """One run, open for recording. Made by `start_run` or `child`, or attached by its id.

    A context manager: leaving the block ends the run, as failed or interrupted where an
    exception leaves it. Pickles as its id, and records from there into the same run.

    Attributes
    ----------
    run_id, root_id : str
        Its own id, and that of its outermost ancestor.
    parent_id : str or None
        The run that this one is part of.
    kind : str
        'run', 'study', 'trial', 'fold', 'candidate', 'step', 'validate', 'test' or 'predict'.
    attempt : int
        Which try at this run this is, from 1.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        *,
        kind: str = "run",
        name: str | None = None,
        parent: Run | None = None,
        parent_id: str | None = None,
        root_id: str | None = None,
        attempt: int = 1,
        owned: bool = True,
        by_user: bool = True,
    ) -> None:
        self.run_id = check_run_id(run_id)
        self.parent = parent
        self.parent_id = parent.run_id if parent is not None else parent_id
        self.root_id: str = root_id or (parent.root_id if parent is not None else run_id)
        self.kind = kind
        self.name = name
        self.project: str | None = None  # where this process started it
        self.attempt = attempt
        self.config = config
        self.by_user = by_user
        self.fits = 0
        self.is_open = True
        self._owner = os.getpid() if owned else None
        self._process: int | None = os.getpid()
        self._recorder: Recorder = get_recorder(config)
        self._handles: dict[tuple[Any, ...], SeriesHandle] = {}
        self._tensor_handles = {}
        self._append: Callable[..., None] = self._append_first
        self._last_step = -1
        self._children = 0
        self._first_step_known = True
        self._tried: Row = {}  # the attempt's row, as far as it is known
        self._beside: origin.Beside | None = None
        self._cost: RecordingCost | None = None
        self.gathered = Gathered()
        self._recorder.dependents.add(self)

    # ------------------------------------------------------------------ points

    def log(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        epoch: float | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the values of some metrics.

        Survives the end of the process, and never raises.

        Parameters
        ----------
        metrics : mapping of str to float
            Anything that ``float()`` takes; nested mappings are joined with '/'.
        step : int, optional
            By default one more than at the last call.
        epoch : float, optional
            Epoch, with a fraction inside one.
        context : mapping, optional
            What sets this series apart: phase, dataset, fold, …. Default is none.
        """
        try:
            if step is None:
                step = self._last_step + 1
            key = (*metrics,) if context is None else (*context.items(), None, *metrics)
            handle = self._handles.get(key) or self._new_handle(key, metrics, context, step)
            self._append(handle, step, epoch, metrics.values())
            self._last_step = step
        except Exception:
            self._log(metrics, step, epoch, context)

    @guarded
    def _log(
        self,
        metrics: Mapping[str, Any],
        step: Any,
        epoch: Any,
        context: Mapping[str, Any] | None,
    ) -> None:
        """Log what a plain `log` could not: nested mappings, odd numbers, bad values."""
        if not isinstance(metrics, Mapping):
            raise RecordError(f"log takes a mapping of names to numbers, not {metrics!r:.200}")
        step = None if step is None else int(step)
        values: dict[str, float] = {}
        bad = []
        for name, value in _join_names(metrics).items():
            try:
                values[name] = _as_float(value)
            except Exception:  # of whatever the value is
                bad.append(f"{name}={value!r:.80}")
        if values:
            key = (canonical_json(context or {}), True, *values)  # apart from those of `log`
            handle = self._handles.get(key) or self._new_handle(key, values, context, step)
            self._append(handle, step, None if epoch is None else float(epoch), values.values())
            if step is not None:
                self._last_step = step
        if bad:
            raise RecordError(f"not a number, so not recorded as a metric: {', '.join(bad)}")

    def _new_handle(
        self,
        key: tuple[Any, ...],
        metrics: Mapping[str, Any],
        context: Mapping[str, Any] | None,
        step: int | None,
    ) -> SeriesHandle:
        if not all(isinstance(name, str) for name in metrics):
            raise RecordError("names of metrics are texts")
        if any(isinstance(v, Mapping) or hasattr(v, "detach") for v in metrics.values()):
            raise RecordError("for `_log`: names to join, or tensors that may carry gradients")
        if not self._first_step_known and step is not None:
            self.set_first_step(step)
        series = Series(
            self.run_id,
            tuple(metrics),
            context_text(context),
            self._recorder.identity.rank,
            self.attempt,
        )
        handle = self._recorder.series(series)
        if len(self._handles) > 10_000:  # names that never come back must not pile up
            self._handles.clear()
        self._handles[key] = handle
        return handle

    @guarded
    def log_derived(
        self,
        writer: str,
        names: Sequence[str],
        rows: Sequence[DerivedRow],
        *,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Record points that other processes may record too, and that count once.

        Parameters
        ----------
        writer : str
            An id that all of them derive alike; see `identity.derived_id`.
        names : sequence of str
        rows : sequence of (seq, time in µs, step, epoch, values)
            `seq` numbers the writer's points, alike in all processes, and ascends over calls.
        context : mapping, optional
        """
        series = Series(self.run_id, tuple(names), context_text(context), 0, self.attempt)
        self._recorder.journal.append_derived(writer, series, rows)

    def _append_first(self, *arguments: Any) -> None:
        self._append = self._recorder.journal.append_points
        self._append(*arguments)

    def rebind(self) -> None:
        """Forget the journal that points went to: this process has another one now."""
        self._handles, self._tensor_handles = {}, {}
        self._append = self._append_first

    # ------------------------------------------------------------------ life

    def child(self, kind: str = "run", name: str | None = None, **arguments: Any) -> Run:
        """Start a run that is part of this one; see `start_run` for the arguments."""
        from tachograph.start import start_run

        arguments.setdefault("make_current", False)
        return start_run(kind=kind, name=name, parent=self, **arguments)

    def use(self) -> Any:
        """A context manager that makes this the current run without ending it."""
        return using(self)

    def finish(
        self,
        status: str = "finished",
        error: BaseException | str | None = None,
        *,
        wait: bool = True,
    ) -> None:
        """End the run. A second call does nothing.

        Parameters
        ----------
        status : {'finished', 'failed', 'interrupted', 'pruned'}
        error : exception or str, optional
            Why it failed; an exception's traceback becomes an event.
        wait : bool, default True
            Return when the stores have everything, at most after ``record.exit_deadline``.
        """
        if not self.is_open:
            return
        self.is_open = False
        deactivate(self)
        if self.parent_id is None and os.environ.get(PARENT_VARIABLE) == self.run_id:
            os.environ.pop(PARENT_VARIABLE, None)
        open_runs.discard(self)
        if self._beside is not None:
            self._beside.close()
        self.end_cost()
        self._end(status, error)
        if wait and self._owner == os.getpid():
            self._recorder.flush(self.config.record.exit_deadline)
        elif self.parent_id is None:
            self._recorder.seal()

    @guarded
    def _end(self, status: str, error: BaseException | str | None) -> None:
        message = error_line(error)
        if isinstance(error, BaseException):  # of every rank; the row is rank 0's alone
            self._event("error", message or "", "error", error_data(error))
        if self._owner != os.getpid():
            return
        known = status in _END_STATUSES
        ended: Row = {
            "status": status if known else "failed" if error else "finished",
            "ended_at": self._recorder.now_us(),
            "error": message,
        }
        self._rows("attempts", self._tried | ended)
        self._rows("runs", ended)
        self._recorder.in_background(functools.partial(record_group, self))
        if not known:
            raise RecordError(f"a run ends as {', '.join(_END_STATUSES)}, not {status!r}")

    @guarded
    def begin(self, row: Row, *, resumed: bool) -> None:
        """Record that the run starts; `row` has columns of the table `runs`."""
        recorder, now = self._recorder, self._recorder.now_us()
        self._first_step_known = not resumed
        self._tried = {
            "attempt": self.attempt,
            "first_step": None if resumed else 0,
            "started_at": now,
            "status": "running",
            "host": host.host_name(),
        }
        run_row = {
            "parent_id": self.parent_id,
            "root_id": self.root_id,
            "kind": self.kind,
            "name": self.name,
            "status": "running",
            "attempt": self.attempt,
            "started_at": None if resumed else now,
            "host": host.host_name(),
            "deleted": None if resumed else 0,
        }
        self._rows("runs", run_row | row)
        self._rows("attempts", self._tried)
        if self.parent_id is None:
            self._beside = origin.begin(self, recorder)

    @property
    def started_here(self) -> bool:
        """Whether this process started it, and not one that this was forked from or works for."""
        return self._process == os.getpid()

    def set_elsewhere(self) -> None:
        """Say that another process started it."""
        self._process = None

    @guarded
    def set_first_step(self, step: int) -> None:
        """Say at which step this attempt goes on; without it the first logged step counts."""
        self._first_step_known = True
        self._tried["first_step"] = int(step)
        self._rows("attempts", self._tried)

    @guarded
    def set_rank(self, rank: int, local_rank: int, world_size: int) -> None:
        """Say which rank of the training this process is; rank 0 owns the run's row."""
        self._recorder.set_rank(rank, local_rank, world_size)
        if rank != 0:
            self._owner = None
        self.rebind()

    @guarded
    def log_usage(self, sample: Mapping[str, float]) -> None:
        """Record a sample of CPU, GPU and memory use: points without a step."""
        self._log_now(sample, _USAGE)

    @guarded
    def log_cost(self, sample: Mapping[str, float]) -> None:
        """Record what recording costs: points without a step."""
        self._log_now(sample, _COST)

    def _log_now(self, sample: Mapping[str, float], context: Mapping[str, str]) -> None:
        key = (context["phase"], True, *sample)
        handle = self._handles.get(key) or self._new_handle(key, sample, context, None)
        self._append(handle, None, None, sample.values())

    @guarded
    def watch_cost(self, spent: Callable[[], Spent]) -> None:
        """Record what recording a fit costs, from now until `end_cost` or the end of the run."""
        self.end_cost()
        self._cost = RecordingCost(self, self._recorder, spent)

    @guarded
    def end_cost(self) -> None:
        """Record what it was at the end of the fit."""
        cost, self._cost = self._cost, None
        if cost is not None:
            cost.close()

    @property
    def last_step(self) -> int:
        """The step that points were logged at last; -1 before."""
        return self._last_step

    @property
    def first_step(self) -> int:
        """The step at which this attempt began, as far as it is known."""
        return int(self._tried.get("first_step") or 0)

    def next_child(self) -> int:
        """A number for the next child, the same in all ranks that start children alike."""
        self._children += 1
        return self._children

    def __enter__(self) -> Self:
        if current_run() is not self and self.is_open:
            activate(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(status_of(error), error)

    def __reduce__(self) -> tuple[Any, ...]:
        from tachograph.start import attach_run

        names = ("run_id", "kind", "name", "parent_id", "root_id", "attempt", "by_user")
        return attach_run, (self.config, {name: getattr(self, name) for name in names})

    def __repr__(self) -> str:
        return f"<Run {self.run_id} {self.kind} {'open' if self.is_open else 'ended'}>"


def _as_float(value: Any) -> float:
    for method in ("detach", "item"):  # off a gradient; out of an array of one
        if hasattr(value, method):
            value = getattr(value, method)()
    return float(value)


def _join_names(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            joined |= _join_names(value, f"{prefix}{name}/")
        else:
            joined[f"{prefix}{name}"] = value
    return joined
