"""Documents on a run as a reader finds them: anyone may have recorded any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Documents = Mapping[str, Any]
"""Section to document, as `RunRecord.provenance` has them."""


def is_of_splits(section: str) -> bool:
    """Whether a section tells which rows the parts of the data share, whole or in one fold."""
    return section == "splits" or section.startswith("splits.fold-")
