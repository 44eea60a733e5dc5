"""The tables of a Parquet store as SQL: the text of `views.sql`."""

from __future__ import annotations

import re

from tachograph.records import TABLES, TableSpec

_HEAD = """\
-- The tables of this store, for DuckDB:  cd <this folder> && duckdb -init views.sql
-- The schema raw holds what the files hold; heartbeats of live writers are not in files.
CREATE SCHEMA IF NOT EXISTS raw;
"""

_DELETED = """\
CREATE OR REPLACE VIEW raw.deleted_runs AS
SELECT run_id FROM raw.runs GROUP BY run_id
HAVING arg_max(deleted, (changed_at, writer, seq)) FILTER (deleted IS NOT NULL) <> 0;
"""

_METRICS = """\
CREATE OR REPLACE VIEW metrics AS
SELECT {columns} FROM all_metrics AS point
WHERE step IS NULL OR NOT EXISTS (
    SELECT 1 FROM attempts AS later
    WHERE later.run_id = point.run_id AND later.attempt > point.attempt
    AND later.first_step <= point.step);
"""

_SUMMARIES = """\
CREATE OR REPLACE VIEW summaries AS
SELECT {columns} FROM (
    SELECT * REPLACE (
        min(min) OVER series AS min,
        max(max) OVER series AS max,
        CASE WHEN NOT bool_or(finite > 0 AND mean IS NULL) OVER series
            THEN sum(mean * (finite / nullif(sum_finite, 0))) OVER series END AS mean,
        CAST(sum(count) OVER series AS BIGINT) AS count,
        sum_finite AS finite)
    FROM (
        SELECT *,
            CAST(sum(finite) OVER series AS BIGINT) AS sum_finite,
            row_number() OVER (series ORDER BY last_time DESC, writer DESC) AS age
        FROM ({source})
        WINDOW series AS (PARTITION BY run_id, name, context, rank, attempt))
    WINDOW series AS (PARTITION BY run_id, name, context, rank, attempt))
WHERE age = 1;
"""


def views_sql(store: str = "") -> str:
    """Statements that define the tables.

    Parameters
    ----------
    store : str
        Folder of the store with a slash at the end; empty for the current folder.
    """
    parts = [_HEAD]
    parts += [_raw_view(spec, store) for spec in TABLES.values()]
    parts.append(_DELETED)
    parts += [_view(spec) for spec in TABLES.values()]
    parts.append(_METRICS.format(columns=_columns(TABLES["metrics"])))
    return "\n".join(parts)


def _columns(spec: TableSpec) -> str:
    return ", ".join(f'"{name}"' for name in spec.columns)


def _raw_view(spec: TableSpec, store: str) -> str:
    folders = f"{spec.name}/*/*.parquet" if spec.grows else f"{spec.name}/*.parquet"
    return (
        f"CREATE OR REPLACE VIEW raw.{spec.name} AS SELECT {_columns(spec)}\n"
        f"FROM read_parquet({quote(literal(store) + folders)},"
        " hive_partitioning=false, union_by_name=true);\n"
    )


def literal(path: str) -> str:
    """A path as a glob that matches only itself."""
    return re.sub(r"([\[?*])", r"[\1]", path)


def quote(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def _view(spec: TableSpec) -> str:
    source = f"raw.{spec.name}" if spec.grows else f"({_latest(spec)})"
    rows = f"SELECT * FROM {source} AS latest"
    if not spec.grows:
        rows += " WHERE coalesce(deleted, 0) = 0"
    if "run_id" in spec.columns:
        rows = (
            f"SELECT * FROM ({rows}) AS kept\n"
            "WHERE NOT EXISTS (SELECT 1 FROM raw.deleted_runs AS gone"
            " WHERE gone.run_id = kept.run_id)"
        )
    if spec.name == "summaries":
        return _SUMMARIES.format(columns=_columns(spec), source=rows)
    name = "all_metrics" if spec.name == "metrics" else spec.name
    return f"CREATE OR REPLACE VIEW {name} AS\nSELECT {_columns(spec)} FROM ({rows});\n"


def _latest(spec: TableSpec) -> str:
    """The latest change of each key; in `runs`, where NULL is 'not changed', per column."""
    if spec.name == "runs":
        columns = ",\n    ".join(
            name
            if name in spec.key
            else f'arg_max("{name}", (changed_at, writer, seq))'
            f' FILTER ("{name}" IS NOT NULL) AS "{name}"'
            for name in spec.columns
        )
        return f"SELECT {columns}\nFROM raw.runs GROUP BY run_id"
    key = ", ".join(f'"{name}"' for name in spec.key)
    return (
        f"SELECT * FROM raw.{spec.name} QUALIFY row_number() OVER (PARTITION BY {key}"
        " ORDER BY changed_at DESC, writer DESC, seq DESC) = 1"
    )
