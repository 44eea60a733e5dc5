"""The contract as far as a server can obey it, and what holds instead where it cannot."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tachograph.backends.base import Backend
from tachograph.backends.parquet import ParquetBackend
from tachograph.backends.remote import RemoteBackend
from tachograph.backends.sqlite import SQLiteBackend
from tachograph.errors import StoreError
from tachograph.registry import open_backend
from tachograph.testing import BackendContract, dump, make_batch, make_block
from tachograph.testing.fixtures import read, where
from tachograph.testing.query_laws import HOSTILE


class RemoteContract(BackendContract):
    """The laws of all stores, on one that a server keeps.

    Attributes
    ----------
    scheme : str
        Of the store behind the server.
    """

    backend_class = RemoteBackend
    examples = 5
    scheme: ClassVar[str]

    def test_absent_store_is_not_found(self, backend_url: str) -> None:
        """A server makes its store when it starts; what may be absent is the server."""
        for _ in range(2):
            with pytest.raises(StoreError, match="nothing listens"):
                open_backend("http://127.0.0.1:1")

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text_is_only_text(self, backend: Backend, text: str) -> None:
        """The same for what may be any text; the id of a writer may not, and is refused."""
        with pytest.raises(StoreError, match="is not 1 to 64 letters"):
            backend.write(make_batch(text, 0, 1))
        block = make_block("r", {text: [1.0], "loss": [2.0]}, context=f'{{"a":"{len(text)}"}}')
        tags = [{"run_id": "r", "key": text, "value": text}, {"run_id": "r", "key": "other"}]
        backend.write(make_batch("w", 0, blocks=[block], tags=tags, runs=[{"run_id": "r"}]))
        before = dump(backend)
        assert read(backend, "metrics", "value", where=where("name", "=", text)) == [(1.0,)]
        assert read(backend, "tags", "value", where=where("key", "in", [text])) == [(text,)]
        assert read(backend, "cursors", "next", where=where("writer", "=", text)) == []
        assert read(backend, "tags", "key", where=where("key", "like", text + "%x")) == []
        assert dump(backend) == before

    @pytest.fixture(autouse=True)
    def up_to_date(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SQL reads the store itself, which may be behind by its first interval: here by none."""
        for made in (SQLiteBackend, ParquetBackend):
            monkeypatch.setattr(made, "first_interval", 0.0)
