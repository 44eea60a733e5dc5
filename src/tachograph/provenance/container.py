"""The container that the process runs in, and its image as far as that can be seen from inside."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tachograph.security.texts import redact_text

_IMAGE_VARIABLES = (  # what platforms, and those who write images, tell their containers
    "CONTAINER_IMAGE",
    "DOCKER_IMAGE",
    "IMAGE_NAME",
    "IMAGE",
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
)
_DIGEST_VARIABLES = ("IMAGE_DIGEST", "CONTAINER_IMAGE_DIGEST")
_BUILD_VARIABLES = ("NVIDIA_PYTORCH_VERSION", "NVIDIA_TENSORFLOW_VERSION", "NVIDIA_BUILD_ID")
_ID = re.compile(r"(?:containers|docker|libpod|cri-containerd|crio)[/:-]([0-9a-f]{64})\b")


def collect(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What runs the container, its id and its image.

    Parameters
    ----------
    root : Path
        The root of the file system.
    environment : mapping
        The variables.

    Returns
    -------
    dict
        `runtime` ('docker', 'podman', 'apptainer', 'kubernetes', what the variable `container`
        says, or None outside of one), `id`, `image`, `digest`, `build`; None where it is not told.
    """
    facts = _podman(root)
    return {
        "runtime": _runtime(root, environment),
        "id": facts.get("id") or _container_id(root),
        "image": facts.get("image") or _first(environment, _IMAGE_VARIABLES),
        "digest": facts.get("imageid") or _first(environment, _DIGEST_VARIABLES),
        "build": {name: environment[name] for name in _BUILD_VARIABLES if name in environment},
    }


def _runtime(root: Path, environment: Mapping[str, str]) -> str | None:
    if "APPTAINER_CONTAINER" in environment or "SINGULARITY_CONTAINER" in environment:
        return "apptainer"
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "kubernetes"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    return environment.get("container")


def _podman(root: Path) -> dict[str, str]:
    """``key="value"`` lines, that podman writes where the container may know of itself."""
    pairs = (line.partition("=") for line in _read(root / "run/.containerenv").splitlines())
    return {key: value.strip('"') for key, _, value in pairs}


def _container_id(root: Path) -> str | None:
    for name in ("proc/self/mountinfo", "proc/self/cgroup"):
        if found := _ID.search(_read(root / name)):
            return found[1]
    return None


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((redact_text(environment[name]) for name in names if environment.get(name)), None)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
