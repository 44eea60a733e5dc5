"""One server over HTTP: a connection that is made when it is needed, and its token.

Knows no table and no batch; `remote_errors` knows what can go wrong. httpx is imported by the first
request, so that a start of a training does without.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tachograph.addresses import is_loopback
from tachograph.backends.remote_errors import (
    PROTOCOL,
    VERSION_HEADER,
    Closed,
    Dropped,
    Patience,
    check_version,
    explained,
    foreign,
    read_up_to,
    refusal,
)
from tachograph.errors import StoreError

if TYPE_CHECKING:
    import httpx

_PIECE = 1 << 16


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
        most : int, optional
            Bytes of the answer; StoreError where it has more.
        **parts
            As for `stream`.
        """
        try:
            return self._whole(method, path, **parts)
        except Dropped:
            return self._whole(method, path, **parts)

    def _whole(
        self, method: str, path: str, *, most: int | None = None, **parts: Any
    ) -> httpx.Response:
        with self.stream(method, path, **parts) as response:
            if most is not None:
                return _read_short(response, most)
            response.read()
            return response

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        patience: Patience,
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
                    check_version(self.url, response)
                    if not response.is_success and response.status_code not in also:
                        raise refusal(self.url, response)
                    yield response
            # An answer of unknown length ends where its connection does, also if we end that.
            if self._closed or time.monotonic() - started >= patience.total:
                raise httpx.ReadError("the answer was cut")
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._closed:  # httpx's after `close`
                raise
            if self._closed:
                raise Closed(f"{self.url} was closed") from error
            seconds = time.monotonic() - started
            raise explained(self.url, error, patience, seconds) from error

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
        sent = {VERSION_HEADER: str(PROTOCOL), **(headers or {}), **self._authorization()}
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
            trusted = _trusted() if parts.scheme == "https" else _nobody()
            try:
                self._client = httpx.Client(
                    verify=trusted,
                    # A token for this machine is not shown to a proxy on the way.
                    trust_env=not near,
                    # To pack what stays on this machine takes longer than to send it.
                    headers={"User-Agent": "tachograph"}
                    | ({"Accept-Encoding": "identity"} if near else {}),
                )
            except (ImportError, ValueError) as error:  # SOCKS, or no URL
                raise StoreError(f"the proxy of the environment cannot be used: {error}") from error
        return self._client

    def _authorization(self) -> dict[str, str]:
        from tachograph.security.credentials import find_token

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


def _read_short(response: httpx.Response, most: int) -> httpx.Response:
    """Read an answer that is short; another service may go on for ever."""
    import httpx

    body = read_up_to(response, most)
    if len(body) > most:
        raise foreign(response)
    headers = response.headers.copy()
    headers.pop("Content-Encoding", None)  # the body is decoded
    return httpx.Response(
        response.status_code, headers=headers, content=body, request=response.request
    )


def _in_pieces(content: bytes) -> Iterator[bytes]:
    """A body that httpx takes bit by bit.

    Its requests and answers refer to each other, so they live until the garbage collector comes
    by: with the whole body in them these would be the last hundred megabytes of a large file.
    """
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Whom the environment (SSL_CERT_FILE, SSL_CERT_DIR), this system or certifi trusts."""
    import httpx

    try:
        context = httpx.create_ssl_context()
        context.load_default_certs()
    except OSError as error:
        named = os.environ.get("SSL_CERT_FILE")
        raise StoreError(
            f"SSL_CERT_FILE names no file of certificates: {named!r} ({error})"
        ) from error
    return context


@functools.cache
def _nobody() -> ssl.SSLContext:
    """For http://, where there is no TLS: quickly made, and no certificate would be taken."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
