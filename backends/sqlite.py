"""A store in one SQLite file that any SQLite tool can read; standard library only."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import SPAN, Backend, Bounds, Condition, Garbage, Query
from tachograph.backends.content import KeepsContent
from tachograph.backends.sqlite_file import (
    BUSY_SECONDS,
    connect,
    identity,
    is_locked,
    open_store,
)
from tachograph.backends.sqlite_schema import DELETED_RUNS, ERASE, quote
from tachograph.backends.sqlite_write import BatchWriter
from tachograph.content import ContentFolder
from tachograph.errors import Locked, QueryError, StoreError
from tachograph.records import Batch
from tachograph.table import Table, distinct

MOST_PLACES = 10_000
"""Most values in a statement; SQLite uses an index through a view for these, not for JSON."""

_FETCH = 500  # rows at a time; few enough that the garbage collector does not walk over them
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}

_FUNCTIONS = ("fts3_tokenizer", "load_extension")
"""Functions that show or take addresses in memory, or load code."""


class SQLiteBackend(KeepsContent):
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
    batch_bytes = 1 << 20

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.url = url
        self.path = Path("/" + url.removeprefix("sqlite://").lstrip("/"))
        self._connection = open_store(self.path, create)
        self._identity = identity(self.path)
        self._turn_seconds = BUSY_SECONDS
        self._writer = BatchWriter(self._connection)
        self._content = ContentFolder(self.path.with_name(self.path.name + ".artifacts"))
        self._reader: sqlite3.Connection | None = None

    # ------------------------------------------------------------------------ writing

    @property
    def turn_seconds(self) -> float:
        """How long to wait for other processes that write."""
        return self._turn_seconds

    @turn_seconds.setter
    def turn_seconds(self, seconds: float) -> None:
        if seconds != self._turn_seconds:
            self._connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
            self._turn_seconds = seconds

    def write(self, batch: Batch) -> int:
        """Store a batch and return the sequence number expected next from its writer."""
        if identity(self.path) != self._identity:
            raise StoreError(f"{self.path} was removed or replaced while it was open")
        if batch.first == batch.next and batch.heartbeat is None:
            with self._errors():
                return self._writer.expected(batch.writer)
        with self._transaction():
            return self._writer.write(batch)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; on any error it is undone and what was remembered is forgotten."""
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
            kind = Locked if is_locked(error) else StoreError
            raise kind(f"{self.path}: {error}") from error

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
        columns = tuple(dict.fromkeys(query.names))
        selected, grouped = [quote(name) for name in columns], ""
        if query.span is not None:
            selected, span = selected[: -len(SPAN)], quote(query.span)
            grouped = f" GROUP BY {', '.join(selected)}"
            selected += [f"min({span})", f"max({span})", "count(*)"]
        source = query.table
        if query.raw and source != "cursors":
            source = f"_raw_{source}"
        conditions = [_condition(condition) for condition in query.where]
        text = f"SELECT {', '.join(selected)} FROM {source}"
        if conditions:
            text += " WHERE " + " AND ".join(condition for condition, _ in conditions)
        text += grouped
        if query.order:
            text += " ORDER BY " + ", ".join(map(_order, query.order))
        if query.limit is not None:
            text += f" LIMIT {max(0, int(query.limit))}"
        values = [value for _, values in conditions for value in values]
        with self._errors():
            return _fetch(self._connection.execute(text, values), columns)

    def sql(
        self, text: str, parameters: Sequence[Any] = (), *, bounds: Bounds | None = None
    ) -> Table:
        """Run one SELECT over the tables; QueryError for a mistake in it, or where it writes."""
        if self._reader is None:
            with self._errors():
                self._reader = connect(self.path, "mode=ro")
                self._reader.execute("PRAGMA query_only = ON")
                # They are made when first used, which the authorizer would take for a change.
                self._reader.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")
                self._reader.set_authorizer(_allow_reading)
        if bounds:
            self._reader.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, bounds.bytes)
        try:
            cursor = self._reader.execute(text, parameters)
            if cursor.description is None:
                raise QueryError("that is not a SELECT: sql reads, and never writes")
            columns = distinct([column[0] for column in cursor.description])
            if bounds:
                return Table.from_tuples(bounds.take(cursor), columns)
            return _fetch(cursor, columns)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
            denied = "not authorized" in str(error)
            hint = ": only a SELECT over the store's tables is" if denied else ""
            raise QueryError(f"{error}{hint}") from error

    def interrupt(self) -> None:
        """Make `read` or `sql` fail that runs in another thread; without one, do nothing."""
        for connection in (self._reader, self._connection):
            if connection is not None:
                with contextlib.suppress(sqlite3.ProgrammingError):  # closed meanwhile
                    connection.interrupt()

    # ------------------------------------------------------------------------ garbage

    def gc(self, *, dry_run: bool = True) -> Garbage:
        """Find, and unless `dry_run` free, the rows and files of deleted runs.

        The row that says that a run is deleted stays, so that what arrives late stays hidden.
        `bytes` counts the files; the space of rows goes back to the disk, too.
        """
        with self._errors():
            runs = self._connection.execute(DELETED_RUNS).fetchall()
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
        execute = self._connection.execute
        used = {digest for (digest,) in execute("SELECT sha256 FROM artifacts")}
        latest = "SELECT sha256, max(changed_at) FROM _raw_artifacts GROUP BY sha256"
        return self._content.unused(used, dict(execute(latest)))

    def _erase(self, run: int) -> None:
        """Delete the rows of a run, except that of the run itself."""
        for statement in ERASE:
            self._connection.execute(statement, {"run": run})

    def _shrink(self, erased: bool) -> None:
        """Give free pages back to the disk; a store in use keeps them and fills them again."""
        if erased:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("VACUUM")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# ---------------------------------------------------------------------------- queries


def _condition(condition: Condition) -> tuple[str, tuple[Any, ...]]:
    """A condition as SQL with places for its values; the column was checked before."""
    column, operator, value = quote(condition.column), condition.operator, condition.value
    values = list(value) if operator == "in" else [value]
    if not all(map(_is_comparable, values)):
        raise QueryError(f"{condition.column} cannot be compared with {value!r}")
    if operator == "in" and len(values) > MOST_PLACES:
        return f"{column} IN (SELECT value FROM json_each(?))", (json.dumps(values),)
    if operator == "in":
        return f"{column} IN ({', '.join('?' * len(values))})", tuple(values)
    if value is None and operator in ("=", "!="):
        return f"{column} IS {'NOT ' if operator == '!=' else ''}NULL", ()
    return f"{column} {operator.upper()} ?", (value,)


def _is_comparable(value: object) -> bool:
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return value is None or isinstance(value, str) or (isinstance(value, float) and value == value)


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


def _allow_reading(action: int, _: str | None, name: str | None, *__: object) -> int:
    forbidden = action == sqlite3.SQLITE_FUNCTION and (name or "").lower() in _FUNCTIONS
    return sqlite3.SQLITE_OK if action in _READS and not forbidden else sqlite3.SQLITE_DENY


if TYPE_CHECKING:
    _: Backend = SQLiteBackend("sqlite:////")
