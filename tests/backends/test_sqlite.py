"""The SQLite store obeys the laws of all stores, and those of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachograph.backends.sqlite import SQLiteBackend
from tachograph.testing import BackendContract


class TestSQLiteBackend(BackendContract):
    """The contract, on a file."""

    backend_class = SQLiteBackend

    @pytest.fixture
    def backend_url(self, tmp_path: Path) -> str:
        """A file that does not exist yet."""
        return f"sqlite:///{tmp_path}/folder/runs.sqlite"
