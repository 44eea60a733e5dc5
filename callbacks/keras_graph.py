"""A second train function whose steps put out what is measured of them; for JAX and TensorFlow.

The model makes it as it made its own, around the same step. What the step's graph holds besides
comes out with the logs: whole tensors where they lie in the host's memory anyway and are measured
there in a fraction of the time, statistics where they lie on an accelerator.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tachograph.callbacks import keras_gradients as gradients
from tachograph.callbacks import keras_statistics
from tachograph.callbacks.keras_gradients import replaced
from tachograph.callbacks.keras_record import CLIPPED, Named, key, named, not_trained
from tachograph.tensors.records import TensorKey

_KEY = "tachograph"  # among the logs of a step, on the way from the graph to the tap

Outputs = dict[str, Any]
Keys = dict[str, tuple[TensorKey, ...]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tapped step puts out; `whole` tensors or statistics, these with histograms or not."""

    weights: bool
    gradients: bool
    whole: bool
    histograms: bool


class Untapped(Exception):
    """A tapped step that could not be made.

    Attributes
    ----------
    arguments : tuple
        For the model's own function.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.arguments = arguments


class _Again:
    """An iterator that can be begun again after some steps."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._taken: list[Any] = []
        self._repeated: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._repeated:
            return self._repeated.pop(0)
        self._taken.append(next(self._iterator))
        return self._taken[-1]

    def begin_again(self) -> None:
        """Give what was given, once more."""
        self._repeated = self._taken


class GraphTap:
    """One tapped train function of a model.

    Parameters
    ----------
    model : keras.Model
    wanted : Wanted

    Attributes
    ----------
    wanted : Wanted
    optimizer : keras.Optimizer or None
        The model's.
    keys : dict
        What the tensors of each output are; known when the step has been traced.
    problem : Exception or None
        Why a trace has put out nothing, or less than wanted.
    """

    _apply_name = "apply"

    def __init__(self, model: Any, wanted: Wanted) -> None:
        self._model = model
        self.wanted = wanted
        self.optimizer: Any = getattr(model, "optimizer", None)
        self._own_apply: Any = getattr(self.optimizer, self._apply_name, None)
        self._own_step = model.train_step
        self._seen: Outputs = {}
        self._has_run = False
        self.keys: Keys = {}
        self.problem: Exception | None = None
        own = model.train_function
        try:
            with replaced(model, "train_step", self._step):
                model.make_train_function(force=True)
            self._function = model.train_function
        finally:
            model.train_function = own

    def __call__(self, *arguments: Any) -> tuple[Any, Outputs | None]:
        """Do a step; gives what the model's own function gives, and what was put out.

        Raises
        ------
        Untapped
            The tapped step could not be made into a graph, and nothing has been done.
        """
        tap = contextlib.nullcontext() if self._own_apply is None else self._tapped()
        given, is_first = arguments, not self._has_run
        if is_first:
            given = self._repeatable(arguments)
        try:
            with tap:  # the function may be traced in any call
                result = self._function(*given)
        except Exception as error:
            if is_first and not self._model.run_eagerly and self._is_untouched(error, given):
                raise Untapped(given) from error
            raise
        self._has_run = True
        return self._split(result)

    def _tapped(self) -> contextlib.AbstractContextManager[None]:
        return replaced(self.optimizer, self._apply_name, self._apply)

    # ------------------------------------------------------------------ for each backend

    def _step(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError

    def _split(self, result: Any) -> tuple[Any, Outputs | None]:
        raise NotImplementedError

    def _repeatable(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments that can be given to the model's own function afterwards."""
        return arguments

    def _is_untouched(self, error: Exception, arguments: tuple[Any, ...]) -> bool:
        """Whether the step has failed before it has done anything."""
        raise NotImplementedError

    def _still(self, tensors: list[Any]) -> list[Any]:
        """The same tensors, such that what is done with them changes nothing around."""
        return tensors

    # ------------------------------------------------------------------ inside of the graph

    def _note_gradients(self, given: Sequence[Any], variables: Sequence[Any]) -> None:
        """Keep the gradients that the optimizer is about to use."""
        optimizer = self.optimizer
        iterations = getattr(gradients.inner(optimizer), "_iterations", None)
        if iterations is not None:
            self._seen["iterations"] = keras.ops.convert_to_tensor(iterations) + 0
        if not self.wanted.gradients:
            return
        known, found = gradients.used(optimizer, given, variables)
        found = self._still(found)
        self._put("gradient", named(known), found)
        if gradients.clips(optimizer):
            self._put("clipped", named(known), gradients.clipped(optimizer, found))

    def _note_weights(
        self, trained: Sequence[Any], old: Sequence[Any], new: Sequence[Any], others: list[Named]
    ) -> None:
        """Keep the weights before and after the step, and those that are not trained."""
        names = named(trained)
        places = [place for place, one in enumerate(trained) if any(one is v for _, v in names)]
        old = self._still([old[place] for place in places])
        new = self._still([new[place] for place in places])
        if names and self.wanted.whole:
            self._seen |= {"old": old, "new": new}
            self._name("weight", names)
            self._name("update", names)
        else:
            self._put("weight", names, new)
            self._put("update", names, [a - b for a, b in zip(new, old, strict=True)])
        self._put("other", others, self._still([value for _, value in others]))

    def _put(self, output: str, names: list[Named], tensors: list[Any]) -> None:
        if not names:
            return
        self._name(output, names)
        if self.wanted.whole:
            self._seen[output] = tensors
        else:
            self._seen[output] = keras_statistics.statistics(tensors)
            if self.wanted.histograms and output not in ("update", "clipped"):
                self._seen[f"{output} histograms"] = keras_statistics.histograms(tensors)

    def _name(self, output: str, names: list[Named]) -> None:
        kind = {"clipped": "gradient", "other": "weight"}.get(output, output)
        context = CLIPPED if output == "clipped" else "{}"
        self.keys[output] = tuple(key(name, kind, one, context) for name, one in names)

    def _guarded(self, function: Any, *arguments: Any) -> None:
        """Call what looks; a step must not fail for it."""
        try:
            function(*arguments)
        except Exception as error:
            self.problem = error

    def _with_seen(self, logs: Any) -> Any:
        seen, self._seen = self._seen, {}
        if not seen or not isinstance(logs, dict):
            return logs
        # Tuples, as TensorFlow takes a list for one tensor.
        whole = {name: tuple(one) if isinstance(one, list) else one for name, one in seen.items()}
        return {**logs, _KEY: whole}


class JaxTap(GraphTap):
    """The tapped train function where Keras runs on JAX."""

    _apply_name = "stateless_apply"

    def _step(self, state: Any, data: Any) -> Any:
        self._seen = {}
        logs, after = self._own_step(state, data)
        if self.wanted.weights:
            self._guarded(self._note_state, state, after)
        return self._with_seen(logs), after

    def _note_state(self, state: Any, after: Any) -> None:
        import jax

        copies = [jax.numpy.copy(value) for value in after[0]]  # not the memory that is given on
        moving = {id(one): value for one, value in zip(self._others(), after[1], strict=True)}
        others = [(name, moving[id(one)]) for name, one in not_trained(self._model)]
        self._note_weights(self._model.trainable_variables, state[0], copies, others)

    def _others(self) -> list[Any]:
        return list(self._model.non_trainable_variables)

    def _apply(self, variables: Any, given: Any, weights: Any) -> Any:
        optimizer = self.optimizer
        mapping = list(zip(optimizer.variables, variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            self._guarded(self._note_gradients, given, optimizer._trainable_variables)
        return self._own_apply(variables, given, weights)

    def _split(self, result: Any) -> tuple[Any, Outputs | None]:
        logs, state = result
        if not isinstance(logs, dict) or _KEY not in logs:
            return result, None
        return ({name: one for name, one in logs.items() if name != _KEY}, state), logs[_KEY]

    def _repeatable(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0], _Again(arguments[1])

    def _is_untouched(self, error: Exception, arguments: tuple[Any, ...]) -> bool:
        state, iterator = arguments
        if isinstance(error, StopIteration) or any(one.is_deleted() for one in state[0]):
            return False
        iterator.begin_again()
        return True

    def _still(self, tensors: list[Any]) -> list[Any]:
        import jax

        still: Any = jax.lax.optimization_barrier  # has no types
        return list(still(tensors))


class TensorFlowTap(GraphTap):
    """The tapped train function where Keras runs on TensorFlow."""

    def _step(self, data: Any) -> Any:
        self._seen = {}
        before = self._values()
        logs = self._own_step(data)
        if self.wanted.weights:
            self._guarded(self._note_variables, before)
        return self._with_seen(logs)

    def _values(self) -> list[Any]:
        if not self.wanted.weights:
            return []
        return [keras.ops.copy(one.value) for one in self._model.trainable_variables]

    def _note_variables(self, before: list[Any]) -> None:
        trained, after = self._model.trainable_variables, self._values()
        if len(before) != len(after):
            return  # the step has made them; it is traced once more
        others = [(name, keras.ops.copy(one.value)) for name, one in not_trained(self._model)]
        self._note_weights(trained, before, after, others)

    def _apply(self, given: Any, variables: Any = None) -> Any:
        given = list(given)
        known = self.optimizer._trainable_variables if variables is None else list(variables)
        self._guarded(self._note_gradients, given, known)
        return self._own_apply(given, variables)

    def _is_untouched(self, error: Exception, arguments: tuple[Any, ...]) -> bool:
        tensorflow = importlib.import_module("tensorflow")  # has no types
        return not isinstance(error, StopIteration | tensorflow.errors.OpError)

    def _split(self, result: Any) -> tuple[Any, Outputs | None]:
        if not isinstance(result, dict) or _KEY not in result:
            return result, None
        return {name: one for name, one in result.items() if name != _KEY}, result[_KEY]
