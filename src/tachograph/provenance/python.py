"""The interpreter and the operating system."""

from __future__ import annotations

import platform
import socket
import sys
import sysconfig
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
        "virtual_environment": sys.prefix != sys.base_prefix,
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "optimize": sys.flags.optimize,
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "distribution": _distribution(),
        "host": socket.gethostname(),
    }


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return platform.mac_ver()[0] or None
