"""Tokens of a server: made, listed, revoked, and looked up by their digest.

Knows a file and no route.
"""

from __future__ import annotations

from dataclasses import dataclass

RIGHTS = ("read", "write", "admin")


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
    """

    name: str
    rights: frozenset[str]
    projects: tuple[str, ...] | None = None

    def may(self, right: str) -> bool:
        """Whether it has a right."""
        return right in self.rights or "admin" in self.rights

    def covers(self, project: str | None) -> bool:
        """Whether it has its rights in a project."""
        return self.projects is None or "admin" in self.rights or project in self.projects
