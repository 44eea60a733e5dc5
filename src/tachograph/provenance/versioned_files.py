"""Files and folders that DVC or Git LFS keep: which version they say this is.

Reads the small files of both and starts no program. Of DVC's YAML it reads what DVC writes, the
list `outs`, and passes over what else is in it.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tachograph.provenance import Document
from tachograph.provenance.digest import EXACT_BYTES
from tachograph.security.texts import redact_text, redact_url

_DVC_BYTES = 4 << 20  # a file that is longer is not read
_LEVELS = 40  # folders above that are looked through
_HASHES = ("md5", "etag", "checksum")
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-.*\n)*"
    rb"oid (sha256:[0-9a-f]{64})\nsize (\d+)\n"
)
_POINTER_BYTES = 1024  # that a pointer may have


def versions(path: Path) -> Document:
    """What DVC and Git LFS say of a file or folder; never raises.

    Returns
    -------
    dict
        `dvc` where DVC tracks it or a folder that it lies in, `lfs` where it is a pointer that
        stands for its content; nothing where neither is so.
    """
    found: Document = {}
    for name, read in (("dvc", _dvc), ("lfs", _lfs)):
        try:
            document = read(path)
        except Exception as error:
            document = {"failed": type(error).__name__}
        if document:
            found[name] = document
    return found


def _lfs(path: Path) -> Document:
    if not path.is_file() or path.stat().st_size > _POINTER_BYTES:
        return {}
    pointer = _POINTER.match(path.read_bytes())
    return {"oid": pointer[1].decode(), "bytes": int(pointer[2])} if pointer else {}


# ---------------------------------------------------------------------------- DVC


def _dvc(path: Path) -> Document:
    path = Path(os.path.abspath(path))  # the link that DVC made, not where it leads
    for place in [path, *path.parents][:_LEVELS]:
        folder = place.parent
        for file in (Path(f"{place}.dvc"), folder / "dvc.lock"):
            output = _output_for(path, file)
            if output is not None:
                return _document(path, file, output)
        if (folder / ".dvc").is_dir() or (folder / ".git").exists():
            return {}
    return {}


def _output_for(path: Path, file: Path) -> dict[str, str] | None:
    """The output of a DVC file that is the path, or a folder around it."""
    if not file.is_file() or file.stat().st_size > _DVC_BYTES:
        return None
    indents = (2, 4) if file.name == "dvc.lock" else (0,)
    for output in outputs(file.read_text(encoding="utf-8"), indents):
        place = Path(os.path.normpath(file.parent / output.get("path", "")))
        if "path" in output and (place == path or place in path.parents):
            return output
    return None


def _document(path: Path, file: Path, output: dict[str, str]) -> Document:
    is_whole = Path(os.path.normpath(file.parent / output["path"])) == path
    size, count = output.get("size", ""), output.get("nfiles", "")
    return {
        "file": redact_text(str(file)),
        "path": redact_text(output["path"]),
        **{name: output[name] for name in _HASHES if name in output},
        "bytes": int(size) if size.isdecimal() else None,
        "files": int(count) if count.isdecimal() else None,
        "remote": _remote(file.parent, output.get("remote")),
        "matches": _matches(path, output) if is_whole and path.is_file() else None,
    }


def _matches(file: Path, output: dict[str, str]) -> bool | None:
    """Whether a file is what was recorded; None where that is not known or the file is large."""
    size = file.stat().st_size
    if "md5" not in output or output.get("size", str(size)) != str(size):
        return False if "md5" in output else None
    if size > EXACT_BYTES:
        return None
    content = file.read_bytes()
    variants = [content]
    if "hash" not in output:  # DVC before 3.0 hashed texts with the ends of lines of Unix
        variants.append(content.replace(b"\r\n", b"\n"))
    return any(
        hashlib.md5(variant, usedforsecurity=False).hexdigest() == output["md5"]
        for variant in variants
    )


def _remote(folder: Path, name: str | None) -> Document | None:
    """Where the content is kept, as the configuration that is shared says; no credentials."""
    for place in [folder, *folder.parents][:_LEVELS]:
        config = place / ".dvc" / "config"
        if config.is_file():
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            parser.read_string(config.read_text(encoding="utf-8"))
            name = name or parser.get("core", "remote", fallback=None)
            url = parser.get(f"'remote \"{name}\"'", "url", fallback=None)
            if name is not None:
                return {"name": name, "url": None if url is None else redact_url(url)}
            return None
    return None


# ---------------------------------------------------------------------------- YAML

_KEY = re.compile(r"(?P<name>[\w.-]+|'[^']*'|\"[^\"]*\"):(?:\s+(?P<value>\S.*))?")
_NO_VALUE = "|"
_SINGLE = re.compile(r"'((?:[^']|'')*)'(?:\s+#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\s+#.*)?')
_ESCAPE = re.compile(r"\\(?:x(\w{2})|u(\w{4})|U(\w{8})|(.))")
_ESCAPES = dict(
    zip('0abtnvfre "/\\N_LP', '\0\a\b\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029', strict=True)
)


class _Line(NamedTuple):
    """``- name: value``: where its dash and its name stand; a value may be a block below."""

    dash: int | None
    indent: int
    name: str
    value: str


def outputs(text: str, indents: tuple[int, ...]) -> Iterator[dict[str, str]]:
    """The items of lists `outs` in a file of DVC.

    Parameters
    ----------
    text : str
        Block YAML; a field that is written in a way which DVC has no use for is left out.
    indents : tuple of int
        Where the keys `outs` stand.

    Yields
    ------
    dict
        The fields of an item that are single values, as texts.
    """
    lines = _lines(text)
    for number, line in enumerate(lines):
        if line in [_Line(None, indent, "outs", "") for indent in indents]:
            yield from _items(lines[number + 1 :], line.indent)


def _items(lines: Iterable[_Line], above: int) -> list[dict[str, str]]:
    items: list[dict[str, str]] = []
    dash, keys = above, 0
    for line in lines:
        starts = line.indent if line.dash is None else line.dash
        if starts < above or (starts == above and line.dash is None):
            break
        if line.dash is not None and (not items or line.dash == dash):
            dash, keys = line.dash, line.indent
            items.append({})
        value = _scalar(line.value)
        if items and line.indent == keys and value is not None:
            items[-1][line.name] = value
    return items


def _lines(text: str) -> list[_Line]:
    """The lines of block YAML; of a value that goes on in lines below only that it is no value."""
    lines: list[_Line] = []
    for row in text.replace("\r\n", "\n").split("\n"):
        content = row.strip(" ")
        indent = len(row) - len(row.lstrip(" "))
        last = lines[-1] if lines else None
        if last and last.value and indent > last.indent and content:
            lines[-1] = last._replace(value=_NO_VALUE)
        elif content and not content.startswith("#"):
            lines.append(_line(content, indent))
    return lines


def _line(content: str, indent: int) -> _Line:
    dash = indent if content.startswith("- ") else None
    if dash is not None:
        rest = content[2:].lstrip(" ")
        indent, content = indent + len(content) - len(rest), rest
    pair = _KEY.fullmatch(content)
    if pair is None or any(letter.isspace() and letter != " " for letter in content):
        return _Line(dash, indent if dash is None else dash, "", _NO_VALUE)
    return _Line(dash, indent, pair["name"], pair["value"] or "")


def _scalar(text: str) -> str | None:
    """A value on one line; None for what else YAML has."""
    if single := _SINGLE.fullmatch(text):
        return single[1].replace("''", "'")
    if double := _DOUBLE.fullmatch(text):
        return _ESCAPE.sub(_unescape, double[1])
    if not text or text[0] in "'\"&*!|>{}[]%@`?," or ": " in text or text in ("~", "null"):
        return None
    return text.partition(" #")[0].rstrip()


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else _ESCAPES[match[4]]
