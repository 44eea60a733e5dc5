"""Steps of a Keras training on torch, measured where they happen: nothing of theirs is changed.

While one is done, the optimizer's `apply` looks at what it is given. A step that torch has compiled
is not looked into: its gradients are read from the weights afterwards, where Keras leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import keras
import numpy as np

from tachograph.callbacks import keras_gradients as gradients
from tachograph.callbacks.keras_gradients import replaced
from tachograph.callbacks.keras_record import CLIPPED, Named, Part, key, named, not_trained
from tachograph.callbacks.tensors_pace import Plan
from tachograph.callbacks.tensors_torch import Measured, TorchMeter, local_part
from tachograph.tensors.records import TensorKey

_SECONDS_AN_ELEMENT = 5e-9  # of moments of gradient, weight and update together, about
_SECONDS_A_TENSOR = 60e-6


class TorchFound:
    """What one step has been seen to do."""

    def __init__(self) -> None:
        self.moment_seconds = self.histogram_seconds = 0.0
        self.iterations: Any = None
        self.accumulates = 1
        self.has_gradients = False
        self.measured: list[tuple[tuple[TensorKey, ...], Measured]] = []
        self.whole: dict[str, dict[str, Any]] = {"weights": {}, "gradients": {}}

    def has_arrived(self, behind: int) -> bool:
        """Whether all is there; asks and does not wait."""
        return all(measured.has_arrived(behind) for _, measured in self.measured)

    def step(self) -> int | None:
        """The number of the step; one that was skipped for its infinities is tried once more."""
        return None if self.iterations is None else int(self.iterations) // self.accumulates + 1

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Whole tensors by name, where a snapshot was wanted; read them before the next step."""
        return self.whole

    def parts(self) -> Iterator[Part]:
        """What was measured."""
        for keys, measured in self.measured:
            yield Part(keys, np.ascontiguousarray(measured.numbers()), measured.histograms())


class TorchTap:
    """Looks at chosen steps of one model.

    Parameters
    ----------
    model : keras.Model
    weights, gradients : bool
        What to measure.
    """

    def __init__(self, model: Any, *, weights: bool, gradients: bool) -> None:
        self._optimizer: Any = getattr(model, "optimizer", None)
        self._own_apply: Any = getattr(self._optimizer, "apply", None)
        self._is_compiled = bool(model.jit_compile) and not model.run_eagerly
        self._has_own_step = type(model).train_step is not keras.Model.train_step
        self._weights = named(model.trainable_variables) if weights else []
        self._others = not_trained(model) if weights else []
        self._gradients = gradients
        self._meter = TorchMeter()
        self._keys: dict[tuple[str, tuple[int, ...]], tuple[TensorKey, ...]] = {}
        self._memory: list[Any] = []
        self._plan = Plan(histograms=False, snapshot=False)
        self._found = TorchFound()
        self.problem: Exception | None = None

    def estimate(self) -> float:
        """Seconds that looking at a step will take about."""
        variables = [one for _, one in self._weights]
        variables = variables or getattr(self._optimizer, "_trainable_variables", [])
        elements: int = sum(math.prod(one.shape) for one in variables)
        return elements * _SECONDS_AN_ELEMENT + len(variables) * _SECONDS_A_TENSOR

    def __call__(self, function: Any, arguments: Sequence[Any], plan: Plan) -> tuple[Any, Any]:
        """Do a step by `function`; gives what it gives, and what was found."""
        self._plan, self._found = plan, TorchFound()
        self._timed(self._note_before)
        if self._is_compiled or self._own_apply is None:
            if not self._has_own_step:
                self._timed(self._note_number)
            result = function(*arguments)
            self._timed(self._note_left)
        else:
            with replaced(self._optimizer, "apply", self._apply):
                result = function(*arguments)
        self._timed(self._note_weights)
        self._timed(self._note_others)
        self._found.moment_seconds -= self._found.histogram_seconds
        return result, self._found

    def _apply(self, given: Any, variables: Any = None) -> Any:
        given = list(given)
        known = self._optimizer._trainable_variables if variables is None else list(variables)
        self._timed(self._note_number)
        self._timed(self._note_gradients, given, known)
        return self._own_apply(given, variables)

    def _timed(self, function: Any, *arguments: Any) -> None:
        """Call what looks; a step must not fail for it."""
        started = perf_counter()
        try:
            function(*arguments)
        except Exception as error:
            self.problem = error
        self._found.moment_seconds += perf_counter() - started

    # ------------------------------------------------------------------ looking

    def _note_number(self) -> None:
        """The number of the step that the optimizer is about to do."""
        base = gradients.inner(self._optimizer)
        iterations = getattr(base, "_iterations", None)
        if iterations is not None:
            self._found.iterations = iterations.value.detach().clone()
            self._found.accumulates = getattr(base, "gradient_accumulation_steps", None) or 1

    def _note_before(self) -> None:
        """Keep the weights as they are before the step."""
        values: list[Any] = [local_part(one.value) for _, one in self._weights]
        if [value.shape for value in values] != [one.shape for one in self._memory]:
            self._memory = [value.clone() for value in values]
        else:
            for memory, value in zip(self._memory, values, strict=True):
                memory.copy_(value)

    def _note_gradients(self, given: Sequence[Any], variables: Sequence[Any]) -> None:
        if not self._gradients:
            return
        known, found = gradients.used(self._optimizer, given, variables)
        self._found.has_gradients = bool(found)
        self._measure("gradient", "{}", named(known), found, self._plan.histograms)
        if self._plan.snapshot:
            values = [value.detach().clone() for value in found]
            self._found.whole["gradients"] = dict(
                zip([name for name, _ in named(known)], values, strict=True)
            )
        if gradients.clips(self._optimizer):
            clipped = gradients.clipped(self._optimizer, found)
            self._measure("gradient", CLIPPED, named(known), clipped, False)

    def _note_left(self) -> None:
        """Read from the weights the gradients that a compiled step has left there."""
        if self._gradients and self._leaves_gradients():
            known = self._optimizer._trainable_variables
            self._note_gradients([one.value.grad for one in known], known)

    def _leaves_gradients(self) -> bool:
        """Whether what is left are the gradients that the step has used, and all that it used."""
        base = gradients.inner(self._optimizer)
        accumulates = getattr(base, "gradient_accumulation_steps", None)
        return not (self._has_own_step or base is not self._optimizer or accumulates)

    def _note_weights(self) -> None:
        if not self._weights:
            return
        new = [local_part(one.value) for _, one in self._weights]
        weights, updates = self._meter.measure_changes(
            new, self._memory, histograms=self._plan.histograms
        )
        self._found.histogram_seconds += weights.histogram_seconds
        for kind, measured in (("update", updates), ("weight", weights)):
            self._found.measured.append((self._keys_of(kind, "{}", self._weights), measured))
        if self._plan.snapshot:
            names = [name for name, _ in self._weights]
            self._found.whole["weights"] |= dict(zip(names, new, strict=True))

    def _note_others(self) -> None:
        values: list[Any] = [local_part(one.value) for _, one in self._others]
        self._measure("weight", "{}", self._others, values, self._plan.histograms)
        if self._plan.snapshot:
            names = [name for name, _ in self._others]
            self._found.whole["weights"] |= dict(zip(names, values, strict=True))

    def _measure(
        self, kind: str, context: str, names: list[Named], values: list[Any], histograms: bool
    ) -> None:
        parts = [local_part(value) for value in values]
        if parts:
            measured = self._meter.measure(parts, histograms=histograms)
            self._found.histogram_seconds += measured.histogram_seconds
            self._found.measured.append((self._keys_of(kind, context, names), measured))

    def _keys_of(self, kind: str, context: str, names: list[Named]) -> tuple[TensorKey, ...]:
        """The same keys at each step."""
        mark = (kind + context, tuple(id(one) for _, one in names))
        if mark not in self._keys:
            self._keys[mark] = tuple(key(name, kind, one, context) for name, one in names)
        return self._keys[mark]
