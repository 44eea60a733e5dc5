"""The state of every random generator and determinism setting in the process.

Reads and never sets: no generator advances, no device is initialised, no library is imported.
Keras keeps its seed per thread, so this is to be called on the thread that trains.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tachograph import host
from tachograph.generators import describe_generator, digest_of, numpy_state
from tachograph.provenance import missing
from tachograph.provenance.stack import Variable, user_variables
from tachograph.values import qualified_name

MAX_GENERATORS = 50
_VARIABLES = (
    "PYTHONHASHSEED",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDNN_DETERMINISTIC",
    "TF_DETERMINISTIC_OPS",
    "TF_CUDNN_DETERMINISTIC",
    "XLA_FLAGS",
)


def collect() -> dict[str, Any]:
    """Seeds, digests of generator states and determinism flags, per loaded library."""
    document: dict[str, Any] = {
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "hash_randomization": _is_hash_random(),
    }
    for library, read in _READERS.items():
        module = sys.modules.get(library)
        if module is not None:
            document[library] = _guarded(read, module)
    document["random"] = _guarded(_random, document)
    document["generators"] = _guarded(_generators, None)
    return document


def _is_hash_random() -> bool:
    """Python's own flag is set for a seed of its hash as well, as long as that is not 0."""
    given = host.started_with("PYTHONHASHSEED") or "random"
    return bool(sys.flags.hash_randomization) and given == "random"


def _guarded(read: Callable[[Any], dict[str, Any]], argument: Any) -> dict[str, Any]:
    try:
        return read(argument)
    except Exception as error:
        return missing(error)


# ---------------------------------------------------------------------------- libraries


def _random(document: dict[str, Any]) -> dict[str, Any]:
    """The state, and the seed if one that another library was given has led to it."""
    state = random.getstate()
    for seed in _known_seeds(document):
        if random.Random(seed).getstate() == state:
            return {"seed": seed, "state": digest_of(state)}
    return {"state": digest_of(state)}


def _known_seeds(document: dict[str, Any]) -> Iterator[int]:
    for library, name in (("numpy", "seed"), ("torch", "initial_seed"), ("keras", "seed")):
        seed = document.get(library, {}).get(name)
        if isinstance(seed, int):
            yield seed
    for name in ("PL_GLOBAL_SEED", "PYTHONHASHSEED"):
        if (text := os.environ.get(name, "")).isdecimal():
            yield int(text)


def _numpy(numpy: Any) -> dict[str, Any]:
    if "numpy.random" not in sys.modules:  # newer releases load it on first use
        return {"state": None}
    facts = numpy_state(numpy.random)
    seed = _numpy_seed(numpy)
    found = {"generator": facts["kind"].removeprefix("numpy."), "state": facts["state"]}
    return found if seed is None else {"seed": seed, **found}


def _numpy_seed(numpy: Any) -> int | None:
    """The seed, if nothing was drawn since it was set: the first word of a Mersenne twister."""
    state = numpy.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        return None
    words = state["state"]["key"]
    seeded = numpy.random.RandomState(int(words[0])).get_state(legacy=False)["state"]
    same = seeded["pos"] == state["state"]["pos"] and (seeded["key"] == words).all()
    return int(words[0]) if same else None


def _torch(torch: Any) -> dict[str, Any]:
    return {
        "initial_seed": int(torch.initial_seed()),
        "state": digest_of(torch.get_rng_state().numpy()),
        **{name: _torch_devices(torch, name) for name in ("cuda", "xpu")},
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()),
    }


def _torch_devices(torch: Any, kind: str) -> dict[str, str]:
    """Digest per device; asking a device that was not used yet would initialise it."""
    devices = getattr(torch, kind, None)
    if devices is None or not devices.is_initialized():
        return {}
    return {
        f"{kind}:{index}": digest_of(devices.get_rng_state(index).numpy())
        for index in range(devices.device_count())
    }


def _keras(keras: Any) -> dict[str, Any]:
    state: Any = sys.modules.get("keras.src.backend.common.global_state")
    given = None if state is None else state.get_global_attribute("global_random_seed")
    generator = None if state is None else state.get_global_attribute("global_seed_generator")
    facts = None if generator is None else describe_generator(generator)
    return {
        "backend": keras.config.backend(),
        "seed": given,
        "state": None if facts is None else facts["state"],
        "floatx": keras.config.floatx(),
        "dtype_policy": keras.config.dtype_policy().name,
    }


def _tensorflow(_: Any) -> dict[str, Any]:
    eager: Any = sys.modules.get("tensorflow.python.eager.context")
    context = None if eager is None else eager.context_safe()  # None: nothing was computed yet
    determinism: Any = sys.modules.get("tensorflow.python.util._pywrap_determinism")
    stateful: Any = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    generator = getattr(stateful, "global_generator", None)  # None: not used yet
    seeds = getattr(context, "_rng", None)  # gives each operation its seed
    return {
        "seed": None if context is None else context._seed,
        "state": None if seeds is None else digest_of(seeds.getstate()),
        "global_generator": None if generator is None else describe_generator(generator),
        "deterministic_operations": None if determinism is None else determinism.is_enabled(),
    }


def _jax(jax: Any) -> dict[str, Any]:
    names = (
        "jax_default_prng_impl",
        "jax_enable_x64",
        "jax_threefry_partitionable",
        "jax_default_matmul_precision",
        "jax_enable_custom_prng",
    )
    return {name.removeprefix("jax_"): getattr(jax.config, name, None) for name in names}


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "numpy": _numpy,
    "torch": _torch,
    "keras": _keras,
    "tensorflow": _tensorflow,
    "jax": _jax,
}

# ---------------------------------------------------------------------------- held by the user


def _generators(_: None) -> dict[str, Any]:
    """Generators, keys and data loaders in variables of the user's code, by function and name."""
    found: dict[str, Any] = {}
    for variable in user_variables():
        if facts := _guarded(_held, variable):
            found.setdefault(f"{variable.where}.{variable.name}", facts)
        if len(found) == MAX_GENERATORS:
            break
    return found


def _held(variable: Variable) -> dict[str, Any]:
    loader = getattr(sys.modules.get("torch.utils.data"), "DataLoader", None)
    if loader is not None and issubclass(type(variable.value), loader):
        return _loader(variable.value)
    return describe_generator(variable.value) or _old_key(variable) or {}


def _old_key(variable: Variable) -> dict[str, Any] | None:
    """A key of jax that is an array as any other, known by its name."""
    name, value = variable.name.lower(), variable.value
    if type(value).__module__.partition(".")[0] != "jaxlib" or not ("key" in name or "rng" in name):
        return None
    if str(getattr(value, "dtype", "")) != "uint32" or value.shape[-1:] not in ((2,), (4,)):
        return None
    import numpy

    return {
        "kind": "jax.uint32",
        "shape": list(value.shape),
        "state": digest_of(numpy.asarray(value)),
    }


def _loader(loader: Any) -> dict[str, Any]:
    """How a data loader draws its order, and how it seeds its workers."""
    seeding = loader.worker_init_fn
    own = loader.generator
    drawing = getattr(loader.sampler, "generator", None)
    return {
        "kind": "torch.DataLoader",
        "workers": loader.num_workers,
        "worker_init_fn": None if seeding is None else qualified_name(seeding),
        "generator": None if own is None else describe_generator(own),
        "sampler": type(loader.sampler).__name__,
        "sampler_generator": None if drawing is None else describe_generator(drawing),
    }
