"""What stores on a disk keep artifacts in.

Knows no table and no store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tachograph.content import ContentFolder


class KeepsContent:
    """The artifacts of a store that keeps them in a content folder, its `_content`."""

    _content: ContentFolder

    def put_artifact(self, path: Path, sha256: str) -> str:
        """Copy a file in, once per content, checked by its digest; return its URI."""
        return self._content.put(path, sha256)

    def open_artifact(self, sha256: str) -> BinaryIO:
        """Open a kept file for reading; StoreNotFound where there is none."""
        return self._content.open(sha256)

    def list_artifacts(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of every kept file."""
        return self._content.list()
