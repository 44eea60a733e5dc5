"""Records what the `fit`, `evaluate` and `predict` of a Keras 3 model do, on any of its backends.

A point's step is the number of steps that the optimizer has done (`optimizer.iterations`); its
epoch is Keras's own, from 0. No hook of batches is overridden: Keras goes on without waiting.
Weights and gradients come from the steps themselves; see `keras_tensors`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Unpack

import keras

from tachograph.callbacks import keras_facts as facts
from tachograph.callbacks.base import KEYWORDS, Keywords, Recording, hook
from tachograph.callbacks.keras_tensors import KerasTensors
from tachograph.callbacks.keras_watch import (
    find_call,
    find_container,
    forget,
    is_running,
    release,
    watch,
)
from tachograph.run import Run, status_of

_RESUME_FILE = "tachograph.json"
_VANISHED = "the call ended without its end, and without saying why"
_TRAIN = {"phase": "train"}
_RUNNING = {"phase": "train", "mean": "running"}
_open_sessions: set[_Session] = set()


class KerasCallback(keras.callbacks.Callback):  # type: ignore[misc]
    __doc__ = f"""Record each fit, evaluation and prediction of a Keras model.

    ``model.fit(x, y, callbacks=[KerasCallback()])``, with torch, JAX or TensorFlow.

    Parameters
    ----------
    batches : int, optional
        Record the metrics of every so many batches too. Keras gives running means since the
        epoch's start, and the device is waited for; so only the epoch's are the default.
    {KEYWORDS.strip().partition("----------")[2].strip()}
    """

    def __init__(self, *, batches: int | None = None, **keywords: Unpack[Keywords]) -> None:
        super().__init__()
        self._recording = Recording(**keywords)
        self._batches = batches
        self._session: _Session | None = None
        self._fitted: tuple[weakref.ref[Any], int, int] | None = None  # model, step and epoch

    def __getstate__(self) -> dict[str, Any]:
        transient = {"params": None, "_model": None, "_session": None, "_fitted": None}
        return self.__dict__ | transient

    # ------------------------------------------------------------------ what Keras calls

    def set_model(self, model: Any) -> None:
        """Keep the model until the end of the call that begins."""
        super().set_model(model)
        self._prepare()

    @hook
    def on_train_begin(self, logs: Any = None) -> None:
        session = self._new_session()
        if session is not None:
            session.begin("run")

    @hook
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._session is not None:
            self._session.epoch_begins(epoch)

    @hook
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._session is not None:
            # Kept, not read: callbacks behind this one may add values of their own.
            self._session.logs = {} if logs is None else logs
            if not self._session.is_watching:
                self._session.epoch_ends()
                self._session.epoch_ended([self])

    @hook
    def on_train_end(self, logs: Any = None) -> None:
        if self._session is not None and not self._session.is_watching:
            self._session.training_ended([self])

    @hook
    def on_test_begin(self, logs: Any = None) -> None:
        self._evaluation_begins("test")

    @hook
    def on_test_end(self, logs: Any = None) -> None:
        self._evaluation_ends(logs)

    @hook
    def on_predict_begin(self, logs: Any = None) -> None:
        self._evaluation_begins("predict")

    @hook
    def on_predict_end(self, logs: Any = None) -> None:
        if self._session is not None:
            self._session.predicted()
        self._evaluation_ends(None)

    # ------------------------------------------------------------------ inside

    @hook
    def _prepare(self) -> None:
        """Watch the list of callbacks that has just been made, before it calls any hook."""
        if self._recording.is_off:
            return
        container = find_container()
        if container is None:
            return
        outer = self._session
        if outer is not None and not outer.is_running:
            outer.vanishes()
            outer.stop_watching()
            outer = None
        self._session = _Session(self, outer)
        self._session.watch(container)

    def _new_session(self) -> _Session | None:
        """The session that was prepared, or one for a list of callbacks that is used again."""
        if self._session is None or self._session.kind:
            self._prepare()
        if self._session is None and not self._recording.is_off:
            self._session = _Session(self, None)
        return self._session

    def _evaluation_begins(self, kind: str) -> None:
        session = self._session
        if session is None or not (session.is_open and session.kind == "run"):
            session = self._new_session()
            if session is not None:
                session.begin(kind)
        if session is not None:
            session.evaluation_started = perf_counter()
            session.training_stands()

    def _evaluation_ends(self, logs: Mapping[str, Any] | None) -> None:
        session = self._session
        if session is not None:
            session.evaluation_ends(logs)
            if not session.is_watching:
                session.evaluation_ended()


class _Session:
    """One fit, evaluation or prediction as it is recorded, from its begin to its end."""

    def __init__(self, callback: KerasCallback, outer: _Session | None) -> None:
        self._callback = callback
        self._recording = callback._recording
        self._outer = outer
        self._model: weakref.ref[Any] | None = None
        self._container: weakref.ref[Any] | None = None
        self._run: Run | None = None
        self._owned = False
        self._resumed = False
        self.kind = ""
        self.is_open = False
        self.logs: Mapping[str, Any] = {}
        self.evaluation_started = 0.0
        self._step = self._step_before = 0  # now, and when the epoch began
        self._epoch = 0
        self._batch = 0
        self._batches_per_step = 1
        self._epoch_started = 0.0
        self._train_seconds: float | None = None
        self._rate: float | None = None
        self._numbers: dict[str, float] = {}
        self._marks: dict[str, tuple[int, int]] = {}
        self._tensors: KerasTensors | None = None

    @property
    def is_watching(self) -> bool:
        """Whether a list of callbacks tells what no hook does."""
        return self._container is not None

    @property
    def is_running(self) -> bool:
        """Whether this is called from within the call that is recorded."""
        container = None if self._container is None else self._container()
        return self.is_open and container is not None and is_running(container)

    def watch(self, container: Any) -> None:
        """Be told what goes on in the calls of a list of callbacks."""
        watch(container, self)
        self._container = weakref.ref(container)

    def stop_watching(self) -> None:
        """Be told nothing any more."""
        container = None if self._container is None else self._container()
        if container is not None:
            forget(container, self)

    # ------------------------------------------------------------------ begin

    def begin(self, kind: str) -> None:
        """Open a run, or go on with the run of the last fit, and describe the call."""
        call, container = find_call(), find_container()
        callbacks = [self._callback] if container is None else container.callbacks
        model = _inside(call.get("self", self._callback._model))
        fitted = self._callback._fitted
        self.kind = kind
        self._model = weakref.ref(model)
        if kind != "run" and fitted is not None and fitted[0]() is model:
            self._run = self._recording.reopen()
            _, self._step, self._epoch = fitted
        else:
            resume_id = _resume_id(callbacks) if kind == "run" else None
            run = self._recording.open(facts.FRAMEWORK, kind=kind, resume_id=resume_id)
            self._run, self._owned = run, self._recording.owned
            self._resumed = resume_id is not None and run.run_id == resume_id and self._owned
        if not self._recording.active and self._owned:
            self._run = None
            return
        self.is_open = True
        _open_sessions.add(self)
        self._describe(model, call, callbacks)

    def _describe(self, model: Any, call: Mapping[str, Any], callbacks: Sequence[Any]) -> None:
        run = self._run
        if run is None:
            return
        if run.is_open:
            self._describe_model(run, model, call, callbacks)
        for name, data in facts.data(call, "train" if self.kind == "run" else self.kind):
            # `evaluate` of the training data is a look at them, and asked for.
            role = "watched" if name == "test" else None
            if run.is_open:
                run.log_data(data, name, role=role)
            else:
                run.compare_rows(data, name, role=role)

    def _describe_model(
        self, run: Run, model: Any, call: Mapping[str, Any], callbacks: Sequence[Any]
    ) -> None:
        for part in facts.params(model, call, callbacks):
            try:
                run.log_params(part(), source="framework")
            except Exception as error:  # what one part cannot say must not cost the others
                self._recording.problem(error, "KerasCallback.on_train_begin")
        run.log_provenance("model", facts.model_document(model))

    @hook
    def training_begins(self, callbacks: Sequence[Any]) -> None:
        """Note where the training stands, which BackupAndRestore may have changed."""
        if self._run is None:
            return
        model = self._present_model()
        self._step = facts.steps_done(model) or 0
        self._batches_per_step = facts.batches_per_step(model)
        self._marks = facts.checkpoint_marks(callbacks)
        if self._resumed and self._step:
            self._run.set_first_step(self._step + 1)
        if self.kind == "run" and self._recording.schedule() is not None:
            self._tensors = KerasTensors(self._recording, self._run, model)

    # ------------------------------------------------------------------ epochs

    def epoch_begins(self, epoch: int) -> None:
        """Start the clock of an epoch."""
        self._epoch, self._batch, self._step_before = epoch, 0, self._step
        self._train_seconds = None
        self._epoch_started = perf_counter()
        if self._tensors is not None:
            self._tensors.epoch_begins(self._present_model(), epoch, self._step)

    def batch_ends(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Count batches; record every so many where the user wants that."""
        every, before = self._callback._batches, self._batch
        self._batch = batch + 1
        if every and self._batch // every > before // every:
            self._record_batch(logs)
        if self._tensors is not None:
            self._tensors.batch_ended()

    @hook
    def _record_batch(self, logs: Mapping[str, Any] | None) -> None:
        if self._run is not None:
            self._run.log(facts.numbers(logs), self._counted, epoch=self._epoch, context=_RUNNING)

    @property
    def _counted(self) -> int:
        """Steps done, from the batches of this epoch."""
        return self._step_before + -(-self._batch // self._batches_per_step)

    def training_stands(self) -> None:
        """The batches of the epoch are done; what comes now is not training."""
        if self._train_seconds is None:
            self._train_seconds = perf_counter() - self._epoch_started

    @hook
    def epoch_ends(self) -> None:
        """Read the step and the learning rate before callbacks set those of the next epoch."""
        if self._run is None:
            return
        self.training_stands()
        model = self._present_model()
        done = facts.steps_done(model)
        self._step = self._counted if done is None else done
        self._rate = None
        self._rate = facts.learning_rate(model, self._step)
        if self._tensors is not None:
            self._tensors.epoch_ended(model, self._step, self._epoch)

    @hook
    def epoch_ended(self, callbacks: Sequence[Any]) -> None:
        """Record the epoch: all that callbacks found in its logs or added to them."""
        if self._run is None:
            return
        values = {"time/epoch_seconds": perf_counter() - self._epoch_started}
        if self._batch and self._train_seconds is not None:
            values["time/step_seconds"] = self._train_seconds / self._batch
        if self._rate is not None:
            values["lr"] = self._rate
        self._numbers = facts.numbers(self.logs)
        validation: dict[str, float] = {}
        for name, value in self._numbers.items():
            if name.startswith("val_"):
                validation[name.removeprefix("val_")] = value
            else:
                values[name] = value
        self._log(values, "train")
        self._log(validation, "val")
        self._checkpoints(callbacks)

    def _log(self, values: Mapping[str, float], phase: str) -> None:
        if values and self._run is not None:
            self._run.log(values, self._step, epoch=self._epoch, context={"phase": phase})

    def _checkpoints(self, callbacks: Sequence[Any]) -> None:
        """Record checkpoints that were written since the last look, as references."""
        run = self._run
        if run is None:
            return
        copy = run.config.record.checkpoints == "copy"
        for path, mark in facts.checkpoint_marks(callbacks).items():
            if self._marks.get(path) != mark:
                self._marks[path] = mark
                name = f"checkpoints/{Path(path).name}"
                run.log_artifact(Path(path), name, kind="checkpoint", step=self._step, copy=copy)
        folder = facts.backup_folder(callbacks)
        if folder is not None and self._recording.own_run_id == run.run_id:
            _remember(folder, run.run_id)

    # ------------------------------------------------------------------ evaluation

    def evaluation_ends(self, logs: Mapping[str, Any] | None) -> None:
        """Record an evaluation by itself; one inside a fit is in the logs of the epoch."""
        values = {"time/epoch_seconds": perf_counter() - self.evaluation_started}
        if self.kind == "run":
            self._step = facts.steps_done(self._present_model()) or self._counted
            self._log(values, "val")
        else:
            self._step = facts.steps_done(self._present_model()) or self._step
            self._log(facts.numbers(logs) | values, self.kind)

    @hook
    def predicted(self) -> None:
        """Record digests of what `predict` will return, while Keras still has it in batches."""
        if self._run is not None and self.kind == "predict":
            batches = facts.predicted(find_call())
            if batches:
                self._run.log_outcome(batches, batches=True)

    @hook
    def evaluation_ended(self) -> None:
        """End an evaluation that is not part of a fit."""
        if self.kind != "run":
            self._close("finished", None)

    # ------------------------------------------------------------------ the end

    @hook
    def training_ended(self, callbacks: Sequence[Any]) -> None:
        """Record why the training ended, and end the run."""
        try:
            if self._run is not None:
                self._checkpoints(callbacks)
                model = self._present_model()
                if self._tensors is not None:
                    self._tensors.ended(model, self._step, self._epoch)
                if model is not None and self._recording.level("weights") != "off":
                    self._run.log_outcome(facts.weights(model), "weights")
                message, data, level = facts.why_ended(model, callbacks, self._numbers)
                self._run.event("status", message, data=data, level=level)
        finally:
            self._close("finished", None)

    @hook
    def fails(self, error: BaseException) -> None:
        """End the run with the exception; whatever happens here, the user gets it."""
        status = status_of(error)
        self._close("interrupted" if status == "finished" else status, error)

    @hook
    def vanishes(self) -> None:
        """End the run, unless it has ended; from another thread, as any may collect garbage."""
        if self.is_open and self._run is not None:
            self._run.in_background(lambda: self._close("failed", _VANISHED))

    def at_exit(self) -> None:
        """The process ends, and the call has not."""
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if error is not None:
            self.fails(error)
        else:
            self._close("interrupted", "the process ended before the call did")

    @hook
    def _close(self, status: str, error: BaseException | str | None) -> None:
        if not self.is_open:
            return
        self.is_open = False
        _open_sessions.discard(self)
        model = self._let_go()
        run = self._run
        if run is None:
            return
        if isinstance(error, BaseException) and not (self._owned and run.is_open):
            lines = "".join(traceback.format_exception(error))
            data = {"type": type(error).__qualname__, "traceback": lines[-20_000:]}
            run.event("error", f"{type(error).__name__}: {error}", level="error", data=data)
        if self.kind == "run" and model is not None:
            self._callback._fitted = (weakref.ref(model), self._step, self._epoch)
        if self._owned:
            run.finish(status, error, wait=False)

    def _let_go(self) -> Any:
        """Leave the model, its functions and the list of callbacks as they were."""
        callback, outer, model = self._callback, self._outer, self._present_model()
        self.stop_watching()
        self.logs = {}
        tensors, self._tensors = self._tensors, None
        if tensors is not None:
            tensors.close()
        if model is not None and outer is None:
            release(model)
        if callback._session is self:
            callback._session = outer
            callback._model = None if outer is None else outer._present_model()
        return model

    def _present_model(self) -> Any:
        return None if self._model is None else self._model()


@atexit.register  # after the one of `tachograph.start`, so that it is called before
def _end_open_sessions() -> None:
    for session in list(_open_sessions):
        session.at_exit()


def _inside(model: Any) -> Any:
    """The Keras model, inside of what a backend wraps it in for several devices."""
    return model if isinstance(model, keras.Model) else getattr(model, "module", model)


# ---------------------------------------------------------------------------- going on


def _resume_id(callbacks: Sequence[Any]) -> str | None:
    """The run whose backup BackupAndRestore is about to restore."""
    folder = facts.backup_folder(callbacks)
    if folder is None or not Path(folder, "training_metadata.json").exists():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(Path(folder, _RESUME_FILE).read_text())["run_id"])
    return None


def _remember(folder: str, run_id: str) -> None:
    """Say beside a backup which run it is of; Keras removes both when the training is done."""
    path, text = Path(folder, _RESUME_FILE), json.dumps({"run_id": run_id})
    with contextlib.suppress(OSError):
        if path.parent.is_dir() and not (path.exists() and path.read_text() == text):
            path.write_text(text)
