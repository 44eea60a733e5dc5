"""Config files that a program was given: their digest, their values, and what of them to keep.

Reads JSON, TOML and INI; YAML where a library that reads it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tachograph.provenance import Document
from tachograph.provenance.contents import content_of
from tachograph.provenance.copies import copied
from tachograph.security.redaction import redact_value
from tachograph.security.texts import redact_text
from tachograph.values import json_text

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_PARAMS = 500
"""Values of a file beyond which they are data rather than configuration."""

_PURE_PYTHON_BYTES = 64 << 10  # a reader of YAML in Python takes a second for 300 kB


class ConfigFile(NamedTuple):
    """A config file as it was read.

    Attributes
    ----------
    path : Path
    document : dict
        path, format, bytes, redacted, sha256 of what is kept, and `missing`, which says why nothing
        is. A digest of the original would let a short secret be guessed.
    values : dict
        What it says, secrets taken out; empty where it could not be read or is long.
    content : bytes or None
        What to keep: the file itself, or where that holds a secret, its values as JSON.
    secrets : tuple of str
        The secret values.
    """

    path: Path
    document: Document
    values: dict[str, Any]
    content: bytes | None
    secrets: tuple[str, ...] = ()


def read(path: Path) -> ConfigFile:
    """Read a config file; never raises."""
    document: Document = {"path": redact_text(str(path)), "format": path.suffix.lower()[1:]}
    try:
        document["bytes"] = path.stat().st_size
        if document["bytes"] > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
        document["sha256"] = content_of(data).sha256
        text = data.decode("utf-8-sig")
        found = copied({"": _PARSERS[document["format"]](text)}, MAX_VALUES)[""]
        return _cleaned(path, document, data, text, found)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return ConfigFile(path, document | {"missing": redact_text(reason)}, {}, None)


def _cleaned(path: Path, document: Document, data: bytes, text: str, found: Any) -> ConfigFile:
    values = redact_value(path.stem, found)
    count = _count(values)
    if count >= MAX_VALUES:
        return ConfigFile(path, document | {"missing": f"{MAX_VALUES} values or more"}, {}, None)
    document["redacted"] = values != found or redact_text(text) != text
    content = json_text(values).encode() if document["redacted"] else data
    document["sha256"] = hashlib.sha256(content).hexdigest()
    few = isinstance(values, dict) and count <= MAX_PARAMS
    secrets = tuple(_replaced(found, values))
    return ConfigFile(path, document, values if few else {}, content, secrets)


def _replaced(before: Any, after: Any) -> Iterator[str]:
    """The values that are not the same any more."""
    if isinstance(before, dict):
        for pair in zip(before.values(), after.values(), strict=True):
            yield from _replaced(*pair)
    elif isinstance(before, list):
        for pair in zip(before, after, strict=True):
            yield from _replaced(*pair)
    elif before != after:
        yield str(before)


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


# ---------------------------------------------------------------------------- formats


def _toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def _ini(text: str) -> Any:
    import configparser

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(text)
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _yaml(text: str) -> Any:
    yaml: Any = sys.modules.get("yaml")
    if yaml is not None:
        loader = getattr(yaml, "CSafeLoader", None)
        if loader is None and len(text) > _PURE_PYTHON_BYTES:
            raise ValueError("too long for a YAML reader in Python")
        return yaml.load(text, Loader=loader or yaml.SafeLoader)
    ruamel: Any = sys.modules.get("ruamel.yaml")
    if ruamel is None:
        raise ValueError("no library that reads YAML is loaded")
    return ruamel.YAML(typ="safe").load(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "toml": _toml,
    "yaml": _yaml,
    "yml": _yaml,
    "ini": _ini,
    "cfg": _ini,
}
