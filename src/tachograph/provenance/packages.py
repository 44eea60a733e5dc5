"""The installed packages, with versions and where they came from."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata
from typing import Any

from tachograph.redaction import redact_url


def collect() -> dict[str, Any]:
    """``{"versions": {name: version}, "origins": {name: origin}}``.

    `origins` names the packages that did not come from an index: a local or editable folder, an
    archive, a version control system with its commit. Read once per process.
    """
    return _installed()


@cache
def _installed() -> dict[str, Any]:
    versions: dict[str, str] = {}
    origins: dict[str, Any] = {}
    for distribution in metadata.distributions():
        name, version = _name_and_version(distribution)
        if name is None or versions.setdefault(name, version) != version:
            continue  # the first on the path is the one imported
        if origin := _origin(distribution):
            origins.setdefault(name, origin)
    return {"versions": dict(sorted(versions.items())), "origins": dict(sorted(origins.items()))}


def _name_and_version(distribution: metadata.Distribution) -> tuple[str | None, str]:
    """From the head of the metadata, which is all that is needed of it, ten times as fast."""
    name = version = None
    for line in (distribution.read_text("METADATA") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Name":
            name = value.strip()
        elif key == "Version":
            version = value.strip()
        if not line or (name and version):
            break
    if name is None:  # the older egg layout
        name = distribution.metadata["Name"]
    return name, version or str(distribution.metadata["Version"])


def _origin(distribution: metadata.Distribution) -> dict[str, Any] | None:
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "null")
    except ValueError:
        return None
    if not isinstance(direct, dict):
        return None
    version_control = direct.get("vcs_info") or {}
    return {
        "url": redact_url(str(direct.get("url"))),
        "editable": bool((direct.get("dir_info") or {}).get("editable")),
        "commit": version_control.get("commit_id"),
    }
