"""Bytes of text or of anything else, with secrets taken out, as a record may keep them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from tachograph.provenance import Document
from tachograph.security.redaction import REDACTED, redact_text


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
    if redacted == text:
        return Content(data, hashlib.sha256(data).hexdigest(), len(data))
    if b"\0" in data:
        return Content(None, None, len(data), why="binary, and seems to hold a secret")
    kept = redacted.encode(encoding)
    redactions = max(1, redacted.count(REDACTED) - text.count(REDACTED))
    return Content(kept, hashlib.sha256(kept).hexdigest(), len(kept), redactions)


def decode(data: bytes) -> tuple[str, str]:
    """Text, and the encoding that gives the same bytes back."""
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"
