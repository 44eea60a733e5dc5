"""A store in one SQLite file that any SQLite tool can read; standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tachograph.backends.base import Condition, Garbage, Query, table_columns
from tachograph.backends.content import ContentFolder
from tachograph.backends.sqlite_schema import (
    APPLICATION_ID,
    GROWING,
    KEYED,
    create_statements,
    quote,
)
from tachograph.backends.sqlite_write import BatchWriter
from tachograph.errors import QueryError, StoreError, StoreNotFound, StoreTooNew
from tachograph.filesystems import file_system_type, is_network_path
from tachograph.records import FORMAT_VERSION, Batch
from tachograph.table import Table

BUSY_SECONDS = 30.0
GRACE_SECONDS = 3600.0
"""How long a file that no row names is kept: its row may still be on the way."""

_FETCH = 500  # rows at a time; few enough that the garbage collector does not walk over them
_SETTINGS = (
    "PRAGMA synchronous = FULL",  # NORMAL loses whole seconds of commits in a power cut
    "PRAGMA cache_size = -8000",
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA case_sensitive_like = ON",
)
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


class SQLiteBackend:
    """A store in one SQLite file; artifacts lie in a folder beside it.

    Parameters
    ----------
    url : str
        ``sqlite:////folder/runs.sqlite``: what follows ``sqlite://`` is the absolute path.
    create : bool, default False
        Make the file, and its folder, where there is none.

    Raises
    ------
    StoreNotFound
        There is no such file, and `create` is False.
    StoreTooNew
        A newer Tachograph made the file.
    StoreError
        The file is something else, cannot be opened, or lies on a network file system, where
        SQLite's locks and shared memory do not work.
    """

    first_interval = 1.0
    longest_interval = 1.0
    batch_bytes = 2 << 20

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.url = url
        self.path = Path("/" + url.removeprefix("sqlite://").lstrip("/"))
        self._refuse_network()
        self._connection = _open(self.path, create)
        self._inode = _inode(self.path)
        self._writer = BatchWriter(self._connection)
        self._content = ContentFolder(self.path.with_name(self.path.name + ".artifacts"))
        self._reader: sqlite3.Connection | None = None

    def _refuse_network(self) -> None:
        if is_network_path(self.path):
            raise StoreError(
                f"{self.path} lies on a network file system ({file_system_type(self.path)}), where"
                " SQLite cannot keep a file whole; use a local disk, or a Parquet store there:"
                f" parquet://{self.path.with_suffix('')}"
            )

    # ------------------------------------------------------------------------ writing

    def write(self, batch: Batch) -> int:
        """Store a batch and return the sequence number expected next from its writer."""
        if batch.first == batch.next and batch.heartbeat is None:
            with self._errors():
                return self._writer.expected(batch.writer)
        with self._transaction():
            return self._writer.write(batch)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; on any error it is undone and what was remembered is forgotten."""
        if _inode(self.path) != self._inode:
            raise StoreError(f"{self.path} was removed or replaced while it was open")
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._writer.forget()
                if self._connection.in_transaction:  # SQLite undoes some errors by itself
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise StoreError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Release the file. A second call does nothing."""
        for connection in (self._reader, self._connection):
            if connection is not None:
                connection.close()
        self._reader = None

    # ------------------------------------------------------------------------ reading

    def read(self, query: Query) -> Table:
        """Read rows; QueryError for an unknown table, column or operator."""
        query.check()
        columns = tuple(dict.fromkeys(query.columns or table_columns(query.table)))
        source = query.table
        if query.raw and source != "cursors":
            source = f"_raw_{source}"
        conditions = [_condition(condition) for condition in query.where]
        text = f"SELECT {', '.join(map(quote, columns))} FROM {source}"
        if conditions:
            text += " WHERE " + " AND ".join(condition for condition, _ in conditions)
        if query.order:
            text += " ORDER BY " + ", ".join(map(_order, query.order))
        if query.limit is not None:
            text += f" LIMIT {max(0, int(query.limit))}"
        with self._errors():
            values = [value for _, values in conditions for value in values]
            try:
                return _fetch(self._connection.execute(text, values), columns)
            except (sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError) as error:
                raise QueryError(f"a value of the query cannot be compared: {error}") from error

    def sql(self, text: str, parameters: Sequence[Any] = ()) -> Table:
        """Run one SELECT over the tables; QueryError for a mistake in it, or where it writes."""
        if self._reader is None:
            with self._errors():
                self._reader = _connect(self.path, "mode=ro")
                self._reader.execute("PRAGMA query_only = ON")
                self._reader.set_authorizer(_allow_reading)
        try:
            cursor = self._reader.execute(text, parameters)
            if cursor.description is None:
                raise QueryError("that is not a SELECT: sql reads, and never writes")
            return _fetch(cursor, _distinct([column[0] for column in cursor.description]))
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
            denied = "not authorized" in str(error)
            hint = ": only a SELECT over the store's tables is" if denied else ""
            raise QueryError(f"{error}{hint}") from error

    # ------------------------------------------------------------------------ artifacts

    def put_artifact(self, path: Path, sha256: str) -> str:
        """Copy a file in, once per content, checked by its digest; return its URI."""
        return self._content.put(path, sha256)

    def open_artifact(self, sha256: str) -> BinaryIO:
        """Open a kept file for reading; StoreNotFound where there is none."""
        return self._content.open(sha256)

    def list_artifacts(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of every kept file."""
        return self._content.list()

    # ------------------------------------------------------------------------ garbage

    def gc(self, *, dry_run: bool = True) -> Garbage:
        """Find, and unless `dry_run` free, the rows and files of deleted runs.

        The row that says that a run is deleted stays, so that what arrives late stays hidden.
        `bytes` counts the files; the space of rows goes back to the disk, too.
        """
        with self._errors():
            runs = self._connection.execute(_DELETED_RUNS).fetchall()
            points = sum(points for _, _, points in runs)
            files = self._unused_files()
        garbage = Garbage(
            tuple(run_id for _, run_id, _ in runs), points, tuple(files), sum(files.values())
        )
        if not dry_run:
            for id_, _, _ in runs:
                with self._transaction():
                    self._erase(id_)
            for digest in files:
                self._content.remove(digest)
            self._shrink(bool(runs))
        return garbage

    def _unused_files(self) -> dict[str, int]:
        """Files that only deleted rows name, and old ones that none does, with their bytes."""
        execute, now = self._connection.execute, time.time()
        used = {digest for (digest,) in execute("SELECT sha256 FROM artifacts")}
        named = {digest for (digest,) in execute("SELECT sha256 FROM _raw_artifacts")}
        return {
            digest: size
            for digest, size in self._content.list()
            if digest not in used
            and (digest in named or self._content.age(digest, now) > GRACE_SECONDS)
        }

    def _erase(self, run: int) -> None:
        """Delete the rows of a run, except that of the run itself."""
        for statement in _ERASE:
            self._connection.execute(statement, {"run": run})

    def _shrink(self, erased: bool) -> None:
        """Give free pages back to the disk; a store in use keeps them and fills them again."""
        if erased:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("VACUUM")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


_OF_RUN = (*KEYED, *GROWING)
_DELETED_RUNS = f"""SELECT id, run_id, (
        SELECT coalesce(sum(count), 0) FROM _series WHERE run = _runs.id)
    FROM _runs WHERE deleted = 1 AND ({
    " OR ".join(
        f"EXISTS (SELECT 1 FROM _{name} WHERE run = _runs.id)" for name in ("series", *_OF_RUN)
    )
}) ORDER BY run_id"""
_ERASE = (
    "UPDATE _writers SET version = version + 1"
    " WHERE id IN (SELECT writer FROM _series WHERE run = :run)",
    "DELETE FROM _calls WHERE (writer, seq) IN (SELECT s.writer, p.seq FROM _series s"
    " JOIN _points p ON p.series = s.id WHERE s.run = :run)",
    "DELETE FROM _points WHERE series IN (SELECT id FROM _series WHERE run = :run)",
    *(f"DELETE FROM _{name} WHERE run = :run" for name in ("series", *_OF_RUN)),
    "DELETE FROM _documents WHERE id NOT IN"
    " (SELECT document FROM _provenance WHERE document IS NOT NULL)",
)


# ---------------------------------------------------------------------------- opening


def _open(path: Path, create: bool) -> sqlite3.Connection:
    """Open a store, and make it where there is none and that is wanted."""
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder of {path}: {error}") from error
    elif not path.exists():
        raise StoreNotFound(_absent(path))
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return _open_once(path, create)
        except sqlite3.OperationalError as error:
            # SQLite does not wait for others while they turn a new file to WAL.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise StoreError(f"cannot open {path}: {error}") from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path} is not a store: {error}") from error


def _absent(path: Path) -> str:
    return f"no store at {path}; it is made when something is recorded, or give another URL"


def _open_once(path: Path, create: bool) -> sqlite3.Connection:
    connection = _connect(path, "mode=rwc" if create else "mode=rw")
    try:
        if _is_empty(connection):
            if not create:
                raise StoreNotFound(_absent(path))
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):  # nobody else was faster
                for statement in create_statements():
                    connection.execute(statement)
            connection.execute("COMMIT")
        _check_format(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect so that transactions are begun by hand, and any one thread at a time may work."""
    connection = _connect_uri(f"{path.as_uri()}?{mode}")
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if not path.exists() or os.access(path.parent, os.W_OK):
            raise
        # WAL needs a file beside the store; where none can be made, nobody else writes either.
        connection = _connect_uri(f"{path.as_uri()}?mode=ro&immutable=1")
    for setting in _SETTINGS:
        connection.execute(setting)
    return connection


def _connect_uri(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is an SQLite file of another program, not a store")
    if version > FORMAT_VERSION:
        raise StoreTooNew(
            f"{path} has format version {version}, and this Tachograph knows up to"
            f" {FORMAT_VERSION}; install a newer one"
        )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


# ---------------------------------------------------------------------------- queries


def _condition(condition: Condition) -> tuple[str, tuple[Any, ...]]:
    """A condition as SQL with places for its values; the column was checked before."""
    column, operator, value = quote(condition.column), condition.operator, condition.value
    if operator == "in":
        try:
            items = json.dumps(list(value), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise QueryError(f"cannot look for {value!r} in {condition.column}") from error
        return f"{column} IN (SELECT value FROM json_each(?))", (items,)
    if value is None and operator in ("=", "!="):
        return f"{column} IS {'NOT ' if operator == '!=' else ''}NULL", ()
    return f"{column} {operator.upper()} ?", (value,)


def _order(name: str) -> str:
    column = quote(name.removeprefix("-"))
    return f"{column} {'DESC' if name.startswith('-') else 'ASC'} NULLS LAST"


def _fetch(cursor: sqlite3.Cursor, columns: Sequence[str]) -> Table:
    values: list[list[Any]] = [[] for _ in columns]
    extends: list[Callable[[Any], None]] = [column.extend for column in values]
    while rows := cursor.fetchmany(_FETCH):
        for extend, column in zip(extends, zip(*rows, strict=True), strict=True):
            extend(column)
    return Table(dict(zip(columns, values, strict=True)))


def _distinct(columns: Sequence[str]) -> list[str]:
    """Column names with a number behind those that were there before."""
    seen: dict[str, int] = {}
    result = []
    for name in columns:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _allow_reading(action: int, first: str | None, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY
