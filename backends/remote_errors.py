"""What can go wrong between a client and a server, as errors that say where and what to do.

Knows the errors of docs/reference/protocol.md, and answers and exceptions of httpx.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
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
    TachographError,
    TooLarge,
)

if TYPE_CHECKING:
    import httpx

PROTOCOL = 1
"""Version of the protocol that this client speaks."""

VERSION_HEADER = "Tachograph-Protocol"

_ERROR_BYTES = 1 << 16  # of the body of an error; whoever sends more is no server of ours
_BUSY = (429, 502, 503, 504)  # 502 and 504 come from a proxy whose server is away
_LONGEST_WAIT = 3600
_AWAY = "; a proxy answers, and the server behind it is away"
_HINTS = {404: "; is another service at that address?", 502: _AWAY, 504: _AWAY}
_UNKNOWN_AUTHORITY = ": set SSL_CERT_FILE to the file of the authority that signed it"
_OTHER_NAME = ": write the address with a name that the certificate has"
_ADVICE = {
    9: ": it is not valid yet, or the clock of this machine is late",
    10: ": renew it there, and start the server again",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
"""By the number that OpenSSL gives to what is wrong with a certificate."""


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


# ---------------------------------------------------------------------------- answers


def refusal(url: str, response: httpx.Response) -> TachographError:
    """What an answer means that is an error."""
    status, said = response.status_code, _said(response)
    message = f"{url}: {said['message']}"
    if response.is_redirect:
        return StoreError(
            f"{url} sends its clients on to {response.headers.get('Location')}: a token goes only"
            " where it belongs to, so write that address where this one stands"
        )
    if status == 401:
        return AccessDenied(f"{message}; set TACHOGRAPH_TOKEN, or run: tachograph login {url}")
    if status in _BUSY:
        return Busy(message, _retry_after(response))
    if status == 507:
        return Full(message, _retry_after(response))
    match said.get("code"):
        case "protocol":
            return _other_version(url, response.headers.get(VERSION_HEADER, "another"))
        case "query":
            return QueryError(said["message"])
        case "not_found" if "/v1/runs/" in response.request.url.path:
            return RunNotFound(said["message"])
        case "not_found":
            return StoreNotFound(message)
    kinds = {403: AccessDenied, 408: Slow, 413: TooLarge}
    return kinds.get(status, StoreError)(message)


def check_version(url: str, response: httpx.Response) -> None:
    """Raise StoreTooNew where the server does not speak the version of this client."""
    spoken = response.headers.get(VERSION_HEADER)
    if spoken is not None and str(PROTOCOL) not in spoken.replace(",", " ").split():
        raise _other_version(url, spoken)


def document(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; StoreError where it is none."""
    try:
        found = json.loads(response.content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise foreign(response)
    return found


def foreign(response: httpx.Response) -> StoreError:
    """What an answer means that no server of ours gives."""
    return StoreError(
        f"{response.request.url} answers as no Tachograph server does: is another service at that"
        " address?"
    )


def read_up_to(response: httpx.Response, most: int) -> bytes:
    """The body of an answer; of a longer one a little more than so many bytes, and no end."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > most:
            break
    return bytes(body)


def _said(response: httpx.Response) -> dict[str, Any]:
    """Code and message of an error, whoever sent it."""
    try:
        error = json.loads(read_up_to(response, _ERROR_BYTES))["error"]
        # Line feeds stay: a filter is shown with its mistake. Nothing else may steer a terminal.
        text = "".join(
            char if char.isprintable() or char == "\n" else " " for char in str(error["message"])
        )
        return {**error, "message": text[:500]}
    except (ValueError, KeyError, TypeError):
        hint = _HINTS.get(response.status_code, "")
        return {"message": f"HTTP status {response.status_code} {response.reason_phrase}{hint}"}


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(max(int(response.headers["Retry-After"]), 0), _LONGEST_WAIT)
    except (KeyError, ValueError):  # not said, or said as a date
        return 5.0


def _other_version(url: str, spoken: str) -> StoreTooNew:
    return StoreTooNew(
        f"{url} speaks version {spoken} of the protocol, this client {PROTOCOL}: update the older"
        " one of both"
    )


# ---------------------------------------------------------------------------- no answer


def explained(url: str, error: Exception, patience: Patience, seconds: float) -> StoreError:
    """What went wrong on the way, where, and what to do.

    Parameters
    ----------
    url : str
        Of the server.
    error : Exception
        Of httpx.
    patience : Patience
        How long the request could take.
    seconds : float
        How long it took.
    """
    import httpx

    *_, last = causes = [*_causes(error)]
    proxy = _proxy_of(url)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreError(
                f"the certificate of {url} is not trusted ({cause.verify_message})"
                f"{_ADVICE.get(cause.verify_code, _UNKNOWN_AUTHORITY)}"
            )
        if isinstance(cause, socket.gaierror):
            host = proxy or urlsplit(url).hostname
            which = ", the proxy of the environment" if proxy else ""
            return StoreError(f"{url}: there is no host {host!r}{which} ({cause.strerror})")
        if isinstance(cause, ConnectionRefusedError):
            if proxy:
                return StoreError(
                    f"{url}: nothing listens at {proxy!r}, the proxy of the environment"
                )
            return StoreError(
                f"nothing listens at {url}: start it there with `tachograph serve`, or correct the"
                " address"
            )
    if isinstance(error, httpx.ConnectTimeout):
        return StoreError(
            f"no answer from {url} within {patience.connect:g} s: the machine is off, the address"
            " is wrong, or a firewall is between"
        )
    if seconds >= patience.total:
        return Slow(f"{url} was not done within {patience.total:g} s")
    if isinstance(error, httpx.TimeoutException):
        return Slow(f"{url} said nothing for {patience.silence:g} s")
    kind = StoreError if isinstance(error, httpx.ConnectError) else Dropped
    return kind(f"{url} does not answer: {last}")


def _proxy_of(url: str) -> str | None:
    """The host of the proxy that the environment sends requests for a server through."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    host, proxies = parts.hostname or "", getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or is_loopback(host) or proxy_bypass(host):
        return None
    try:
        return urlsplit(named if "://" in named else f"//{named}").hostname
    except ValueError:  # not used either, then
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
