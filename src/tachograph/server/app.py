"""The application: what a server holds while it runs, and its routes put together.

Knows the parts by their names; each route stands in a file of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from tachograph import __version__
from tachograph.errors import TachographError
from tachograph.server.answers import Refusal, answer_known, answer_refusal
from tachograph.server.settings import ServerSettings
from tachograph.server.tokens import Grant


@dataclass(slots=True)
class Server:
    """What the routes share; `request.app.state.server`."""

    settings: ServerSettings

    def authenticate(self, headers: Mapping[str, str]) -> Grant | None:
        """The grant of the token in a request's headers; None where there is none."""
        return Grant("everyone", frozenset({"admin"}))  # replaced with the tokens' file

    def close(self) -> None:
        """Bring what was received into the stores, and let go of everything."""


def make_app(settings: ServerSettings) -> FastAPI:
    """The application of a server; its stores are opened when it starts, and closed after it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.server = Server(settings)
        try:
            yield
        finally:
            app.state.server.close()

    app = FastAPI(title="Tachograph", version=__version__, lifespan=lifespan, docs_url=None)
    app.add_exception_handler(Refusal, answer_refusal)
    app.add_exception_handler(TachographError, answer_known)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server runs; the only answer without a token."""
        return {"status": "ok"}

    return app
