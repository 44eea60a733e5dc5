"""The environment variables that can change a training."""

from __future__ import annotations

import os
from typing import Any

from tachograph.redaction import is_secret_name, redact_environment


def collect() -> dict[str, Any]:
    """Variables by an allow-list, and the names of those whose values are secret.

    Returns
    -------
    dict
        `variables`, name to value with secrets redacted; `redacted`, the names of all variables
        whose value is or looks like a secret, on the list or not.
    """
    variables = redact_environment(os.environ)
    changed = {name for name, value in variables.items() if value != os.environ.get(name)}
    named = {name for name, value in os.environ.items() if value and is_secret_name(name)}
    return {"variables": variables, "redacted": sorted(changed | named)}
