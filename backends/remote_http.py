"""One server over HTTP: a connection that is made when it is needed, its token, its errors.

Knows the errors of docs/reference/protocol.md, no table and no batch. httpx is imported by the
first request, so that a start of a training does without.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from tachograph.addresses import is_loopback
from tachograph.errors import (
    AccessDenied,
    Busy,
    Full,
    QueryError,
    RunNotFound,
    StoreError,
    StoreNotFound,
    StoreTooNew,
    TooLarge,
)

if TYPE_CHECKING:
    import httpx

PROTOCOL = 1
"""Version of the protocol that this client speaks."""

_HEADER = "Tachograph-Protocol"
_ERROR_BYTES = 1 << 16  # of the body of an error; whoever sends more is no server of ours
_PIECE = 1 << 16
_BUSY = (429, 502, 503, 504, 507)  # 502 and 504 come from a proxy whose server is away


class Slow(StoreError):
    """A request took too long; a smaller one may not."""


class Dropped(StoreError):
    """The connection ended before the answer was there."""


class Closed(StoreError):
    """The store was closed, by this thread or, while it asked, by another one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may take, in seconds.

    Attributes
    ----------
    connect : float
        Until there is a connection.
    silence : float
        Between two signs of life.
    total : float
        Altogether, however many signs of life there are.
    """

    connect: float
    silence: float
    total: float


READING = Patience(connect=5.0, silence=60.0, total=600.0)


class Connection:
    """Asks one server; used by one thread at a time, and closed by any.

    Parameters
    ----------
    url : str
        Address of the server, without a slash at its end.
    client : httpx.Client, optional
        Ask through it, and leave it open; by default one is made for the first request.
    """

    def __init__(self, url: str, client: httpx.Client | None = None) -> None:
        self.url = url
        self._given = client
        self._client = client
        self._closed = False
        self._token: str | None = None  # looked up for the first request, and again after a 401
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def ask(self, method: str, path: str, **parts: Any) -> httpx.Response:
        """One request and its whole answer.

        It is sent once more where the connection drops, as one does that was kept too long:
        whatever this protocol has may be repeated.

        Parameters
        ----------
        method, path : str
            Such as 'GET', and what follows ``/v1``.
        **parts
            As for `stream`.
        """
        try:
            return self._whole(method, path, **parts)
        except Dropped:
            return self._whole(method, path, **parts)

    def _whole(self, method: str, path: str, **parts: Any) -> httpx.Response:
        with self.stream(method, path, **parts) as response:
            response.read()
            return response

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        patience: Patience = READING,
        also: Container[int] = (),
        headers: Mapping[str, str] | None = None,
        params: Any = None,
        content: bytes | None = None,
    ) -> Iterator[httpx.Response]:
        """One request, and its answer as it comes.

        Parameters
        ----------
        patience : Patience
            How long it may take, the body of the `with` statement included.
        also : container of int
            Statuses beside 200 to 299 that are an answer rather than an error.
        headers, params, content
            Of the request.

        Raises
        ------
        StoreError
            There is no answer, or it says that the request was refused: of the kinds Slow,
            Dropped, Busy, AccessDenied, StoreNotFound and StoreTooNew where it is one of these.
        QueryError, TooLarge
            The server says so.
        """
        import httpx

        send = functools.partial(self._send, method, path, patience, headers, params, content)
        started = time.monotonic()
        try:
            with self._limited(patience.total):
                response = send()
                if response.status_code == 401 and self._has_new_token():
                    response.close()
                    response = send()
                with contextlib.closing(response):
                    self._check(response, also)
                    yield response
            # An answer of unknown length ends where its connection does, also if we end that.
            if self._closed or time.monotonic() - started >= patience.total:
                raise httpx.ReadError("the answer was cut")
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._closed:  # httpx's after `close`
                raise
            raise self._explained(error, time.monotonic() - started, patience) from error

    def close(self) -> None:
        """End all requests, also those of another thread."""
        self._closed = True
        self._abort()
        client, self._client = self._client, None
        if client is not None and client is not self._given:
            client.close()

    # ------------------------------------------------------------------ inside

    def _send(
        self,
        method: str,
        path: str,
        patience: Patience,
        headers: Mapping[str, str] | None,
        params: Any,
        content: bytes | None,
    ) -> httpx.Response:
        """Send a request; return when the head of its answer is there."""
        import httpx

        client = self._connect()
        sent = {_HEADER: str(PROTOCOL), **(headers or {}), **self._authorization()}
        if content is not None:
            sent["Content-Length"] = str(len(content))
        request = client.build_request(
            method,
            f"{self.url}/v1{path}",
            headers=sent,
            params=params,
            content=None if content is None else _in_pieces(content),
            timeout=httpx.Timeout(patience.silence, connect=patience.connect),
            extensions={"trace": self._note_socket},
        )
        return client.send(request, stream=True, follow_redirects=False)

    def _connect(self) -> httpx.Client:
        if self._closed:
            raise Closed(f"{self.url} was closed")
        if self._client is None:
            import httpx

            parts = urlsplit(self.url)
            near = is_loopback(parts.hostname or "")
            self._client = httpx.Client(
                verify=_trusted() if parts.scheme == "https" else _nobody(),
                # A token for this machine is not shown to a proxy on the way.
                trust_env=not near,
                # To pack what stays on this machine takes longer than to send it.
                headers={"User-Agent": "tachograph"}
                | ({"Accept-Encoding": "identity"} if near else {}),
            )
        return self._client

    def _authorization(self) -> dict[str, str]:
        from tachograph.credentials import find_token

        if self._token is None:
            self._token = find_token(self.url)
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def _has_new_token(self) -> bool:
        """Whether there is another one than the server has just refused; it is used from now on."""
        refused, self._token = self._token, None
        self._authorization()
        return self._token != refused

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        """Of each connection that httpx makes, and once more where TLS is put on top of it."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._sockets.add(info["return_value"].get_extra_info("socket"))

    def _abort(self) -> None:
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown, which takes the TLS away from under a thread that reads.
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """End what takes longer. httpx's own limits begin anew with each byte that comes."""
        timer = threading.Timer(seconds, self._abort)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and waits for nobody
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    # ------------------------------------------------------------------ errors

    def _check(self, response: httpx.Response, also: Container[int]) -> None:
        spoken = response.headers.get(_HEADER)
        if spoken is not None and str(PROTOCOL) not in spoken.replace(",", " ").split():
            raise self._other_version(spoken)
        if not response.is_success and response.status_code not in also:
            self._refused(response)

    def _refused(self, response: httpx.Response) -> NoReturn:
        """Raise what an error of the protocol means."""
        status, said = response.status_code, _said(response)
        code, message = said.get("code"), f"{self.url}: {said.get('message')}"
        if response.is_redirect:
            raise StoreError(
                f"{self.url} sends its clients on to {response.headers.get('Location')}: a token"
                " goes only where it belongs to, so write that address where this one stands"
            )
        if status == 401:
            raise AccessDenied(
                f"{message}; set TACHOGRAPH_TOKEN, or run: tachograph login {self.url}"
            )
        if status == 403:
            raise AccessDenied(message)
        if status in _BUSY:
            raise (Full if status == 507 else Busy)(message, _retry_after(response))
        if code == "protocol":
            raise self._other_version(response.headers.get(_HEADER, "another version"))
        if code == "query":
            raise QueryError(said["message"])
        if code == "not_found":
            of_run = "/v1/runs/" in response.request.url.path
            raise RunNotFound(said["message"]) if of_run else StoreNotFound(message)
        raise {408: Slow, 413: TooLarge}.get(status, StoreError)(message)

    def _other_version(self, spoken: str) -> StoreTooNew:
        return StoreTooNew(
            f"{self.url} speaks version {spoken} of the protocol, this client {PROTOCOL}:"
            " update the older one of both"
        )

    def _explained(self, error: Exception, seconds: float, patience: Patience) -> StoreError:
        """What went wrong on the way, where, and what to do."""
        import httpx

        causes = [*_causes(error)]
        if self._closed:
            return Closed(f"{self.url} was closed")
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return StoreError(
                    f"the certificate of {self.url} is not trusted ({cause.verify_message}): set"
                    " SSL_CERT_FILE to the file of the authority that signed it"
                )
            if isinstance(cause, socket.gaierror):
                host = urlsplit(self.url).hostname
                return StoreError(f"{self.url}: there is no host {host!r} ({cause.strerror})")
            if isinstance(cause, ConnectionRefusedError):
                return StoreError(
                    f"nothing listens at {self.url}: start it there with `tachograph serve`, or"
                    " correct the address"
                )
        if isinstance(error, httpx.ConnectTimeout):
            return StoreError(
                f"no answer from {self.url} within {patience.connect:g} s: the machine is off, the"
                " address is wrong, or a firewall is between"
            )
        if seconds >= patience.total:
            return Slow(f"{self.url} was not done within {patience.total:g} s")
        if isinstance(error, httpx.TimeoutException):
            return Slow(f"{self.url} said nothing for {patience.silence:g} s")
        kind = StoreError if isinstance(error, httpx.ConnectError) else Dropped
        return kind(f"{self.url} does not answer: {causes[-1] or error}")


def document(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; StoreError where it is none."""
    try:
        found = json.loads(response.content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(
            f"{response.request.url} answers as no Tachograph server does: is another service at"
            " that address?"
        )
    return found


def to_json(value: Any) -> bytes:
    """A value as JSON; QueryError where JSON cannot say it."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise QueryError(f"this cannot be sent to a server: {error}") from error


def _in_pieces(content: bytes) -> Iterator[bytes]:
    """A body that httpx takes bit by bit.

    Its requests and answers refer to each other, so they live until the garbage collector comes
    by: with the whole body in them these would be the last hundred megabytes of a large file.
    """
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


def _said(response: httpx.Response) -> dict[str, Any]:
    """Code and message of an error, whoever sent it."""
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _ERROR_BYTES:
            break
    try:
        error = json.loads(body)["error"]
        return {**error, "message": f"{error['message']}"[:500]}
    except (ValueError, KeyError, TypeError):
        hint = "; is another service at that address?" if response.status_code == 404 else ""
        return {"message": f"HTTP status {response.status_code} {response.reason_phrase}{hint}"}


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers["Retry-After"]), 0.0), 3600.0)
    except (KeyError, ValueError):  # not said, or said as a date
        return 5.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Whom the environment (SSL_CERT_FILE, SSL_CERT_DIR), this system or certifi trusts."""
    import httpx

    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


@functools.cache
def _nobody() -> ssl.SSLContext:
    """For http://, where there is no TLS: quickly made, and no certificate would be taken."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
