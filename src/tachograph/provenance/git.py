"""The state of the code in git: commit, branch, remote, submodules, and all that is uncommitted."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tachograph.provenance import Document
from tachograph.provenance.argv import entry_folder
from tachograph.provenance.binary_patches import without_secret_binaries
from tachograph.provenance.contents import Content, content_of, decode
from tachograph.provenance.git_calls import GitError, ask, reason_of, stream
from tachograph.provenance.git_status import Status, status_of
from tachograph.security.secret_files import is_secret_file
from tachograph.security.texts import redact_text, redact_url

PATCH_BYTES = 16 << 20
"""A longer diff is not kept as a whole."""

LINE_ENDS = ("core.autocrlf", "core.eol")
"""Settings by which files have other bytes than what was committed."""

_TEXT_BYTES = 1 << 20  # of a diff, in the document
_LISTED = 500
_SUBMODULES = 50


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a work tree has found.

    Attributes
    ----------
    document : dict
        See `collect`.
    patch : Content or None
        The whole diff, as ``git apply`` takes it; None where there is none to keep.
    status : Status or None
        Which files no commit holds; None where git could not say.
    """

    document: Document
    patch: Content | None = None
    status: Status | None = None


def collect(folder: str | os.PathLike[str] | None = None) -> Document:
    """State of the work tree around a folder, by default that of the entry script.

    Returns
    -------
    dict
        What `docs/reference/provenance.md` describes; or ``{"missing": "the reason"}``.
    """
    return look(folder).document


def look(folder: str | os.PathLike[str] | None = None, *, content: bool = True) -> Look:
    """As `collect`, together with the whole diff.

    Parameters
    ----------
    folder : path, optional
        Any folder of the work tree; by default that of the entry script.
    content : bool, default True
        False for facts only: of the diff its size and digest.
    """
    start = Path(entry_folder() if folder is None else folder)
    try:
        return _look(start, content)
    except GitError as error:
        return Look({"missing": reason_of(error)})


def _look(start: Path, content: bool) -> Look:
    asked = ask(start, "rev-parse", "--is-shallow-repository", "--show-toplevel")
    shallow, _, top = asked.removesuffix("\n").partition("\n")
    root = Path(top)
    status = status_of(root)
    configured = _configured(root)
    diff, patch = _diff(root, status, content) if status.changed else (None, None)
    document = {
        "root": top,
        "folder": os.path.relpath(start.resolve(), root.resolve()),
        "commit": status.commit,
        "branch": status.branch,
        "upstream": status.upstream,
        "ahead": status.ahead,
        "describe": _describe_commit(root) if status.commit else None,
        "remote": _remote(configured),
        "author": configured.get("user.name"),
        "shallow": shallow == "true",
        "line_ends": {key: configured[key] for key in LINE_ENDS if key in configured},
        "dirty": bool(status.changed or status.untracked),
        "changed": _first(status.changed),
        "changed_count": len(status.changed),
        "untracked": _untracked(root, status.untracked),
        "secret_files": sum(map(is_secret_file, (*status.changed, *status.untracked))),
        "diff": diff,
        "submodules": _submodules(root),
    }
    return Look(document, patch, status)


def _describe_commit(root: Path) -> str | None:
    try:
        return ask(root, "describe", "--always", "--tags").strip()
    except GitError:
        return None


_CONFIGURED = r"^(remote\..*\.url|user\.name|core\.(autocrlf|eol))$"


def _configured(root: Path) -> dict[str, str]:
    try:
        listing = ask(root, "config", "-z", "--get-regexp", _CONFIGURED)
    except GitError:  # nothing of that name
        return {}
    return _pairs(listing)


def _pairs(listing: str) -> dict[str, str]:
    pairs = (entry.partition("\n") for entry in listing.split("\0") if entry)
    return {key: value for key, _, value in pairs}


def _remote(configured: dict[str, str]) -> str | None:
    remotes = {key: url for key, url in configured.items() if key.startswith("remote.")}
    url = remotes.get("remote.origin.url") or next(iter(remotes.values()), None)
    return None if url is None else redact_url(url)


# ---------------------------------------------------------------------------- submodules


def _submodules(root: Path, prefix: str = "") -> dict[str, Document]:
    """Path to state, also of submodules of submodules."""
    found: dict[str, Document] = {}
    for path in _submodule_paths(root)[:_SUBMODULES]:
        found[prefix + path] = _submodule(root, path)
        if "commit" in found[prefix + path]:
            found |= _submodules(root / path, f"{prefix}{path}/")
    return found


def _submodule_paths(root: Path) -> list[str]:
    if not (root / ".gitmodules").is_file():
        return []
    arguments = ("config", "-z", "-f", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    try:
        paths = _pairs(ask(root, *arguments)).values()
    except GitError:
        return []
    inside = (path for path in paths if ".." not in path.split("/") and not os.path.isabs(path))
    return sorted(inside)


def _submodule(root: Path, path: str) -> Document:
    folder = root / path
    if not (folder / ".git").exists():
        return {"missing": "not checked out"}
    try:
        recorded = ask(root, "--literal-pathspecs", "ls-files", "-s", "-z", "--", path).split(" ")
        status = status_of(folder)
    except GitError as error:
        return {"missing": reason_of(error)}
    return {
        "commit": status.commit,
        "recorded": recorded[1] if len(recorded) > 1 else None,
        "branch": status.branch,
        "remote": _remote(_configured(folder)),
        "dirty": bool(status.changed or status.untracked),
        "changed_count": len(status.changed),
        "untracked_count": len(status.untracked),
    }


# ---------------------------------------------------------------------------- uncommitted work


def _first(changed: Mapping[str, str]) -> dict[str, str]:
    shown = [path for path in changed if not is_secret_file(path)]
    return {redact_text(path): changed[path] for path in shown[:_LISTED]}


def _untracked(root: Path, paths: Iterable[str]) -> Document:
    """Files that no commit holds: how many, and the sizes of the first ones."""
    shown = sorted(path for path in paths if not is_secret_file(path))
    return {"count": len(shown), "files": [_file(root / path, path) for path in shown[:_LISTED]]}


def _file(file: Path, path: str) -> Document:
    entry: Document = {"path": redact_text(path)}
    try:
        found = file.lstat()
        if stat.S_ISLNK(found.st_mode):
            return entry | {"link": redact_text(os.readlink(file))}
        return entry | {"bytes": found.st_size}
    except OSError as error:
        return entry | {"missing": type(error).__name__}


# Independent of what a user has configured for the eyes; what `git apply` takes.
_PLAIN_DIFF = (
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--no-relative",
    "--submodule=short",
    "--ignore-submodules=dirty",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


def _diff(root: Path, status: Status, content: bool) -> tuple[Document | None, Content | None]:
    """Staged and unstaged changes against the last commit, of all but files of secrets.

    None where nothing is left: of a submodule only the commit counts here.
    """
    since = "HEAD" if status.commit else "--cached"
    secret = [f":(top,exclude,literal){path}" for path in status.changed if is_secret_file(path)]
    paths = ["--", ":/", *secret] if secret else []
    digest, size, kept = hashlib.sha256(), 0, bytearray()
    for chunk in stream(root, "diff", since, *_PLAIN_DIFF, *paths):
        digest.update(chunk)
        size += len(chunk)
        kept += chunk[: max(0, PATCH_BYTES - len(kept))]
    if size == 0:
        return None, None
    facts = {"bytes": size, "sha256": digest.hexdigest()}
    if not content:
        return facts, None
    if size > len(kept):
        return facts | _text(content_of(_whole_lines(kept[:_TEXT_BYTES])), cut=True), None
    whole, secret_binaries = without_secret_binaries(bytes(kept))
    patch = content_of(whole)
    patch = patch._replace(redactions=patch.redactions + secret_binaries)
    return patch.document | _text(patch, cut=False), patch


def _text(content: Content, *, cut: bool) -> Document:
    """The beginning of a diff, up to the end of a line."""
    whole = content.kept or b""
    shown = whole if len(whole) <= _TEXT_BYTES else _whole_lines(whole[:_TEXT_BYTES])
    text, encoding = decode(shown)
    return {
        "text": text,
        "encoding": encoding,
        "truncated": cut or len(shown) < len(whole),
        "redacted": content.redactions,
    }


def _whole_lines(data: bytes | bytearray) -> bytes:
    return bytes(data[: data.rfind(b"\n") + 1])
