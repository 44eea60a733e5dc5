"""What an SQLite store looks like inside: narrow tables, and the views that users read.

Knows the columns of the records and SQL, no connection. Names of tables begin with an underscore,
names of the views that show all that is stored with ``_raw_``; the others are those of the records.

::

    _writers ─┬─ _calls (writer and seq in one number) ── step, epoch, time, once for all metrics
              │
    _runs ────┴─ _series (run, name, context, rank, attempt, writer) ── summary
       │            └─ _points (series, seq) ── value, special
       ├─ _run_changes ── every change; _runs holds what they merge to
       ├─ _attempts, _params, _tags, _artifacts ── the latest change of each key
       ├─ _provenance ── _documents, once per content
       ├─ _tensor_series (run, name, kind, context, shape, …)
       │            └─ _tensors (series, call) ── statistics, histogram
       │                   └─ _tensor_calls ── writer, seq, step, epoch, time, once for all tensors
       └─ _events
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from tachograph.records import FORMAT_VERSION, TABLES, TableSpec

APPLICATION_ID = 0x54616368
"""'Tach' in the header of the file, where the ``file`` command and others look for it."""

SEQ_BITS = 38
"""Low bits of a call's id, which hold its seq; above them is the number of its writer.

One integer as key finds the call of a point in a third of the time that two columns take. It is
enough for a month of 100,000 records a second, and for 33 million writers."""

NULL = math.nan
"""NaN, which SQLite takes as NULL: for rows of which there are many. For each None the module
sqlite3 looks for an adapter, which takes as long as all the rest of a point."""

CHANGE = ("changed_at", "writer", "seq", "deleted")
KEYED = ("attempts", "params", "tags", "provenance", "artifacts")
"""Tables that hold the latest change of each key of a run."""

TENSOR_SERIES = (
    *("run", "name", "kind", "context", "rank", "attempt"),
    *("shape", "logical_shape", "dtype", "size"),
)
TENSOR_CALL = ("writer", "seq", "step", "epoch", "time")
TENSOR_VALUES = (
    *("mean", "std", "min", "max", "l2", "zeros", "nan", "inf"),
    "histogram",  # last: who does not ask for it does not read it
)
SERIES_KEY = ("run", "name", "context", "rank", "attempt", "writer")
SUMMARY = (
    *("last", "special", "last_step", "last_time"),
    *("min", "max", "mean", "count", "finite"),
)
_TYPES = {"text": "TEXT", "int": "INTEGER", "float": "REAL", "json": "TEXT"}

HIDDEN_FROM = """(
    SELECT min(a.first_step) FROM _attempts a
    WHERE a.run = _series.run AND a.attempt > _series.attempt AND a.deleted = 0)"""
"""From which step on a later attempt replaces a series. Kept in the series, because asking it for
each point would double the time of reading them."""

# ---------------------------------------------------------------------------- names


def quote(name: str) -> str:
    """A column name in SQL; some are keywords."""
    return f'"{name}"'


def names(columns: Iterable[str], prefix: str = "") -> str:
    """A list of column names in SQL."""
    return ", ".join(prefix + quote(name) for name in columns)


def own_columns(spec: TableSpec) -> tuple[str, ...]:
    """Columns of a table without the run's id, for which a number stands."""
    return tuple(name for name in spec.columns if name != "run_id")


# ---------------------------------------------------------------------------- tables


def create_statements() -> Iterator[str]:
    """All statements that make an empty store."""
    yield f"PRAGMA application_id = {APPLICATION_ID}"
    yield f"PRAGMA user_version = {FORMAT_VERSION}"
    yield _writers_table()
    yield from _run_tables()
    yield from (_keyed_table(TABLES[name]) for name in KEYED)
    yield "CREATE TABLE _documents (id INTEGER PRIMARY KEY, sha256 TEXT UNIQUE, text TEXT)"
    yield from _point_tables()
    yield from _tensor_tables()
    yield f"CREATE TABLE _events (run INTEGER NOT NULL, {_typed(TABLES['events'])})"
    yield "CREATE INDEX _events_run ON _events (run)"
    for name, text in views():
        yield f"CREATE VIEW {name} AS\n{text}"


def _typed(spec: TableSpec, leave_out: tuple[str, ...] = ("run_id",)) -> str:
    """The columns of a table with their types; a writer is a number where rows only grow."""
    types = {name: _TYPES[kind] for name, kind in spec.columns.items() if name not in leave_out}
    if spec.grows:
        types["writer"] = "INTEGER NOT NULL"
    return ", ".join(f"{quote(name)} {type_}" for name, type_ in types.items())


def _writers_table() -> str:
    # `version` counts what changed in the rows of a writer, so that a process that remembers
    # something of them knows when it no longer holds.
    columns = _typed(TABLES["writers"], leave_out=("writer",))
    return f"""CREATE TABLE _writers (
        id INTEGER PRIMARY KEY, writer TEXT NOT NULL UNIQUE,
        next INTEGER NOT NULL DEFAULT 0, version INTEGER NOT NULL DEFAULT 0, {columns})"""


def _run_tables() -> Iterator[str]:
    columns = _typed(TABLES["runs"])
    yield f"CREATE TABLE _runs (id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, {columns})"
    yield f"""CREATE TABLE _run_changes (run INTEGER NOT NULL, {columns},
        PRIMARY KEY (run, changed_at, writer, seq)) WITHOUT ROWID"""


def _keyed_table(spec: TableSpec) -> str:
    key = names(["run", *spec.key[1:]])
    columns = _typed(spec).replace('"document" TEXT', '"document" INTEGER')
    return (
        f"CREATE TABLE _{spec.name} (run INTEGER NOT NULL, {columns},"
        f" PRIMARY KEY ({key})) WITHOUT ROWID"
    )


def _point_tables() -> Iterator[str]:
    key = ", ".join(SERIES_KEY)
    yield f"""CREATE TABLE _series (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL, name TEXT NOT NULL, context TEXT NOT NULL,
        rank INTEGER NOT NULL, attempt INTEGER NOT NULL, writer INTEGER NOT NULL,
        hidden_from INTEGER, last REAL, special TEXT, last_step INTEGER, last_time INTEGER,
        min REAL, max REAL, mean REAL, count INTEGER, finite INTEGER, last_seq INTEGER,
        UNIQUE ({key}))"""
    yield "CREATE INDEX _series_writer ON _series (writer)"
    yield "CREATE TABLE _calls (id INTEGER PRIMARY KEY, step INTEGER, epoch REAL, time INTEGER)"
    yield """CREATE TABLE _points (
        series INTEGER NOT NULL, seq INTEGER NOT NULL, value REAL, special TEXT,
        PRIMARY KEY (series, seq)) WITHOUT ROWID"""


def _tensor_tables() -> Iterator[str]:
    # Rows are appended, so that a step writes few pages, and all tensors of it lie together; the
    # index finds one tensor over time.
    def typed(columns: Iterable[str]) -> str:
        types = {name: _TYPES[kind] for name, kind in TABLES["tensors"].columns.items()}
        types |= {"run": "INTEGER NOT NULL", "writer": "INTEGER NOT NULL"}
        return ", ".join(f"{quote(name)} {types[name]}" for name in columns)

    yield f"CREATE TABLE _tensor_series (id INTEGER PRIMARY KEY, {typed(TENSOR_SERIES)})"
    # By run in the order of the model, as they came; by name to find one again.
    yield "CREATE INDEX _tensor_series_run ON _tensor_series (run)"
    yield "CREATE INDEX _tensor_series_name ON _tensor_series (name, run)"
    yield f"CREATE TABLE _tensor_calls (id INTEGER PRIMARY KEY, {typed(TENSOR_CALL)})"
    yield f"""CREATE TABLE _tensors (series INTEGER NOT NULL, call INTEGER NOT NULL,
        {typed(TENSOR_VALUES)})"""
    yield "CREATE INDEX _tensors_series ON _tensors (series, call)"


# ---------------------------------------------------------------------------- views


def views() -> Iterator[tuple[str, str]]:
    """Name and text of every view."""
    yield "cursors", "SELECT writer, next FROM _writers WHERE next > 0"
    for raw in (False, True):
        prefix = "_raw_" if raw else ""
        for table in TABLES:
            yield prefix + table, _view(table, raw)
        yield f"{prefix}all_metrics", _metrics("" if raw else "WHERE r.deleted = 0")


def _view(table: str, raw: bool) -> str:
    spec = TABLES[table]
    if table == "metrics":
        return _metrics("" if raw else _LATEST_ATTEMPT)
    if table == "summaries":
        return _RAW_SUMMARIES if raw else _summaries()
    if table == "writers":
        shown = "" if raw else " AND deleted = 0"
        return f"SELECT {names(spec.columns)} FROM _writers WHERE changed_at IS NOT NULL{shown}"
    if table == "runs":
        return _run_changes(spec) if raw else _runs(spec)
    if table == "tensors":
        return _tensors(spec, "" if raw else "WHERE r.deleted = 0")
    if table == "events":
        return _events(spec, "" if raw else "WHERE r.deleted = 0")
    return _keyed(spec, "" if raw else "WHERE t.deleted = 0 AND r.deleted = 0")


def _runs(spec: TableSpec) -> str:
    return f"SELECT {names(spec.columns)} FROM _runs WHERE deleted = 0 AND changed_at IS NOT NULL"


def _run_changes(spec: TableSpec) -> str:
    columns = names(own_columns(spec), "t.")
    return f"SELECT r.run_id, {columns} FROM _run_changes t JOIN _runs r ON r.id = t.run"


def _keyed(spec: TableSpec, where: str) -> str:
    columns = names(own_columns(spec), "t.")
    source = f"_{spec.name} t JOIN _runs r ON r.id = t.run"
    if spec.name == "provenance":
        columns = columns.replace('t."document"', "d.text AS document")
        source += " LEFT JOIN _documents d ON d.id = t.document"
    return f"SELECT r.run_id, {columns}\nFROM {source} {where}"


def _events(spec: TableSpec, where: str) -> str:
    columns = names(own_columns(spec), "t.").replace('t."writer"', "w.writer")
    return f"""SELECT r.run_id, {columns}
        FROM _events t
        JOIN _runs r ON r.id = t.run
        JOIN _writers w ON w.id = t.writer {where}"""


def _tensors(spec: TableSpec, where: str) -> str:
    sources = {"run_id": "r", "writer": "w"} | dict.fromkeys(TENSOR_CALL[1:], "c")
    sources |= dict.fromkeys(TENSOR_SERIES, "s") | dict.fromkeys(TENSOR_VALUES, "t")
    columns = ", ".join(f"{sources[name]}.{quote(name)}" for name in spec.columns)
    # From a series to its rows to their calls, as `_metrics`.
    return f"""SELECT {columns}
        FROM _tensor_series s
        JOIN _runs r ON r.id = s.run
        JOIN _tensors t ON t.series = s.id
        CROSS JOIN _tensor_calls c ON c.id = t.call
        JOIN _writers w ON w.id = c.writer {where}"""


_LATEST_ATTEMPT = """WHERE r.deleted = 0
        AND (s.hidden_from IS NULL OR c.step IS NULL OR c.step < s.hidden_from)"""


def _metrics(where: str) -> str:
    # CROSS JOIN keeps the order of the loops: from the points of a series to their calls, never
    # from all calls of a writer, which may have recorded thousands of runs.
    return f"""SELECT r.run_id, s.name, s.context, s.rank, s.attempt, c.step, c.epoch, c.time,
        p.value, p.special, w.writer, p.seq
        FROM _series s
        JOIN _runs r ON r.id = s.run
        JOIN _writers w ON w.id = s.writer
        JOIN _points p ON p.series = s.id
        CROSS JOIN _calls c ON c.id = (s.writer << {SEQ_BITS}) + p.seq {where}"""


_RAW_SUMMARIES = f"""SELECT r.run_id, s.name, s.context, s.rank, s.attempt, {names(SUMMARY, "s.")},
        s.last_time AS changed_at, w.writer, s.last_seq AS seq, 0 AS deleted
        FROM _series s JOIN _runs r ON r.id = s.run JOIN _writers w ON w.id = s.writer
        WHERE s.count > 0"""


def _summaries() -> str:
    """One row per series; nearly all have one writer, so only the others search for the last."""

    def last(column: str, alias: str) -> str:
        return f"""iif(count(*) = 1, max({column.format("s", "w")}), (
            SELECT {column.format("t", "v")} FROM _series t JOIN _writers v ON v.id = t.writer
            WHERE t.run = s.run AND t.name = s.name AND t.context = s.context
            AND t.rank = s.rank AND t.attempt = s.attempt AND t.count > 0
            ORDER BY t.last_time DESC, v.writer DESC LIMIT 1)) AS {alias}"""

    return f"""SELECT r.run_id, s.name, s.context, s.rank, s.attempt,
        {last("{0}.last", "last")}, {last("{0}.special", "special")},
        {last("{0}.last_step", "last_step")}, max(s.last_time) AS last_time,
        min(s.min) AS min, max(s.max) AS max,
        iif(count(*) = 1, max(s.mean), sum(s.mean * s.finite) / sum(s.finite)) AS mean,
        sum(s.count) AS count, sum(s.finite) AS finite,
        max(s.last_time) AS changed_at, {last("{1}.writer", "writer")},
        {last("{0}.last_seq", "seq")}, 0 AS deleted
        FROM _runs r JOIN _series s ON s.run = r.id JOIN _writers w ON w.id = s.writer
        WHERE r.deleted = 0 AND s.count > 0
        GROUP BY r.run_id, s.run, s.name, s.context, s.rank, s.attempt"""


# ---------------------------------------------------------------------------- changes


def upsert(spec: TableSpec) -> str:
    """Insert a row of a keyed table, or replace the one of its key where that is older."""
    table = f"_{spec.name}"
    if spec.name == "writers":
        columns, key = tuple(spec.columns), spec.key
    else:
        columns, key = ("run", *own_columns(spec)), ("run", *spec.key[1:])
    new = ", ".join(f"{quote(name)} = {_newer(name, spec)}" for name in columns if name not in key)
    excluded, stored = names(CHANGE[:3], "excluded."), names(CHANGE[:3], f"{table}.")
    return f"""INSERT INTO {table} ({names(columns)}) VALUES ({", ".join("?" * len(columns))})
        ON CONFLICT ({names(key)}) DO UPDATE SET {new}
        WHERE {table}.changed_at IS NULL OR ({excluded}) >= ({stored})"""


def _newer(column: str, spec: TableSpec) -> str:
    value = f"excluded.{quote(column)}"
    if spec.name == "writers" and column == "heartbeat_at":  # never goes back
        return f"max(coalesce({value}, heartbeat_at), coalesce(heartbeat_at, {value}))"
    return value


def merge_run() -> str:
    """Set a run's row to the latest value that somebody gave each column."""
    latest = "ORDER BY changed_at DESC, writer DESC, seq DESC LIMIT 1"
    columns = own_columns(TABLES["runs"])
    new = ", ".join(
        f"""{quote(name)} = (SELECT {quote(name)} FROM _run_changes
            WHERE run = :run AND {quote(name)} IS NOT NULL {latest})"""
        for name in columns
        if name not in CHANGE
    )
    change = names(CHANGE[:3])
    return f"""UPDATE _runs SET {new},
        ({change}) = (SELECT {change} FROM _run_changes WHERE run = :run {latest}),
        deleted = coalesce((SELECT deleted FROM _run_changes
            WHERE run = :run AND deleted IS NOT NULL {latest}), 0)
        WHERE id = :run"""


# ---------------------------------------------------------------------------- garbage

_OF_RUN = (*KEYED, "events")
DELETED_RUNS = f"""SELECT id, run_id, (
        SELECT coalesce(sum(count), 0) FROM _series WHERE run = _runs.id)
    FROM _runs WHERE deleted = 1 AND ({
    " OR ".join(
        f"EXISTS (SELECT 1 FROM _{name} WHERE run = _runs.id)"
        for name in ("series", "tensor_series", *_OF_RUN)
    )
}) ORDER BY run_id"""
_TENSOR_CALLS = (
    "SELECT t.call FROM _tensor_series s JOIN _tensors t ON t.series = s.id WHERE s.run = :run"
)
ERASE = (
    "UPDATE _writers SET version = version + 1"
    " WHERE id IN (SELECT writer FROM _series WHERE run = :run)"
    f" OR id IN (SELECT writer FROM _tensor_calls WHERE id IN ({_TENSOR_CALLS}))",
    f"DELETE FROM _calls WHERE id IN (SELECT (s.writer << {SEQ_BITS}) + p.seq FROM _series s"
    " JOIN _points p ON p.series = s.id WHERE s.run = :run)",
    "DELETE FROM _points WHERE series IN (SELECT id FROM _series WHERE run = :run)",
    f"DELETE FROM _tensor_calls WHERE id IN ({_TENSOR_CALLS})",
    "DELETE FROM _tensors WHERE series IN (SELECT id FROM _tensor_series WHERE run = :run)",
    *(f"DELETE FROM _{name} WHERE run = :run" for name in ("series", "tensor_series", *_OF_RUN)),
    "DELETE FROM _documents WHERE id NOT IN"
    " (SELECT document FROM _provenance WHERE document IS NOT NULL)",
)
