"""Fingerprints of files and folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tachograph.provenance import Document
from tachograph.provenance.digest import EXACT_BYTES, Column, combine, digest_columns
from tachograph.provenance.versioned_files import versions
from tachograph.security.texts import redact_text

_FILES = 100_000
_FOLDER_BYTES = 256 << 20


def path(data: os.PathLike[str] | str) -> Document:
    """Size and digest of a file, or of all files below a folder, and which version it is.

    Links are not followed.
    """
    found = Path(data)
    return (_folder(found) if found.is_dir() else _file(found)) | versions(found)


def _file(file: Path) -> Document:
    size = file.stat().st_size
    return {"path": redact_text(str(file)), "bytes": size, **_content(file, size)}


def _content(file: Path, size: int) -> Document:
    """The digest of a file that is read in full is its SHA-256 as any other tool computes it."""
    with file.open("rb") as stream:
        if size <= EXACT_BYTES:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"digest": f"sha256:{content}", "digest_of": "content"}
        return digest_columns(size, [Column("", "bytes", 1, partial(_read, stream))])


def _digest_of(file: Path) -> Any:
    return _content(file, file.stat().st_size)["digest"]


def _read(stream: BinaryIO, start: int, stop: int) -> bytes:
    stream.seek(start)
    return stream.read(stop - start)


def _folder(folder: Path) -> Document:
    """Digest over relative paths, sizes and, up to a limit, the content of each file."""
    files: list[tuple[str, int]] = []
    size, more = 0, False
    for relative, entry_bytes in _walk(folder):
        if len(files) == _FILES:
            more = True
            break
        files.append((relative, entry_bytes))
        size += entry_bytes
    files.sort()
    contents = size <= _FOLDER_BYTES
    digest = combine(
        f"{relative}\0{entry_bytes}\0{_digest_of(folder / relative) if contents else ''}\n"
        for relative, entry_bytes in files
    )
    return {
        "path": redact_text(str(folder)),
        "files": len(files),
        "more_files": more,
        "bytes": size,
        "digest": None if more else digest,
        "digest_of": "content" if contents else "names and sizes",
    }


def labelled(pairs: Sequence[tuple[os.PathLike[str] | str, Any]], root: Any = "") -> Document:
    """Digest of files with their classes, in order, by their names relative to `root`.

    As of a folder, the content of files is read up to a limit; of very many files not even their
    sizes.
    """
    names = [os.path.relpath(file, root) if root else os.fspath(file) for file, _ in pairs]
    sizes = [os.path.getsize(file) for file, _ in pairs] if len(pairs) <= _FILES else None
    contents = sizes is not None and sum(sizes) <= _FOLDER_BYTES
    digest = combine(
        f"{name}\0{label}\0{'' if sizes is None else sizes[number]}"
        f"\0{_digest_of(Path(file)) if contents else ''}\n"
        for number, (name, (file, label)) in enumerate(zip(names, pairs, strict=True))
    )
    return {
        "files": len(pairs),
        "bytes": None if sizes is None else sum(sizes),
        "digest": digest,
        "digest_of": "content" if contents else "names" if sizes is None else "names and sizes",
    }


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(parent, name)
            if not os.path.islink(file) and os.path.isfile(file):
                yield os.path.relpath(file, folder), os.path.getsize(file)
