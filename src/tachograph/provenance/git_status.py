"""Which files of a work tree no commit holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tachograph.provenance.git_calls import GitError, ask, reason_of
from tachograph.security.secret_files import is_secret_file
from tachograph.security.texts import redact_text

_FEW = 50  # paths that git finds faster than it lists all
_OURS = ".tachograph"  # the folder that stores stand in by default

# Independent of what a user has configured for the eyes: one path, one entry.
_STATUS = (
    "status",
    "--porcelain=v2",
    "--branch",
    "-z",
    "--untracked-files=all",
    "--no-renames",
    "--ignore-submodules=none",
)


@dataclass
class Status:
    """What ``git status --porcelain=v2 --branch -z`` says."""

    listing: str
    commit: str | None = None
    branch: str | None = None
    upstream: str | None = None
    ahead: int | None = None
    changed: dict[str, str] = field(default_factory=dict)
    untracked: dict[str, None] = field(default_factory=dict)
    tracked: frozenset[str] | None = None  # where it was asked for

    def __post_init__(self) -> None:
        for entry in self.listing.split("\0"):
            kind, _, rest = entry.partition(" ")
            if kind == "#":
                self._head(rest)
            elif kind == "?" and _OURS not in rest.split("/"):
                self.untracked[rest] = None
            elif kind in _FIELDS_BEFORE_PATH:
                fields = rest.split(" ", _FIELDS_BEFORE_PATH[kind])
                self.changed[fields[-1]] = fields[0].replace(".", " ").strip()

    def _head(self, line: str) -> None:
        key, _, value = line.partition(" ")
        if key == "branch.oid" and value != "(initial)":
            self.commit = value
        elif key == "branch.head" and value != "(detached)":
            self.branch = value
        elif key == "branch.upstream":
            self.upstream = value
        elif key == "branch.ab":
            self.ahead = int(value.split(" ")[0])


_FIELDS_BEFORE_PATH = {"1": 7, "u": 9}


def status_of(root: Path) -> Status:
    """The state of a whole work tree; GitError where git cannot say."""
    return Status(ask(root, *_STATUS))


def uncommitted(folder: str | os.PathLike[str]) -> str | None:
    """Why no commit holds the code around a folder; None where one does."""
    try:
        root = Path(ask(Path(folder), "rev-parse", "--show-toplevel").removesuffix("\n"))
        status = status_of(root)
    except GitError as error:
        return reason_of(error)
    found = [*status.changed, *status.untracked]
    if not found:
        return None if status.commit else f"nothing is committed yet in {root}"
    shown = ", ".join(redact_text(path) for path in found[:3] if not is_secret_file(path))
    return f"there is uncommitted work in {root} ({len(found)} files: {shown} …)"


def states(root: Path, paths: Sequence[str], known: Status | None = None) -> dict[str, str]:
    """Of some paths in a work tree: 'changed', 'untracked', 'ignored', or else 'committed'.

    Parameters
    ----------
    root : Path
    paths : sequence of str
        Relative to the root.
    known : Status, optional
        That of the whole tree, where it was asked for already.

    Raises
    ------
    GitError
        Git could not say.
    """
    if known is None:
        few = ("--", *paths) if len(paths) <= _FEW else ()
        known = Status(ask(root, "--literal-pathspecs", *_STATUS, *few))
        known.tracked = _tracked(root, *few)
    if known.tracked is None:
        known.tracked = _tracked(root)
    return {path: _state(path, known, known.tracked) for path in paths}


def _tracked(root: Path, *few: str) -> frozenset[str]:
    return frozenset(ask(root, "--literal-pathspecs", "ls-files", "-z", *few).split("\0"))


def _state(path: str, status: Status, tracked: frozenset[str]) -> str:
    if path in status.changed:
        return "changed"
    if path in status.untracked:
        return "untracked"
    return "committed" if path in tracked else "ignored"
