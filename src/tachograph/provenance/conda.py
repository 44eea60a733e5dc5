"""The conda environment that Python runs in, from the files that conda keeps of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tachograph.security.texts import redact_url

MAX_PACKAGES = 2_000


def collect() -> dict[str, Any] | None:
    """Name, prefix and exact packages of the environment; None where Python is not conda's.

    Each package has name, version, build, and the URL of its archive, which says the channel.
    """
    folder = Path(sys.prefix, "conda-meta")
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.json"))
    packages = [package for file in files[:MAX_PACKAGES] if (package := _package(file))]
    return {
        "name": os.environ.get("CONDA_DEFAULT_ENV") or Path(sys.prefix).name,
        "prefix": sys.prefix,
        "packages": packages,
        "more_packages": max(0, len(files) - MAX_PACKAGES),
    }


def _package(file: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(file.read_bytes())
        return {
            "name": facts["name"],
            "version": facts["version"],
            "build": facts.get("build"),
            "url": redact_url(facts.get("url") or ""),
            "md5": facts.get("md5"),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
