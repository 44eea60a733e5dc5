"""The code of a run as one file, and back into a folder.

The same code gives the same bytes, wherever and whenever it is packed: a tar in gzip, its members
in order and without times and owners. ``files/<key>`` is a file of the document `source`,
``patches/<tree>.diff`` the uncommitted work of a tree.

What comes out of a store may have been made by anyone. So nothing is written that the document
does not describe, byte for byte, nothing outside the folder, and nothing is run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tachograph.errors import StoreError
from tachograph.provenance import Document, encodable
from tachograph.provenance.source import FILES, TOTAL_BYTES, Member
from tachograph.provenance.trees import is_inside

ARCHIVE = "source.tar.gz"
SCRIPT = "notebook.py"
"""Names of the artifacts: files of the code, and the cells of a notebook as one script."""

_FILES, _PATCHES, _DIFF = "files/", "patches/", ".diff"
_MOST_BYTES = 4 * TOTAL_BYTES  # with the patches of a few trees
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Restored:
    """What was written, and what of the code could not be.

    Attributes
    ----------
    folder : Path
    files : list of str
        Keys of the document whose files are as they were, relative to the folder.
    redacted : list of str
        Keys of files that lack the secrets that they held.
    missing : dict of str to str
        Key to why the content is not in the archive.
    patches : dict of str to bytes
        Tree to its uncommitted work that was not applied, for ``git apply``.
    remotes : dict of str to str
        Tree to the remote that its commit is to be fetched from; nobody has asked it yet.
    """

    folder: Path
    files: list[str]
    redacted: list[str]
    missing: dict[str, str]
    patches: dict[str, bytes]
    remotes: dict[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------------------- packing


def pack(files: Mapping[str, Member], patches: Mapping[str, Member]) -> bytes:
    """Pack files (by key) and patches (by tree) into an archive."""
    members = {f"{_FILES}{key}": member for key, member in files.items()}
    members |= {f"{_PATCHES}{tree}{_DIFF}": member for tree, member in patches.items()}
    target = io.BytesIO()
    zipped = gzip.GzipFile("", "wb", _LEVEL, target, mtime=0)
    with zipped, tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(members):
            head = tarfile.TarInfo(name)
            head.size = len(members[name].content)
            head.mode = 0o755 if members[name].executable else 0o644
            archive.addfile(head, io.BytesIO(members[name].content))
    return target.getvalue()


# ---------------------------------------------------------------------------- restoring


def restore(
    document: Mapping[str, Any], archive: BinaryIO, folder: str | os.PathLike[str]
) -> Restored:
    """Write the files of an archive into a new folder, each tree in a folder of its name.

    Parameters
    ----------
    document : mapping
        The run's document `source`.
    archive : binary file
        The artifact that it names.
    folder : path
        Does not exist yet, or is empty.

    Returns
    -------
    Restored
        Nothing in it was run, and no patch was applied.

    Raises
    ------
    StoreError
        The folder is in use; or the archive is not what the document describes, holds links, or
        names that lead out of the folder. Nothing was written then.
    """
    files, patches = read_archive(document, archive)
    target = new_folder(folder)
    for key, member in files.items():
        write_below(target, key, member)
    return report(document, target, files, patches)


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder; StoreError where there is one that is not empty."""
    target = Path(folder)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise StoreError(f"{target} is in use; restore into a folder that is new or empty")
    target.mkdir(parents=True, exist_ok=True)
    return target


def report(
    document: Mapping[str, Any],
    folder: Path,
    files: Mapping[str, Member],
    patches: Mapping[str, Member],
) -> Restored:
    """What a folder has of the code by now, and what it lacks."""
    entries, left_out = document["files"], document["left_out"]
    kept = {encodable(key) for key in files}
    redacted = {key for key in kept if "redacted" in entries[key]}
    gone = {*entries, *left_out} - kept
    missing = {key: left_out.get(key, "not in the archive") for key in sorted(gone)}
    for tree, facts in document["trees"].items():
        if why := (facts.get("patch") or {}).get("left_out"):
            missing[tree + _DIFF] = why
    return Restored(
        folder,
        sorted(kept - redacted),
        sorted(redacted),
        missing,
        {encodable(tree): member.content for tree, member in patches.items()},
    )


def read_archive(
    document: Mapping[str, Any], archive: BinaryIO
) -> tuple[dict[str, Member], dict[str, Member]]:
    """Files by key and patches by tree, each checked against the document.

    Raises
    ------
    StoreError
        The archive is damaged, or is not what the document describes.
    """
    files: dict[str, Member] = {}
    patches: dict[str, Member] = {}
    try:
        for name, member in _members(archive):
            if name.startswith(_FILES):
                key = name.removeprefix(_FILES)
                _check(name, member, document["files"].get(encodable(key)))
                files[key] = member
            elif name.startswith(_PATCHES) and name.endswith(_DIFF):
                tree = name.removeprefix(_PATCHES).removesuffix(_DIFF)
                _check(name, member, (document["trees"].get(encodable(tree)) or {}).get("patch"))
                patches[tree] = member
            else:
                raise _refused(name, "the document says nothing of it")
    except StoreError:
        raise
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise StoreError(f"the archive cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError("the document is none of the section 'source'") from error
    for key in files:
        if any(above in files for above in _above(key)):
            raise _refused(key, "it lies in a file")
    return files, patches


def _above(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def _members(archive: BinaryIO) -> Iterator[tuple[str, Member]]:
    seen: set[str] = set()
    left = _MOST_BYTES
    with tarfile.open(fileobj=archive, mode="r|gz") as opened:
        for head in opened:
            name = head.name
            if not head.isreg() or head.issparse():
                raise _refused(name, "it is no plain file")
            if not is_inside(name):
                raise _refused(name, "it leads out of the folder")
            left -= head.size
            if left < 0 or len(seen) > 2 * FILES:
                raise _refused(name, "the archive is larger than any that is recorded")
            if name in seen:
                raise _refused(name, "it is there twice")
            seen.add(name)
            stream = opened.extractfile(head)
            content = b"" if stream is None else stream.read()
            yield name, Member(content, bool(head.mode & 0o100))


def _check(name: str, member: Member, described: Mapping[str, Any] | None) -> None:
    if described is None:
        raise _refused(name, "the document says nothing of it")
    if hashlib.sha256(member.content).hexdigest() != described["sha256"]:
        raise _refused(name, "its content is not the one that the document describes")


def _refused(name: str, why: str) -> StoreError:
    return StoreError(f"the archive is refused: {encodable(name)!r}: {why}")


def write_below(folder: Path, key: str, member: Member) -> None:
    """Write a file below a folder; a link in its way is replaced, and never followed."""
    above = folder
    *parents, _ = key.split("/")
    for part in parents:
        above = above / part
        if above.is_symlink():
            above.unlink()
        above.mkdir(exist_ok=True)
    file = folder / key
    file.unlink(missing_ok=True)
    mode = 0o755 if member.executable else 0o644
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(file, flags, mode), "wb") as stream:
        stream.write(member.content)


def summary(archive: bytes) -> Document:
    """What the document says of its archive."""
    digest = hashlib.sha256(archive).hexdigest()
    return {"artifact": ARCHIVE, "sha256": digest, "bytes": len(archive)}
