"""Errors as a server answers them: one shape, one status and one code for each.

Knows the tree of errors; knows no route.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tachograph.errors import (
    AccessDenied,
    Busy,
    Full,
    Gap,
    QueryError,
    RecordError,
    RunNotFound,
    StoreError,
    StoreNotFound,
    TachographError,
    TooLarge,
    WireError,
)

# The first that fits counts.
STATUSES: tuple[tuple[type[TachographError], int, str], ...] = (
    (Gap, 409, "gap"),
    (Full, 507, "full"),
    (Busy, 503, "busy"),
    (AccessDenied, 403, "forbidden"),
    (StoreNotFound, 404, "not_found"),
    (StoreError, 503, "store"),
    (RunNotFound, 404, "not_found"),
    (QueryError, 400, "query"),
    (TooLarge, 413, "too_large"),
    (WireError, 400, "malformed"),
    (RecordError, 400, "malformed"),
)
_CODES = {404: "not_found", 405: "method", 413: "too_large"}


class Refusal(Exception):
    """A request that is answered with an error.

    Parameters
    ----------
    status : int
        Of HTTP.
    code : str
        For programs; docs/reference/protocol.md lists them.
    message : str
        For people: what is wrong, and what to do.
    headers : mapping, optional
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


def error_answer(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """``{"error": {"code", "message", ...}}``."""
    return JSONResponse({"error": {"code": code, "message": message} | more}, status, headers)


def answer(error: Refusal | TachographError) -> JSONResponse | None:
    """What to answer to an error; None where no client should see it."""
    if isinstance(error, Refusal):
        return error_answer(error.status, error.code, error.message, error.headers)
    found = next(
        ((status, code) for kind, status, code in STATUSES if isinstance(error, kind)), None
    )
    if found is None:
        return None
    more: dict[str, Any] = {"expected": error.expected} if isinstance(error, Gap) else {}
    wait = error.retry_after if isinstance(error, Busy) else 5.0
    headers = {"Retry-After": str(math.ceil(wait))} if found[0] in (503, 507) else None
    return error_answer(*found, str(error), headers, **more)


def internal(request_id: str) -> JSONResponse:
    """What to answer when the server has a fault; what it was is in the log alone."""
    message = f"the server has failed; its log says more under {request_id}"
    return error_answer(500, "internal", message, id=request_id)


async def answer_http(request: Request, error: Exception) -> JSONResponse:
    """What to answer where a route or method does not exist."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "malformed")
    return error_answer(error.status_code, code, str(error.detail), error.headers)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """What to answer to a parameter that is missing, or not of its type."""
    assert isinstance(error, RequestValidationError)
    said = "; ".join(
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()
    )
    return error_answer(400, "malformed", said[:1000])
