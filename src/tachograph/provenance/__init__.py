"""Where a run comes from, as plain documents: one section, one module, one `collect()`.

A section reads and never sets, imports no library that is not loaded already, and never raises:
what cannot be known is said, as ``{"missing": "the reason"}``. Knows no run and no store.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from tachograph.security.texts import redact_text

Document = dict[str, Any]
"""Plain JSON values, secrets already taken out."""

SECTIONS = (
    "argv",
    "arguments",
    "seeds",
    "git",
    "packages",
    "python",
    "container",
    "hardware",
    "numerics",
    "environment",
)
"""Sections that describe the process; the first three belong to the start of a run."""


def collect(sections: Iterable[str] | None = None) -> dict[str, Document]:
    """Collect sections about this process.

    Parameters
    ----------
    sections : iterable of str, optional
        Names out of `SECTIONS`; all of them by default.

    Returns
    -------
    dict
        Section name to document. A section that fails, or that does not exist, is
        ``{"missing": "the reason"}``.
    """
    return {section: _collect(section) for section in (SECTIONS if sections is None else sections)}


def _collect(section: str) -> Document:
    if section not in SECTIONS:
        return {"missing": f"there is no section of that name; there are: {', '.join(SECTIONS)}"}
    try:
        document: Document = importlib.import_module(f"{__name__}.{section}").collect()
    except Exception as error:
        return missing(error)
    cleaned: Document = encodable(document)
    return cleaned


def encodable(value: Any) -> Any:
    """The value with what UTF-8 cannot hold (names of files in other encodings) as escapes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    return [encodable(item) for item in value] if isinstance(value, list | tuple) else value


def missing(error: Exception) -> Document:
    """The document that says why something is not known."""
    return {"missing": redact_text(f"{type(error).__name__}: {error}"[:500])}
