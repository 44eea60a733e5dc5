"""For authors of backends: laws that every store obeys, and what they are written with.

``from tachograph.testing import BackendContract`` needs pytest and hypothesis; the builders of
batches and `dump` need nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tachograph.testing.builders import START, dump, make_batch, make_block, make_row

if TYPE_CHECKING:
    from tachograph.testing.contract import BackendContract

__all__ = ["START", "BackendContract", "dump", "make_batch", "make_block", "make_row"]


_ASSERTING = (
    "fixtures",
    *("write_laws", "values_laws", "keyed_laws", "summaries_laws"),
    *("query_laws", "abilities_laws", "model_laws"),
)


def __getattr__(name: str) -> Any:
    if name != "BackendContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _ASSERTING))
    from tachograph.testing.contract import BackendContract

    return BackendContract
