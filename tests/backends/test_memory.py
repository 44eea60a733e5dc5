"""The store in memory obeys the laws that it is the model for."""

from __future__ import annotations

import uuid

import pytest

from tachograph.backends.memory import MemoryBackend
from tachograph.testing import BackendContract


class TestMemoryBackend(BackendContract):
    """The contract, on the reference."""

    backend_class = MemoryBackend

    @pytest.fixture
    def backend_url(self) -> str:
        """A name of its own for each test."""
        return f"memory://{uuid.uuid4()}"

    def test_what_write_returned_survives_a_kill(self, backend_url: str) -> None:
        """Not this store: it ends with its process, as its name says."""
