"""The application: what a server holds while it runs, and its routes put together.

Knows the parts by their names; each route stands in a file of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from tachograph import __version__
from tachograph.errors import TachographError
from tachograph.server import (
    describing,
    downloads,
    following,
    monitoring,
    querying,
    reading,
    uploads,
    writing,
)
from tachograph.server.answers import answer_http, answer_invalid
from tachograph.server.envelope import Envelope
from tachograph.server.following import Followers
from tachograph.server.inbox import Inbox
from tachograph.server.limits import Intake
from tachograph.server.monitoring import Metrics
from tachograph.server.ownership import Ownership
from tachograph.server.readers import Readers
from tachograph.server.settings import ServerSettings
from tachograph.server.tokens import Tokens
from tachograph.server.uploads import Uploads

_CHORES_SECONDS = 60.0
_log = logging.getLogger("tachograph.server")

_ROUTES = (writing, uploads, downloads, reading, querying, following, describing, monitoring)
_AS_THEY_ARE = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/octet-stream")  # never compressed


@dataclass(slots=True)
class Server:
    """What the routes share; `request.app.state.server`.

    Attributes
    ----------
    settings : ServerSettings
    tokens : Tokens
    inbox : Inbox
        What is received, on its way into the stores.
    readers : Readers
        The first store, lent to those who read.
    ownership : Ownership
        Whose runs may be written with which token.
    uploads : Uploads
        Files on their way in.
    followers : Followers
    intake : Intake
        What requests hold, and what tokens have used.
    metrics : Metrics
    stopping : bool
        The server ends: whoever follows a run is sent away.
    """

    settings: ServerSettings
    tokens: Tokens
    inbox: Inbox
    readers: Readers
    ownership: Ownership
    uploads: Uploads
    followers: Followers
    intake: Intake
    metrics: Metrics
    stopping: bool = False

    @classmethod
    def open(cls, settings: ServerSettings) -> Server:
        """Open everything; ConfigError or StoreError where that cannot be."""
        tokens = Tokens(settings.folder)
        inbox = Inbox(settings.stores, settings.folder)
        readers = Readers(inbox, settings.stores[0], settings.limits.answer_rows)
        intake = Intake(settings.limits)
        owners = Ownership(inbox, readers)
        metrics = Metrics()
        metrics.show_inbox(inbox)
        files = Uploads(settings.stores, settings.folder / "uploads")
        return cls(settings, tokens, inbox, readers, owners, files, Followers(), intake, metrics)

    def close(self) -> None:
        """Bring what was received into the stores, and let go of everything."""
        self.uploads.close()
        self.readers.close()
        self.inbox.close()
        self.note_used()

    def note_used(self) -> None:
        """Write down when tokens were last used; a disk that is full does not matter here."""
        try:
            self.tokens.note_used()
        except (OSError, TachographError) as error:
            _log.warning("when tokens were used is not written down: %s", error)


async def _do_chores(server: Server) -> None:
    while True:
        await asyncio.sleep(_CHORES_SECONDS)
        await asyncio.to_thread(server.note_used)


def make_app(settings: ServerSettings) -> FastAPI:
    """The application of a server; its stores are opened when it starts, and closed after it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server = app.state.server = Server.open(settings)
        chores = asyncio.create_task(_do_chores(server))
        try:
            yield
        finally:
            chores.cancel()
            await asyncio.to_thread(server.close)

    app = FastAPI(
        title="Tachograph",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # `describing` says more, and its page needs no scripts from elsewhere
        redirect_slashes=False,
    )
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_middleware(
        GZipMiddleware, minimum_size=1024, compresslevel=1, exclude_content_types=_AS_THEY_ARE
    )
    app.add_middleware(Envelope)  # added last: the outermost
    return app
