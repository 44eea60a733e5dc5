"""The installed packages, with versions and where they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tachograph.provenance import conda, git, indexes
from tachograph.security.texts import redact_url

MAX_EDITABLE = 20
"""So many packages that are worked on are looked up in git."""

_HEAD_BYTES = 2048  # name and version stand at the top of the metadata


def collect() -> dict[str, Any]:
    """Name to version, origins of what came from no index, indexes, the conda environment.

    Read once per process.
    """
    return _installed()


@cache
def _installed() -> dict[str, Any]:
    versions: dict[str, str] = {}
    origins: dict[str, Any] = {}
    by_conda: set[str] = set()
    for distribution in metadata.distributions():
        name, version = _name_and_version(distribution)
        if name is None or versions.setdefault(name, version) != version:
            continue  # the first on the path is the one imported
        if origin := _origin(distribution):
            origins.setdefault(name, origin)
        if (_read(distribution, "INSTALLER") or "").strip() == "conda":
            by_conda.add(name)
    for name in [name for name, origin in origins.items() if "folder" in origin][:MAX_EDITABLE]:
        origins[name] |= _revision(origins[name]["folder"])
    environment = conda.collect()
    return {
        "versions": dict(sorted(versions.items())),
        "origins": dict(sorted(origins.items())),
        "indexes": indexes.collect(),
        "conda": None if environment is None else environment | {"python": sorted(by_conda)},
    }


# ---------------------------------------------------------------------------- one package


def _read(distribution: metadata.Distribution, name: str) -> str | None:
    """The beginning of one of its files, quickly: `read_text` reads all, and pages of it."""
    folder = getattr(distribution, "_path", None)
    if not isinstance(folder, Path):
        return distribution.read_text(name)
    try:
        with open(os.path.join(folder, name), "rb") as stream:
            return stream.read(_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return None


def _name_and_version(distribution: metadata.Distribution) -> tuple[str | None, str]:
    name = version = None
    for key, value in _fields(_read(distribution, "METADATA") or ""):
        if key == "Name":
            name = value
        elif key == "Version":
            version = value
        if name and version:
            break
    if name and version:
        return name, version
    # Of a package without metadata the standard library gives nothing, `importlib_metadata`, which
    # answers once it is loaded, raises.
    try:  # the older egg layout
        found = distribution.metadata
        return name or found["Name"], version or str(found["Version"])
    except Exception:
        return name, version or ""


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if not key:
            return
        yield key, value.strip()


def _origin(distribution: metadata.Distribution) -> dict[str, Any] | None:
    """What PEP 610 says of a package that came from no index."""
    try:
        direct = json.loads(_read(distribution, "direct_url.json") or "null")
    except ValueError:
        return None
    if not isinstance(direct, dict):
        return None
    url = str(direct.get("url"))
    found: dict[str, Any] = {"url": redact_url(url), "editable": False}
    if isinstance(version_control := direct.get("vcs_info"), dict):
        found |= {
            "vcs": version_control.get("vcs"),
            "commit": version_control.get("commit_id"),
            "revision": version_control.get("requested_revision"),
        }
    elif isinstance(folder := direct.get("dir_info"), dict):
        found |= {"editable": bool(folder.get("editable")), "folder": unquote(urlsplit(url).path)}
    elif isinstance(archive := direct.get("archive_info"), dict):
        found |= {"hashes": archive.get("hashes") or _old_hash(archive.get("hash"))}
    if direct.get("subdirectory"):
        found["subdirectory"] = direct["subdirectory"]
    return found


def _old_hash(text: Any) -> dict[str, str]:
    kind, equals, digest = str(text or "").partition("=")
    return {kind: digest} if equals else {}


def _revision(folder: str) -> dict[str, Any]:
    """Which state of a folder is installed, where git knows: a package that is worked on."""
    found = git.look(folder, content=False).document
    if "missing" in found:
        return {"commit": None}
    return {
        "commit": found["commit"],
        "remote": found["remote"],
        "dirty": found["dirty"],
        "in_repository": found["folder"],
    }
