"""The interpreter and the operating system."""

from __future__ import annotations

import os
import platform
import socket
import sys
import sysconfig
from pathlib import Path
from typing import Any


def collect() -> dict[str, Any]:
    """Version, build and flags of Python; system, kernel, C library and host."""
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "build": " ".join(platform.python_build()),
        "compiler": platform.python_compiler(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "virtual_environment": sys.prefix != sys.base_prefix,
        "kind": _kind(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "optimize": sys.flags.optimize,
        "options": dict(sys._xoptions),
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "distribution": _distribution(),
        "host": socket.gethostname(),
    }


def _kind() -> str:
    """What has made this Python: 'conda', 'uv', 'virtualenv', 'venv', 'pyenv' or 'system'."""
    if Path(sys.prefix, "conda-meta").is_dir():
        return "conda"
    try:
        made = Path(sys.prefix, "pyvenv.cfg").read_text(errors="replace")
    except OSError:
        parts = Path(os.path.realpath(sys.executable)).parts
        return next((kind for part, kind in _FOLDERS.items() if part in parts), "system")
    keys = {line.partition("=")[0].strip() for line in made.splitlines()}
    return next((kind for kind in ("uv", "virtualenv") if kind in keys), "venv")


_FOLDERS = {".pyenv": "pyenv", "pyenv": "pyenv", "uv": "uv"}


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return platform.mac_ver()[0] or None
