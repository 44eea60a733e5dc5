"""Who asks, and whether they may: the gate in front of every route.

Knows tokens and no store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from tachograph.server.answers import Refusal
from tachograph.server.tokens import Grant


def _grant(request: Request) -> Grant:
    grant: Grant | None = request.app.state.server.authenticate(request.headers)
    if grant is None:
        raise Refusal(
            401,
            "unauthorized",
            "a token is needed: Authorization: Bearer <token>",
            {"WWW-Authenticate": 'Bearer realm="tachograph", Basic realm="tachograph"'},
        )
    return grant


def needs(right: str) -> Callable[..., Grant]:
    """A dependency that answers 401 or 403 unless the request's token has a right."""

    def check(grant: Annotated[Grant, Depends(_grant)]) -> Grant:
        if not grant.may(right):
            raise Refusal(403, "forbidden", f"the token {grant.name!r} has no right to {right}")
        return grant

    return check


Reader: Any = Annotated[Grant, Depends(needs("read"))]
Writer: Any = Annotated[Grant, Depends(needs("write"))]
Admin: Any = Annotated[Grant, Depends(needs("admin"))]
