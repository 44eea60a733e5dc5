"""Commands that keep the token of a server for whoever records to it, and forget it."""

from __future__ import annotations

import getpass
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from tachograph import registry
from tachograph.addresses import is_loopback
from tachograph.errors import ConfigError
from tachograph.security import credentials

ServerArgument = Annotated[
    str, typer.Argument(metavar="URL", help="Address of the server, such as https://host:8765.")
]
_SECONDS = 10.0


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(login)
    app.command()(logout)


def login(url: ServerArgument) -> None:
    """Keep the token of a server: in the keyring, or else in a file that only you may read.

    Asks for the token, or reads it from stdin where that is no terminal.
    """
    address = _address(url)
    given = getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline()
    token = credentials.checked(given, "what was given")
    unreachable = _try(address, token)
    place = credentials.save_token(address, token)
    checked = f"not checked, because {unreachable}" if unreachable else "the server knows it"
    print(f"saved the token of {address} in {place} ({checked})")


def logout(url: ServerArgument) -> None:
    """Forget the token of a server; on the server it stays valid until it is revoked there."""
    address = _address(url)
    if not credentials.forget_token(address):
        raise ConfigError(f"no token of {address} is kept here")
    print(f"forgot the token of {address}")


def _address(url: str) -> str:
    address = registry.resolve_url(url, Path(), bare_path=False)
    if not registry.is_server(address):
        raise ConfigError(f"{address} is no server; only https:// and http:// have tokens")
    return address


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token is for one address, and follows nobody to another."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect; it comes out as an error of HTTP."""


def _try(address: str, token: str) -> str | None:
    """Show the token to its server; returns why that was not possible, None where it is known.

    Raises
    ------
    ConfigError
        The server does not know the token, or there is something else at that address.
    """
    request = urllib.request.Request(f"{address}/v1", headers={"Authorization": f"Bearer {token}"})
    handlers: list[Any] = [_NoRedirects]
    if is_loopback(urlsplit(address).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))  # this machine is asked, not a proxy
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=_SECONDS) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise ConfigError(f"{address} does not know this token; nothing was saved") from None
        return f"{address} answered {error.code}"
    except (OSError, urllib.error.URLError) as error:
        return f"{address} cannot be reached ({getattr(error, 'reason', error)})"
    if "Tachograph-Protocol" not in headers:
        raise ConfigError(f"what answers at {address} is no Tachograph; nothing was saved")
    return None
