"""A run: its identity, its life from start to end, and what is logged into it.

Everything goes to the process's recorder as rows and points. Knows no store and no framework.
No method raises into the training unless the configuration says ``on_error = "raise"``.
"""

from __future__ import annotations

import functools
import os
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from tachograph import host, origin, redaction
from tachograph.config import Config
from tachograph.current import activate, current_run, deactivate, using
from tachograph.errors import RecordError
from tachograph.identity import PARENT_VARIABLE
from tachograph.journal import DerivedRow, SeriesHandle
from tachograph.recorder import Recorder, get_recorder
from tachograph.records import Row, Series, check_run_id
from tachograph.values import canonical_json, flatten, plain
from tachograph.warning import warn_once

P = ParamSpec("P")
T = TypeVar("T")
_USAGE = {"phase": "system"}
_END_STATUSES = ("finished", "failed", "interrupted", "pruned")
open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


def guarded(method: Callable[P, T]) -> Callable[P, T | None]:
    """Keep whatever a recording method raises from the training.

    A problem is said once. The configuration's ``on_error = "raise"`` lets it through.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            run: Any = args[0]
            run.report_problem(error, method.__name__.lstrip("_"))
            return None

    return call


class Run:
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
        self.attempt = attempt
        self.config = config
        self.by_user = by_user
        self.fits = 0
        self.is_open = True
        self._owner = os.getpid() if owned else None
        self._process: int | None = os.getpid()
        self._recorder: Recorder = get_recorder(config)
        self._handles: dict[tuple[Any, ...], SeriesHandle] = {}
        self._append: Callable[..., None] = self._append_first
        self._last_step = -1
        self._children = 0
        self._first_step_known = True
        self._tried: Row = {}  # the attempt's row, as far as it is known
        self._beside: origin.Beside | None = None
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

        Costs about two microseconds, survives the end of the process, and never raises.

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
            self._last_step = step
            key = (*metrics,) if context is None else (*context.items(), None, *metrics)
            handle = self._handles.get(key) or self._new_handle(key, metrics, context, step)
            self._append(handle, step, epoch, metrics.values())
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
                values[name] = float(value.detach() if hasattr(value, "detach") else value)
            except (TypeError, ValueError, OverflowError, RuntimeError):
                bad.append(f"{name}={value!r:.80}")
        if values:
            key = (canonical_json(context or {}), True, *values)  # apart from those of `log`
            handle = self._handles.get(key) or self._new_handle(key, values, context, step)
            self._append(handle, step, None if epoch is None else float(epoch), values.values())
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
            "{}" if not context else canonical_json(context),
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
        text = "{}" if not context else canonical_json(context)
        series = Series(self.run_id, tuple(names), text, 0, self.attempt)
        self._recorder.journal.append_derived(writer, series, rows)

    def _append_first(self, *arguments: Any) -> None:
        self._append = self._recorder.journal.append_points
        self._append(*arguments)

    def rebind(self) -> None:
        """Forget the journal that points went to: this process has another one now."""
        self._handles = {}
        self._append = self._append_first

    # ------------------------------------------------------------------ facts

    @guarded
    def log_params(self, params: Mapping[str, Any], *, source: str = "user") -> None:
        """Record configuration values; nested mappings become dotted paths.

        Parameters
        ----------
        params : mapping
            Values are kept as JSON; secrets are redacted by name and by shape.
        source : str, default 'user'
            Where they come from: 'framework', 'argv', 'config file', 'user' or 'default'.
        """
        rows = [
            {"path": path, "value": canonical_json(redaction.redact_value(path, plain(value)))}
            for path, value in flatten(params).items()
        ]
        self._rows("params", *(row | {"source": source} for row in rows))

    @guarded
    def set_tags(self, tags: Mapping[str, Any] | Iterable[str], **more: Any) -> None:
        """Set tags: a mapping of keys to values, or names alone."""
        pairs = dict(tags) if isinstance(tags, Mapping) else dict.fromkeys(_names(tags), "")
        rows = [
            {"key": str(key), "value": redaction.redact_text(str(value))}
            for key, value in (pairs | more).items()
        ]
        self._rows("tags", *rows)

    @guarded
    def note(self, text: str) -> None:
        """Add a note: free text with the present time."""
        self._event("note", str(text))

    @guarded
    def event(
        self,
        kind: str,
        message: str,
        *,
        level: str = "info",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that something happened.

        Parameters
        ----------
        kind : str
            'status', 'warning', 'alert', 'console', 'health', 'note' or 'error'.
        message : str
            One line for a person.
        level : {'debug', 'info', 'warning', 'error'}
        data : mapping, optional
            The evidence, for a program.
        """
        self._event(kind, message, level, data)

    @guarded
    def update(self, **columns: Any) -> None:
        """Change the run's row: name, description, hypothesis, verdict, project, framework, …."""
        allowed = {"name", "description", "hypothesis", "verdict", "project", "group_id"}
        allowed |= {"framework", "kind"}
        if unknown := set(columns) - allowed:
            raise RecordError(f"a run has no {', '.join(sorted(unknown))} to update")
        if "name" in columns:
            self.name = columns["name"]
        self._rows("runs", {key: redaction.redact_text(str(v)) for key, v in columns.items()})

    @guarded
    def log_provenance(self, section: str, document: Mapping[str, Any]) -> None:
        """Record a document on where the run comes from; the section's latest one counts."""
        self._rows("provenance", origin.provenance_row(section, document))

    @guarded
    def log_tensors(
        self,
        rows: Iterable[Mapping[str, Any]],
        step: int,
        *,
        epoch: float | None = None,
    ) -> None:
        """Record statistics of tensors at one step.

        Parameters
        ----------
        rows : iterable of mappings
            Columns of the table `tensors`; at least name and kind.
        step : int
        epoch : float, optional
        """
        now = self._recorder.now_us()
        common = {
            "run_id": self.run_id,
            "rank": self._recorder.identity.rank,
            "attempt": self.attempt,
            "step": int(step),
            "epoch": epoch,
            "time": now,
        }
        self._recorder.rows("tensors", [{"context": "{}"} | dict(row) | common for row in rows])

    # ------------------------------------------------------------------ artifacts

    @guarded
    def log_artifact(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        kind: str = "file",
        step: int | None = None,
        copy: bool = True,
    ) -> None:
        """Record a file or folder: its hash, size and place, and with `copy` its content.

        Without `copy` only the reference is kept, and the hash is computed beside the training.
        """
        from tachograph import artifacts

        artifacts.log_artifact(self, Path(path), name, kind=kind, step=step, copy=copy)

    @guarded
    def log_table(self, name: str, table: Any, *, step: int | None = None) -> None:
        """Keep a table (data frame, Arrow table, list of mappings, …) as a JSON Lines file."""
        from tachograph import artifacts

        artifacts.log_table(self, name, table, step=step)

    @guarded
    def log_image(self, name: str, image: Any, *, step: int | None = None) -> None:
        """Keep an image (path, Pillow image, or array of height × width [× channels]) as PNG."""
        from tachograph import artifacts

        artifacts.log_image(self, name, image, step=step)

    @guarded
    def log_figure(self, name: str, figure: Any, *, step: int | None = None) -> None:
        """Keep a figure: of Matplotlib as PNG, of Plotly as HTML."""
        from tachograph import artifacts

        artifacts.log_figure(self, name, figure, step=step)

    @guarded
    def log_data(self, data: Any, name: str = "data") -> None:
        """Record the fingerprint of data: shape, types and digest, never the data itself."""

        def fingerprint() -> None:
            document = origin.data_document(data, name)
            self.record_rows("provenance", origin.provenance_row(f"data.{name}", document))

        self.in_background(fingerprint)

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
        open_runs.discard(self)
        if self._beside is not None:
            self._beside.close()
        self._end(status, error)
        if self.parent_id is None and os.environ.get(PARENT_VARIABLE) == self.run_id:
            del os.environ[PARENT_VARIABLE]
        if wait and self._owner == os.getpid():
            self._recorder.flush(self.config.record.exit_deadline)
        elif self.parent_id is None:
            self._recorder.seal()

    @guarded
    def _end(self, status: str, error: BaseException | str | None) -> None:
        message = _error_line(error)
        if isinstance(error, BaseException):  # of every rank; the row is rank 0's alone
            self._event("error", message or "", "error", _error_data(error))
        if self._owner != os.getpid():
            return
        if status not in _END_STATUSES:
            raise RecordError(f"a run ends as {', '.join(_END_STATUSES)}, not {status!r}")
        now = self._recorder.now_us()
        ended = {"status": status, "ended_at": now, "error": message}
        self._rows("attempts", self._tried | ended)
        self._rows("runs", ended)

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

    def set_first_step(self, step: int) -> None:
        """Say at which step this attempt goes on; without it the first logged step counts."""
        self._first_step_known = True
        self._tried["first_step"] = int(step)
        self._rows("attempts", self._tried)

    def set_rank(self, rank: int, local_rank: int, world_size: int) -> None:
        """Say which rank of the training this process is; rank 0 owns the run's row."""
        self._recorder.set_rank(rank, local_rank, world_size)
        if rank != 0:
            self._owner = None
        self.rebind()

    @guarded
    def log_usage(self, sample: Mapping[str, float]) -> None:
        """Record a sample of CPU, GPU and memory use: points without a step."""
        key = ("usage", *sample)
        handle = self._handles.get(key) or self._new_handle(key, sample, _USAGE, None)
        self._append(handle, None, None, sample.values())

    def in_background(self, task: Callable[[], None]) -> None:
        """Run a task beside the training, before the process ends."""
        self._recorder.in_background(task)

    def next_child(self) -> int:
        """A number for the next child, the same in all ranks that start children alike."""
        self._children += 1
        return self._children

    @guarded
    def record_rows(self, table: str, *rows: Row) -> None:
        """Record rows of a keyed table that belong to this run."""
        self._rows(table, *rows)

    # ------------------------------------------------------------------ inside

    def _rows(self, table: str, *rows: Row) -> None:
        if not rows or (table in ("runs", "attempts") and self._owner != os.getpid()):
            return
        common = {"run_id": self.run_id, "changed_at": self._recorder.now_us()}
        self._recorder.rows(table, [common | row for row in rows])

    def _event(
        self,
        kind: str,
        message: str,
        level: str = "info",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        row: Row = {
            "run_id": self.run_id,
            "time": self._recorder.now_us(),
            "level": level,
            "kind": kind,
            "message": redaction.redact_text(message),
            "data": None if data is None else redaction.redact_text(canonical_json(data)),
        }
        self._recorder.rows("events", [row])

    def report_problem(self, error: Exception, where: str) -> None:
        """Warn once that something was not recorded, or raise where the user wants that."""
        if self.config.record.on_error == "raise":
            raise error
        what = str(error) or type(error).__name__
        warn_once(f"{where}: {what}", key=what)

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


def status_of(error: BaseException | None) -> str:
    """The status of a run that an exception ended, or nothing did."""
    if error is None or isinstance(error, GeneratorExit):
        return "finished"
    if isinstance(error, SystemExit):
        return "finished" if error.code in (None, 0) else "failed"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "pruned" if type(error).__name__ == "TrialPruned" else "failed"


def _error_line(error: BaseException | str | None) -> str | None:
    if error is None:
        return None
    line = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return redaction.redact_text(line[:2000])


def _error_data(error: BaseException) -> dict[str, Any]:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {"type": type(error).__qualname__, "traceback": "".join(lines)[-20_000:]}


def _join_names(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            joined |= _join_names(value, f"{prefix}{name}/")
        else:
            joined[f"{prefix}{name}"] = value
    return joined


def _names(tags: Iterable[str]) -> list[str]:
    return [tags] if isinstance(tags, str) else list(tags)
