"""Config files: where one is found, what it says, and in which line each key stands.

Knows no setting; `config.py` judges what the file says.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tachograph.errors import ConfigError

FILE_NAMES = ("tachograph.toml", "tachograph.yaml", "tachograph.yml", "pyproject.toml")
"""Names looked for in a folder, the first that is there wins."""

Stamp = tuple[str, int, int, int]
"""Path, inode, time of change in ns, and bytes: equal as long as a file has not changed."""


class ConfigFile:
    """What a file says: the document, and the line of each dotted key, from 1.

    Equal only to itself; an unchanged file is the same object whenever it is read.
    """

    __slots__ = ("document", "lines", "path")

    def __init__(self, path: Path, document: Mapping[str, Any], lines: Mapping[str, int]) -> None:
        self.path = path
        self.document = document
        self.lines = lines

    def place(self, key: str) -> str:
        """Where a dotted key stands: ``/path/tachograph.toml, line 3``."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.path}, line {self.lines[key]}" if key else str(self.path)


def find(folder: Path) -> ConfigFile | None:
    """The config file of a folder: the nearest, from there up to the root.

    A `pyproject.toml` counts only if it has a table ``[tool.tachograph]``.
    """
    here = str(folder)
    while True:
        for name in FILE_NAMES:
            stamp = _stamp(os.path.join(here, name))
            if stamp and (file := _read(stamp)):
                return file
        parent = os.path.dirname(here)
        if parent == here:
            return None
        here = parent


def read(path: Path) -> ConfigFile:
    """Read the file at an absolute path; ConfigError where it is missing or not valid."""
    stamp = _stamp(str(path))
    if stamp is None:
        raise ConfigError(f"there is no config file {path}")
    file = _read(stamp)
    if file is None:
        raise ConfigError(f"{path} has no table [tool.tachograph]")
    return file


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return path, status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=64)
def _read(stamp: Stamp) -> ConfigFile | None:
    path = Path(stamp[0])
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}") from error
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml(path, text)
    if path.name != "pyproject.toml":
        return ConfigFile(path, _parse_toml(path, text), _toml_lines(text))
    return _read_pyproject(path, text) if "tachograph" in text else None


# ---------------------------------------------------------------------------- TOML


def _read_pyproject(path: Path, text: str) -> ConfigFile | None:
    document = _parse_toml(path, text)
    for name in ("tool", "tachograph"):
        if not isinstance(document, Mapping) or name not in document:
            return None
        document = document[name]
    prefix = "tool.tachograph."
    if not isinstance(document, Mapping):
        place = ConfigFile(path, {}, _toml_lines(text)).place(prefix[:-1])
        raise ConfigError(f"{place}: 'tool.tachograph' must be a table")
    lines = _toml_lines(text).items()
    inner = {key.removeprefix(prefix): line for key, line in lines if key.startswith(prefix)}
    return ConfigFile(path, document, inner)


def _parse_toml(path: Path, text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        line = at[1] if at else str(max(1, len(text.splitlines())))
        column = f" (column {at[2]})" if at else ""
        reason = message[: at.start()] if at else message
        raise ConfigError(f"{path}, line {line}: not valid TOML: {reason}{column}") from error


_BLANK = re.compile(r"(?:[\s,]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\]|\\.)*"|'[^']*'|[\w-]+)[ \t]*""")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:[^"\\]|\\.)*"|' r"'[^']*'", re.DOTALL
)
_BARE = re.compile(r"[^,\]}#\n]+")


def _toml_lines(text: str) -> dict[str, int]:
    """Line of each dotted key, from 1. The text has been parsed before, so it is valid TOML."""
    finder = _LineFinder(text)
    with contextlib.suppress(ValueError, IndexError):  # a line less is no reason to fail
        finder.walk()
    return finder.lines


class _LineFinder:
    """Walks over valid TOML; `tomllib` does not say where a key stands."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.lines: dict[str, int] = {}
        self.position = self._line = self._counted = 0

    def walk(self) -> None:
        """Fill `lines`."""
        table: tuple[str, ...] = ()
        while self._skip(_BLANK) < len(self.text):
            if self.text[self.position] == "[":
                table = self._header()
            else:
                self._assignment(table)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        if match := pattern.match(self.text, self.position):
            self.position = match.end()
        return self.position

    def _header(self) -> tuple[str, ...]:
        while self.text[self.position] == "[":
            self.position += 1
        table = self._key(())
        while self.text[self.position : self.position + 1] == "]":
            self.position += 1
        return table

    def _assignment(self, table: tuple[str, ...]) -> None:
        key = self._key(table)
        self.position += 1  # the equals sign
        self._skip(_BLANK)
        self._value(key)

    def _key(self, table: tuple[str, ...]) -> tuple[str, ...]:
        """Pass over a dotted key, and note the line of each of its parts."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        key = table
        while match := _KEY.match(self.text, self.position):
            key = (*key, match[1].strip("\"'"))
            self.lines.setdefault(".".join(key), self._line + 1)
            self.position = match.end()
            if self.text[self.position : self.position + 1] != ".":
                return key
            self.position += 1
        raise ValueError(f"no key at character {self.position}")

    def _value(self, key: tuple[str, ...]) -> None:
        opening = self.text[self.position]
        if opening in "[{":
            self.position += 1
            closing = "]" if opening == "[" else "}"
            while self.text[self._skip(_BLANK)] != closing:
                if opening == "[":
                    self._value(key)
                else:
                    self._assignment(key)
            self.position += 1
        elif opening in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_BARE)


# ---------------------------------------------------------------------------- YAML


def _read_yaml(path: Path, text: str) -> ConfigFile:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path}: reading YAML needs PyYAML; install it with: pip install 'tachograph[yaml]',"
            " or write a tachograph.toml"
        ) from error

    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = _yaml_resolvers(loader.yaml_implicit_resolvers)
    try:
        node = loader.get_single_node()
        document = loader.construct_document(node) if node else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}{line}: not valid YAML: {reason}") from error
    finally:
        loader.dispose()
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path}, line 1: must be a mapping of settings")
    return ConfigFile(path, document, dict(_yaml_lines(node, "")))


def _yaml_resolvers(resolvers: Mapping[str, Any]) -> dict[str, Any]:
    """The booleans of YAML 1.2: 'off' stays the text that `record.weights` takes."""
    tag, words = "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE")
    return {
        first: [(name, words if name == tag else pattern) for name, pattern in pairs]
        for first, pairs in resolvers.items()
    }


def _yaml_lines(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    if node is None or node.id != "mapping":
        return
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        yield dotted, key.start_mark.line + 1
        yield from _yaml_lines(value, f"{dotted}.")
