"""Documents as rows of the table `provenance`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tachograph.records import Row
from tachograph.security.redaction import redact_value
from tachograph.values import json_text, plain


def provenance_row(section: str, document: Mapping[str, Any]) -> Row:
    """The columns of a provenance document, with secrets taken out."""
    return document_row(section, redact_value(section, plain(document)))


def document_row(section: str, document: Mapping[str, Any]) -> Row:
    """The same of a document that is plain and without secrets already, however long it is."""
    text = json_text(document)
    return {
        "section": section,
        "document": text,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }
