"""Tokens of a server: made, listed, revoked, and looked up by their digest.

Knows a file and no route. A token is 32 random bytes, so a plain SHA-256 keeps it: a slow hash
protects what can be guessed, and this cannot. The file is read again whenever it has changed, so
that a revocation holds from the next request on, in a server that runs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tachograph.errors import ConfigError
from tachograph.security.private_files import edited, write_private

RIGHTS = ("read", "write", "admin")
PREFIX = "tacho_"
"""Every token begins with it, so that scanners of secrets recognise one."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token may do.

    Attributes
    ----------
    name : str
        Of the token, for people and logs.
    rights : frozenset of str
        Of `RIGHTS`; admin may do everything in every project.
    projects : tuple of str or None
        Whose runs; None is all, also runs without a project.
    id : str
        Of the token; its share of the limits is counted under it.
    """

    name: str
    rights: frozenset[str]
    projects: tuple[str, ...] | None = None
    id: str = ""

    def may(self, right: str) -> bool:
        """Whether it has a right."""
        return right in self.rights or "admin" in self.rights

    def covers(self, project: str | None) -> bool:
        """Whether it has its rights in a project."""
        return self.covers_all or project in (self.projects or ())

    @property
    def covers_all(self) -> bool:
        """Whether it has its rights in every project, and in runs without one."""
        return self.projects is None or "admin" in self.rights


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: everything but the token itself.

    Attributes
    ----------
    id : str
        Eight hexadecimal digits.
    name : str
    sha256 : str
        Of the token, in hexadecimal digits.
    rights : tuple of str
    projects : tuple of str or None
    created : float
        Seconds since 1970.
    expires : float or None
    used : float or None
        When it was last used, to about ten minutes.
    """

    id: str
    name: str
    sha256: str
    rights: tuple[str, ...]
    projects: tuple[str, ...] | None
    created: float
    expires: float | None = None
    used: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it has not expired."""
        return self.expires is None or now < self.expires

    def grant(self) -> Grant:
        """What it may do."""
        return Grant(self.name, frozenset(self.rights), self.projects, self.id)


class Tokens:
    """The tokens of a server, in a file that its owner alone may read.

    Parameters
    ----------
    folder : Path
        Of the server; the file in it is ``tokens.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        self._stamp: tuple[int, ...] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._used: dict[str, float] = {}

    # ------------------------------------------------------------------------ asking

    def find(self, secret: str) -> Grant | None:
        """What a token may do; None where there is none like it, or it has expired.

        Raises
        ------
        ConfigError
            The file cannot be read: then nobody is let in.
        """
        digest, now, found = _digest(secret), time.time(), None
        for token in self.all():
            # All are compared, each in constant time: how long it takes says nothing.
            if hmac.compare_digest(token.sha256, digest) and token.is_valid(now):
                found = token
        if found is None:
            return None
        self._used[found.id] = now
        return found.grant()

    def all(self) -> tuple[Token, ...]:
        """Every token, as the file has them now."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._tokens = None, ()
            return ()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._tokens = self._read()
            self._stamp = stamp
        return self._tokens

    def _read(self) -> tuple[Token, ...]:
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            return tuple(_from_json(entry) for entry in document["tokens"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"the tokens in {self.path} cannot be read: {error}") from error

    # ------------------------------------------------------------------------ editing

    def create(
        self,
        name: str,
        *,
        rights: Sequence[str] = ("read", "write"),
        projects: Sequence[str] | None = None,
        expires: float | None = None,
    ) -> str:
        """Make a token, and return it: this is the only time that anyone sees it.

        Parameters
        ----------
        name : str
            For people and logs: 1 to 64 letters, digits or ``._@-``, which no other token has.
        rights : sequence of str
            Of `RIGHTS`.
        projects : sequence of str, optional
            Whose runs it is for; all by default.
        expires : float, optional
            Seconds since 1970; never by default.

        Raises
        ------
        ConfigError
            The name is taken or not usable, or a right does not exist.
        """
        _check(name, rights)
        secret = PREFIX + secrets.token_urlsafe(32)
        with edited(self.path):
            tokens = self._read()
            if any(name in (token.name, token.id) for token in tokens):
                raise ConfigError(f"there is a token {name!r} already; revoke it, or take another")
            made = Token(
                id=secrets.token_hex(4),
                name=name,
                sha256=_digest(secret),
                rights=tuple(right for right in RIGHTS if right in rights),
                projects=None if projects is None else tuple(projects),
                created=time.time(),
                expires=expires,
            )
            self._write((*tokens, made))
        return secret

    def revoke(self, name: str) -> Token:
        """Remove the token with that name or id; it stops working at once.

        Raises
        ------
        ConfigError
            There is none.
        """
        with edited(self.path):
            tokens = self._read()
            gone = next((token for token in tokens if name in (token.name, token.id)), None)
            if gone is None:
                known = ", ".join(token.name for token in tokens) or "none"
                raise ConfigError(f"there is no token {name!r} in {self.path}; there is: {known}")
            self._write(tuple(token for token in tokens if token is not gone))
        return gone

    def note_used(self) -> None:
        """Write down when tokens were last used, where that is more than some minutes ago."""
        used, self._used = self._used, {}
        if not used:
            return
        with edited(self.path):
            tokens = self._read()
            fresh = tuple(_used(token, used.get(token.id)) for token in tokens)
            if fresh != tokens:
                self._write(fresh)

    def _write(self, tokens: Sequence[Token]) -> None:
        entries = [asdict(token) for token in tokens]
        write_private(self.path, json.dumps({"version": 1, "tokens": entries}, indent=1))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PRECISION = 600.0  # seconds; a file written for each request would cost more than it tells


def _used(token: Token, when: float | None) -> Token:
    if when is None or when - (token.used or 0.0) < _PRECISION:
        return token
    return replace(token, used=when)


def _check(name: str, rights: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a token's name has 1 to 64 letters, digits, '.', '_', '@' or '-', not {name!r:.80}"
        )
    for right in rights:
        if right not in RIGHTS:
            raise ConfigError(f"there is no right {right!r}; rights are {', '.join(RIGHTS)}")


def _from_json(entry: dict[str, Any]) -> Token:
    projects = entry["projects"]
    lists = {
        "rights": tuple(entry["rights"]),
        "projects": None if projects is None else tuple(projects),
    }
    return Token(**(entry | lists))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
