"""What computes: BLAS and OpenMP with their threads, CUDA, and how libraries are set to compute.

The same program on the same machine may give other results where these differ. Only of libraries
that are loaded, and none is made to load another.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tachograph.provenance import missing

_VARIABLE = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|GOTO|BLIS|VECLIB|NUMEXPR|NUMBA|TF)_(MAX_|NUM_)?(\w+_)?THREADS"
    r"|(OMP|MKL)_DYNAMIC|MKL_CBWR|OPENBLAS_CORETYPE|NPY_DISABLE_CPU_FEATURES|ATEN_CPU_CAPABILITY"
)
_LIBRARY = re.compile(
    r"lib(?:\w*openblas|mkl_\w+|blis|blas|lapack|cblas|gomp|[iv]?omp5?|tbb|dnnl|cudart|cublas|cudnn"
    r"|cusparse|cufft|nccl|rccl|rocblas|MIOpen)\w*(?:-[0-9a-f]+)?\.(?:so|dylib)[\d.]*"
)
_LOADING = ("numpy", "scipy", "sklearn", "torch", "tensorflow", "jaxlib", "xgboost")
_TORCH_BUILD = re.compile(r"\b(BLAS_INFO|LAPACK_INFO|USE_MKLDNN|USE_OPENMP)=(\w+)")


def collect() -> dict[str, Any]:
    """Variables on threads, pools of threads, native libraries, and facts of each library."""
    document: dict[str, Any] = {
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if _VARIABLE.fullmatch(name)
        },
        "pools": _pools(),
        "libraries": _libraries(_loaded()),
    }
    for name, read in _READERS.items():
        module = sys.modules.get(name)
        if module is not None:
            try:
                document[name] = read(module)
            except Exception as error:
                document[name] = missing(error)
    return document


def _loaded() -> tuple[str, ...]:
    return tuple(name for name in _LOADING if name in sys.modules)


def _pools() -> dict[str, dict[str, Any]] | None:
    """Library to its pool of threads, BLAS and OpenMP; None where threadpoolctl is not loaded."""
    threadpoolctl: Any = sys.modules.get("threadpoolctl")
    if threadpoolctl is None:
        return None
    pools = _controller(_loaded(), threadpoolctl).info()
    return {Path(pool.pop("filepath")).name: pool for pool in pools}


@lru_cache(maxsize=1)
def _controller(_: tuple[str, ...], threadpoolctl: Any) -> Any:
    """Looks through all that is loaded, which takes 20 ms: once for what is loaded now."""
    return threadpoolctl.ThreadpoolController()


@lru_cache(maxsize=1)
def _libraries(_: tuple[str, ...]) -> list[str]:
    """Names of the numeric libraries in the memory of this process, where Linux tells."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return []
    names = {line.rpartition("/")[2] for line in maps.splitlines() if "/" in line}
    return sorted(name for name in names if _LIBRARY.fullmatch(name))


# ---------------------------------------------------------------------------- libraries


def _numpy(numpy: Any) -> dict[str, Any]:
    config: Any = getattr(sys.modules.get("numpy.__config__"), "CONFIG", {})
    built = config.get("Build Dependencies", {})
    return {
        key: {name: built[key].get(name) for name in ("name", "version", "openblas configuration")}
        for key in ("blas", "lapack")
        if isinstance(built.get(key), dict)
    }


def _torch(torch: Any) -> dict[str, Any]:
    version, backends = torch.version, torch.backends
    in_use = torch.cuda.is_initialized()  # to ask for cuDNN or NCCL would load them
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": backends.cpu.get_cpu_capability(),
        "build": dict(_TORCH_BUILD.findall(torch.__config__.show())),
        "cuda": version.cuda,
        "rocm": getattr(version, "hip", None),
        "cudnn": backends.cudnn.version() if in_use else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if in_use else None,
        "cudnn_enabled": backends.cudnn.enabled,
        "cuda_tf32": _setting(lambda: backends.cuda.matmul.allow_tf32),
        "cudnn_tf32": _setting(lambda: backends.cudnn.allow_tf32),
    }


def _setting(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # set in another way, which has a setting of its own
        return None


def _tensorflow(_: Any) -> dict[str, Any]:
    build: Any = sys.modules.get("tensorflow.python.platform.build_info")
    facts = dict(getattr(build, "build_info", {}))
    eager: Any = sys.modules.get("tensorflow.python.eager.context")
    context = None if eager is None else eager.context_safe()
    names = ("cuda_version", "cudnn_version", "is_cuda_build", "is_rocm_build")
    return {name: facts[name] for name in names if name in facts} | {
        "threads": getattr(context, "intra_op_parallelism_threads", None),
        "interop_threads": getattr(context, "inter_op_parallelism_threads", None),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
    }


def _jax(_: Any) -> dict[str, Any]:
    bridge: Any = sys.modules.get("jax._src.xla_bridge")
    versions: Any = getattr(sys.modules.get("jax._src.lib"), "cuda_versions", None)
    jaxlib: Any = sys.modules.get("jaxlib.version")
    found = {
        "jaxlib": getattr(jaxlib, "__version__", None),
        "platforms": sorted(getattr(bridge, "_backends", {})),  # those that are in use
    }
    if versions is not None:
        found["cuda"] = versions.cuda_runtime_get_version()
        found["cudnn"] = versions.cudnn_get_version()
    return found


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
}
