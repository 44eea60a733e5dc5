"""The IPython shell that this process is, where it is one: a notebook's kernel or a terminal."""

from __future__ import annotations

import sys
from typing import Any


def shell() -> Any:
    """The shell, or None. Only asked for: IPython is not imported, and no shell is made."""
    module = sys.modules.get("IPython.core.getipython")
    return None if module is None else module.get_ipython()


def shell_kind() -> str | None:
    """'notebook' for the kernel of one, 'ipython' for a terminal, None for neither."""
    found = shell()
    if found is None:
        return None
    kernel = any(kind.__name__ == "ZMQInteractiveShell" for kind in type(found).__mro__)
    return "notebook" if kernel else "ipython"
