"""Weights and gradients of a Lightning training: when its optimizers step, and what of it counts.

Knows a Trainer and its strategy; what is measured is `tensors_optimizer`'s.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tachograph.callbacks.base import Recording
from tachograph.callbacks.tensors_optimizer import OptimizerWatch, Settings, estimate
from tachograph.callbacks.tensors_step import Member, Where
from tachograph.callbacks.tensors_torch import clean_name, local_part, outside_graphs
from tachograph.errors import RecordError
from tachograph.run import Run

_FROZEN_ELEMENTS = 20_000_000  # measured in some hundredths of a second
_TRAIN = {"phase": "train"}


class LightningTensors:
    """Watches the optimizers of one fit; closed when the fit ends.

    Parameters
    ----------
    recording : Recording
    run : Run
    activations : sequence of str
        Names of modules whose outputs are recorded too; ``*`` stands for anything.
    """

    def __init__(self, recording: Recording, run: Run, activations: Sequence[str]) -> None:
        self._recording = recording
        self._run = run
        self._activations = activations
        self._handles: list[Any] = []
        self._modules: list[tuple[Any, _ModuleHook]] = []  # whose outputs are recorded
        self._module_handles: list[Any] = []
        self._optimizers: list[Any] = []  # those that can be watched
        self._watches: list[OptimizerWatch] = []
        self._frozen: list[Member] = []
        self._seen: dict[str, int] = {}  # step in which a module's output was recorded last
        self._skipped = 0

    # ------------------------------------------------------------------ hooks of the Trainer

    def start(self, trainer: Any, module: Any) -> None:
        """Watch the optimizers, which are there by now."""
        self._watch(trainer, module)
        if self._watches and trainer.is_global_zero:
            self._frozen = self._not_trained(module)

    def follow(self, trainer: Any, module: Any) -> None:
        """Watch other optimizers, where the training has got others meanwhile."""
        if self._optimizers != _watchable(trainer):
            for watch in self._let_go():
                watch.arrive(wait=True)
            self._watch(trainer, module)

    @property
    def waits_for_a_step(self) -> bool:
        """Whether optimizers are watched, and none of them has done a step yet."""
        return bool(self._watches) and not any(watch.has_stepped for watch in self._watches)

    def gradients_ready(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Measure the gradients of the step that an optimizer is about to do."""
        for watch in self._watches:
            if optimizer in (watch.optimizer, getattr(watch.optimizer, "optimizer", None)):
                watch.plan(lambda: next_step(trainer, module))
                if not _is_scaled(trainer, watch.optimizer):
                    watch.gradients_ready()

    def batch_begins(self) -> None:
        """Have modules tell of their outputs: while a batch is trained, and no longer.

        Modules that have hooks may compute in another way where they are evaluated.
        """
        self._leave_modules()
        self._module_handles = [one.register_forward_hook(hook) for one, hook in self._modules]

    def batch_ended(self, where: Where) -> None:
        """Record what has arrived, and steps that were begun and left out."""
        self._leave_modules()
        left_out = [watch for watch in self._watches if watch.has_begun]
        for watch in left_out:
            watch.leave_out()
        for watch in self._watches:
            watch.arrive()
        if left_out:
            self._seen.clear()
            self._skipped += len(left_out)
            values = {"optimizer_steps_skipped": float(self._skipped)}
            self._run.log(values, where[0], epoch=where[1], context=_TRAIN)

    def close(self, where: Where | None) -> None:
        """Record the rest, where the training came to its end, and leave the optimizers alone."""
        self._frozen = []
        for watch in self._let_go():
            try:
                watch.arrive(wait=True) if where is None else watch.end(where)
            except Exception as error:  # the others have something to record as well
                self._recording.problem(error, "LightningCallback, at the end of the fit")

    # ------------------------------------------------------------------ inside

    def _watch(self, trainer: Any, module: Any) -> None:
        names = {id(p): clean_name(name) for name, p in module.named_parameters()}
        optimizers = self._optimizers = _watchable(trainer)
        several = len(optimizers) > 1
        for number, optimizer in enumerate(optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            schedule = self._recording.schedule(estimate(parameters), share=1 / len(optimizers))
            if schedule is None:
                return
            own = {"optimizer": number} if several else {}
            settings = Settings(
                weights=self._recording.level("weights"),
                gradients=self._recording.level("gradients"),
                updates=self._run.config.record.updates,
                context=own,
                metric_context=_TRAIN | own,
                clips=_clips(trainer, module),
                rank=trainer.global_rank,
                sharded="FSDP" in type(trainer.strategy).__name__,
            )
            done = trainer.global_step // len(optimizers)
            watch = OptimizerWatch(self._run, optimizer, names, schedule, settings, done=done)
            self._watches.append(watch)
            self._hook_optimizer(watch, trainer, module)
        if self._watches and trainer.is_global_zero:
            for pattern in self._activations:
                self._choose_modules(trainer, module, pattern)

    def _hook_optimizer(self, watch: OptimizerWatch, trainer: Any, module: Any) -> None:
        """Have an optimizer tell of its steps, however they come about."""
        recording, me = self._recording, weakref.ref(self)
        its_trainer, its_module = weakref.ref(trainer), weakref.ref(module)

        def begins() -> None:
            watch.plan(lambda: next_step(its_trainer(), its_module()))
            watch.step_begins()

        def ended() -> None:
            itself = me()
            watch.step_ended(itself._take_frozen() if itself is not None else ())

        def before(*_: Any) -> None:
            recording.call("LightningCallback, before an optimizer's step", begins)

        def after(*_: Any) -> None:
            recording.call("LightningCallback, after an optimizer's step", ended)

        self._handles.append(watch.optimizer.register_step_pre_hook(outside_graphs(before)))
        self._handles.append(watch.optimizer.register_step_post_hook(outside_graphs(after)))

    def _choose_modules(self, trainer: Any, module: Any, pattern: str) -> None:
        """Find modules whose outputs are recorded; a problem with one leaves the others."""
        modules = dict(module.named_modules())
        names = [name for name in modules if name and fnmatchcase(clean_name(name), pattern)]
        problems = [] if names else [f"no module has a name like {pattern!r}, given as activations"]
        compiled = [name for name, inner in modules.items() if _is_compiled(inner)]
        for name in names:
            if any(outer in ("", name) or name.startswith(f"{outer}.") for outer in compiled):
                problems.append(f"{clean_name(name)} is compiled: its output cannot be recorded")
            else:
                hook = _ModuleHook(self._module_hook(clean_name(name), trainer, module))
                self._modules.append((modules[name], hook))
        for problem in problems[:1]:
            self._recording.problem(RecordError(problem), "LightningCallback.on_train_start")

    def _module_hook(self, name: str, trainer: Any, module: Any) -> Callable[..., None]:
        its_trainer, its_module = weakref.ref(trainer), weakref.ref(module)
        recording = self._recording

        def record(output: Any) -> None:
            watch, tensor = self._watches[0], _first_tensor(output)
            step = watch.plan(lambda: next_step(its_trainer(), its_module()))
            if step is None or tensor is None or self._seen.get(name) == step.number:
                return
            self._seen[name] = step.number
            part = local_part(tensor)
            if part is not None:
                watch.add_activation(Member(name, tensor, part))

        def hook(forwarded: Any, _: Any, output: Any) -> None:
            if forwarded.training and self._watches:
                recording.call("LightningCallback, after a module's forward", record, output)

        return outside_graphs(hook)

    def _not_trained(self, module: Any) -> list[Member]:
        """Parameters that no optimizer has, where measuring them once takes no time to speak of."""
        trained = {
            id(parameter)
            for watch in self._watches
            for group in watch.optimizer.param_groups
            for parameter in group["params"]
        }
        members = [
            Member(clean_name(name), parameter, part)
            for name, parameter in module.named_parameters()
            if id(parameter) not in trained and (part := local_part(parameter)) is not None
        ]
        elements = sum(member.part.numel() for member in members)
        return members if elements <= _FROZEN_ELEMENTS else []

    def _take_frozen(self) -> list[Member]:
        """The members of `_not_trained`, once, for the first step that is recorded."""
        frozen, self._frozen = self._frozen, []
        return frozen

    def _let_go(self) -> list[OptimizerWatch]:
        """Leave the optimizers and modules alone; gives the watches there were."""
        self._leave_modules()
        for handle in self._handles:
            handle.remove()
        watches = self._watches
        self._handles, self._modules, self._optimizers, self._watches = [], [], [], []
        return watches

    def _leave_modules(self) -> None:
        for handle in self._module_handles:
            handle.remove()
        self._module_handles = []


class _ModuleHook:
    """A hook of a module, of which copies and pickles of the module have one that does nothing."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook = hook

    def __call__(self, *arguments: Any) -> None:
        self._hook(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


def next_step(trainer: Any, module: Any) -> Where:
    """Step and epoch of the optimizer's step that comes next, as its batch's metrics have them."""
    if trainer.global_step == 0 and not module.automatic_optimization:
        loop = trainer.fit_loop
        seen = loop.epoch_loop.manual_optimization.optim_step_progress.total
        if seen.ready == seen.completed:  # no step that Lightning sees, as yet
            return loop.total_batch_idx + 1, trainer.current_epoch
    return trainer.global_step + 1, trainer.current_epoch


def _watchable(trainer: Any) -> list[Any]:
    return [o for o in trainer.optimizers if hasattr(o, "register_step_post_hook")]


def _is_compiled(module: Any) -> bool:
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None
    )


def _is_scaled(trainer: Any, optimizer: Any) -> bool:
    """Whether gradients are still to be unscaled, inside the step: a fused optimizer does that."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)


def _clips(trainer: Any, module: Any) -> bool:
    """Whether Lightning may clip gradients after it has told of them."""
    hook = type(module).configure_gradient_clipping
    own = not hook.__module__.startswith(("lightning.", "pytorch_lightning."))
    return bool(trainer.gradient_clip_val) or (own and module.automatic_optimization)


def _first_tensor(output: Any) -> Any:
    """A tensor, or the first one in what a module returns."""
    if hasattr(output, "is_floating_point"):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((found for item in output if (found := _first_tensor(item)) is not None), None)
    return None
