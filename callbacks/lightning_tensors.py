"""Weights and gradients of a Lightning training: when its optimizers step, and what of it counts.

Knows a Trainer and its strategy; what is measured is `tensors_optimizer`'s.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tachograph.callbacks.base import Recording
from tachograph.callbacks.tensors_optimizer import OptimizerWatch, Settings, estimate
from tachograph.callbacks.tensors_step import Member, Where
from tachograph.callbacks.tensors_torch import local_part
from tachograph.errors import RecordError
from tachograph.run import Run

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_FROZEN_ELEMENTS = 20_000_000  # measured in some hundredths of a second
_TRAIN = {"phase": "train"}


class LightningTensors:
    """Watches the optimizers of one fit; made when they are there, closed when the fit ends.

    Parameters
    ----------
    recording : Recording
    run : Run
    trainer, module
        The Trainer and its LightningModule.
    activations : sequence of str
        Names of modules whose outputs are recorded too; ``*`` stands for anything.
    """

    def __init__(
        self, recording: Recording, run: Run, trainer: Any, module: Any, activations: Sequence[str]
    ) -> None:
        self._recording = recording
        self._run = run
        self._names = {id(p): _clean(name) for name, p in module.named_parameters()}
        self._handles: list[Any] = []
        self._watches: list[OptimizerWatch] = []
        self._seen: dict[str, int] = {}  # step in which a module's output was recorded last
        self._skipped = 0
        self._watch(trainer, module)
        self._frozen = self._not_trained(module) if trainer.is_global_zero else []
        if activations and self._watches and trainer.is_global_zero:
            self._hook_modules(trainer, module, activations)

    # ------------------------------------------------------------------ hooks of the Trainer

    def follow(self, trainer: Any, module: Any) -> None:
        """Watch other optimizers, where the training has got others meanwhile."""
        if [watch.optimizer for watch in self._watches] != list(trainer.optimizers):
            self._let_go()
            self._watch(trainer, module)

    def gradients_ready(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Measure the gradients of the step that an optimizer is about to do."""
        for watch in self._watches:
            if optimizer in (watch.optimizer, getattr(watch.optimizer, "optimizer", None)):
                watch.plan(lambda: next_step(trainer, module))
                watch.gradients_ready()

    def batch_ended(self, where: Where) -> None:
        """Record what has arrived, and steps that were begun and left out."""
        left_out = [watch for watch in self._watches if watch.has_begun]
        for watch in left_out:
            watch.leave_out()
        for watch in self._watches:
            watch.arrive()
        if left_out:
            self._skipped += len(left_out)
            values = {"optimizer_steps_skipped": float(self._skipped)}
            self._run.log(values, where[0], epoch=where[1], context=_TRAIN)

    def close(self, where: Where | None) -> None:
        """Record the rest, where the training came to its end, and leave the optimizers alone."""
        watches = self._watches
        self._let_go()
        for watch in watches:
            if where is None:
                watch.arrive(wait=True)
            else:
                watch.end(where)
        self._frozen = []

    # ------------------------------------------------------------------ inside

    def _watch(self, trainer: Any, module: Any) -> None:
        optimizers = [o for o in trainer.optimizers if hasattr(o, "register_step_post_hook")]
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
            watch = OptimizerWatch(self._run, optimizer, self._names, schedule, settings, done=done)
            self._watches.append(watch)
            self._hook_optimizer(watch, trainer, module)

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

        self._handles.append(watch.optimizer.register_step_pre_hook(before))
        self._handles.append(watch.optimizer.register_step_post_hook(after))

    def _hook_modules(self, trainer: Any, module: Any, patterns: Sequence[str]) -> None:
        """Have modules tell of their outputs."""
        found = dict(module.named_modules())
        for pattern in patterns:
            names = [name for name in found if name and fnmatchcase(_clean(name), pattern)]
            if not names:
                raise RecordError(f"no module has a name like {pattern!r}, given as activations")
            for name in names:
                if "_orig_mod" in name or hasattr(found[name], "_orig_mod"):
                    raise RecordError(f"{name} is compiled: its output cannot be recorded")
                hook = self._module_hook(_clean(name), trainer, module)
                self._handles.append(found[name].register_forward_hook(hook))

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

        return hook

    def _not_trained(self, module: Any) -> list[Member]:
        """Parameters that no optimizer has, where measuring them once takes no time to speak of."""
        trained = {
            id(parameter)
            for watch in self._watches
            for group in watch.optimizer.param_groups
            for parameter in group["params"]
        }
        members = [
            Member(_clean(name), parameter, part)
            for name, parameter in module.named_parameters()
            if id(parameter) not in trained and (part := local_part(parameter)) is not None
        ]
        elements = sum(member.part.numel() for member in members)
        return members if elements <= _FROZEN_ELEMENTS else []

    def _take_frozen(self) -> list[Member]:
        """The members of `_not_trained`, once, for the first step that is recorded."""
        frozen, self._frozen = self._frozen, []
        return frozen

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._watches = [], []


def next_step(trainer: Any, module: Any) -> Where:
    """Step and epoch of the optimizer's step that comes next, as its batch's metrics have them."""
    if trainer.global_step == 0 and not module.automatic_optimization:
        return trainer.fit_loop.total_batch_idx + 1, trainer.current_epoch
    return trainer.global_step + 1, trainer.current_epoch


def _clips(trainer: Any, module: Any) -> bool:
    """Whether Lightning may clip gradients after it has told of them."""
    hook = type(module).configure_gradient_clipping
    own = not hook.__module__.startswith(("lightning.", "pytorch_lightning."))
    return bool(trainer.gradient_clip_val) or (own and module.automatic_optimization)


def _clean(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _first_tensor(output: Any) -> Any:
    """A tensor, or the first one in what a module returns."""
    if hasattr(output, "is_floating_point"):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((found for item in output if (found := _first_tensor(item)) is not None), None)
    return None
