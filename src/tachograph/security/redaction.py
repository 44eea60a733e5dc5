"""Secrets taken out of whatever is about to be recorded that is no plain text.

Knows nothing of where a value came from or goes to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from tachograph.security.names import is_secret_name
from tachograph.security.texts import REDACTED, redact_text

_ARGUMENT = re.compile(r"(?:--?|\+{1,2}|~)?[A-Za-z_][\w.\-]*")
_PLURALS = ("keys", "tokens", "secrets", "passwords", "credentials")
_RELEVANT = r"""(?x)
    (?: CUDA|CUDNN|CUBLAS|CUBLASLT|NVIDIA|NCCL|GLOO|UCX|HIP|ROCM|ROCR|HSA|OMP|GOMP|KMP|MKL|DNNL
        |ONEDNN|OPENBLAS|GOTO|BLIS|VECLIB|NUMEXPR|NUMBA|NPY|ATEN|PYTHON|PYTORCH|TORCH|TORCHELASTIC
        |TORCHINDUCTOR|TORCHDYNAMO|TRITON|ACCELERATE|FSDP|LIGHTNING|XLA|JAX|FLAX|TF|KERAS|PL|HYDRA
        |HF|TRANSFORMERS|SLURM|PBS|LSB|KUBERNETES|RAY|DASK|JOBLIB|LOKY|SKLEARN|XGBOOST|OPTUNA
        |POLARS|CONDA
        )_.* | TACHOGRAPH_(?!PARENT|LAUNCH|RUN).* | TF2_.* | PYTHON[A-Z]* | MALLOC_.*
        | (?:LOCAL_|GROUP_|ROLE_|NODE_)?(?:RANK|WORLD_SIZE) | MASTER_(?:ADDR|PORT)
        | OMPI_COMM_WORLD_.* | PMI_(?:RANK|SIZE) | VIRTUAL_ENV | HOSTNAME | LANG | LC_.* | TZ
        | LD_PRELOAD | LD_LIBRARY_PATH | DYLD_.* | CONTAINER | CI"""


def redact_argv(argv: Iterable[str]) -> list[str]:
    """A command line without secrets: ``--token xyz``, ``--api-key=xyz``, ``db.password=xyz``.

    One argument in, one argument out, so that positions keep their meaning.
    """
    redacted = []
    for argument, secret in _arguments(argv):
        known = argument.removesuffix(secret) if secret else redact_text(argument)
        redacted.append(f"{known}{REDACTED}" if secret else known)
    return redacted


def secret_arguments(argv: Iterable[str]) -> frozenset[str]:
    """The values on a command line that stand under a secret name."""
    return frozenset(secret for _, secret in _arguments(argv) if secret)


def _arguments(argv: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each argument with the secret that it ends in, which is empty for most."""
    secret_follows = several = False
    before = ""
    for argument in argv:
        is_code = before == "-c" and argument.split() != [argument]
        before = argument
        name, equals, value = argument.partition("=")
        if secret_follows and not argument.startswith("--"):
            yield argument, argument
            secret_follows = several
            continue
        secret = not is_code and bool(_ARGUMENT.fullmatch(name)) and is_secret_name(name)
        # Also of words in pairs, as YACS takes them: `LOGGER.API_KEY xyz`.
        secret_follows = secret and not equals and (name.startswith("-") or name.isupper())
        several = name.startswith("-") and name.lower().endswith(_PLURALS)
        yield argument, value if secret else ""


def redact_value(path: str, value: Any) -> Any:
    """A configuration value without secrets.

    Parameters
    ----------
    path : str
        The dotted name under which it stands.
    value : a plain JSON value
        See `tachograph.values.plain`; anything else is returned as it is.

    Returns
    -------
    The value, with secret parts replaced by `[redacted]`. Under a secret name every text and
    integer is replaced; None, booleans, fractions and empty texts stay.
    """
    if isinstance(value, Mapping):
        return {
            redact_text(key) if isinstance(key, str) else key: redact_value(f"{path}.{key}", item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_value(path, item) for item in value]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return value
    if is_secret_name(path):
        return REDACTED
    if not isinstance(value, str):
        return value
    is_argument = "=" in value and value.split() == [value]  # an override of Hydra, for one
    return redact_argv([value])[0] if is_argument else redact_text(value)


@cache
def _relevant() -> re.Pattern[str]:
    return re.compile(_RELEVANT)  # most starts do without


def redact_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change a training, by an allow-list, with secrets redacted."""
    return {
        name: redact_value(name, value)
        for name, value in sorted(environment.items())
        if _relevant().fullmatch(name)
    }
