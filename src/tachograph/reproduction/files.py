"""Files that a run needs beside its code: the folder where it stood, and data that was left behind.

Nothing is written outside of the restored folder, wherever links in it lead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tachograph.errors import StoreError
from tachograph.provenance.trees import MAIN
from tachograph.reading.documents import Documents
from tachograph.reproduction.places import Places


def make_folder(folder: Path, top: Path) -> None:
    """Make the folder where the run stood; StoreError where a link leads out of the top."""
    if folder.is_dir():
        return
    if not _is_below(folder, top):
        raise StoreError(f"the run stood in {folder}, and {os.path.realpath(folder)} is not there")
    folder.mkdir(parents=True)


def _is_below(path: Path, top: Path) -> bool:
    """Whether a path is in the restored folder, wherever links lead."""
    real = os.path.realpath(top)
    return os.path.commonpath([real, os.path.realpath(path)]) == real


def _project(documents: Documents) -> str:
    """The folder of the original project; nothing where that is not known."""
    return str(documents.get("source", {}).get("trees", {}).get(MAIN, {}).get("root") or "")


def not_there(documents: Documents, places: Places) -> Iterator[str]:
    """Arguments that name files of the project that were not kept."""
    argv = documents.get("argv", {})
    for word in list(argv.get("argv") or [])[1:]:
        value = word.partition("=")[2] if word.startswith("-") and "=" in word else word
        path = os.path.normpath(os.path.join(str(argv.get("working_directory") or ""), value))
        if places.has(path) and os.path.exists(path) and not os.path.exists(places.now(path)):
            yield f"the argument {value} names what was not kept; --link reaches it: {path}"


def left_behind(documents: Documents, places: Places) -> list[str]:
    """Files and folders at the top of the original project that the restored one lacks."""
    root = _project(documents)
    if not root:
        return []
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    return [
        name
        for name in names
        if not name.startswith((".", "__")) and not os.path.lexists(places.now(f"{root}/{name}"))
    ]


def link_data(documents: Documents, places: Places, wanted: Sequence[str], top: Path) -> list[str]:
    """Make data that was left in the original project reachable from the restored one."""
    root = _project(documents)
    asked = [os.path.normpath(os.path.join(root, path)) for path in wanted]
    for path in asked:
        if not (places.has(path) and os.path.exists(path)):
            raise StoreError(f"--link {path}: there is no such file in the project of the run")
    known = [path for path in _data_paths(documents) if places.has(path) and os.path.exists(path)]
    notes = []
    for path in dict.fromkeys([*asked, *known]):
        here = Path(places.now(path))
        if here.exists() or here.is_symlink():
            continue
        if not _is_below(here.parent, top):
            notes.append(f"not linked to from outside of {top}: {path}")
        else:
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(path)
            notes.append(f"data from where it lay: {path}")
    return notes


def _data_paths(documents: Documents) -> list[str]:
    """Files and folders that were recorded as data."""
    stood = str(documents.get("argv", {}).get("working_directory") or "")
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            path = value.get("path")
            if isinstance(path, str) and (stood or os.path.isabs(path)):
                found.append(os.path.normpath(os.path.join(stood, path)))
            for item in value.values():
                look(item)

    for section, document in documents.items():
        if section.startswith("data."):
            look(document)
    return found
