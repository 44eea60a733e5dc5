"""Tokens of servers on the side of whoever records: where one is found, kept and forgotten.

A token belongs to an address (scheme, host and port) and is given for no other. It comes from the
environment variable ``TACHOGRAPH_TOKEN``, the keyring, or a file that its owner alone may read;
never from a config file or a URL, which are shared and written into records. Knows no store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from tachograph.errors import ConfigError
from tachograph.security.private_files import edited, others_may_read, write_private

VARIABLE = "TACHOGRAPH_TOKEN"
"""Environment variable that holds a token for whichever server is asked."""

SERVICE = "tachograph"
"""Under which the keyring keeps tokens."""

_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(r"[!-~]{8,1024}")  # what a header may hold
_PATIENCE = 5.0  # seconds; a locked keyring may ask a person who is not there

_T = TypeVar("_T")


def find_token(url: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The token for a server, from the first place that has one; see `locate_token`."""
    found = locate_token(url, environ)
    return None if found is None else found[0]


def locate_token(url: str, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """The token for a server, and where it was: a variable, 'the keyring' or a file.

    Parameters
    ----------
    url : str
        Of the server; path and query do not count.
    environ : mapping, optional
        Environment to read; `os.environ` by default.

    Raises
    ------
    ConfigError
        The variable holds no token, or others may read the file.
    """
    environ = os.environ if environ is None else environ
    if given := environ.get(VARIABLE, "").strip():
        return checked(given, VARIABLE), VARIABLE
    address, file = origin(url), tokens_file(environ)
    if kept := _from_keyring(address):
        return kept, "the keyring"
    kept = _read(file).get(address)
    return None if kept is None else (kept, str(file))


def save_token(url: str, token: str, environ: Mapping[str, str] | None = None) -> str:
    """Keep a token for a server; returns where: 'the keyring', or the path of the file."""
    address, token = origin(url), checked(token, "this")
    if _in_time(lambda: _to_keyring(address, token)):
        _remove(tokens_file(environ), address)  # or an old one would be left behind
        return "the keyring"
    path = tokens_file(environ)
    with edited(path):
        _write(path, _read(path) | {address: token})
    return str(path)


def forget_token(url: str, environ: Mapping[str, str] | None = None) -> bool:
    """Forget the token of a server wherever one is kept; whether there was one."""
    address = origin(url)
    had_key = bool(_in_time(lambda: _out_of_keyring(address)))
    return _remove(tokens_file(environ), address) or had_key


def origin(url: str) -> str:
    """Scheme, host and port of a URL, the port always said: what a token belongs to."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{parts.port or _PORTS.get(parts.scheme, 0)}"


def checked(token: str, what: str) -> str:
    """The token without white space around it; ConfigError where it cannot be one."""
    if not _TOKEN.fullmatch(token := token.strip()):
        raise ConfigError(
            f"{what} is no token: one has 8 to 1024 letters, digits or signs and no space"
        )
    return token


def tokens_file(environ: Mapping[str, str] | None = None) -> Path:
    """Where tokens are kept without a keyring: ``$XDG_CONFIG_HOME/tachograph/tokens.toml``."""
    given = (os.environ if environ is None else environ).get("XDG_CONFIG_HOME", "")
    # The specification of XDG_CONFIG_HOME says to ignore relative paths.
    home = Path(given) if os.path.isabs(given) else Path("~/.config").expanduser()
    return home / "tachograph" / "tokens.toml"


# ---------------------------------------------------------------------------- the file


def _read(path: Path) -> dict[str, str]:
    import tomllib

    try:
        if others_may_read(path):
            raise ConfigError(f"others may read the tokens in {path}; run: chmod 600 {path}")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # Not what the library says: it may quote the line.
        raise ConfigError(f"{path} cannot be read as TOML; see its lines or remove it") from None
    return {origin(url): checked(str(token), f"{path}: {url}") for url, token in document.items()}


def _write(path: Path, tokens: Mapping[str, str]) -> None:
    lines = [f"{json.dumps(address)} = {json.dumps(tokens[address])}\n" for address in tokens]
    head = "# Tokens of Tachograph servers; written by: tachograph login\n"
    write_private(path, head + "".join(lines))


def _remove(path: Path, address: str) -> bool:
    if not path.exists():
        return False
    with edited(path):
        tokens = _read(path)
        if tokens.pop(address, None) is None:
            return False
        _write(path, tokens)
    return True


# ---------------------------------------------------------------------------- the keyring


def _from_keyring(address: str) -> str | None:
    def ask() -> str | None:
        import keyring

        return keyring.get_password(SERVICE, address)

    return _in_time(ask)


def _to_keyring(address: str, token: str) -> bool:
    import keyring

    if keyring.get_keyring().priority < 1:  # keeps nothing, or in the clear
        return False
    keyring.set_password(SERVICE, address, token)
    return keyring.get_password(SERVICE, address) == token


def _out_of_keyring(address: str) -> bool:
    import keyring

    if keyring.get_password(SERVICE, address) is None:
        return False
    keyring.delete_password(SERVICE, address)
    return True


def _in_time(ask: Callable[[], _T]) -> _T | None:
    """What a keyring answers; None where there is none, it fails, or it does not answer.

    Its back ends talk to other programs, which may wait for a person, and raise what they like.
    """
    answers: list[_T] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            answers.append(ask())

    if find_spec("keyring") is None:
        return None
    thread = threading.Thread(target=run, name="tachograph-keyring", daemon=True)
    with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts no thread
        thread.start()
        thread.join(_PATIENCE)
    return answers[0] if answers else None
