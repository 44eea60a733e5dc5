"""The environment and the command of a run as a Dockerfile. Knows documents only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tachograph.reading.documents import Documents
from tachograph.security.texts import REDACTED

Write = Callable[[Documents], str]

_KEPT = re.compile(  # variables that change results, and mean the same on any machine
    r"(OMP|GOMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS|GOTO|BLIS|NUMEXPR|NUMBA|NPY|ATEN|XLA|JAX|KERAS|TF|TF2"
    r"|TORCH|PYTORCH|CUBLAS|CUBLASLT|CUDNN|NVIDIA_TF32)_.*|PYTHON(HASHSEED|OPTIMIZE|UTF8)"
    r"|PL_GLOBAL_SEED|PL_SEED_WORKERS|CUDA_LAUNCH_BLOCKING|LANG|LC_.*|TZ"
)
_ROOT = "/run-again"


def dockerfile(documents: Documents, requirements: Write, conda: Write) -> str:
    """The text of a Dockerfile for the folder into which the run's source is restored.

    Parameters
    ----------
    documents : mapping
        Section to document.
    requirements, conda : callable
        What write the files that it installs from.
    """
    by_conda = documents["packages"].get("conda") is not None
    made = _with_conda(conda(documents)) if by_conda else _with_pip(documents, requirements)
    lines = [
        "# syntax=docker/dockerfile:1",
        "# Put it into the folder that the source of the run was restored to.",
        *_notes(documents),
        *made,
        *_variables(documents),
        f"COPY . {_ROOT}",
        f"WORKDIR {_working_directory(documents)}",
        *_command(documents.get("argv", {})),
    ]
    return "\n".join([*lines, ""])


def _with_pip(documents: Documents, requirements: Write) -> Iterator[str]:
    container = documents.get("container", {})
    python = documents.get("python", {}).get("version") or "3"
    image, digest = container.get("image"), container.get("digest")
    known = image and REDACTED not in image and not image.startswith("/")
    if known and digest:
        image = f"{image.partition('@')[0]}@{digest}"
    yield f"FROM {image if known else f'python:{python}'}"
    yield from _heredoc("/tmp/requirements.txt", requirements(documents))
    yield "RUN python -m pip install --no-cache-dir -r /tmp/requirements.txt"


def _with_conda(environment: str) -> Iterator[str]:
    yield "FROM condaforge/miniforge3"
    yield from _heredoc("/tmp/environment.yml", environment)
    yield "RUN mamba env create --yes --prefix /opt/run --file /tmp/environment.yml"
    yield "ENV PATH=/opt/run/bin:$PATH"


def _heredoc(path: str, text: str) -> Iterator[str]:
    yield f"COPY <<'END_OF_FILE' {path}"
    yield from text.splitlines()
    yield "END_OF_FILE"


def _notes(documents: Documents) -> Iterator[str]:
    secret = documents.get("environment", {}).get("redacted", ())
    if secret:
        yield f"# Set when the run was recorded, and secret: {', '.join(secret)}"
    if documents.get("numerics", {}).get("torch", {}).get("cuda"):
        driver = documents.get("hardware", {}).get("driver") or "unknown"
        yield f"# Trained with CUDA; the host needs a driver (it was {driver}) and --gpus all"


def _variables(documents: Documents) -> Iterator[str]:
    variables = documents.get("environment", {}).get("variables", {})
    for name, value in variables.items():
        if _KEPT.fullmatch(name) and REDACTED not in value and not value.startswith("/"):
            yield f"ENV {name}={_quoted(value)}"
    found = documents.get("source", {}).get("python_path", ())
    folders = [folder for folder in found if "-packages" not in folder]
    if folders:
        yield f"ENV PYTHONPATH={_quoted(':'.join(f'{_ROOT}/{folder}' for folder in folders))}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("$", "\\$")


def _working_directory(documents: Documents) -> str:
    inside = documents.get("source", {}).get("working_directory")
    return f"{_ROOT}/{inside}" if inside else _ROOT


def _command(argv: Mapping[str, Any]) -> Iterator[str]:
    """The command, with whatever Python there is; a comment where it cannot be run as it is."""
    given = [str(word) for word in argv.get("original_argv", ())]
    command = f"CMD {json.dumps(['python', *given[1:]], ensure_ascii=False)}"
    if argv.get("started_by") not in ("script", "module", "command"):
        yield f"# It was started by: {argv.get('started_by') or 'an unknown command'}"
        command = f"# {command}"
    elif any(REDACTED in word for word in given):
        yield f"# {REDACTED} stands where the command had a secret"
    yield command
