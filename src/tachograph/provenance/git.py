"""The state of the code in git: commit, branch, remote, and all that is not committed.

Only asks: `GIT_OPTIONAL_LOCKS=0` keeps git from refreshing its index, and no program that the
repository configures (external diff, text conversion, file system monitor) is started.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tachograph.provenance.argv import entry_folder
from tachograph.redaction import REDACTED, redact_text, redact_url

_TIMEOUT = 30.0  # seconds for one call
_DIFF_BYTES = 1 << 20
_UNTRACKED_FILES = 500
_UNTRACKED_BYTES = 1 << 20
_CHUNK = 1 << 18


class _GitError(Exception):
    """Git could not say."""


def collect(folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """State of the work tree around a folder, by default that of the entry script.

    Returns
    -------
    dict
        root, folder (inside root), commit, branch (None where the head is detached), describe,
        remote (no credentials), author, shallow, dirty, changed (path to status), untracked,
        diff; or ``{"missing": "the reason"}``.
    """
    if shutil.which("git") is None:
        return {"missing": "git is not installed"}
    start = Path(entry_folder() if folder is None else folder)
    try:
        return _describe(start)
    except _GitError as error:
        reason = str(error)
        if "not a git repository" in reason:
            reason = "not a git repository"  # without git's words on where it has looked
        return {"missing": redact_text(reason)}


def _describe(start: Path) -> dict[str, Any]:
    asked = _ask(start, "rev-parse", "--is-shallow-repository", "--show-toplevel")
    shallow, _, top = asked.removesuffix("\n").partition("\n")
    root = Path(top)
    status = _Status(_ask(root, "status", "--porcelain=v2", "--branch", "-z", _ALL_UNTRACKED))
    configured = _configured(root)
    return {
        "root": top,
        "folder": os.path.relpath(start.resolve(), root.resolve()),
        "commit": status.commit,
        "branch": status.branch,
        "describe": _describe_commit(root) if status.commit else None,
        "remote": _remote(configured),
        "author": configured.get("user.name"),
        "shallow": shallow == "true",
        "dirty": bool(status.changed or status.untracked),
        "changed": status.changed,
        "untracked": _untracked(root, status.untracked),
        "diff": _diff(root, status.commit) if status.changed else None,
    }


class _Status:
    """What ``git status --porcelain=v2 --branch -z`` says."""

    def __init__(self, listing: str) -> None:
        self.commit: str | None = None
        self.branch: str | None = None
        self.changed: dict[str, str] = {}
        self.untracked: list[str] = []
        entries = iter(listing.split("\0"))
        for entry in entries:
            kind, _, rest = entry.partition(" ")
            if kind == "#":
                self._head(rest)
            elif kind == "?":
                self.untracked.append(rest)
            elif kind in _FIELDS_BEFORE_PATH:
                fields = rest.split(" ", _FIELDS_BEFORE_PATH[kind])
                self.changed[fields[-1]] = fields[0].replace(".", " ").strip()
                if kind == "2":
                    next(entries, None)  # the path before the renaming

    def _head(self, line: str) -> None:
        key, _, value = line.partition(" ")
        if key == "branch.oid" and value != "(initial)":
            self.commit = value
        elif key == "branch.head" and value != "(detached)":
            self.branch = value


_FIELDS_BEFORE_PATH = {"1": 7, "2": 8, "u": 9}


def _describe_commit(root: Path) -> str | None:
    try:
        return _ask(root, "describe", "--always", "--tags").strip()
    except _GitError:
        return None


def _configured(root: Path) -> dict[str, str]:
    try:
        listing = _ask(root, "config", "-z", "--get-regexp", r"^(remote\..*\.url|user\.name)$")
    except _GitError:  # nothing of that name
        return {}
    pairs = (entry.partition("\n") for entry in listing.split("\0") if entry)
    return {key: value for key, _, value in pairs}


def _remote(configured: dict[str, str]) -> str | None:
    remotes = {key: url for key, url in configured.items() if key.startswith("remote.")}
    url = remotes.get("remote.origin.url") or next(iter(remotes.values()), None)
    return None if url is None else redact_url(url)


# ---------------------------------------------------------------------------- uncommitted work


def _untracked(root: Path, paths: list[str]) -> dict[str, Any]:
    """Files that no commit holds: how many, and size and digest of the first ones."""
    listed = [_file(root / path, path) for path in sorted(paths)[:_UNTRACKED_FILES]]
    return {"count": len(paths), "files": listed}


def _file(file: Path, path: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": redact_text(path)}
    try:
        found = file.lstat()
        if stat.S_ISLNK(found.st_mode):
            return entry | {"link": os.readlink(file)}
        entry["bytes"] = found.st_size
        if stat.S_ISREG(found.st_mode) and found.st_size <= _UNTRACKED_BYTES:
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        entry["missing"] = type(error).__name__
    return entry


def _diff(root: Path, commit: str | None) -> dict[str, Any]:
    """Staged and unstaged changes against the last commit, as ``git apply`` takes them.

    `bytes` and `sha256` are those of the whole diff before anything was cut or redacted.
    """
    since = ("HEAD",) if commit else ("--cached",)
    digest, size, kept = hashlib.sha256(), 0, bytearray()
    for chunk in _stream(root, "diff", *since, *_PLAIN_DIFF):
        digest.update(chunk)
        size += len(chunk)
        kept += chunk[: max(0, _DIFF_BYTES - len(kept))]
    truncated = size > len(kept)
    if truncated:
        del kept[kept.rfind(b"\n") + 1 :]
    text, encoding = _decode(bytes(kept))
    redacted = redact_text(text)
    return {
        "text": redacted,
        "encoding": encoding,
        "bytes": size,
        "sha256": digest.hexdigest(),
        "truncated": truncated,
        "redactions": redacted.count(REDACTED) - text.count(REDACTED),
    }


def _decode(data: bytes) -> tuple[str, str]:
    """Text and the encoding that gives the same bytes back."""
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


# ---------------------------------------------------------------------------- calls

_ALL_UNTRACKED = "--untracked-files=all"
_PLAIN_DIFF = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
_COMMAND = ("git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=true")
_LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_EXTERNAL_DIFF")


def _environment() -> dict[str, str]:
    """Ours without what a git hook set, for it names another repository than the folder's."""
    inherited = {name: value for name, value in os.environ.items() if name not in _LOCAL}
    return inherited | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _ask(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            [*_COMMAND, *arguments],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _GitError(f"git {arguments[0]} took longer than {_TIMEOUT:g} s") from None
    except OSError as error:
        raise _GitError(f"git cannot be started in {folder}: {error.strerror}") from None
    if answer.returncode != 0:
        raise _GitError(os.fsdecode(answer.stderr).strip()[:500] or "git failed")
    return os.fsdecode(answer.stdout)


def _stream(folder: Path, *arguments: str) -> Iterator[bytes]:
    """Output in chunks, for it may be larger than memory."""
    process = subprocess.Popen(
        [*_COMMAND, *arguments],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    late = threading.Timer(_TIMEOUT, process.kill)
    late.daemon = True
    late.start()
    try:
        assert process.stdout is not None
        while chunk := process.stdout.read(_CHUNK):
            yield chunk
        if process.wait() != 0:
            raise _GitError(f"git {arguments[0]} failed or took longer than {_TIMEOUT:g} s")
    finally:
        late.cancel()
        process.kill()
        process.communicate()
