"""A notebook beside the script that its cells were run again as.

Knows the sections of provenance; knows no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tachograph.restoring.sources import SCRIPT
from tachograph.values import mapping

Documents = Mapping[str, Any]

_NAME = PurePosixPath(SCRIPT).stem


def told_alike(first: Documents, second: Documents) -> list[Documents]:
    """The documents of two runs; of a notebook and its script as if both were the script."""
    if (key := _script_key(second)) and _script_digest(first):
        return [_as_script(first, second, key), second]
    if (key := _script_key(first)) and _script_digest(second):
        return [first, _as_script(second, first, key)]
    return [first, second]


def _script_digest(documents: Documents) -> str | None:
    """Of the cells of a notebook, as they are restored."""
    return mapping(mapping(documents.get("notebook")).get("script")).get("sha256")


def _script_key(documents: Documents) -> str | None:
    """The file of a run that was started from a notebook's restored cells."""
    if "notebook" in documents:
        return None
    key = mapping(mapping(documents.get("source")).get("entry")).get("file")
    return key if isinstance(key, str) and PurePosixPath(key).name.startswith(_NAME) else None


def _as_script(notebook: Documents, script: Documents, key: str) -> Documents:
    source = mapping(notebook.get("source"))
    file = {"sha256": _script_digest(notebook)}
    told = {name: document for name, document in notebook.items() if name != "notebook"}
    return told | {
        "argv": script.get("argv"),
        "source": {
            **source,
            "entry": mapping(script["source"])["entry"],
            "files": {**mapping(source.get("files")), key: file},
        },
    }
