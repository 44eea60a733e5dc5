"""The whole source tree of a run: the commit, the uncommitted work, and the files of its archive.

A commit comes from where the run was recorded, if it is still there, or from the remote. No hook
of either is run, nor any other program that a repository names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tachograph.errors import StoreError
from tachograph.provenance.git_calls import GitError, ask, reason_of
from tachograph.provenance.trees import is_inside
from tachograph.restoring.sources import Restored, new_folder, read_archive, report, write_below

SECONDS = 600.0
"""What fetching one commit may take."""

_WITHOUT_LFS = tuple(
    word
    for setting in ("smudge=", "process=", "clean=", "required=false")
    for word in ("-c", f"filter.lfs.{setting}")
)
_LINE_ENDS = {"core.autocrlf": "false", "core.eol": "native"}  # git's own, whatever is set here
_WORD = re.compile(r"[A-Za-z0-9]{1,10}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def checkout(
    document: Mapping[str, Any], archive: BinaryIO, folder: Path, *, ask_remotes: bool = True
) -> Restored:
    """Make the source tree of a run in a new folder, each tree in a folder of its name.

    Parameters
    ----------
    document : mapping
        The run's document `source`.
    archive : binary file
        The artifact that it names.
    folder : path
        Does not exist yet, or is empty.
    ask_remotes : bool, default True
        Whether a commit that is not on this machine may be fetched from the remote.

    Returns
    -------
    Restored
        `remotes` names trees whose remote was not to be asked; `missing` those whose commit could
        not be had; `patches` has what could not be applied. The files of the archive are there in
        any case.

    Raises
    ------
    StoreError
        As `sources.restore`.
    """
    files, patches = read_archive(document, archive)
    if strange := [name for name in document["trees"] if not is_inside(name)]:
        raise StoreError(f"the document is refused: {strange[0]!r} leads out of the folder")
    target = new_folder(folder)
    missing: dict[str, str] = {}
    remotes: dict[str, str] = {}
    for name in sorted(document["trees"]):  # a project before its submodules
        tree = document["trees"][name]
        try:
            options, without = _commit(tree, target / name, ask_remotes=ask_remotes)
        except GitError as error:
            if tree.get("remote") and not ask_remotes and _is_commit(tree.get("commit")):
                remotes[name] = str(tree["remote"])
            else:
                missing[name] = reason_of(error)
            continue
        if without:
            missing[f"{name}, files in Git LFS"] = without
        if name in patches:
            apply = (*options, "apply", "--whitespace=nowarn")
            try:
                ask(target / name, *apply, given=patches[name].content)
                del patches[name]
            except GitError as error:
                missing[f"{name}.diff"] = reason_of(error)
    for key, member in files.items():
        write_below(target, key, member)
    found = report(document, target, files, patches)
    missing = found.missing | missing
    return Restored(target, found.files, found.redacted, missing, found.patches, remotes)


def _commit(
    tree: Mapping[str, Any], folder: Path, *, ask_remotes: bool
) -> tuple[tuple[str, ...], str]:
    """Check a commit out into a folder; as `_check_out`, GitError where it is not to be had."""
    commit = str(tree.get("commit") or "")
    if not commit:
        raise GitError(str(tree.get("missing") or "nothing was committed"))
    if not _is_commit(commit):
        raise GitError("what the document calls a commit is none")
    folder.mkdir(parents=True, exist_ok=True)
    ask(folder, "init", "-q", "--template=")
    _set_line_ends(tree, folder)
    problems = []
    for source in _sources(tree, ask_remotes=ask_remotes):
        try:
            _fetch(folder, source, commit)
            return _check_out(folder, source, commit)
        except GitError as error:
            problems.append(str(error))
    raise GitError("; ".join(problems) or "there is no remote to have it from")


def _check_out(folder: Path, source: str, commit: str) -> tuple[tuple[str, ...], str]:
    """Options of git that go with the tree, and why it lacks what Git LFS keeps elsewhere, or ''.

    LFS asks where the commit came from: of a folder no server, whatever the commit names.
    """
    checkout = ("checkout", "-q", "--force", "--detach", commit)
    options = _lfs_place(source)
    try:
        ask(folder, *options, *checkout, timeout=SECONDS)
        return options, ""
    except GitError as error:
        ask(folder, *_WITHOUT_LFS, *checkout, timeout=SECONDS)
        return _WITHOUT_LFS, reason_of(error).rpartition("\n")[2]


def _set_line_ends(tree: Mapping[str, Any], folder: Path) -> None:
    """Have git write files with the line ends that they had; where nobody noted it, its own."""
    recorded = tree.get("line_ends")
    if isinstance(recorded, Mapping):
        for key, usual in _LINE_ENDS.items():
            value = str(recorded.get(key, usual))
            ask(folder, "config", key, value if _WORD.fullmatch(value) else usual)


def _lfs_place(source: str) -> tuple[str, ...]:
    if not os.path.isabs(source):
        return ("-c", f"remote.origin.url={source}")
    url = Path(source).as_uri()
    return ("-c", f"remote.origin.url={url}", "-c", f"lfs.url={url}")


def _is_commit(text: Any) -> bool:
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def _sources(tree: Mapping[str, Any], *, ask_remotes: bool) -> Iterator[str]:
    """Where a commit may be had: in a folder of this machine, then from a remote."""
    root, remote = str(tree.get("root") or ""), str(tree.get("remote") or "")
    if os.path.isabs(root) and os.path.isdir(root):  # else git might take it for an address
        yield root
    if remote and ask_remotes:
        yield remote


def _fetch(folder: Path, source: str, commit: str) -> None:
    """One commit, or where a server does not give that all branches."""
    fetch = ("fetch", "-q", "--no-tags", "--no-recurse-submodules")
    try:
        ask(folder, *fetch, "--depth=1", "--", source, commit, timeout=SECONDS)
    except GitError:
        ask(folder, *fetch, "--", source, "+refs/heads/*:refs/heads/*", timeout=SECONDS)
