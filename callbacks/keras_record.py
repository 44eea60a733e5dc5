"""What is recorded of one step of a Keras training: tensors by kind, and norms of the gradients.

Knows Keras's variables and `Run`, not where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from tachograph.run import Run
from tachograph.tensors.records import STATISTICS, Pairs, TensorKey

CLIPPED = '{"stage":"clipped"}'
_TRAIN = {"phase": "train"}
_L2, _NAN, _INF = (STATISTICS.index(name) for name in ("l2", "nan", "inf"))

Named = tuple[str, Any]
"""A variable and its name in the record."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors of one kind: what they are, float64 statistics of shape (tensors, statistics)."""

    keys: tuple[TensorKey, ...]
    numbers: Any
    histograms: Sequence[Pairs | None] | None = None


class Found(Protocol):
    """What a step has put out, here or on its way from a device.

    Attributes
    ----------
    moment_seconds, histogram_seconds : float
        What measuring took of the training's time so far.
    """

    moment_seconds: float
    histogram_seconds: float

    def has_arrived(self, behind: int) -> bool:
        """Whether it can be read without waiting; `behind` were put out later."""

    def step(self) -> int | None:
        """The number of the optimizer's step, from 1; None where it does not say."""

    def parts(self) -> Iterable[Part]:
        """Measure what has not been measured yet; waits."""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Whole tensors by name, under 'weights' and 'gradients'; empty where none were kept."""


def log(run: Run, parts: Iterable[Part], step: int, epoch: float) -> None:
    """Record the tensors of a step, and the norms of all gradients together."""
    norms: dict[str, float] = {}
    for part in parts:
        if not part.keys:
            continue
        run.log_statistics(
            part.keys, part.numbers.tobytes(), step, epoch=epoch, histograms=part.histograms
        )
        if part.keys[0].kind == "gradient":
            clipped = part.keys[0].context == CLIPPED
            norms["gradient_norm_clipped" if clipped else "gradient_norm"] = _norm(part.numbers)
    if norms:
        run.log(norms, step, epoch=epoch, context=_TRAIN)


def _norm(numbers: Any) -> float:
    """The norm of all values; NaN or infinite where one of them is."""
    if numbers[:, _NAN].any():
        return math.nan
    if numbers[:, _INF].any():
        return math.inf
    l2 = numbers[:, _L2]
    return math.sqrt(float((l2[l2 == l2] ** 2).sum()))  # NaN is that of a tensor without elements


# ---------------------------------------------------------------------------- variables


def named(variables: Iterable[Any]) -> list[Named]:
    """Variables of floating point under their paths; a path that comes again gets a number."""
    seen: dict[str, int] = {}
    found: list[Named] = []
    for variable in variables:
        if not is_measured(variable.dtype):
            continue  # states of random generators and the like
        path = str(getattr(variable, "path", variable.name))
        count = seen[path] = seen.get(path, 0) + 1
        found.append((path if count == 1 else f"{path}#{count}", variable))
    return found


def is_measured(dtype: Any) -> bool:
    """Whether statistics of this type are recorded."""
    return "float" in str(dtype)


def key(name: str, kind: str, variable: Any, context: str = "{}") -> TensorKey:
    """What a variable is, or its gradient or update."""
    shape = tuple(int(size) for size in variable.shape)
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return TensorKey(name, kind, shape, dtype, math.prod(shape), context)


def not_trained(model: Any) -> list[Named]:
    """Variables that change although they are not trained, such as moving averages."""
    frozen = {id(one) for _, one in frozen_weights(model)}
    return [
        (name, one) for name, one in named(model.non_trainable_variables) if id(one) not in frozen
    ]


def frozen_weights(model: Any) -> list[Named]:
    """Variables that would be trained, were not their layer or they themselves frozen."""
    made = [one for layer in model._flatten_layers() for one in layer._trainable_variables]
    ids = {id(one) for one in made if not one.trainable}
    return [(name, one) for name, one in named(model.non_trainable_variables) if id(one) in ids]
