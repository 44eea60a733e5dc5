"""Fixtures for tests of callbacks that are not laws of all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import outcome_trainings`
pytest.register_assert_rewrite("tachograph.testing.callback_contract")

from tachograph.testing.callback_contract import QUIET, Record  # noqa: E402


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """URL of a store that does not exist yet."""
    return f"sqlite:///{tmp_path}/runs.sqlite"


@pytest.fixture
def config(store_url: str) -> dict[str, Any]:
    """The `config` argument of a callback that records into `store_url`."""
    return QUIET | {"backend": store_url, "project": "tests"}


@pytest.fixture
def record(store_url: str) -> Callable[[], Record]:
    """Gives what `store_url` holds, once all that was recorded has arrived there."""
    return lambda: Record(store_url)
