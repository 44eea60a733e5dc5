"""Random generators as plain facts: what kind, and a digest of the state they are in.

Recognises generators of other libraries by their names and imports none. Reads and never draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

Facts = dict[str, Any]


def describe_generator(value: Any) -> Facts | None:
    """Kind, digest of the state and, where it tells, the seed; None for what is no generator.

    Known are generators of `random`, numpy, torch, tensorflow and Keras, and typed keys of jax.
    """
    kind = type(value)
    read = _READERS.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
    return None if read is None else read(value)


def digest_of(state: Any) -> str:
    """Digest of a state: an array by its bytes, a mapping item by item, else by its `repr`."""
    return hashlib.sha256(_bytes(state)).hexdigest()


def _bytes(state: Any) -> bytes:
    if isinstance(state, Mapping):
        return b"\n".join(key.encode() + b"=" + _bytes(state[key]) for key in sorted(state))
    return state.tobytes() if hasattr(state, "tobytes") else repr(state).encode()


def _random(generator: Any) -> Facts:
    return {"kind": "random.Random", "state": digest_of(generator.getstate())}


def numpy_state(generator: Any) -> Facts:
    """Of numpy's RandomState, Generator, BitGenerator or its module `random`."""
    state = getattr(generator, "bit_generator", generator)
    legacy = hasattr(generator, "get_state")
    facts = generator.get_state(legacy=False) if legacy else state.state
    return {"kind": f"numpy.{facts['bit_generator']}", "state": digest_of(facts)}


def _torch(generator: Any) -> Facts:
    return {
        "kind": "torch.Generator",
        "device": str(generator.device),
        "initial_seed": int(generator.initial_seed()),
        "state": digest_of(generator.get_state().numpy()),
    }


def _tensorflow(generator: Any) -> Facts:
    return {
        "kind": "tensorflow.Generator",
        "algorithm": int(generator.algorithm),
        "state": digest_of(generator.state.numpy()),
    }


def _keras(generator: Any) -> Facts:
    state = generator.state.value
    array = state.detach().cpu().numpy() if hasattr(state, "detach") else _as_array(state)
    return {
        "kind": "keras.SeedGenerator",
        "initial_seed": getattr(generator, "_initial_seed", None),
        "state": digest_of(array),
    }


def _jax_key(key: Any) -> Facts:
    return {
        "kind": f"jax.{key.dtype}",
        "shape": list(key.shape),
        "state": digest_of(_as_array(key._base_array)),
    }


def _as_array(value: Any) -> Any:
    import numpy  # of whatever library the value is, that has loaded it

    return numpy.asarray(value)


_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_READERS: dict[str, Callable[[Any], Facts]] = {
    "random.Random": _random,
    "numpy.RandomState": numpy_state,
    "numpy.Generator": numpy_state,
    **{f"numpy.{name}": numpy_state for name in _BIT_GENERATORS},
    "torch.Generator": _torch,
    "tensorflow.Generator": _tensorflow,
    "keras.SeedGenerator": _keras,
    "jax.PRNGKeyArray": _jax_key,
}
