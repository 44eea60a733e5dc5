"""Addresses of servers: their normal form, and whether they are this machine.

Knows no store and no HTTP.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from tachograph.errors import ConfigError

INSECURE = "TACHOGRAPH_INSECURE"
"""Environment variable that allows http:// to another machine where it is 1."""


def server_address(url: str, *, insecure: bool = False) -> str:
    """The address of a server without what two spellings of it may differ in.

    Parameters
    ----------
    url : str
        ``https://host:port/prefix``; the port and the prefix may be left out.
    insecure : bool, default False
        Also take ``http://`` for another machine.

    Raises
    ------
    ConfigError
        It names no host, holds more than an address, or would send the token in the clear.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # a port that is no number, half of a bracket
        raise ConfigError(f"{url!r} is not the address of a server: {error}") from error
    if not host or port == 0:
        raise ConfigError(f"{url!r} names no server, as https://tachograph.lab.example:8765 would")
    if parts.query or parts.fragment or any(map(str.isspace, url)):
        raise ConfigError(f"{url!r} is not the address of a server: nothing follows its path")
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ConfigError(
            f"{url} would send the token and the record unencrypted to {host}: write https://, or"
            f" set {INSECURE}=1 where the network itself is trusted"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path}".rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host (a name or an IP address) stays on this machine."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
