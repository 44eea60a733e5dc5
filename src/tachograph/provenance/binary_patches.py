"""Binary files in a diff of git: packed there, so that a secret in one is seen in no text."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator

from tachograph.provenance.contents import content_of

_MARK = b"\nGIT binary patch\n"
_SECTION = re.compile(rb"^(?=diff --git )", re.MULTILINE)
_HUNK = re.compile(rb"^(?:literal|delta) \d+\n((?:[A-Za-z][^\n]+\n)+)", re.MULTILINE)
_BYTES = 64 << 20  # of one hunk, unpacked


def without_secret_binaries(patch: bytes) -> tuple[bytes, int]:
    """The patch without binary files that seem to hold a secret, and how many these were."""
    if _MARK not in patch:
        return patch, 0
    sections = _SECTION.split(patch)
    kept = [section for section in sections if not _holds_secret(section)]
    return b"".join(kept), len(sections) - len(kept)


def _holds_secret(section: bytes) -> bool:
    if _MARK not in section:
        return False
    contents = map(content_of, _unpacked(section))
    return any(content.kept is None or content.redactions for content in contents)


def _unpacked(section: bytes) -> Iterator[bytes]:
    """The contents that a section holds, from before and after; of a delta what is new in it."""
    for hunk in _HUNK.finditer(section):
        lines = hunk[1].splitlines()
        packed = b"".join(base64.b85decode(line[1:])[: _length(line[0])] for line in lines)
        yield zlib.decompressobj().decompress(packed, _BYTES)


def _length(letter: int) -> int:
    """How many bytes a line has, which its first letter says: A to Z are 1 to 26, a to z more."""
    return letter - ord("A") + 1 if letter <= ord("Z") else letter - ord("a") + 27
