"""The package indexes that pip and uv are configured to use, without credentials."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tachograph.security.texts import redact_url

_SETTINGS = ("index-url", "extra-index-url", "find-links")
_VARIABLES = {
    "PIP_INDEX_URL": "index-url",
    "UV_DEFAULT_INDEX": "index-url",
    "UV_INDEX_URL": "index-url",
    "PIP_EXTRA_INDEX_URL": "extra-index-url",
    "UV_INDEX": "extra-index-url",
    "UV_EXTRA_INDEX_URL": "extra-index-url",
    "PIP_FIND_LINKS": "find-links",
    "UV_FIND_LINKS": "find-links",
}
_SECTIONS = ("global", "install")


def collect() -> dict[str, list[str]]:
    """'index-url', 'extra-index-url' and 'find-links' to the URLs that are set; no credentials.

    Variables count for more than files, as they do for pip.
    """
    found: dict[str, list[str]] = {}
    for setting, urls in (*_from_variables(), *_from_files()):
        if setting != "index-url" or setting not in found:
            known = found.setdefault(setting, [])
            known += [url for url in map(redact_url, urls) if url not in known]
    return found


def _from_variables() -> Iterator[tuple[str, list[str]]]:
    for name, setting in _VARIABLES.items():
        if text := os.environ.get(name):
            yield setting, [_url(word) for word in text.split()]


def _url(word: str) -> str:
    """uv may give an index a name: ``pytorch=https://…``."""
    name, equals, url = word.partition("=")
    return url if equals and "://" in url and "://" not in name else word


def _from_files() -> Iterator[tuple[str, list[str]]]:
    for file in _files():
        parser: Any = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in _SECTIONS:
            for setting in _SETTINGS:
                if parser.has_option(section, setting):
                    yield setting, parser.get(section, setting).split()


def _files() -> Iterator[Path]:
    """Where pip looks, that which counts most first."""
    if named := os.environ.get("PIP_CONFIG_FILE"):
        yield Path(named)
    yield Path(sys.prefix, "pip.conf")
    home = Path(os.path.expanduser("~"))
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip", "pip.conf")
    yield home / "Library/Application Support/pip/pip.conf"
    yield home / ".pip/pip.conf"
    for folder in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep):
        yield Path(folder, "pip", "pip.conf")
    yield Path("/etc/pip.conf")
