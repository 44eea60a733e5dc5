"""Documents on a run as a reader finds them: anyone may have recorded any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Documents = Mapping[str, Any]
"""Section to document, as `RunRecord.provenance` has them."""
