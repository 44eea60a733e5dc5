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


def __getattr__(name: str) -> Any:
    if name != "BackendContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    laws = ("write", "values", "keyed", "summaries", "query", "abilities", "model")
    pytest.register_assert_rewrite(*(f"{__name__}.{law}_laws" for law in laws))
    from tachograph.testing.contract import BackendContract

    return BackendContract
