"""How the file of an SQLite store is made, recognised and connected to.

Knows its header and settings, nothing of its rows.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from tachograph.backends.sqlite_schema import APPLICATION_ID, create_statements
from tachograph.errors import StoreError, StoreNotFound, StoreTooNew
from tachograph.filesystems import file_system_type, is_network_path
from tachograph.records import FORMAT_VERSION

BUSY_SECONDS = 30.0
"""How long to wait for other processes that write."""

_SETTINGS = (
    "PRAGMA synchronous = FULL",  # NORMAL loses whole seconds of commits in a power cut
    "PRAGMA cache_size = -8000",
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA case_sensitive_like = ON",
)


def open_store(path: Path, create: bool) -> sqlite3.Connection:
    """Open a store, and make it where there is none and that is wanted."""
    _refuse_network(path)
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
            if not is_locked(error) or time.monotonic() > deadline:
                raise StoreError(f"cannot open {path}: {error}") from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path} is not a store: {error}") from error


def is_locked(error: Exception) -> bool:
    """Whether others write to the file, or make it ready, and one may ask again."""
    code = getattr(error, "sqlite_errorcode", None)  # its lowest byte is the kind of error
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY


def _refuse_network(path: Path) -> None:
    if is_network_path(path):
        raise StoreError(
            f"{path} lies on a network file system ({file_system_type(path)}), where SQLite cannot"
            " keep a file whole; use a local disk, or a Parquet store there:"
            f" parquet://{path.with_suffix('')}"
        )


def _absent(path: Path) -> str:
    return f"no store at {path}; it is made when something is recorded, or give another URL"


def _open_once(path: Path, create: bool) -> sqlite3.Connection:
    connection = connect(path, "mode=rwc" if create else "mode=rw")
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


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect so that transactions are begun by hand, and any one thread at a time may work."""
    connection = _connect_uri(f"{path.as_uri()}?{mode}")
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        log = path.with_name(path.name + "-wal")
        if not path.exists() or log.exists() or os.access(path.parent, os.W_OK):
            raise
        # A log cannot be made in a folder that is read-only; nor is there one to be read.
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


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one at the same path; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
