"""The gradients that an optimizer of Keras is given, as it uses them, on any backend.

What it gets may be scaled for the loss's sake, and be a part of what is accumulated. Only reads;
computes with the tensors of the backend, inside of a graph too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from tachograph.callbacks.keras_record import is_measured

_CLIPPING = ("clipnorm", "global_clipnorm", "clipvalue")


def inner(optimizer: Any) -> Any:
    """The optimizer itself, inside of one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Have a method of one object be another one for a while, past what Keras tracks."""
    attributes = vars(owner)
    had, own = name in attributes, attributes.get(name)
    attributes[name] = value
    try:
        yield
    finally:
        if had:
            attributes[name] = own
        else:
            attributes.pop(name, None)


def used(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Variables and their gradients before clipping: unscaled, and with what was accumulated.

    Left out are variables without a gradient, and those whose gradient is their new value.
    """
    base = inner(optimizer)
    scale = getattr(optimizer, "dynamic_scale", None)
    if scale is None:
        scale = getattr(optimizer, "loss_scale_factor", None)
    steps = getattr(base, "gradient_accumulation_steps", None)
    known: list[Any] = []
    found: list[Any] = []
    for variable, given in zip(variables, gradients, strict=True):
        if given is None or not is_measured(variable.dtype):
            continue
        if getattr(variable, "overwrite_with_gradient", False):
            continue
        found.append(_dense(given, variable))
        known.append(variable)
    if scale is not None:
        found = [gradient / keras.ops.cast(scale, gradient.dtype) for gradient in found]
    if steps:
        places = [base._get_variable_index(variable) for variable in known]
        earlier = [keras.ops.convert_to_tensor(base._accumulated_gradients[at]) for at in places]
        found = [(one + before) / steps for one, before in zip(found, earlier, strict=True)]
    return known, found


def _dense(gradient: Any, variable: Any) -> Any:
    """A gradient of all rows, from one of some rows as TensorFlow has it of an embedding."""
    if not hasattr(gradient, "dense_shape"):
        return gradient
    rows = int(variable.shape[0])
    return keras.ops.segment_sum(gradient.values, gradient.indices, num_segments=rows)


def clips(optimizer: Any) -> bool:
    """Whether the optimizer clips in Keras's own way, which can be asked for once more."""
    base = inner(optimizer)
    own = getattr(keras.optimizers.Optimizer, "_clip_gradients", None)
    is_own = own is not None and getattr(type(base), "_clip_gradients", None) is own
    return is_own and any(getattr(base, name, None) for name in _CLIPPING)


def clipped(optimizer: Any, gradients: list[Any]) -> list[Any]:
    """What the optimizer makes of gradients before it uses them."""
    return list(inner(optimizer)._clip_gradients(gradients))
