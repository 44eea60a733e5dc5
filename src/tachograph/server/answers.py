"""Errors as a server answers them: one shape, one status and one code for each.

Knows the tree of errors; knows no route.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from tachograph.errors import (
    AccessDenied,
    Busy,
    Gap,
    QueryError,
    RecordError,
    RunNotFound,
    StoreError,
    StoreNotFound,
    TachographError,
    WireError,
)

# The first that fits counts.
STATUSES: tuple[tuple[type[TachographError], int, str], ...] = (
    (Gap, 409, "gap"),
    (Busy, 503, "busy"),
    (AccessDenied, 403, "forbidden"),
    (StoreNotFound, 404, "not_found"),
    (StoreError, 503, "store"),
    (RunNotFound, 404, "not_found"),
    (QueryError, 400, "query"),
    (WireError, 400, "malformed"),
    (RecordError, 400, "malformed"),
)


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
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


def error_answer(
    status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    """``{"error": {"code", "message", ...}}``."""
    error = {"code": code, "message": message} | more
    return JSONResponse({"error": error}, status, headers)


def answer_refusal(request: Request, error: Exception) -> JSONResponse:
    """What to answer to a `Refusal`."""
    assert isinstance(error, Refusal)
    return error_answer(error.status, error.code, error.message, error.headers)


def answer_known(request: Request, error: Exception) -> JSONResponse:
    """What to answer to an error of ours."""
    status, code = next(
        ((status, code) for kind, status, code in STATUSES if isinstance(error, kind)),
        (500, "internal"),
    )
    headers, more = {}, {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif status == 503:
        headers["Retry-After"] = "5"
    if isinstance(error, Gap):
        more["expected"] = error.expected
    return error_answer(status, code, str(error), headers, **more)
