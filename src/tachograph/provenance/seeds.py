"""The state of every random generator and determinism setting in the process.

Reads and never sets: no generator advances, no device is initialised, no library is imported.
Keras keeps its seed per thread, so this is to be called on the thread that trains.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable
from typing import Any

from tachograph.provenance import missing

_VARIABLES = (
    "PYTHONHASHSEED",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDNN_DETERMINISTIC",
    "TF_DETERMINISTIC_OPS",
    "XLA_FLAGS",
)


def collect() -> dict[str, Any]:
    """Seeds, digests of generator states and determinism flags, per loaded library."""
    document: dict[str, Any] = {
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "hash_randomization": bool(sys.flags.hash_randomization),
        "random": {"state": _digest(repr(random.getstate()).encode())},
    }
    for library, read in _READERS.items():
        module = sys.modules.get(library)
        if module is not None:
            try:
                document[library] = read(module)
            except Exception as error:
                document[library] = missing(error)
    return document


def _digest(state: bytes) -> str:
    return hashlib.sha256(state).hexdigest()


def _numpy(numpy: Any) -> dict[str, Any]:
    if "numpy.random" not in sys.modules:  # newer releases load it on first use
        return {"state": None}
    state = numpy.random.get_state(legacy=False)
    inner = {
        key: value.tobytes().hex() if hasattr(value, "tobytes") else repr(value)
        for key, value in state["state"].items()
    }
    rest = {key: repr(value) for key, value in state.items() if key != "state"}
    return {
        "generator": str(state["bit_generator"]),
        "state": _digest(repr((sorted(inner.items()), sorted(rest.items()))).encode()),
    }


def _torch(torch: Any) -> dict[str, Any]:
    return {
        "initial_seed": int(torch.initial_seed()),
        "state": _digest(torch.get_rng_state().numpy().tobytes()),
        "cuda": _torch_cuda(torch),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()),
    }


def _torch_cuda(torch: Any) -> dict[str, str]:
    """Digest per device; asking a device that was not used yet would initialise it."""
    if not torch.cuda.is_initialized():
        return {}
    return {
        f"cuda:{index}": _digest(torch.cuda.get_rng_state(index).numpy().tobytes())
        for index in range(torch.cuda.device_count())
    }


def _keras(keras: Any) -> dict[str, Any]:
    state: Any = sys.modules.get("keras.src.backend.common.global_state")
    return {
        "backend": keras.config.backend(),
        "seed": None if state is None else state.get_global_attribute("global_random_seed"),
        "floatx": keras.config.floatx(),
        "dtype_policy": keras.config.dtype_policy().name,
    }


def _tensorflow(_: Any) -> dict[str, Any]:
    eager: Any = sys.modules.get("tensorflow.python.eager.context")
    context = None if eager is None else eager.context_safe()  # None: nothing was computed yet
    determinism: Any = sys.modules.get("tensorflow.python.util._pywrap_determinism")
    return {
        "seed": None if context is None else context._seed,
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
