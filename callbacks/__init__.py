"""Callbacks, one file per framework, imported only when its name is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tachograph.callbacks.keras import KerasCallback
    from tachograph.callbacks.lightning import LightningCallback
    from tachograph.callbacks.optuna import OptunaCallback
    from tachograph.callbacks.sklearn import SklearnCallback, track
    from tachograph.callbacks.torch import watch
    from tachograph.callbacks.xgboost import XGBoostCallback

_HOMES = {
    "LightningCallback": "tachograph.callbacks.lightning",
    "KerasCallback": "tachograph.callbacks.keras",
    "XGBoostCallback": "tachograph.callbacks.xgboost",
    "SklearnCallback": "tachograph.callbacks.sklearn",
    "track": "tachograph.callbacks.sklearn",
    "OptunaCallback": "tachograph.callbacks.optuna",
    "watch": "tachograph.callbacks.torch",
}

__all__ = [
    "KerasCallback",
    "LightningCallback",
    "OptunaCallback",
    "SklearnCallback",
    "XGBoostCallback",
    "track",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tachograph.callbacks' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
