"""Files that a server keeps by their content: sent in pieces, fetched, and checked on the way.

Knows files and digests; `remote_http` knows how to ask.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from tachograph.backends.remote_errors import Dropped, Patience, Slow, document
from tachograph.backends.remote_http import Connection
from tachograph.backends.remote_pace import Pace
from tachograph.errors import StoreError
from tachograph.wire.tables import JSON, table_from_json

if TYPE_CHECKING:
    import httpx

SENDING = Patience(connect=5.0, silence=30.0, total=120.0)
"""For a piece of a file."""

FETCHING = Patience(connect=5.0, silence=60.0, total=86_400.0)
"""For a whole file."""

_CHUNK = 1 << 20
_TRIES = 3  # requests in a row that bring nothing forward
_OFFSET = "Upload-Offset"


class RemoteFiles:
    """The artifacts of a store behind a server."""

    _connection: Connection

    def put_artifact(self, path: Path, sha256: str) -> str:
        """Send a file, once per content, checked by its digest; return its URI.

        A transfer that was cut goes on where the server has got to, also in another process.

        Raises
        ------
        StoreError
            The file has another digest, cannot be read, or the server does not take it.
        """
        try:
            with path.open("rb") as file:
                return _Upload(self._connection, file, path, sha256).run()
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"cannot send {path}: {error}") from error

    def open_artifact(self, sha256: str) -> BinaryIO:
        """Fetch a file into a temporary one and open that; StoreNotFound where there is none."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it is the caller's
        try:
            self._fetch(sha256, file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return cast(BinaryIO, file)

    def list_artifacts(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of every kept file."""
        response = self._connection.ask(
            "GET", "/artifacts", patience=SENDING, headers={"Accept": JSON}
        )
        found = table_from_json(response.content)
        yield from zip(found["sha256"], found["bytes"], strict=True)

    def _fetch(self, sha256: str, file: IO[bytes]) -> None:
        digest = hashlib.sha256()
        tries = 0
        while True:
            start = file.tell()
            headers = {"Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            try:
                with self._connection.stream(
                    "GET", f"/artifacts/{sha256}", patience=FETCHING, headers=headers
                ) as answer:
                    if start and answer.status_code != 206:  # all of it once more
                        file.seek(0)
                        file.truncate()
                        digest = hashlib.sha256()
                    for chunk in answer.iter_bytes(_CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
                break
            except (Slow, Dropped):
                tries = 1 if file.tell() > start else tries + 1
                if tries == _TRIES:
                    raise
        if digest.hexdigest() != sha256:
            raise StoreError(
                f"{self._connection.url} gave a file with the digest {digest.hexdigest()} for"
                f" {sha256}"
            )


class _Upload:
    """One file on its way to the server.

    Parameters
    ----------
    connection : Connection
    file : binary file
    path : Path
        Its name, for messages.
    sha256 : str
    """

    def __init__(self, connection: Connection, file: IO[bytes], path: Path, sha256: str) -> None:
        self._connection = connection
        self._file = file
        self._path = path
        self._route = f"/artifacts/{sha256}"
        self._size = path.stat().st_size
        self._pace = Pace(size=1 << 20, least=1 << 14, most=4 << 20, seconds=1.0)

    def run(self) -> str:
        """Send what the server does not have; return the URI."""
        offset, tries = self._server_offset(), 0
        while True:
            before = offset
            try:
                answer = self._send_from(offset)
            except (Slow, Dropped):
                if tries == _TRIES:
                    raise
                offset = self._server_offset()  # it keeps what came of a piece that was cut
            else:
                if answer.status_code in (200, 201):
                    return str(
                        document(answer).get("uri", f"{self._connection.url}/v1{self._route}")
                    )
                offset = self._told(answer)
            tries = 0 if offset > before else tries + 1
            if tries > _TRIES:
                raise StoreError(f"{self._connection.url} takes no more of {self._path}")

    def _server_offset(self) -> int:
        """How many bytes the server has; all of them where it has the file."""
        answer = self._connection.ask("HEAD", self._route, patience=SENDING, also=(404,))
        return self._size if answer.is_success else self._told(answer)

    def _send_from(self, offset: int) -> httpx.Response:
        self._file.seek(offset)
        piece = self._file.read(self._pace.size)
        headers = {_OFFSET: str(offset)}
        if offset + len(piece) < self._size:
            headers["Upload-Complete"] = "?0"
        started = time.monotonic()
        try:
            answer = self._connection.ask(
                "PUT", self._route, patience=SENDING, also=(409,), headers=headers, content=piece
            )
        except (Slow, Dropped):
            self._pace.failed(len(piece))
            raise
        self._pace.took(len(piece), time.monotonic() - started)
        return answer

    def _told(self, answer: httpx.Response) -> int:
        try:
            return min(int(answer.headers.get(_OFFSET, 0)), self._size)
        except ValueError:
            raise StoreError(f"{self._connection.url} does not say how much it has") from None
