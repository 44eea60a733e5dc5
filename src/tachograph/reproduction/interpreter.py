"""The environment that a run is reproduced in: made from its packages, once for equal ones."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tachograph.errors import StoreError
from tachograph.provenance import packages
from tachograph.reading.documents import Documents
from tachograph.restoring import environments
from tachograph.restoring.sources import new_folder

_READY = "tachograph-ready"
_VERSION = re.compile(r"\d+(\.\d+)+[a-z0-9+]*")


def environment_folder(documents: Documents) -> Path:
    """Where the environment of these packages is, or is to be made.

    Raises
    ------
    QueryError
        The packages were not recorded.
    """
    text = "\n".join((_version(documents), environments.export(documents, "requirements")))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "tachograph", "environments", digest)


def left_out(documents: Documents) -> list[str]:
    """Packages that cannot be installed from what is known of them; the recorder is not one."""
    own = __name__.partition(".")[0]
    lines = environments.export(documents, "requirements").splitlines()
    known = documents["packages"]["versions"]
    comments = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    return [text for text in comments if (name := text.split(" ")[0]) in known and name != own]


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def make_environment(documents: Documents) -> Path:
    """Make the environment of a run, or find it where it was made before.

    Returns
    -------
    Path
        Its interpreter.

    Raises
    ------
    StoreError
        The run was recorded in conda, or the packages could not be installed; the message says
        what to do.
    """
    if documents.get("packages", {}).get("conda"):
        raise StoreError(
            "the run was recorded in a conda environment: make that from what"
            " `tachograph export RUN --environment conda` writes, and name its interpreter"
            " with --python"
        )
    folder = environment_folder(documents)
    if (folder / _READY).exists():
        return python_of(folder)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt has left
    new_folder(folder)
    requirements = folder / "requirements.txt"
    requirements.write_text(environments.export(documents, "requirements"), encoding="utf-8")
    for command in _commands(folder, requirements, _version(documents)):
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            raise StoreError(
                f"the environment could not be made: `{' '.join(command)}` failed. With --here"
                " the present one is used, with --python that of an interpreter"
            )
    (folder / _READY).touch()
    return python_of(folder)


def _commands(folder: Path, requirements: Path, version: str) -> list[list[str]]:
    python = str(python_of(folder))
    wanted = ["-r", str(requirements), _recorder()]
    if uv := shutil.which("uv"):
        return [
            [uv, "venv", "--quiet", "--allow-existing", *_asked(version), str(folder)],
            [uv, "pip", "install", "--quiet", "--python", python, *wanted],
        ]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *wanted],
    ]


def _asked(version: str) -> list[str]:
    """uv fetches the interpreter of another version; the present one serves for its own."""
    present = ".".join(map(str, sys.version_info[:3]))
    return ["--python", sys.executable if version in ("", present) else version]


def _version(documents: Documents) -> str:
    """The recorded version of Python; no path, for uv would start what it names."""
    version = str(documents.get("python", {}).get("version") or "")
    return version if _VERSION.fullmatch(version) else ""


def _recorder() -> str:
    """What installs this recorder again: its folder where it is worked on, else its version."""
    own = __name__.partition(".")[0]
    known = packages.collect()
    folder = known["origins"].get(own, {}).get("folder")
    return str(folder) if folder else f"{own}=={known['versions'][own]}"
