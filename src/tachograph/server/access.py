"""Who asks, and whether they may: the gate in front of every route.

Knows tokens and no store. `grant_of` is asked for each request but that for ``/healthz``, before a
route is looked for (`envelope.py`); a route then says which right it needs.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import Headers

from tachograph.errors import ConfigError
from tachograph.server.answers import Refusal
from tachograph.server.tokens import Grant, Tokens
from tachograph.warning import warn_once

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="tachograph", Basic realm="tachograph"'}


def grant_of(headers: Headers, tokens: Tokens) -> Grant:
    """The grant of the token that a request carries; Refusal (401, 503) where it has none."""
    secret = _secret(headers.get("authorization", ""))
    if not secret:
        raise Refusal(
            401, "unauthorized", "a token is needed: Authorization: Bearer <token>", _CHALLENGE
        )
    try:
        grant = tokens.find(secret)
    except ConfigError as error:
        warn_once(str(error))  # who has shown no token is not told where they lie
        message = "the server cannot read its tokens; its log says why"
        raise Refusal(503, "busy", message, {"Retry-After": "10"}) from error
    if grant is None:
        raise Refusal(
            401,
            "unauthorized",
            "this token is unknown, revoked or expired; ask whoever runs the server for another",
            _CHALLENGE,
        )
    return grant


def _secret(authorization: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except ValueError:  # neither base64 nor UTF-8, or no ASCII at all
            return ""
    return ""


class Needs:
    """A dependency that gives the grant of a request, or refuses it with 403.

    Parameters
    ----------
    right : str
        Of `tokens.RIGHTS`.
    all_projects : bool, default False
        The token must be one for all projects.
    """

    def __init__(self, right: str, *, all_projects: bool = False) -> None:
        self.right = right
        self.all_projects = all_projects

    async def __call__(self, request: Request) -> Grant:
        """The grant, where it has the right; a plain function would be sent to a thread."""
        grant: Grant = request.state.grant
        if not grant.may(self.right):
            message = f"the token {grant.name!r} has no right to {self.right}"
            raise Refusal(403, "forbidden", message)
        if self.all_projects and not grant.covers_all:
            message = f"the token {grant.name!r} is for some projects, and this needs all"
            raise Refusal(403, "forbidden", message)
        return grant


Reader: Any = Annotated[Grant, Depends(Needs("read"))]
Writer: Any = Annotated[Grant, Depends(Needs("write"))]
Admin: Any = Annotated[Grant, Depends(Needs("admin"))]
Overseer: Any = Annotated[Grant, Depends(Needs("read", all_projects=True))]
