"""Weights and gradients in loops of one's own: watches the steps of torch optimizers.

Knows `torch` by what is handed over, and loads nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Unpack

from tachograph.callbacks.base import Keywords, Recording
from tachograph.callbacks.tensors_optimizer import OptimizerWatch, Settings, estimate
from tachograph.callbacks.tensors_outcome import log_weights
from tachograph.callbacks.tensors_torch import clean_name, outside_graphs
from tachograph.identity import read_identity
from tachograph.run import Run, status_of
from tachograph.start import InertRun


@contextlib.contextmanager
def watch(
    model: Any, *optimizers: Any, first_step: int = 0, **keywords: Unpack[Keywords]
) -> Iterator[Run]:
    """Record gradients, weights and updates of a loop of one's own.

    ``with watch(model, optimizer) as run:`` around the loop. Gradients are those that
    ``optimizer.step()`` uses: after clipping, unscaled where a scaler calls it. Those that come
    about inside the step, as by ``optimizer.step(closure)``, are taken when it has been done.

    Parameters
    ----------
    model : torch.nn.Module
        Names the parameters.
    *optimizers : torch.optim.Optimizer
    first_step : int, default 0
        Step of the first call of each ``optimizer.step()``.
    **keywords
        Those of every callback.

    Yields
    ------
    Run
        The run that they are recorded into: the given or the current one, else a new one.

    Raises
    ------
    ConfigError
        A keyword has a value that it does not take.
    TypeError
        What is given is no module of torch, or no optimizer.
    """
    _check(model, optimizers)
    recording = Recording(**keywords)
    watches: list[tuple[OptimizerWatch, list[Any]]] = []
    run = recording.call("watch", recording.open, f"torch {sys.modules['torch'].__version__}")
    run = run or InertRun()
    names = {id(p): clean_name(name) for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        own = {"optimizer": number} if len(optimizers) > 1 else {}
        arguments = (optimizer, names, own, first_step, 1 / len(optimizers))
        if (found := recording.call("watch", _start, recording, *arguments)) is not None:
            watches.append(found)
    status, error = "finished", None
    try:
        yield run
    except BaseException as raised:
        status, error = status_of(raised), raised
        raise
    finally:
        for watched, handles in watches:
            recording.call("watch", _stop, watched, handles)
        if status == "finished" and recording.level("weights") != "off":
            recording.call("watch", _log_weights, run, model)
        recording.call("watch", recording.close, status, error)


def _log_weights(run: Run, model: Any) -> None:
    if not read_identity().rank:  # the others have the same, or a part that is no model
        log_weights(run, model)


def _check(model: Any, optimizers: tuple[Any, ...]) -> None:
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"watch needs a module of torch first, not {type(model).__name__}")
    if not optimizers:
        raise TypeError("watch needs the optimizers whose steps it is to record")
    for optimizer in optimizers:
        if not hasattr(optimizer, "register_step_post_hook"):
            raise TypeError(f"watch needs optimizers of torch, not {type(optimizer).__name__}")


def _start(
    recording: Recording,
    optimizer: Any,
    names: dict[int, str],
    context: dict[str, int],
    first_step: int,
    share: float,
) -> tuple[OptimizerWatch, list[Any]] | None:
    """Watch an optimizer; None where nothing is to be recorded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = recording.schedule(estimate(parameters), share=share)
    if schedule is None or recording.run is None:
        return None
    settings = Settings(
        weights=recording.level("weights"),
        gradients=recording.level("gradients"),
        updates=recording.run.config.record.updates,
        context=context,
        metric_context=context,
    )
    watched = OptimizerWatch(
        recording.run, optimizer, names, schedule, settings, done=first_step - 1
    )

    def begins(has_gradients: bool) -> None:
        watched.plan(lambda: (watched.number, None))
        if watched.has_begun:
            watched.start_over()
        if has_gradients:
            watched.gradients_ready()
        watched.step_begins()

    def before(stepping: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        closure = arguments[1] if len(arguments) > 1 else keywords.get("closure")
        # A fused optimizer of a scaler divides by this inside the step.
        scale = getattr(stepping, "grad_scale", None)
        has_gradients = closure is None and scale is None
        recording.call("watch, before an optimizer's step", begins, has_gradients)

    def after(*_: Any) -> None:
        recording.call("watch, after an optimizer's step", watched.step_ended)

    handles = [
        optimizer.register_step_pre_hook(outside_graphs(before)),
        optimizer.register_step_post_hook(outside_graphs(after)),
    ]
    return watched, handles


def _stop(watched: OptimizerWatch, handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    watched.end((watched.number - 1, None))
