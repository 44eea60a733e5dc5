"""What bodies and answers look like, as OpenAPI says it: the shapes that routes describe.

Knows the protocol (docs/reference/protocol.md); knows no route.
"""

from __future__ import annotations

from typing import Any

from tachograph.backends.base import OPERATORS
from tachograph.records import TABLES
from tachograph.wire.tables import ARROW, JSON

Schema = dict[str, Any]


def reference(name: str) -> Schema:
    """A schema of `SCHEMAS` by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


_CELL: Schema = {"description": "A value: text, a number, or null."}
_CONDITION: Schema = {
    "type": "array",
    "description": f"[column, operator, value]; operators are {', '.join(OPERATORS)}.",
    "prefixItems": [{"type": "string"}, {"enum": [*OPERATORS]}, {}],
    "minItems": 3,
    "maxItems": 3,
    "examples": [["step", ">=", 100]],
}
_TABLES = {"type": "string", "enum": [*TABLES, "all_metrics", "cursors"]}
_WHERE: Schema = {
    "type": "array",
    "description": "All must hold.",
    "items": reference("Condition"),
}
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}


def _object(required: str, /, **properties: Any) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _closed(required: str, /, **properties: Any) -> Schema:
    return _object(required, **properties) | {"additionalProperties": False}


SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        "error",
        error=_object(
            "code message",
            code={"type": "string", "description": "For programs.", "examples": ["gap"]},
            message={"type": "string", "description": "For people: what is wrong, what to do."},
            expected={"type": "integer", "description": "Where records are missing: go on here."},
        ),
    ),
    "Table": _object(
        "rows columns",
        rows={"type": "integer", "minimum": 0},
        total={"type": "integer", "description": "Of a page: how many rows there are in all."},
        columns={
            "type": "object",
            "description": "Name of a column to its values, as many as there are rows.",
            "additionalProperties": {"type": "array", "items": _CELL},
        },
        special={
            "type": "object",
            "description": "Of columns with NaN or infinities, which are null there: column to"
            " 'nan', 'inf' or '-inf' to the numbers of rows, from 0.",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "integer"}},
            },
        },
    )
    | {"examples": [{"rows": 2, "columns": {"step": [10, 20], "value": [0.5, 0.25]}}]},
    "Condition": _CONDITION,
    "Query": _closed(
        "table",
        table=_TABLES,
        where=_WHERE,
        columns=_TEXTS | {"description": "Names of columns; all by default."},
        order=_TEXTS | {"description": "Names of columns; '-' before one sorts descending."},
        limit={"type": "integer", "minimum": 0},
        raw={"type": "boolean", "description": "All that is stored: each change, each attempt."},
        span={
            "type": "string",
            "description": "A column: one row per combination of `columns` instead of rows, with"
            " `first` and `last`, the least and greatest value of this column, and `count`.",
        },
    )
    | {
        "examples": [
            {"table": "metrics", "where": [["name", "=", "loss"]], "order": ["step"], "limit": 100}
        ]
    },
    "Select": _closed(
        "text",
        text={"type": "string", "description": "One SELECT over the tables."},
        parameters={
            "type": "array",
            "items": {"type": ["string", "number", "boolean", "null"]},
            "description": "Values of its question marks.",
        },
    )
    | {
        "examples": [
            {"text": "select count(*) as runs from runs where project = ?", "parameters": ["churn"]}
        ]
    },
    "Digested": _closed(
        "table",
        table=_TABLES,
        where=_WHERE,
        without=_TEXTS | {"description": "Columns that are left out."},
    )
    | {"examples": [{"table": "params", "where": [["run_id", "=", "r1"]]}]},
    "Digest": _object("digest", digest={"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "Collect": _closed("", dry_run={"type": "boolean", "default": True}) | {"required": []},
    "Garbage": _object(
        "dry_run runs points artifacts bytes",
        dry_run={"type": "boolean"},
        runs=_TEXTS | {"description": "Deleted runs that still take space."},
        points={"type": "integer", "description": "Points of these."},
        artifacts=_TEXTS | {"description": "Files that no run refers to, by SHA-256."},
        bytes={"type": "integer", "description": "Of these files."},
    ),
    "Run": _object(
        "run params tags metrics attempts artifacts children",
        run={"type": "object", "description": "The row of the table runs."},
        params=reference("Table"),
        tags=reference("Table"),
        metrics=reference("Table"),
        attempts=reference("Table"),
        artifacts=reference("Table"),
        children=reference("Table"),
    ),
    "Batch": _closed(
        "writer first next",
        writer={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        first={"type": "integer", "minimum": 0, "description": "The number of the first record."},
        next={"type": "integer", "minimum": 0, "description": "The number behind the last one."},
        heartbeat={"type": ["integer", "null"], "description": "When the writer lived, in µs."},
        rows={
            "type": "object",
            "description": "Name of a table to its rows, each with its seq.",
            "additionalProperties": {"type": "array", "items": {"type": "object"}},
        },
        points={
            "type": "array",
            "items": _closed(
                "run_id names rows",
                run_id={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                names=_TEXTS | {"minItems": 1, "uniqueItems": True},
                context={"type": "object"},
                rank={"type": "integer", "minimum": 0},
                attempt={"type": "integer", "minimum": 0},
                rows={
                    "type": "array",
                    "description": "[seq, time, step or null, epoch or null, [value per name]]",
                    "items": {"type": "array", "minItems": 5, "maxItems": 5},
                },
            ),
        },
    )
    | {
        "examples": [
            {
                "writer": "w1",
                "first": 0,
                "next": 1,
                "points": [
                    {
                        "run_id": "r1",
                        "names": ["loss"],
                        "rows": [[0, 1760000000000000, 10, None, [0.25]]],
                    }
                ],
            }
        ]
    },
    "Received": _object(
        "next interval",
        next={"type": "integer", "description": "The record expected next."},
        interval={"type": "number", "description": "Seconds to wait before the next batch."},
    ),
    "Expected": _object("next", next={"type": "integer"}),
    "Kept": _object("uri", uri={"type": "string", "description": "Where the file is."}),
    "About": _object(
        "protocols version format limits token",
        protocols={"type": "array", "items": {"type": "integer"}},
        version={"type": "string", "description": "Of Tachograph."},
        format={"type": "integer", "description": "Version of the tables."},
        limits=_object(
            "body_bytes batch_bytes answer_rows",
            body_bytes={"type": "integer"},
            batch_bytes={"type": "integer"},
            answer_rows={"type": "integer"},
        ),
        token=_object(
            "name rights projects",
            name={"type": "string"},
            rights=_TEXTS,
            projects={"type": ["array", "null"], "items": {"type": "string"}},
        ),
    ),
}
"""Name to JSON Schema of what several routes refer to."""

_MEANINGS = {
    400: "A parameter or the body is not as described, or names what does not exist.",
    401: "No token, or one that is unknown, expired or revoked.",
    403: "The token may not do this.",
    404: "There is no such run or file, or the token does not cover it.",
    406: "None of the forms that the client accepts can be had.",
    408: "The body did not come in time.",
    409: "Something is missing before this; the answer says where to go on.",
    413: "The body, or the answer, would be too large, or take too long.",
    415: "A Content-Type or Content-Encoding that is not taken.",
    416: "The file does not have that range.",
    429: "The token's share is used up; see Retry-After.",
    503: "The server is overloaded, or its store cannot be read; see Retry-After.",
    507: "The disk of the server is full; see Retry-After.",
}


UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The client has it: see If-None-Match."}
}
"""The answer of a route that gives an ETag."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that are errors."""
    content = {JSON: {"schema": reference("Error")}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def answers(name: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that gives a document of JSON, and its errors."""
    content = {JSON: {"schema": reference(name)}}
    found: dict[int | str, Any] = {200: {"description": "It is as asked.", "content": content}}
    return found | errors(*statuses)


def tables(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that gives a table, and its errors."""
    content: dict[str, Any] = {
        JSON: {"schema": reference("Table")},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
    }
    found: dict[int | str, Any] = {200: {"description": "A table.", "content": content}}
    return found | UNCHANGED | errors(406, *statuses)


def body(name: str) -> dict[str, Any]:
    """A route's body of JSON, which it reads itself."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": reference(name)}}}}
