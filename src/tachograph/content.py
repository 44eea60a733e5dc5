"""A folder of files named by their content.

Knows no table and no store.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from tachograph.errors import StoreError, StoreNotFound
from tachograph.host import sync_data, sync_folder

GRACE_SECONDS = 3600.0
"""How long a file is kept whose row may still be on the way."""

_CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ContentFolder:
    """Files at ``<folder>/<first two hex digits>/<sha256>``; the folder is made by the first one.

    Parameters
    ----------
    folder : Path
        Absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, source: Path, sha256: str) -> str:
        """Copy a file in, durable when this returns, and return its URI.

        Raises
        ------
        StoreError
            The file has another digest, or cannot be copied.
        """
        target = self.path(sha256)
        try:
            if target.exists():
                os.utime(target)  # young again: not garbage while the row about it is on its way
            else:
                self._copy(source, target)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"cannot keep {source} as {target}: {error}") from error
        return target.as_uri()

    def _copy(self, source: Path, target: Path) -> None:
        """Copy to a temporary name and rename, so that a name always has its whole content."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.urandom(16).hex()}.tmp")
        digest = hashlib.sha256()
        try:
            with source.open("rb") as reader, temporary.open("xb") as writer:
                while chunk := reader.read(_CHUNK):
                    digest.update(chunk)
                    writer.write(chunk)
                writer.flush()
                sync_data(writer.fileno())
            if digest.hexdigest() != target.name:
                raise StoreError(
                    f"{source} has the digest {digest.hexdigest()}, not {target.name}:"
                    " it was changed since it was recorded"
                )
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(str(target.parent))
        sync_folder(str(self.folder))

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading; StoreNotFound where there is none with that digest."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise StoreNotFound(f"no artifact {sha256} in {self.folder}") from error

    def list(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of every file, in order."""
        for path in sorted(self.folder.glob("??/*")):
            if _DIGEST.fullmatch(path.name):
                yield path.name, path.stat().st_size

    def unused(self, used: Container[str], named: Mapping[str, int]) -> dict[str, int]:
        """Digest and bytes of every file that nothing refers to, nor is about to.

        Parameters
        ----------
        used : container of str
            Digests in rows that users see.
        named : mapping of str to int
            Digest to the time (µs) of the last row that has it, of all rows, hidden ones too.
        """
        now = time.time()
        found = {}
        for digest, size in self.list():
            put_at = self.path(digest).stat().st_mtime
            # A row is made after its file was put in: that of a younger file is still on its way.
            is_settled = now - put_at > GRACE_SECONDS or (named.get(digest) or 0) >= put_at * 1e6
            if is_settled and digest not in used:
                found[digest] = size
        return found

    def remove(self, sha256: str) -> None:
        """Remove a file; nothing happens where there is none."""
        self.path(sha256).unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file with that digest lies, or would lie."""
        if not _DIGEST.fullmatch(sha256):
            raise StoreNotFound(f"{sha256!r} is not a SHA-256 digest in hexadecimal")
        return self.folder / sha256[:2] / sha256
