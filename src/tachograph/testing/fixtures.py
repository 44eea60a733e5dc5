"""How the laws reach the store under test; an author overrides what stands here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from tachograph.backends.base import Backend, Condition, Operator, Query
from tachograph.records import Row


class StoreFixtures:
    """The store under test.

    Attributes
    ----------
    backend_class : type
        The class under test, called with ``(url, create=...)``.
    """

    backend_class: ClassVar[Any]

    @pytest.fixture
    def backend_url(self) -> str:
        """URL of a store that does not exist yet; override."""
        raise NotImplementedError("override the fixture backend_url")

    def open_backend(self, url: str, create: bool = True) -> Backend:
        """Open a store; override where the class alone is not enough."""
        backend: Backend = self.backend_class(url, create=create)
        return backend

    def open_code(self, url: str) -> str:
        """Python source that binds `backend` to a new store, for another process to run."""
        made = self.backend_class
        return (
            f"from {made.__module__} import {made.__name__}\n"
            f"backend = {made.__name__}({url!r}, create=True)"
        )

    @pytest.fixture
    def backend(self, backend_url: str) -> Iterator[Backend]:
        """A new store, open."""
        backend = self.open_backend(backend_url)
        yield backend
        backend.close()


def read(backend: Backend, table: str, columns: str = "", **query: Any) -> list[tuple[Any, ...]]:
    """Rows of a table as tuples of these columns (one string of names; all where empty)."""
    names = columns.split() or None
    found = backend.read(Query(table, columns=names, **query))
    return [tuple(row.values()) for row in found]


def read_one(backend: Backend, table: str, **query: Any) -> Row:
    """The only row of a table."""
    rows = backend.read(Query(table, **query)).to_pylist()
    assert len(rows) == 1, rows
    return rows[0]


def where(column: str, operator: Operator, value: Any) -> Sequence[Condition]:
    """A single condition."""
    return (Condition(column, operator, value),)
