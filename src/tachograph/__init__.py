"""Drop-in callbacks that record training runs into open tables.

Importing this package loads the standard library only. `tachograph.callbacks` has the callbacks
of the frameworks, `tachograph.backends` the stores.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # `typing` would take longer than the rest
if TYPE_CHECKING:
    from typing import Any

    from tachograph.current import current_run
    from tachograph.query import open_store as open
    from tachograph.recording.seeding import seed_everything
    from tachograph.run import Run
    from tachograph.start import start_run, tracked

__version__ = "0.1.0"

_HOMES = {
    "Run": ("tachograph.run", "Run"),
    "start_run": ("tachograph.start", "start_run"),
    "tracked": ("tachograph.start", "tracked"),
    "current_run": ("tachograph.current", "current_run"),
    "open": ("tachograph.query", "open_store"),
    "seed_everything": ("tachograph.recording.seeding", "seed_everything"),
}

__all__ = [
    "Run",
    "__version__",
    "current_run",
    "open",
    "seed_everything",
    "start_run",
    "tracked",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tachograph' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
