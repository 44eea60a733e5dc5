"""Bytes of text or of anything else, with secrets taken out, as a record may keep them."""

from __future__ import annotations

import codecs
import hashlib
import re
from typing import NamedTuple

from tachograph.provenance import Document
from tachograph.security.texts import REDACTED, redact_text

_MARKED = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = re.compile(rb"(?:[\t\n\r -~]\0){8,}")  # ASCII with two bytes a letter


class Content(NamedTuple):
    """What a file or a diff contains.

    Attributes
    ----------
    kept : bytes or None
        What may be kept; None where nothing may.
    sha256 : str or None
        Digest of that. A digest of the original would let a short secret be guessed.
    size : int
        Its bytes.
    redactions : int
        How many secrets were taken out; it is the original where there were none.
    why : str or None
        Why nothing may be kept.
    """

    kept: bytes | None
    sha256: str | None
    size: int
    redactions: int = 0
    why: str | None = None

    @property
    def document(self) -> Document:
        """Size and digest, and how many secrets were taken out."""
        facts: Document = {"bytes": self.size, "sha256": self.sha256}
        return facts | {"redacted": self.redactions} if self.redactions else facts


def content_of(data: bytes) -> Content:
    """The content of bytes: text in whatever encoding, or binary."""
    text, encoding = decode(data)
    redacted = redact_text(text)
    if redacted == text and not _has_wide_secret(text, data):
        return Content(data, hashlib.sha256(data).hexdigest(), len(data))
    if "\0" in text:
        return Content(None, None, len(data), why="binary, and seems to hold a secret")
    kept = redacted.encode(encoding)
    redactions = max(1, redacted.count(REDACTED) - text.count(REDACTED))
    return Content(kept, hashlib.sha256(kept).hexdigest(), len(kept), redactions)


def _has_wide_secret(text: str, data: bytes) -> bool:
    """Whether binary data has a secret in UTF-16, as programs write it into their own files."""
    if "\0" not in text:
        return False
    wide = "\n".join(run[::2].decode() for run in _WIDE.findall(data))
    return redact_text(wide) != wide


def decode(data: bytes) -> tuple[str, str]:
    """Text, and the encoding that gives the same bytes back."""
    marked = (encoding for mark, encoding in _MARKED if data.startswith(mark))
    try:
        if encoding := next(marked, None):
            return data.decode(encoding), encoding
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"
