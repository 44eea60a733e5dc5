"""Records what a Lightning Trainer does. Knows `lightning` and `pytorch_lightning`, loads neither.

A point's step is the number of optimizer steps done, counting the one that its batch belongs to
(`trainer.global_step`, which also names checkpoints); its epoch is `trainer.current_epoch`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar, Unpack

from tachograph.callbacks import lightning_facts as facts
from tachograph.callbacks.base import KEYWORDS, Keywords, Recording, hook
from tachograph.callbacks.lightning_class import EitherCallback
from tachograph.callbacks.lightning_tensors import LightningTensors, next_step
from tachograph.callbacks.lightning_values import (
    NewValues,
    Points,
    learning_rates,
    split_name,
    synchronised_names,
)
from tachograph.callbacks.tensors_outcome import log_weights
from tachograph.run import Run
from tachograph.values import canonical_json


def auto_callbacks() -> list[Any]:
    """What each Trainer gets where TACHOGRAPH_AUTO is 1 or names lightning; nothing otherwise."""
    wanted = os.environ.get("TACHOGRAPH_AUTO", "").lower().replace(",", " ").split()
    if not {"1", "true", "lightning"} & set(wanted):
        return []
    callback = LightningCallback()
    callback.is_automatic = True
    callback._state_key += "[auto]"
    return [callback]


@dataclass(slots=True)
class _State:
    """What is known during one fit, validation, test or prediction."""

    run: Run
    rank: int
    points: Points
    tensors: LightningTensors | None = None
    new: NewValues = field(default_factory=NewValues)
    new_of_batch: NewValues = field(default_factory=NewValues)
    step: int = 0
    epoch: float = 0
    steps_done: int = 0
    rates: dict[str, Any] = field(default_factory=dict)
    waited: float = 0.0
    batch_started: float = 0.0
    ready: float = 0.0
    epoch_started: float = 0.0
    evaluation_started: float = 0.0
    resumed: bool = False
    logs_late: bool = False  # the module has an on_train_batch_end, which runs after ours
    seen_loaders: set[str] = field(default_factory=set)
    saved: tuple[int, float] | None = None  # step and epoch of a checkpoint not looked for yet
    checkpoints: dict[str, tuple[int, int]] = field(default_factory=dict)


class LightningCallback(EitherCallback):
    __doc__ = f"""Record each fit, validation, test and prediction of a Trainer.

    ``Trainer(callbacks=[LightningCallback()])``, of `lightning` or `pytorch_lightning`.
    {KEYWORDS}
    activations : sequence of str, optional
        Names of modules whose outputs are recorded as tensors too, such as ``encoder.*``.
    """

    _transient: ClassVar[dict[str, Any]] = {"_state": None, "_has_fitted": False}

    def __init__(self, *, activations: Sequence[str] = (), **keywords: Unpack[Keywords]) -> None:
        self._recording = Recording(**keywords)
        self._activations = _names_of_modules(activations)
        self._state: _State | None = None
        self._has_fitted = False
        self._checkpoint: dict[str, Any] = {}  # what the checkpoint that is being loaded says
        self._last: tuple[int, float] = (0, 0)  # step and epoch where the last fit ended
        self.is_automatic = False
        self._state_key = _state_key(self._recording)

    # ------------------------------------------------------------------ checkpoints

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; another for each store."""
        return self._state_key  # Lightning asks for it at each hook

    @hook
    def state_dict(self) -> dict[str, Any]:
        """The run to go on with; plain values, which load with ``weights_only=True``."""
        run_id = self._recording.own_run_id
        return {} if run_id is None else {"run_id": run_id}

    @hook
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if "tuning" not in self._checkpoint:
            self._checkpoint["run_id"] = state_dict.get("run_id")

    @hook
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        if "tuning" not in self._checkpoint:
            self._checkpoint["at"] = (checkpoint.get("global_step", 0), checkpoint.get("epoch", 0))

    @hook
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        if self._state is None:  # a tuner's, which it will load again before the fit
            self._checkpoint["tuning"] = True
        elif self._state.rank == 0:
            self._state.saved = (trainer.global_step, trainer.current_epoch)

    # ------------------------------------------------------------------ a fit

    @hook
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._checkpoint = {}

    @hook
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        resume_id = self._checkpoint.get("run_id")
        state = self._open(trainer, pl_module, "run", resume_id)
        if state is not None:
            state.resumed = resume_id is not None and self._recording.own_run_id == resume_id
            self._has_fitted = True

    @hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        state = self._state
        if state is None:
            return
        state.step = state.steps_done = trainer.global_step
        state.epoch = trainer.current_epoch
        state.epoch_started = state.ready = perf_counter()
        if state.resumed and state.step:
            state.run.set_first_step(state.step + 1)
        self._loaders(state, train=trainer.train_dataloader, val=trainer.val_dataloaders)
        # Optimizers are there and restored.
        state.tensors = LightningTensors(self._recording, state.run, self._activations)
        state.tensors.start(trainer, pl_module)

    @hook
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        state = self._state
        if state is None:
            return
        self._late_values(state, trainer)
        self._checkpoints(state, trainer)
        if state.tensors is not None:
            state.tensors.follow(trainer, pl_module)
        state.epoch = trainer.current_epoch
        state.epoch_started = state.ready = perf_counter()

    @hook
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        state = self._state
        if state is not None and state.tensors is not None:
            state.tensors.gradients_ready(trainer, pl_module, optimizer)

    @hook
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        state = self._state
        if state is None:
            return
        if state.logs_late:
            self._late_values(state, trainer)
        if state.saved is not None:
            self._checkpoints(state, trainer)
        if state.rank == 0:
            # After the batch a scheduler may have set the rate of the next step already.
            state.rates = learning_rates(trainer.optimizers)
        if state.tensors is not None:
            state.tensors.batch_begins()
        state.batch_started = perf_counter()
        state.waited = state.batch_started - state.ready

    @hook
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        state = self._state
        if state is None:
            return
        seconds = perf_counter() - state.batch_started
        done = trainer.global_step
        if done == 0 and state.tensors is not None and state.tensors.waits_for_a_step:
            state.step = 1
        elif done == 0:  # or steps that Lightning cannot see
            state.step, _ = next_step(trainer, pl_module)
        else:
            state.step = max(done, state.steps_done + 1)
        state.steps_done = done
        values = state.rates
        values["time/step_seconds"] = seconds
        values["time/data_seconds"] = state.waited
        values |= self._new_values(state, trainer)
        state.points.log(values, (state.step, state.epoch, "train"))
        state.rates = {}
        if state.tensors is not None:
            state.tensors.batch_ended((state.step, state.epoch))
        state.ready = perf_counter()

    @hook
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Metrics are not read here: the first reader would start a collective on its rank alone.
        state = self._state
        if state is not None:
            seconds = {"time/epoch_seconds": perf_counter() - state.epoch_started}
            state.points.log(seconds, (state.step, state.epoch, "train"))

    @hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        state = self._state
        if state is None:
            return
        self._late_values(state, trainer)
        self._last = (state.step, state.epoch)
        if state.tensors is not None:
            state.tensors.close(self._last)
            state.tensors = None
        if state.rank == 0:
            message, data = facts.why_ended(trainer)
            state.run.event("status", message, data=data)

    # ------------------------------------------------------------------ evaluation

    @hook
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluation_start(trainer, pl_module, "validate", val=trainer.val_dataloaders)

    @hook
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluation_start(trainer, pl_module, "test", test=trainer.test_dataloaders)

    @hook
    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluation_start(trainer, pl_module, "predict", predict=trainer.predict_dataloaders)

    @hook
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluation_batch_start(trainer, batch_idx, dataloader_idx)

    @hook
    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluation_batch_start(trainer, batch_idx, dataloader_idx)

    @hook
    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._evaluation_batch_end(trainer, "val")

    @hook
    def on_test_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._evaluation_batch_end(trainer, "test")

    @hook
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._evaluation_end(trainer, "val")

    @hook
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._evaluation_end(trainer, "test")

    @hook
    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        if self._state is not None:
            self._predictions(self._state, trainer)
        self._evaluation_end(trainer, "predict")

    def _evaluation_start(self, trainer: Any, module: Any, kind: str, **loaders: Any) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn != "fit":
            self._open_evaluation(trainer, module, kind)
        elif self._state is not None:
            self._late_values(self._state, trainer)
        if self._state is not None:
            self._loaders(self._state, **loaders)
            self._state.new_of_batch.take(trainer.logged_metrics)
            self._state.evaluation_started = perf_counter()

    def _open_evaluation(self, trainer: Any, module: Any, kind: str) -> None:
        """Go on with the run of the last fit, or start one of this kind."""
        run = self._recording.reopen() if self._has_fitted else None
        if run is None:
            self._open(trainer, module, kind, None)
        else:
            self._state = _State(run, trainer.global_rank, Points(run))
        if self._state is not None:
            known = self._last if self._has_fitted else (trainer.global_step, trainer.current_epoch)
            self._state.step, self._state.epoch = self._checkpoint.get("at", known)

    def _evaluation_batch_start(self, trainer: Any, batch: int, loader: int) -> None:
        """Pass over the epoch values of the loader before, which have just been computed."""
        if loader and not batch and self._state is not None and not trainer.sanity_checking:
            self._state.new_of_batch.take(trainer.logged_metrics)

    def _evaluation_batch_end(self, trainer: Any, phase: str) -> None:
        state = self._state
        if state is not None and not trainer.sanity_checking:
            # Only values logged with on_step=True are computed while batches go by.
            new = state.new_of_batch.take(trainer.logged_metrics)
            new = self._own_values(state, trainer, new)
            if new:
                state.points.log(new, (state.step, state.epoch, phase))

    def _evaluation_end(self, trainer: Any, phase: str) -> None:
        state = self._state
        if state is None or trainer.sanity_checking:
            return
        values: dict[str, Any] = {"time/epoch_seconds": perf_counter() - state.evaluation_started}
        if phase != "predict":
            values |= self._new_values(state, trainer)
        state.points.log(values, (state.step, state.epoch, phase))
        state.ready = perf_counter()

    # ------------------------------------------------------------------ the end

    @hook
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        state = self._state
        if state is not None:
            self._checkpoints(state, trainer)
            if stage == "fit":  # now all callbacks have done to the weights what they do
                self._weights(state, trainer, pl_module)
            self._close("finished", None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Record how the fit failed; whatever happens here, the user gets that exception."""
        with contextlib.suppress(Exception):
            state = self._state
            if state is None:
                return
            if not state.run.is_open:  # an evaluation after the fit that the run is of
                lines = traceback.format_exception(exception)
                data = {"type": type(exception).__qualname__, "traceback": "".join(lines)}
                state.run.event("error", repr(exception), level="error", data=data)
            self._last = (state.step, state.epoch)
            self._checkpoints(state, trainer)
            self._close(_status(exception), exception)

    def _close(self, status: str | None, error: BaseException | None) -> None:
        state, self._state = self._state, None
        self._forget_module()
        if state is not None:
            with contextlib.suppress(Exception):
                if state.tensors is not None:
                    state.tensors.close(None)
            with contextlib.suppress(Exception):
                state.points.arrive(wait=True)
        if status is not None:
            self._recording.close(status, error)
        elif error is not None:
            self._recording.fail(error)

    # ------------------------------------------------------------------ inside

    def _open(self, trainer: Any, module: Any, kind: str, resume_id: str | None) -> _State | None:
        """Open a run and describe the training in it."""
        self._state = None
        if self.is_automatic and _other_callback(trainer):
            return None
        size = trainer.world_size
        rank = (trainer.global_rank, trainer.local_rank, size) if size > 1 else None
        run = self._recording.open(
            facts.framework(trainer), kind=kind, resume_id=resume_id, rank=rank
        )
        if not self._recording.active:
            return None
        state = self._state = _State(run, trainer.global_rank, Points(run))
        state.logs_late = _overrides(module, "on_train_batch_end")
        if state.rank == 0:
            self._describe(run, trainer, module)
        return state

    def _describe(self, run: Run, trainer: Any, module: Any) -> None:
        for part in (
            lambda: facts.hyperparameters(module, trainer.datamodule),
            lambda: {"trainer": facts.trainer_settings(trainer)},
            lambda: facts.optimizer_settings(trainer),
        ):
            try:
                run.log_params(part(), source="framework")
            except Exception as error:  # what one part cannot say must not cost the others
                self._recording.problem(error, "LightningCallback.on_fit_start")
        run.log_provenance("model", facts.model_summary(module))

    def _loaders(self, state: _State, **splits: Any) -> None:
        """Describe the loaders and fingerprint the data of each split, once."""
        for split, found in splits.items():
            if state.rank or found is None or split in state.seen_loaders:
                continue
            state.seen_loaders.add(split)
            # `trainer.test` of the training data is a look at them, and asked for.
            role = "watched" if "train" not in splits and split != "predict" else None
            all_loaders = list(facts.loaders(found))
            for number, loader in enumerate(all_loaders):
                name = split if len(all_loaders) == 1 else f"{split}.{number}"
                settings = {"data": {name: facts.loader_settings(loader)}}
                state.run.log_params(settings, source="framework")
                self._data(state.run, getattr(loader, "dataset", loader), name, role)

    def _data(self, run: Run, dataset: Any, name: str, role: str | None) -> None:
        if arrays := facts.arrays(dataset):
            run.log_data(arrays, name, rows=dataset, role=role)
        else:
            run.log_data(dataset, name, role=role)

    def _new_values(self, state: _State, trainer: Any) -> dict[str, Any]:
        return self._own_values(state, trainer, state.new.take(trainer.callback_metrics))

    def _own_values(self, state: _State, trainer: Any, new: dict[str, Any]) -> dict[str, Any]:
        """Leave out what rank 0 records for all ranks."""
        if state.rank == 0 or not new:
            return new
        same = synchronised_names(getattr(trainer, "_results", None))
        return {name: value for name, value in new.items() if split_name(name)[0] not in same}

    def _late_values(self, state: _State, trainer: Any) -> None:
        """Record what was computed after our hooks: epoch values, and the module's last words.

        Lightning has computed them on all ranks by now, so that reading starts no collective.
        """
        if new := self._new_values(state, trainer):
            state.points.log(new, (state.step, state.epoch, "train"))

    @hook
    def _weights(self, state: _State, trainer: Any, module: Any) -> None:
        """Record digests of the weights that the fit has led to."""
        if state.rank or self._recording.level("weights") == "off":
            return
        if (strategy := facts.sharding(trainer)) is not None:
            why = f"spread over processes by {strategy}"
            state.run.log_provenance("outcome.weights", {"missing": why})
        else:
            log_weights(state.run, module)

    @hook
    def _predictions(self, state: _State, trainer: Any) -> None:
        """Record digests of what Lightning has gathered of each loader; of each rank its own."""
        loop = trainer.predict_loop
        if not loop.return_predictions:
            why = "return_predictions is False: nothing is kept to read"
            state.run.log_provenance("outcome.predictions", {"missing": why})
            return
        loaders = loop.predictions if loop.num_dataloaders > 1 else [loop.predictions]
        rank = f".rank{state.rank}" if trainer.world_size > 1 else ""
        for number, batches in enumerate(loaders):
            loader = f".{number}" if len(loaders) > 1 else ""
            state.run.log_outcome(batches, f"predictions{loader}{rank}", batches=True)

    def _checkpoints(self, state: _State, trainer: Any) -> None:
        """Record checkpoints that were written since the last look, as references."""
        saved, state.saved = state.saved, None
        if state.rank or saved is None:
            return
        copy = state.run.config.record.checkpoints == "copy"
        for path in facts.checkpoint_paths(trainer):
            found = path.stat()
            mark = (found.st_mtime_ns, found.st_size)
            if state.checkpoints.get(str(path)) != mark:
                state.checkpoints[str(path)] = mark
                name = f"checkpoints/{path.name}"
                state.run.log_artifact(path, name, kind="checkpoint", step=saved[0], copy=copy)


def _state_key(recording: Recording) -> str:
    given = getattr(recording.given, "run_id", recording.given)
    what = [item for item in (given, recording.config) if item is not None]
    if not what:
        return "LightningCallback"
    return f"LightningCallback[{hashlib.sha256(canonical_json(what).encode()).hexdigest()[:8]}]"


def _names_of_modules(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"activations takes names of modules, not {given!r}")
    return tuple(names)


def _status(error: BaseException) -> str | None:
    """Interrupted by a signal that Lightning made an exit of; else as the exception says."""
    return "interrupted" if type(error).__name__ == "SIGTERMException" else None


def _overrides(module: Any, method: str) -> bool:
    own = getattr(type(module), method, None)
    return own is not None and not own.__module__.startswith(("lightning.", "pytorch_lightning."))


def _other_callback(trainer: Any) -> bool:
    """Whether the user gave the Trainer a callback of ours."""
    return any(
        isinstance(callback, LightningCallback) and not callback.is_automatic
        for callback in trainer.callbacks
    )
