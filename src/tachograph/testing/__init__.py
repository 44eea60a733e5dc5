"""For authors of backends and callbacks: laws that all obey, and what they are written with.

`BackendContract` needs pytest and hypothesis, `CallbackContract` pytest; the builders of batches
and `dump` need nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tachograph.testing.builders import START, dump, make_batch, make_block, make_row

if TYPE_CHECKING:
    from tachograph.testing.callback_contract import CallbackContract
    from tachograph.testing.contract import BackendContract

__all__ = [
    "START",
    "BackendContract",
    "CallbackContract",
    "dump",
    "make_batch",
    "make_block",
    "make_row",
]


_ASSERTING = (
    "fixtures",
    *("write_laws", "values_laws", "keyed_laws", "summaries_laws"),
    *("query_laws", "abilities_laws", "model_laws"),
)


def __getattr__(name: str) -> Any:
    if name not in ("BackendContract", "CallbackContract"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    if name == "CallbackContract":
        pytest.register_assert_rewrite(f"{__name__}.callback_contract")
        from tachograph.testing.callback_contract import CallbackContract

        return CallbackContract

    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _ASSERTING))
    from tachograph.testing.contract import BackendContract

    return BackendContract
