"""The store behind a server, ``https://host:port``: it may be away for hours and loses nothing.

This file writes; `remote_reading`, `remote_files` and `remote_following` do what their names say.
docs/reference/protocol.md is what they speak.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tachograph.backends.base import (
    Backend,
    Garbage,
    SupportsAbout,
    SupportsArtifacts,
    SupportsDigests,
    SupportsFollow,
    SupportsGC,
    SupportsListing,
    SupportsReduction,
    SupportsSQL,
)
from tachograph.backends.remote_errors import Dropped, Patience, Slow, document
from tachograph.backends.remote_files import RemoteFiles
from tachograph.backends.remote_following import RemoteFollowing
from tachograph.backends.remote_http import Connection
from tachograph.backends.remote_pace import Pace, cut
from tachograph.backends.remote_reading import RemoteReading
from tachograph.errors import Gap, StoreError, TooLarge
from tachograph.records import Batch
from tachograph.wire.encoding import MEDIA_TYPE, compress

if TYPE_CHECKING:
    import httpx

if importlib.util.find_spec("httpx") is None:  # imported much later, but missed now
    raise ModuleNotFoundError("No module named 'httpx'", name="httpx")

GREETING = Patience(connect=5.0, silence=10.0, total=15.0)
WRITING = Patience(connect=5.0, silence=15.0, total=30.0)
LONGEST_INTERVAL = 300.0
"""Seconds between batches, whatever a server wishes for."""

_ANSWER_BYTES = 1 << 16
_HEADERS = {"Content-Type": MEDIA_TYPE, "Content-Encoding": "deflate"}


@functools.cache
def _pace_of(url: str) -> Pace:
    """What was learnt of a server outlives a connection: after a failure there is a new one."""
    return Pace(size=1 << 20, least=1 << 14, most=8 << 20, seconds=1.0)


class RemoteBackend(RemoteReading, RemoteFiles, RemoteFollowing):
    """A store that a server keeps.

    Parameters
    ----------
    url : str
        ``https://host:port``; a path before the routes is allowed.
    create : bool, default False
        False asks the server at once whether it is there and takes the token; True asks nothing,
        so that a training may start while the server is away.
    client : httpx.Client, optional
        Ask through it, for example one that calls an application in this process; it is not
        closed. By default one is made for the first request.

    Raises
    ------
    StoreError
        With `create` false: the server cannot be reached, for the reason that is given.
    AccessDenied
        With `create` false: there is no token, or not the right one.

    Notes
    -----
    The token comes from `tachograph.security.credentials.find_token`, and again from there once
    the server has refused it.
    """

    first_interval = 1.0

    def __init__(
        self, url: str, *, create: bool = False, client: httpx.Client | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.longest_interval = self.first_interval
        self._connection = Connection(self.url, client)
        self._pace = _pace_of(self.url)
        self.batch_bytes = self._pace.size
        if not create:
            self.about()

    def write(self, batch: Batch) -> int:
        """Send a batch, in pieces where it is large, and return the number expected next.

        Raises
        ------
        Gap
            The batch starts behind the record expected next.
        StoreError
            The server did not take it, or part of it; the same batch may be sent again. Busy says
            when, AccessDenied that a token is missing.
        """
        piece, payload = cut(batch, self._pace.size)
        if piece.next < batch.next:  # an attempt before this one may have brought a part there
            batch = batch.since(self._send(*cut(Batch(batch.writer, batch.first, batch.first), 1)))
            piece, payload = cut(batch, self._pace.size)
        while True:
            try:
                expected = self._send(piece, payload)
                if max(expected, piece.next) >= batch.next:
                    return expected
                batch = batch.since(max(expected, piece.next))
            except TooLarge as error:
                self._pace.refused(len(payload))
                if piece.next - piece.first <= 1:
                    raise StoreError(f"record {piece.first} of {batch.writer}: {error}") from error
            finally:
                self.batch_bytes = self._pace.size
            piece, payload = cut(batch, self._pace.size)

    def _send(self, batch: Batch, payload: bytes) -> int:
        started = time.monotonic()
        try:
            response = self._connection.ask(
                "POST",
                "/batches",
                patience=WRITING,
                most=_ANSWER_BYTES,
                also=(409,),
                headers=_HEADERS,
                content=compress(payload),
            )
        except (Slow, Dropped):
            self._pace.failed(len(payload))
            raise
        answer = document(response)
        if response.status_code == 409:
            raise Gap(batch.writer, self._number(answer.get("error"), "expected"), batch.first)
        self._pace.took(len(payload), time.monotonic() - started)
        if isinstance(interval := answer.get("interval"), int | float):
            self.longest_interval = min(max(self.first_interval, interval), LONGEST_INTERVAL)
        return self._number(answer, "next")

    def _number(self, answer: Any, name: str) -> int:
        found = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(found, int) or isinstance(found, bool):
            raise StoreError(f"{self.url} answers without {name!r}: is it a Tachograph server?")
        return found

    def about(self) -> dict[str, Any]:
        """What the server says of itself; `time` is its clock (µs), to the second."""
        answer = self._connection.ask("GET", "", patience=GREETING)
        said = answer.headers.get("Date")
        return document(answer) | {"time": None if said is None else _microseconds(said)}

    def gc(self, *, dry_run: bool = True) -> Garbage:
        """Find, and unless `dry_run` free, the rows and files of deleted runs."""
        answer = document(self._post("/gc", {"dry_run": dry_run}))
        return Garbage(
            tuple(answer["runs"]), answer["points"], tuple(answer["artifacts"]), answer["bytes"]
        )

    def close(self) -> None:
        """End all requests, also those of other threads. A second call does nothing."""
        self._connection.close()


def _microseconds(date: str) -> int | None:
    try:
        return round(parsedate_to_datetime(date).timestamp() * 1e6)
    except ValueError:
        return None


if TYPE_CHECKING:

    def _conforms(
        backend: RemoteBackend,
    ) -> tuple[
        Backend,
        SupportsSQL,
        SupportsArtifacts,
        SupportsGC,
        SupportsListing,
        SupportsReduction,
        SupportsDigests,
        SupportsFollow,
        SupportsAbout,
    ]:
        return (backend,) * 9
