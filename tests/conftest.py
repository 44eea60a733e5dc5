"""Every test starts as a fresh process would: no open run, nothing said, nothing inherited."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tachograph import identity, recorder, warning
from tachograph.recording import seeding
from tachograph.run import open_runs

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

# Journals of stores without a folder go here, not into the home of who runs the tests.
_STATE = tempfile.TemporaryDirectory(prefix="tachograph-tests-", ignore_cleanup_errors=True)
os.environ["XDG_STATE_HOME"] = _STATE.name
_VARIABLES = (identity.LAUNCH_VARIABLE, identity.PARENT_VARIABLE, identity.RUN_VARIABLE)


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """End the runs that a test left open, close its journals, and forget what was said."""
    warning.forget_warnings()
    _forget_seeds()
    for name in _VARIABLES:
        os.environ.pop(name, None)
    before = set(recorder._recorders)  # those of servers that several tests share
    yield
    for run in list(open_runs):
        run.finish(wait=False)
    for made in set(recorder._recorders) - before:
        made.close(1.0)
    recorder._by_destination.clear()
    for name in _VARIABLES:
        os.environ.pop(name, None)


def _forget_seeds() -> None:
    """Let the system choose the state of generators that a test before may have seeded."""
    seeding._last = None
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()
