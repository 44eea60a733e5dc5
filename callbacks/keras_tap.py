"""The train function of a fit that is recorded: the user's own, and at chosen steps a tapped one.

Only there it costs time: other steps are done by the very function that the model has made for
itself. Knows how each backend is tapped, not what becomes of what is found.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

import keras

from tachograph.callbacks.keras_gradients import inner
from tachograph.callbacks.keras_graph import GraphTap, JaxTap, TensorFlowTap, Untapped, Wanted
from tachograph.callbacks.keras_outputs import GraphFound
from tachograph.callbacks.keras_record import Found
from tachograph.callbacks.keras_torch import TorchTap
from tachograph.callbacks.keras_watch import Guard
from tachograph.callbacks.tensors_host import Meter
from tachograph.callbacks.tensors_pace import Plan

_COMPILE_SECONDS = 0.05
"""What each variable adds to the time that a step's compilation takes, about."""

_PLANS = ((False, False), (True, False), (False, True))
"""Histograms and snapshots that a step may be asked for."""

_NO_GRADIENTS = "the model's optimizer was not given any"
_ROUNDED = "XLA as TensorFlow has it rounds a step differently whose gradients are put out"


class Recorder(Protocol):
    """What is asked which calls of the train function are recorded. Nothing it does may raise."""

    waits: bool

    def plan(self, batches: int) -> Plan | None:
        """What to record of the call that comes next and takes so many batches."""

    def begun(self, moments: float, others: float) -> None:
        """The first call has been done. A first record will take about so many seconds."""

    def take(self, found: Found, plan: Plan, seconds: float) -> None:
        """What a tapped call has found, and how much longer it took than others."""

    def without_gradients(self, reason: str) -> None:
        """A step has put out no gradients; why."""

    def without_steps(self, reason: str) -> None:
        """No further step will be tapped; why."""


def obstacle(model: Any) -> str | None:
    """Why the steps of this model cannot be tapped; None where they can."""
    guard = model.train_function
    if not isinstance(guard, Guard):
        return "the train function is not known"
    if isinstance(guard.call, Tap):
        return "another callback records this fit"
    if keras.config.backend() == "tensorflow":
        strategy = getattr(model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            return "each replica has gradients of its own before they are added up"
    if keras.config.backend() == "jax":
        if importlib.import_module("jax").process_count() > 1:
            return "the weights lie in several processes"
        if getattr(keras.config, "is_nnx_enabled", lambda: False)():
            return "Keras uses NNX, which takes the training step from the class"
    return None


class Tap:
    """Stands in for the train function of one model during one fit.

    Parameters
    ----------
    recorder : Recorder
        Held weakly: where it is gone, every call is the plain one.
    model : keras.Model
        With the `Guard` that calls this as its train function.
    weights, gradients : bool
        What a tapped step puts out.
    """

    def __init__(self, recorder: Recorder, model: Any, *, weights: bool, gradients: bool) -> None:
        self._recorder = weakref.ref(recorder)
        self._plain: Callable[..., Any] = model.train_function.call
        self._batches = int(getattr(model, "steps_per_execution", 1) or 1)
        self._is_new = True
        steps = TorchSteps if keras.config.backend() == "torch" else GraphSteps
        self._steps = steps(self._plain, weakref.ref(model), weights, gradients)
        seconds = self._steps.known_estimate()
        if seconds is not None:
            self._is_new = False
            recorder.begun(*seconds)

    def __call__(self, *arguments: Any) -> Any:
        """Do what the train function does."""
        recorder = self._recorder()
        plan = None if recorder is None else recorder.plan(self._batches)
        if recorder is None or (plan is None and not self._is_new):
            self._steps.plain_steps += 1
            return self._plain(*arguments)
        if plan is None:
            return self._first(recorder, arguments)
        self._is_new = False
        return self._steps.recorded(recorder, plan, arguments)

    def _first(self, recorder: Recorder, arguments: Sequence[Any]) -> Any:
        self._is_new = False
        started = perf_counter()
        result = self._plain(*arguments)
        recorder.begun(*self._steps.estimate(perf_counter() - started))
        self._steps.mark()
        return result

    def mark(self) -> None:
        """An epoch begins: steps are timed from here."""
        self._steps.mark()


class TorchSteps:
    """Recorded steps on torch; they are timed as they are measured."""

    def __init__(
        self, plain: Callable[..., Any], model: weakref.ref[Any], weights: bool, gradients: bool
    ) -> None:
        self._plain = plain
        self._tap = TorchTap(model(), weights=weights, gradients=gradients)
        self._gradients = gradients
        self.plain_steps = 0

    def mark(self) -> None:
        """Nothing is timed from outside."""

    def known_estimate(self) -> tuple[float, float] | None:
        """Seconds that a first record will take about, of moments and of what else there is."""
        return (self._tap.estimate(),) * 2

    def estimate(self, first_seconds: float) -> tuple[float, float]:
        """The same, when a first step has been done."""
        return (self._tap.estimate(),) * 2

    def recorded(self, recorder: Recorder, plan: Plan, arguments: Sequence[Any]) -> Any:
        """Do a step and have it recorded."""
        result, found = self._tap(self._plain, arguments, plan)
        if self._tap.problem is not None:
            recorder.without_gradients(str(self._tap.problem))
        elif self._gradients and not found.has_gradients:
            recorder.without_gradients(_NO_GRADIENTS)
        recorder.take(found, plan, 0.0)
        return result


class GraphSteps:
    """Recorded steps on JAX and TensorFlow, by tapped functions that are compiled when needed."""

    def __init__(
        self, plain: Callable[..., Any], model: weakref.ref[Any], weights: bool, gradients: bool
    ) -> None:
        self._plain = plain
        self._model = model
        self._weights, self._gradients = weights, gradients
        self._keeps_from_gradients: str | None = None
        if gradients and keras.config.backend() == "tensorflow" and _is_compiled(model()):
            self._gradients, self._keeps_from_gradients = False, _ROUNDED
        self._meter = Meter()
        self._is_broken = False
        self._on_host = is_on_host(model())
        kind = JaxTap if keras.config.backend() == "jax" else TensorFlowTap
        # Made now, as a model on JAX has no variables to look at in the middle of an epoch.
        self._taps: dict[Wanted, GraphTap] = {
            wanted: kind(model(), wanted)
            for wanted in {self._wanted(Plan(*which)) for which in _PLANS}
        }
        self._average = 0.0
        self._marked = perf_counter()
        self.plain_steps = 0

    def mark(self) -> None:
        """Steps are timed from here; nothing is being worked on."""
        self._marked, self.plain_steps = perf_counter(), 0

    def known_estimate(self) -> tuple[float, float] | None:
        """Nothing is known before a step has been compiled."""
        return None

    def estimate(self, first_seconds: float) -> tuple[float, float]:
        """Seconds that a first record will take about: a step is compiled once more for it."""
        model = self._model()
        variables = 0 if model is None or model.run_eagerly else len(model.trainable_variables)
        seconds = max(first_seconds, variables * _COMPILE_SECONDS)
        return seconds, 0.0 if self._on_host else seconds

    def recorded(self, recorder: Recorder, plan: Plan, arguments: Sequence[Any]) -> Any:
        """Do a step and have it recorded."""
        tap = self._taps.get(self._wanted(plan))
        if tap is None:  # it could not be made
            return self._plain(*arguments)
        if recorder.waits:  # so that the time of this step is known apart from others'
            wait_for(arguments[0])
            self._take_average()
        started = perf_counter()
        try:
            result, outputs = tap(*arguments)
        except Untapped as failure:
            arguments = failure.arguments
            self._breaks(recorder, failure.__cause__)
        if self._is_broken:  # outside of the handler: an exception here is the user's own
            return self._plain(*arguments)
        if recorder.waits:
            wait_for(result[1] if isinstance(result, tuple) else result)
        seconds = perf_counter() - started - self._average
        self.mark()
        if outputs is None:
            self._breaks(recorder, tap.problem or "the training step is not the model's own")
            return result
        if self._keeps_from_gradients is not None:
            recorder.without_gradients(self._keeps_from_gradients)
        if self._gradients and "gradient" not in outputs:
            recorder.without_gradients(str(tap.problem or _NO_GRADIENTS))
        accumulates = getattr(inner(tap.optimizer), "gradient_accumulation_steps", None) or 1
        found = GraphFound(
            outputs,
            tap.keys,
            accumulates,
            whole=tap.wanted.whole,
            histograms=plan.histograms,
            meter=self._meter,
        )
        recorder.take(found, plan, max(0.0, seconds) if recorder.waits else 0.0)
        return result

    def _take_average(self) -> None:
        if self.plain_steps:
            self._average = (perf_counter() - self._marked) / self.plain_steps

    def _wanted(self, plan: Plan) -> Wanted:
        whole = self._on_host or plan.snapshot
        return Wanted(self._weights, self._gradients, whole, plan.histograms and not whole)

    def _breaks(self, recorder: Recorder, reason: object) -> None:
        self._is_broken = True
        self._taps.clear()
        recorder.without_steps(str(reason))


def _is_compiled(model: Any) -> bool:
    return bool(getattr(model, "jit_compile", False))


def is_on_host(model: Any) -> bool:
    """Whether the weights lie in the memory of the host."""
    value: Any = model.variables[0].value if model.variables else None
    if hasattr(value, "devices"):
        return all(device.platform == "cpu" for device in value.devices())
    device = str(getattr(value, "device", ""))
    return "GPU" not in device and "TPU" not in device


def wait_for(values: Any) -> None:
    """Wait until JAX has worked these out; TensorFlow on a host has when it returns."""
    jax = sys.modules.get("jax")
    if jax is not None and keras.config.backend() == "jax":
        jax.block_until_ready(values)
