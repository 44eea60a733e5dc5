"""Seeding every loaded library at once, on demand only, and recording what was done."""

from __future__ import annotations

import contextlib
import operator
import os
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tachograph.current import current_run
from tachograph.errors import ConfigError

if TYPE_CHECKING:
    from tachograph.run import Run

SEEDS = 1 << 32
"""Seeds go from 0 to one less than this: what numpy, and Python's hash, take."""

_last: dict[str, Any] | None = None
_runs_since = 0


def seed_everything(seed: int, *, deterministic: bool = False) -> dict[str, Any]:
    """Seed the random generators of Python and of all libraries that are loaded; record it.

    Call it after the imports: a library that is loaded later is not seeded. The current run
    records what was done, and so do the runs that start later in this process.

    Parameters
    ----------
    seed : int
        From 0 to 2**32 - 1.
    deterministic : bool, default False
        Also ask torch and tensorflow for deterministic algorithms, and forbid cuDNN to choose
        algorithms by trying them. Training may become slower, and an operation that has no
        deterministic algorithm raises.

    Returns
    -------
    dict
        seed; deterministic; `seeded`, names of what was seeded; `stateless`, loaded libraries
        that have no generator of their own to seed; `settings` that were made for determinism;
        `environment`, variables that were set for child processes and for what is loaded later;
        `late`, those of them that come too late for this process.

    Raises
    ------
    ConfigError
        The seed is no integer from 0 to 2**32 - 1.
    """
    global _last, _runs_since
    seed = _checked(seed)
    random.seed(seed)
    found = {name: sys.modules[name] for name in _SEEDERS if name in sys.modules}
    for name, module in found.items():
        _SEEDERS[name](module, seed)
    environment = {"PYTHONHASHSEED": str(seed)}
    settings: dict[str, Any] = {}
    if deterministic:
        environment |= _DETERMINISTIC
        for name, make in _DETERMINISM.items():
            if name in found:
                settings |= make(found[name])
    os.environ.update(environment)
    _runs_since = 0
    _last = {
        "seed": seed,
        "deterministic": deterministic,
        "seeded": ["random", *found],
        "stateless": [name for name in _STATELESS if name in sys.modules],
        "settings": settings,
        "environment": environment,
        "late": ["PYTHONHASHSEED", *(_DETERMINISTIC if _uses_cuda() and deterministic else ())],
    }
    run = current_run()
    if run is not None:
        _record(run, _last)
    return dict(_last)


def record_seeding(run: Run) -> None:
    """Record in a run that starts how this process was seeded, if `seed_everything` did it."""
    global _runs_since
    if _last is not None:
        _record(run, _last | {"runs_since": _runs_since})
        _runs_since += 1


def _record(run: Run, document: dict[str, Any]) -> None:
    run.log_provenance("seeding", document)
    run.log_params({"seed": document["seed"]})


def _checked(seed: Any) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(seed, bool) and 0 <= operator.index(seed) < SEEDS:
            return operator.index(seed)
    raise ConfigError(f"a seed is an integer from 0 to 2**32 - 1, not {seed!r:.80}")


# ---------------------------------------------------------------------------- libraries


def _numpy(numpy: Any, seed: int) -> None:
    numpy.random.seed(seed)


def _torch(torch: Any, seed: int) -> None:
    torch.manual_seed(seed)  # of all devices; those that are not used yet get it when they are


def _tensorflow(tensorflow: Any, seed: int) -> None:
    tensorflow.random.set_seed(seed)


def _keras(keras: Any, seed: int) -> None:
    keras.utils.set_random_seed(seed)


_SEEDERS: dict[str, Callable[[Any, int], None]] = {
    "keras": _keras,  # first: it seeds others in its own way
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
}

_STATELESS = ("jax",)  # takes a key for each draw: make it of the seed
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # read when a device is first used


def _uses_cuda() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _deterministic_torch(torch: Any) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return {
        "torch.use_deterministic_algorithms": True,
        "torch.backends.cudnn.deterministic": True,
        "torch.backends.cudnn.benchmark": False,
    }


def _deterministic_tensorflow(tensorflow: Any) -> dict[str, Any]:
    tensorflow.config.experimental.enable_op_determinism()
    return {"tensorflow.config.experimental.enable_op_determinism": True}


_DETERMINISM: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _deterministic_torch,
    "tensorflow": _deterministic_tensorflow,
}
