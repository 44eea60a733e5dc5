"""Repositories and programs that record, for the tests of provenance."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import programs`

from programs import Program, make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit: `train.py`, `weights.bin`."""
    return make_repository(tmp_path / "project")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs programs that record into one store beside their folder."""
    return Program(tmp_path / "runs.sqlite")
