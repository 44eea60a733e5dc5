"""The laboratory, for tests of what is run again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import laboratory`


@pytest.fixture(autouse=True)
def _no_variables_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs again gets the variables of this process, but those of its own runs."""
    for name in ("TACHOGRAPH_PARENT_RUN_ID", "TACHOGRAPH_LAUNCH_ID"):
        monkeypatch.delenv(name, raising=False)
