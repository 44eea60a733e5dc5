"""The form of an answer: JSON or Arrow as the client likes it, and nothing where it has it already.

Knows tables and HTTP; knows no store.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response

from tachograph.records import ColumnType
from tachograph.server.answers import Refusal
from tachograph.table import Table
from tachograph.wire.tables import ARROW, JSON, table_to_arrow, table_to_json

HAS_ARROW = importlib.util.find_spec("pyarrow") is not None


def table_form(request: Request) -> str:
    """The media type in which a client takes a table; Refusal (406) where it takes neither."""
    offered = (JSON, ARROW) if HAS_ARROW else (JSON,)
    chosen = choose(request.headers.get("accept", "*/*"), offered)
    if chosen is None:
        without = "" if HAS_ARROW else " (Arrow needs pyarrow on the server)"
        raise Refusal(406, "not_acceptable", f"this is answered as {' or '.join(offered)}{without}")
    return chosen


def document_form(request: Request) -> str:
    """JSON; Refusal (406) where the client does not take it."""
    if choose(request.headers.get("accept", "*/*"), (JSON,)) is None:
        raise Refusal(406, "not_acceptable", f"this is answered as {JSON}")
    return JSON


def choose(accept: str, offered: tuple[str, ...]) -> str | None:
    """The media type that a client likes best, of equal ones the first that is offered.

    Parameters
    ----------
    accept : str
        A header (RFC 9110, 12.5.1), such as ``application/json;q=0.5, */*;q=0.1``.
    offered : tuple of str
    """
    liked = {}
    for entry in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        liked[media_range] = _weight(weight)

    def weight_of(media_type: str) -> float:
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        return next((liked[one] for one in ranges if one in liked), 0.0)

    best = max(offered, key=weight_of)
    return best if weight_of(best) > 0 else None


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def encode(
    table: Table, form: str, types: Mapping[str, ColumnType], facts: Mapping[str, Any]
) -> bytes:
    """A table in one of the two forms, with facts beside it."""
    if form == ARROW:
        return table_to_arrow(table, types, facts)
    return table_to_json(table, facts)


def respond(request: Request, body: bytes, form: str) -> Response:
    """The answer to a question; 304 where the client has it.

    The tag is a digest of the answer. A number of the store's state would spare the work, but not
    know that a run is lost because its process has been silent, and change with each record of any
    other run.
    """
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}
    if request.method == "GET":
        # Weak, because it may be compressed on the way.
        headers["ETag"] = f'W/"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
        if _has(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
    return Response(body, media_type=form, headers=headers)


def _has(known: str, tag: str) -> bool:
    tags = [one.strip().removeprefix("W/") for one in known.split(",")]
    return known.strip() == "*" or tag.removeprefix("W/") in tags
