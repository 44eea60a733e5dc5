"""The Parquet store obeys the laws of all stores, and is read by others as plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachograph.backends.parquet import ParquetBackend
from tachograph.testing import BackendContract


class TestParquetBackend(BackendContract):
    """The laws of every store."""

    backend_class = ParquetBackend

    @pytest.fixture
    def backend_url(self, tmp_path: Path) -> str:
        """A folder that does not exist yet."""
        return f"parquet:///{tmp_path}/store"
