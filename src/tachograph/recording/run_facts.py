"""What is said of a run beside its points: parameters, tags, events, documents, files.

The half of `Run` that records rows; it knows no storage and does not know how a run lives.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from tachograph.errors import RecordError
from tachograph.provenance.rows import document_row, provenance_row
from tachograph.recording import origin
from tachograph.records import Row
from tachograph.security import redaction
from tachograph.security.texts import redact_text
from tachograph.tensors.records import Pairs, TensorKey, TensorSeries, loose_row
from tachograph.values import canonical_json, flatten, json_text, plain
from tachograph.warning import warn_once

if TYPE_CHECKING:
    from tachograph.config import Config
    from tachograph.journal import JournalWriter, TensorHandle
    from tachograph.recorder import Recorder
    from tachograph.recording.run_groups import Gathered
    from tachograph.run import Run

P = ParamSpec("P")
T = TypeVar("T")
_FREE_TEXT = {
    "runs": ("name", "project", "description", "hypothesis", "verdict", "error"),
    "tags": ("key",),
    "params": ("path",),
    "artifacts": ("path", "uri"),
    "provenance": ("section",),
}
"""Columns of tables that hold what a person has written, which may be a secret."""


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


def context_text(context: Mapping[str, Any] | None) -> str:
    """The context of a series as canonical JSON, without secrets."""
    return json_text(redaction.redact_value("context", plain(context))) if context else "{}"


def _without_secrets(table: str, row: Row) -> Row:
    written = {name: row[name] for name in _FREE_TEXT.get(table, ()) if row.get(name)}
    return row | {name: redact_text(text) for name, text in written.items()}


class Facts:
    """Methods of a run that record facts; see `Run`."""

    run_id: str
    attempt: int
    name: str | None
    config: Config
    _owner: int | None
    _recorder: Recorder
    gathered: Gathered
    _tensor_handles: dict[int, tuple[tuple[TensorKey, ...], JournalWriter, TensorHandle]]

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
            {"key": str(key), "value": redaction.redact_value(str(key), str(value))}
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
        self._rows("runs", {key: str(value) for key, value in columns.items()})

    @guarded
    def log_provenance(self, section: str, document: Mapping[str, Any]) -> None:
        """Record a document on where the run comes from; the section's latest one counts."""
        self._rows("provenance", provenance_row(section, document))

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
            Columns of the table `tensors`; at least name and kind. Shapes may be sequences, a
            context a mapping, a histogram pairs of bin and count.
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
        self._recorder.rows("tensors", [loose_row(row) | common for row in rows])

    @guarded
    def log_statistics(
        self,
        tensors: tuple[TensorKey, ...],
        statistics: bytes,
        step: int,
        *,
        epoch: float | None = None,
        histograms: Sequence[Pairs | None] | None = None,
    ) -> None:
        """Record statistics of the same tensors again and again, in a tenth of the time.

        Parameters
        ----------
        tensors : tuple of TensorKey
            What they are; give the same tuple at each step.
        statistics : bytes
            Per tensor one little-endian float64 for each of `tensor_records.STATISTICS`: mean,
            std, min, max and l2 of the finite values (NaN where there are none), and the
            numbers of zeros, NaN and infinities.
        step : int
        epoch : float, optional
        histograms : sequence, optional
            Per tensor pairs of bin and count (`tachograph.tensors.histograms`), or None.
        """
        recorder = self._recorder
        known = self._tensor_handles.get(id(tensors))  # its hash would take longer than the rest
        if known is None:
            series = TensorSeries(self.run_id, tensors, recorder.identity.rank, self.attempt)
            if len(self._tensor_handles) > 1_000:  # tensors that never come back
                self._tensor_handles.clear()
            journal = recorder.journal
            known = tensors, journal, journal.tensors(series)
            self._tensor_handles[id(tensors)] = known
        known[1].append_tensors(known[2], int(step), epoch, statistics, histograms)

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
        from tachograph.recording import artifacts

        artifacts.log_artifact(self, Path(path), name, kind=kind, step=step, copy=copy)

    @guarded
    def log_table(self, name: str, table: Any, *, step: int | None = None) -> None:
        """Keep a table (data frame, Arrow table, list of mappings, …) as a JSON Lines file."""
        from tachograph.recording import artifacts

        artifacts.log_table(self, name, table, step=step)

    @guarded
    def log_image(self, name: str, image: Any, *, step: int | None = None) -> None:
        """Keep an image (path, Pillow image, or array of height × width [× channels]) as PNG."""
        from tachograph.recording import artifacts

        artifacts.log_image(self, name, image, step=step)

    @guarded
    def log_figure(self, name: str, figure: Any, *, step: int | None = None) -> None:
        """Keep a figure: of Matplotlib as PNG, of Plotly as HTML."""
        from tachograph.recording import artifacts

        artifacts.log_figure(self, name, figure, step=step)

    @guarded
    def log_data(
        self,
        data: Any,
        name: str = "data",
        *,
        rows: Any = None,
        role: str | None = None,
        compare: bool = True,
    ) -> None:
        """Record the fingerprint of data: shape, types and digest, never the data itself.

        Rows of a split for evaluation that are among the training rows become an event, with their
        count. By its name a split is for training (`train`, `fit`, `X`), for evaluation (`val`,
        `valid`, `test`, `dev`, `holdout`, …) or for neither.

        Parameters
        ----------
        data : any
            Arrays, tensors, data frames, data sets, files, …; see `provenance.data.fingerprint`.
        name : str, default 'data'
            Of the split; recorded as the section ``data.<name>``.
        rows : any, optional
            What the rows are read from, where that is something else.
        role : {'training', 'evaluation', 'watched', 'prediction', 'other'}, optional
            What the split is for, where its name does not say it. 'watched' is an evaluation that
            may be of the training data itself.
        compare : bool, default True
            Whether to look for its rows among those of other splits.
        """

        def fingerprint() -> None:
            document = origin.data_document(data, name)
            self.record_rows("provenance", provenance_row(f"data.{name}", document))

        self.in_background(fingerprint)
        if compare:
            self.compare_rows(data if rows is None else rows, name, role=role)

    @guarded
    def compare_rows(
        self, data: Any, name: str, *, role: str | None = None, fold: int | None = None
    ) -> None:
        """Look in the background which rows of a split are among those of the others.

        Parameters
        ----------
        data : any
        name : str
        role : str, optional
            As of `log_data`.
        fold : int, optional
            The fold of a cross-validation inside this run that the split belongs to.
        """

        def compare() -> None:
            from tachograph.recording import splits  # with much that the start does without

            splits.compare(cast("Run", self), data, name, role, fold)

        self.in_background(compare)

    @guarded
    def compare_folds(self, data: Any, folds: Sequence[tuple[Any, Any]]) -> None:
        """Look in the background which rows of a fold's test are among those of its training.

        Parameters
        ----------
        data : any
            What the rows are read from.
        folds : sequence of pairs of arrays
            The numbers of the rows for training and of those for the test.
        """

        def compare() -> None:
            from tachograph.recording import splits  # with much that the start does without

            splits.compare_folds(cast("Run", self), data, folds)

        self.in_background(compare)

    @guarded
    def log_outcome(self, value: Any, name: str = "predictions", *, batches: bool = False) -> None:
        """Record digests of what the training has made, never the values themselves.

        They tell whether another run made the same bits, and are no cause of a difference. Read
        at once, at about 1 GB a second: what changes afterwards does not count. Recorded as the
        section ``outcome.<name>``.

        Parameters
        ----------
        value : any
            An array, tensor, data frame or bytes, the path of a file, or a mapping of names to
            such. Read in full up to 512 MiB, of more an evenly spread sample; from an accelerator
            it is copied, which waits for the device.
        name : str, default 'predictions'
            What it is; 'weights' is the final state of the model.
        batches : bool, default False
            Whether `value` is a sequence of batches, to be read as if they were put together
            along their first axis.
        """
        from tachograph.provenance import outcomes

        document = outcomes.outcome(value, batches=batches)
        # Names of tensors are no names of secrets: `token_embedding`.
        self._rows("provenance", document_row(f"outcome.{name}", document))

    def in_background(self, task: Callable[[], None]) -> None:
        """Run a task beside the training, before the process ends."""
        self._recorder.in_background(task)

    def keep_content(self, path: Path, sha256: str, urls: Sequence[str]) -> None:
        """Keep a file's content for stores that get it later; OSError where there is no room."""
        self._recorder.keep_content(path, sha256, urls)

    @guarded
    def record_rows(self, table: str, *rows: Row) -> None:
        """Record rows of a keyed table that belong to this run."""
        self._rows(table, *rows)

    def stored_tags(self, key: str) -> dict[str, str]:
        """Run id to value of a tag, of all runs that a store or a journal for it knows."""
        return origin.tagged(self.config, key)

    def _rows(self, table: str, *rows: Row) -> None:
        if not rows or (table in ("runs", "attempts") and self._owner != os.getpid()):
            return
        rows = tuple(_without_secrets(table, row) for row in rows)
        if self._owner == os.getpid():
            self.gathered.add(table, rows)
        common = {"run_id": self.run_id, "changed_at": self._recorder.change_us()}
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
            "message": redact_text(message),
            "data": None if data is None else json_text(redaction.redact_value("", plain(data))),
        }
        self._recorder.rows("events", [row])

    def report_problem(self, error: Exception, where: str) -> None:
        """Warn once that something was not recorded, or raise where the user wants that."""
        if self.config.record.on_error == "raise":
            raise error
        what = str(error) or type(error).__name__
        warn_once(f"{where}: {what}", key=what)


def _names(tags: Iterable[str]) -> list[str]:
    return [tags] if isinstance(tags, str) else list(tags)
