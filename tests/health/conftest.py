"""Fixtures of the tests of health, and the trainings that they share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph.run import Run
from tachograph.testing.callback_contract import QUIET, Record

sys.path.insert(0, str(Path(__file__).parent))  # for `import health_trainings`


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """URL of a store that does not exist yet."""
    return f"sqlite:///{tmp_path}/runs.sqlite"


@pytest.fixture
def start(store_url: str) -> Callable[..., Run]:
    """Starts a run that records into `store_url`; keywords are settings of ``[health]``."""

    def start(**health: Any) -> Run:
        config = QUIET | {"backend": store_url, "project": "tests", "health": health}
        return tachograph.start_run(config=config)

    return start


@pytest.fixture
def events(store_url: str) -> Callable[[], list[dict[str, Any]]]:
    """Gives the events of kind 'health', with their data decoded, once all has arrived."""

    def events() -> list[dict[str, Any]]:
        rows = Record(store_url).rows("events", kind="health")
        return [row | {"data": json.loads(row["data"])} for row in rows]

    return events


@pytest.fixture
def told(
    start: Callable[..., Run], events: Callable[[], list[dict[str, Any]]]
) -> Callable[..., list[str]]:
    """Trains inside a run, and gives the rules that spoke, in order."""

    def told(training: Callable[[Run], None], **health: Any) -> list[str]:
        with start(**health) as run:
            training(run)
        return [event["data"]["rule"] for event in events()]

    return told
