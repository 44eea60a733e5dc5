"""SQL over a Parquet store through DuckDB, which may read the tables' files and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import Bounds
from tachograph.backends.parquet_views import literal, quote, views_sql
from tachograph.errors import QueryError
from tachograph.records import TABLES
from tachograph.table import Table, distinct

if TYPE_CHECKING:
    import duckdb


class SQLReader:
    """Runs one SELECT at a time over the tables of a store.

    Parameters
    ----------
    store : Path
        Folder of the store.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._running: duckdb.DuckDBPyConnection | None = None

    def run(self, text: str, parameters: Sequence[Any], bounds: Bounds | None) -> Table:
        """Run one SELECT; nothing but the tables can be read, and nothing written.

        Raises
        ------
        QueryError
            DuckDB is not installed, the text is not one SELECT, or it has a mistake.
        """
        try:
            import duckdb
        except ModuleNotFoundError as error:
            raise QueryError(
                "SQL over a Parquet store needs duckdb; install it with: pip install duckdb"
            ) from error
        with duckdb.connect() as connection:
            _lock_up(connection, self._store, bounds)
            self._running = connection
            try:
                statements = connection.extract_statements(text)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise QueryError("only a single SELECT can be run")
                connection.execute(statements[0], list(parameters))
                names = distinct([column[0] for column in connection.description])
                if bounds:
                    rows = bounds.take(iter(connection.fetchone, None))
                else:
                    rows = connection.fetchall()
            except (duckdb.Error, RuntimeError) as error:  # the latter where it was interrupted
                raise QueryError(str(error)) from error
            finally:
                self._running = None
                connection.interrupt()  # closing waits for rows that nobody will fetch
        return Table.from_tuples(rows, names)

    def interrupt(self) -> None:
        """Make `run` fail that runs in another thread; without one, do nothing."""
        running = self._running
        if running is not None:
            with contextlib.suppress(Exception):  # it has ended, and was closed, meanwhile
                running.interrupt()


def _lock_up(connection: duckdb.DuckDBPyConnection, store: Path, bounds: Bounds | None) -> None:
    """Define the tables, and close the way to everything else for good."""
    folders = [f"{store}/{table}/" for table in TABLES]
    # DuckDB asks for a path as it is, and for the glob that matches only it. The folder of the
    # store itself is not among them: journals, and what belongs to a server, may lie in it.
    allowed = ", ".join(map(quote, sorted({*folders, *map(literal, folders)})))
    connection.execute(views_sql(f"{store}/"))
    if bounds:
        connection.execute(f"SET memory_limit = '{bounds.bytes // 1_000_000 + 1}MB'")
        connection.execute("SET threads = 2")
        connection.execute("SET temp_directory = ''")  # what does not fit into memory fails
    connection.execute("SET python_enable_replacements = false")  # no variables of ours as tables
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
