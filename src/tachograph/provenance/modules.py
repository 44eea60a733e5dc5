"""Which files of the user's own code this process has imported.

A file of the environment (standard library, installed packages) is none of them. No folder is
walked, and no module is touched: one that loads itself when it is looked at would be loaded.
"""

from __future__ import annotations

import os
import re
import site
import sys
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_RECORDER = __name__.partition(".")[0]  # its version is one of the packages
_NOT_CODE = frozenset({_RECORDER, "debugpy", "pydevd", "_pydevd_bundle", "_pydev_bundle"})


def in_environment(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package, by its path as it is."""
    return file.startswith(_environment()) or _INSTALLED.search(file) is not None


@cache
def _environment() -> tuple[str, ...]:
    """Beginnings of paths; not `sys.prefix`, which may be `/usr`, or the project itself.

    Without `sysconfig`, whose first answer takes a millisecond of a run's start.
    """
    found = {os.path.dirname(os.__file__), os.path.dirname(sys.executable or "")}
    found |= {*site.getsitepackages(), site.getusersitepackages() or ""}
    found |= {os.path.realpath(path) for path in found if path}  # also where links lead
    return tuple(sorted(path + os.sep for path in found if len(path) > 1))


# ---------------------------------------------------------------------------- imported files


def imported() -> dict[str, str]:
    """Path to module name of each imported file that is not the environment's."""
    files = dict(_files())
    found: dict[str, str] = {}
    for name, file in files.items():
        own = _own_file(name, file, files.get(name.partition(".")[0]))
        if own is not None:
            found.setdefault(own, name)
    return found


def _files() -> Iterator[tuple[str, str]]:
    for name, module in list(sys.modules.items()):
        try:
            facts: dict[str, Any] = object.__getattribute__(module, "__dict__")
        except AttributeError:
            continue
        file = facts.get("__file__")
        if isinstance(file, str) and not _is_unloaded(module):
            yield name, file


@lru_cache(maxsize=1 << 16)
def _own_file(name: str, file: str, above: str | None) -> str | None:
    """The path of a module that is not the environment's; `above` is its topmost package's."""
    top = name.partition(".")[0]
    if top in _NOT_CODE or not _is_own(top, os.path.abspath(file)):
        return None
    generated = above is not None and not _is_own(top, os.path.abspath(above))
    return None if generated else os.path.abspath(file)


def _is_unloaded(module: object) -> bool:
    """Whether nothing of a lazy module was used yet, so that its file was not run either."""
    return type(module).__module__ == "importlib.util" and type(module).__name__ == "_LazyModule"


def _is_own(top: str, file: str) -> bool:
    if not in_environment(file):
        return True
    linked = _link_target(file, top)  # installed as a link to where it is worked on
    return linked is not None and not in_environment(linked)


def _link_target(file: str, top: str) -> str | None:
    before, found, _ = file.partition(f"{os.sep}{top}{os.sep}")
    link = _real_link(before + os.sep + top) if found else None
    return None if link is None else os.path.realpath(file)


@cache
def _real_link(folder: str) -> str | None:
    return os.path.realpath(folder) if os.path.islink(folder) else None


def import_root(file: str, module: str) -> str:
    """The folder that a module was imported from: above its topmost package."""
    inner = module.count(".") + (os.path.splitext(os.path.basename(file))[0] == "__init__")
    folder = os.path.dirname(file)
    for _ in range(inner):
        folder = os.path.dirname(folder)
    return folder


def is_generated(file: str, module: str) -> bool:
    """Whether a library wrote it for this process: in the temporary folder, importable by none."""
    import tempfile  # not needed to start a run

    if not file.startswith(os.path.realpath(tempfile.gettempdir()) + os.sep):
        return False
    return import_root(file, module) not in map(os.path.realpath, sys.path)
