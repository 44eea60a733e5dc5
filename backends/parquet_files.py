"""Where a Parquet store keeps what, and how a file appears there whole or not at all.

Knows the names of files and the encoding of columns, nothing about what rows mean.

::

    store/
      views.sql                               the tables as SQL views, for the duckdb command
      runs/<writer>-<first>-<last>.parquet    keyed tables lie flat: listing runs opens few files
      metrics/root_id=<root>/<writer>-<first>-<last>.parquet   tables that only grow: by root run
      files/<2 hex>/<sha256>                  artifacts by content
      .tachograph/                            format version, cursors, heartbeats, temporary files
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from tachograph.backends.parquet_arrays import TYPES, from_list
from tachograph.errors import StoreError, StoreNotFound, StoreTooNew, TachographError
from tachograph.host import sync_file, sync_folder, wait_for_lock
from tachograph.records import FORMAT_VERSION, TABLES, Row, TableSpec

GROUP_ROWS = 65_536
"""Rows in a row group: what a writer holds in memory, and what a reader of one series decodes."""

NO_ROOT = "_"
"""Partition of rows that belong to no run; its zero-row file makes every glob match."""

SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema([(column, TYPES[kind]) for column, kind in spec.columns.items()])
    for name, spec in TABLES.items()
}
# Equal times of series side by side are compressed once, but only within a page; pyarrow before
# it had the option had no limit in rows.
_ONE_PAGE: dict[str, Any] = (
    {"max_rows_per_page": GROUP_ROWS}
    if "max_rows_per_page" in inspect.signature(pq.write_table).parameters
    else {}
)
_LEVELS = {"tensors": 7}
"""Of zstd: the digits of histograms take a twentieth less than with 3, for a third more time."""

_LOCKS = 64
_SEGMENT = re.compile(r"(.+)-(\d+)-(\d+)\.parquet")


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn what the file system, pyarrow and rows of wrong types raise into StoreError."""
    try:
        yield
    except TachographError:
        raise
    except (OSError, OverflowError, TypeError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------- durable files


@contextlib.contextmanager
def appearing(path: Path, temporary_folder: Path) -> Iterator[Path]:
    """Yield a temporary path; what was written there appears as `path`, durable and at once."""
    temporary = temporary_folder / uuid.uuid4().hex
    try:
        yield temporary
        sync_file(temporary)
        make_folder(path.parent)
        os.replace(temporary, path)
        sync_folder(str(path.parent))
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder so that a power cut does not undo it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(str(folder.parent))


def open_segment(path: Path, spec: TableSpec, schema: pa.Schema | None = None) -> pq.ParquetWriter:
    """Open a writer with the encodings that are small and that every engine reads.

    No ARROW:schema and no BYTE_STREAM_SPLIT: dictionary types break readers of several files,
    and Spark before 4.3 cannot read the latter.
    """
    text = [name for name, kind in spec.columns.items() if kind in ("text", "json")]
    integers = [name for name, kind in spec.columns.items() if kind == "int"]
    return pq.ParquetWriter(
        path,
        schema or SCHEMAS[spec.name],
        compression="zstd",
        compression_level=_LEVELS.get(spec.name, 3),
        use_dictionary=text,
        column_encoding=dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        store_schema=False,
        write_batch_size=GROUP_ROWS,  # a fifth less time than a thousand at once
        **_ONE_PAGE,
    )


def rows_table(spec: TableSpec, rows: Sequence[Row]) -> pa.Table:
    """Rows as an Arrow table; NaN becomes NULL, as in SQLite."""
    columns = [
        from_list([row.get(name) for row in rows], kind) for name, kind in spec.columns.items()
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMAS[spec.name])


# ---------------------------------------------------------------------------- the folder


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the records of a writer are in the store.

    Attributes
    ----------
    next : int
        The record expected next; all before it are stored.
    until : int
        Segments may hold records before this one, of a batch that was not finished.
    roots : mapping of str to str
        Run to the partition where such segments hold its records.
    """

    next: int = 0
    until: int = 0
    roots: Mapping[str, str] = field(default_factory=dict)

    @property
    def unfinished(self) -> bool:
        """Whether there may be segments of a batch that was not finished."""
        return self.until > self.next


class Folder:
    """The folder of one store: names, cursors and heartbeats.

    Parameters
    ----------
    path : Path
        Absolute path of the store.
    views : str
        Content of `views.sql` for a new store.
    create : bool
        Whether to make an absent store.

    Raises
    ------
    StoreNotFound, StoreTooNew
        Nothing is there, or it was written by a newer version.
    """

    def __init__(self, path: Path, views: str, *, create: bool) -> None:
        self.path = path
        self.hidden = path / ".tachograph"
        self.temporary = self.hidden / "tmp"
        self._meta = self.hidden / "store.json"
        with store_errors(path):
            if not self._meta.is_file():
                if not create:
                    raise StoreNotFound(f"no Parquet store at {path}")
                self._create(views)
            version = json.loads(self._meta.read_bytes())["format_version"]
        if version > FORMAT_VERSION:
            raise StoreTooNew(
                f"{path} has format version {version}, this Tachograph reads {FORMAT_VERSION}"
            )

    def _create(self, views: str) -> None:
        for name in ("tmp", "cursors", "heartbeat", "replaced"):
            make_folder(self.hidden / name)
        for spec in TABLES.values():
            with self.segment(self.partition(spec.name, NO_ROOT) / "schema.parquet", spec):
                pass
        self.put_text(self.path / "views.sql", views)
        self.put_json(self._meta, {"format_version": FORMAT_VERSION})  # last: the store is whole

    # -- segments

    def partition(self, table: str, root: str) -> Path:
        """The folder of a root's segments of a table; keyed tables have one folder in all."""
        folder = self.path / table
        return folder / f"root_id={quote(root, safe='')}" if TABLES[table].grows else folder

    @staticmethod
    def segment_name(writer: str, first: int, last: int) -> str:
        """File name of the records `first` to `last` of a writer."""
        return f"{quote(writer, safe='')}-{first}-{last}.parquet"

    @staticmethod
    def parse_segment(name: str) -> tuple[str, int, int] | None:
        """Undo `segment_name`, the writer still quoted; None for a merged or schema file."""
        match = _SEGMENT.fullmatch(name)
        return (match[1], int(match[2]), int(match[3])) if match else None

    @classmethod
    def _in_sequence(cls, name: str) -> tuple[str, int]:
        """What sorts the segments of a writer by their records: as text 10 is before 9."""
        part = cls.parse_segment(name)
        return (part[0], part[1]) if part else (name, 0)

    @contextlib.contextmanager
    def segment(
        self, path: Path, spec: TableSpec, schema: pa.Schema | None = None
    ) -> Iterator[pq.ParquetWriter]:
        """Write a segment that appears when the block ends without an error."""
        with (
            appearing(path, self.temporary) as temporary,
            open_segment(temporary, spec, schema) as writer,
        ):
            yield writer

    def covered(self, table: str, root: str, writer: str) -> int:
        """First sequence number of `writer` behind all of its segments in a partition."""
        names = os.listdir(folder) if (folder := self.partition(table, root)).is_dir() else []
        parsed = (self.parse_segment(name) for name in names)
        quoted = quote(writer, safe="")
        return max((part[2] + 1 for part in parsed if part and part[0] == quoted), default=0)

    def segments(self, table: str, roots: Sequence[str] | None = None) -> list[Path]:
        """Paths of a table's segments, those of a writer in order, of all roots or of some."""
        if not TABLES[table].grows:
            folders = [self.path / table]
        elif roots is None:
            folders = sorted(entry for entry in (self.path / table).iterdir() if entry.is_dir())
        else:
            folders = [self.partition(table, root) for root in sorted(set(roots))]
        return [
            folder / name
            for folder in folders
            if folder.is_dir()
            for name in sorted(os.listdir(folder), key=self._in_sequence)
            if name.endswith(".parquet") and name != "schema.parquet"
        ]

    # -- small files

    def put_text(self, path: Path, text: str) -> None:
        """Replace a small file, durable when this returns."""
        with appearing(path, self.temporary) as temporary:
            temporary.write_text(text)

    def put_json(self, path: Path, content: Any) -> None:
        """Replace a small file by a JSON text, durable when this returns."""
        self.put_text(path, json.dumps(content))

    def _cursor_path(self, writer: str) -> Path:
        return self.hidden / "cursors" / quote(writer, safe="")

    def read_cursor(self, writer: str) -> Cursor:
        """What the store holds of a writer."""
        try:
            return Cursor(**json.loads(self._cursor_path(writer).read_bytes()))
        except FileNotFoundError:
            return Cursor()

    def write_cursor(self, writer: str, cursor: Cursor) -> None:
        """Set what `read_cursor` returns, durable when this returns."""
        content = asdict(cursor) if cursor.unfinished else {"next": cursor.next}
        self.put_json(self._cursor_path(writer), content)

    def heartbeat(self, writer: str) -> int | None:
        """When a writer was last seen alive (µs); None where it was never."""
        try:
            return self._heartbeat_path(writer).stat().st_mtime_ns // 1000
        except FileNotFoundError:
            return None

    def touch_heartbeat(self, writer: str, time: int) -> None:
        """Note when a writer was last seen alive (µs); it never goes back."""
        path = self._heartbeat_path(writer)
        time = max(time, self.heartbeat(writer) or time)
        path.touch()
        os.utime(path, ns=(time * 1000, time * 1000))

    @contextlib.contextmanager
    def alone(self, writer: str) -> Iterator[None]:
        """Let nobody else write for a writer meanwhile, where the file system has locks."""
        folder = self.hidden / "locks"
        folder.mkdir(exist_ok=True)
        with open(folder / f"{zlib.crc32(writer.encode()) % _LOCKS:02}", "ab") as file:
            with contextlib.suppress(OSError):
                wait_for_lock(file.fileno())
            yield

    def _heartbeat_path(self, writer: str) -> Path:
        return self.hidden / "heartbeat" / quote(writer, safe="")

    # -- merged segments

    def replaced(self, table: str) -> set[str]:
        """Names of the segments of a keyed table whose rows also lie in a merged one."""
        return {name for _, record in self.replacements(table) for name in record["files"]}

    def replacements(self, table: str) -> list[tuple[Path, dict[str, Any]]]:
        """What merges have replaced: per record its path and ``{"at": µs, "files": names}``."""
        found = []
        for path in sorted((self.hidden / "replaced").glob(f"{table}.*.json")):
            with contextlib.suppress(FileNotFoundError):
                found.append((path, json.loads(path.read_bytes())))
        return found

    def put_replacement(self, table: str, merged: str, record: dict[str, Any]) -> None:
        """Note that the segment `merged` replaces others; it must lie in its folder already."""
        self.put_json(self.hidden / "replaced" / f"{table}.{merged}.json", record)
