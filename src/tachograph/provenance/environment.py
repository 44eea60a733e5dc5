"""The environment variables that can change a training."""

from __future__ import annotations

import os
from typing import Any

from tachograph.redaction import redact_environment


def collect() -> dict[str, Any]:
    """Variable name to value, by an allow-list, with secrets redacted."""
    return dict(redact_environment(os.environ))
