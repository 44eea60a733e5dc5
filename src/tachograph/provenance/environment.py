"""The environment variables that can change a training."""

from __future__ import annotations

import os
from typing import Any

from tachograph.security.redaction import redact_environment, redact_value


def collect() -> dict[str, Any]:
    """Variables by an allow-list, and the names of those whose values are secret.

    Returns
    -------
    dict
        `variables`, name to value with secrets redacted; `redacted`, the names of all variables
        whose value is or holds a secret, on the list or not.
    """
    found = dict(os.environ)
    secret = [name for name, value in found.items() if redact_value(name, value) != value]
    return {"variables": redact_environment(found), "redacted": sorted(secret)}
