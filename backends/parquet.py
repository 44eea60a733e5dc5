"""A store in a folder of immutable Parquet segments that any engine reads by a glob."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import Bounds, Garbage, Query
from tachograph.backends.content import KeepsContent
from tachograph.backends.parquet_files import Folder, store_errors
from tachograph.backends.parquet_read import Reader
from tachograph.backends.parquet_sql import SQLReader
from tachograph.backends.parquet_upkeep import Upkeep
from tachograph.backends.parquet_views import views_sql
from tachograph.backends.parquet_write import BatchWriter
from tachograph.content import ContentFolder
from tachograph.records import Batch
from tachograph.table import Table

if TYPE_CHECKING:
    from tachograph.backends.base import Backend


class ParquetBackend(KeepsContent):
    """A store in a folder: a folder per table, Parquet files that never change inside.

    Parameters
    ----------
    url : str
        ``parquet:////folder``: what follows ``parquet://`` is the absolute path.
    create : bool, default False
        Make the store where there is none.

    Raises
    ------
    StoreNotFound
        There is no store in that folder, and `create` is False.
    StoreTooNew
        A newer Tachograph made the store.
    StoreError
        The folder cannot be read, or not be made.
    """

    first_interval = 10.0
    longest_interval = 300.0
    batch_bytes = 4 << 20

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.url = url
        self.path = Path("/" + url.removeprefix("parquet://").lstrip("/"))
        self._folder = Folder(self.path, views_sql(), create=create)
        self._reader = Reader(self._folder)
        self._writer = BatchWriter(self._folder, self._reader)
        self._upkeep = Upkeep(self._folder, self._reader)
        self._sql = SQLReader(self.path)
        self._content = ContentFolder(self.path / "files")

    def write(self, batch: Batch) -> int:
        """Store a batch and return the sequence number expected next from its writer."""
        with store_errors(self.path):
            return self._writer.write(batch)

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        query.check()
        with store_errors(self.path):
            return self._reader.read(query)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def sql(
        self, text: str, parameters: Sequence[Any] = (), *, bounds: Bounds | None = None
    ) -> Table:
        """Run one SELECT over the tables through DuckDB; QueryError where it is not installed."""
        return self._sql.run(text, parameters, bounds)

    def interrupt(self) -> None:
        """Make `sql` fail that runs in another thread; without one, do nothing."""
        self._sql.interrupt()

    # ------------------------------------------------------------------------ upkeep

    def compact(self, *, grace_seconds: float = 3600.0) -> int:
        """Merge the segments of keyed tables; return how many were merged.

        What was merged longer than `grace_seconds` ago is removed, so that a reader that has
        listed the files finds them. Segments of points are never merged.
        """
        with store_errors(self.path):
            return self._upkeep.compact(grace_seconds)

    def gc(self, *, dry_run: bool = True) -> Garbage:
        """Find, and unless `dry_run` free, the rows and files of deleted runs.

        The rows in `runs` stay, so that what arrives late stays hidden. `bytes` counts
        artifacts and the segments that hold nothing else.
        """
        with store_errors(self.path):
            return self._upkeep.collect(self._content, dry_run=dry_run)


if TYPE_CHECKING:
    _: type[Backend] = ParquetBackend
