"""An archive of code comes back to the byte, and nothing else ever reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import string
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.errors import StoreError
from tachograph.provenance import encodable
from tachograph.provenance.source import Member
from tachograph.restoring import sources
from tachograph.restoring.sources import pack, restore


def described(files: dict[str, bytes], patches: dict[str, bytes] | None = None) -> dict[str, Any]:
    """The document of such files and patches."""

    def facts(content: bytes) -> dict[str, Any]:
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    document: dict[str, Any] = encodable(
        {
            "files": {key: facts(content) for key, content in files.items()},
            "trees": {tree: {"patch": facts(diff)} for tree, diff in (patches or {}).items()},
            "left_out": {},
        }
    )
    return document


def members(files: dict[str, bytes]) -> dict[str, Member]:
    """The same as members of an archive."""
    return {key: Member(content) for key, content in files.items()}


def tar(*heads: tarfile.TarInfo, content: bytes = b"x") -> io.BytesIO:
    """An archive of these heads, plain files with that content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for head in heads:
            head.size = len(content) if head.isreg() else 0
            archive.addfile(head, io.BytesIO(content))
    target.seek(0)
    return target


def head(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member of any kind."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


# ---------------------------------------------------------------------------- there and back

_PARTS = st.text(
    string.ascii_letters + string.digits + "_-. é中\n:", min_size=1, max_size=12
).filter(lambda part: bool(part.rstrip(". ")) and part.rstrip(". ").lower() != ".git")
_NAMES = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)
_TREES = st.dictionaries(_NAMES, st.tuples(st.binary(max_size=300), st.booleans()), max_size=6)


@settings(max_examples=60, deadline=None)
@given(_TREES)
def test_archive_and_restore_give_the_same_bytes(tree: dict[str, tuple[bytes, bool]]) -> None:
    """Any names, any content, whether executable."""
    names = {name.casefold() for name in tree}
    tree = {
        f"project/{name}": value
        for name, value in tree.items()
        if not any(other.startswith(name.casefold() + "/") for other in names)
    }
    files = {key: content for key, (content, _) in tree.items()}
    archive = pack({key: Member(*value) for key, value in tree.items()}, {})
    with tempfile.TemporaryDirectory() as folder:
        restored = restore(described(files), io.BytesIO(archive), folder)
        assert restored.files == sorted(files)
        found = {str(p.relative_to(folder)): p for p in Path(folder).rglob("*") if p.is_file()}
        assert {key: path.read_bytes() for key, path in found.items()} == files
        for key, (_, executable) in tree.items():
            assert os.access(found[key], os.X_OK) == executable


def test_equal_code_gives_equal_archives() -> None:
    """In whatever order and whenever; no time, no owner, no name of the maker."""
    files = {"project/b.py": b"2", "project/a.py": b"1"}
    first = pack(members(files), members({"project": b"diff"}))
    second = pack(members(dict(reversed(files.items()))), members({"project": b"diff"}))
    assert first == second
    assert first[4:8] == bytes(4)  # the time in the head of gzip
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert (member.uname, member.gname) == ("", "")


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    """The document has them with escapes."""
    key = os.fsdecode(b"project/caf\xe9.py")
    archive = pack({key: Member(b"x")}, {})
    restored = restore(described({key: b"x"}), io.BytesIO(archive), tmp_path / "back")
    assert restored.files == ["project/caf\\udce9.py"]
    assert [os.fsencode(p.name) for p in (tmp_path / "back/project").iterdir()] == [b"caf\xe9.py"]


def test_what_is_not_as_it_was_is_told(tmp_path: Path) -> None:
    """Redacted files, files and diffs without content; a patch is handed over, not applied."""
    files = {"project/plain.py": b"1", "project/secret.py": b"[redacted]"}
    document = described(files, {"project": b"diff", "other": b"long"})
    document["files"]["project/secret.py"]["redacted"] = 1
    document["files"]["project/lost.py"] = {"sha256": "0", "bytes": 9}
    document["left_out"] = {"project/big.py": "longer than 4 MiB"}
    document["trees"]["other"]["patch"]["left_out"] = "longer than 16 MiB"
    archive = io.BytesIO(pack(members(files), members({"project": b"diff"})))
    restored = restore(document, archive, tmp_path / "back")
    assert restored.files == ["project/plain.py"]
    assert restored.redacted == ["project/secret.py"]
    assert restored.missing == {
        "other.diff": "longer than 16 MiB",
        "project/big.py": "longer than 4 MiB",
        "project/lost.py": "not in the archive",
    }
    assert restored.patches == {"project": b"diff"}


# ---------------------------------------------------------------------------- hostile archives


@pytest.mark.parametrize(
    "name",
    [
        "/etc/cron.d/evil",
        "files//evil",
        "files/../evil",
        "files/project/../../evil",
        "files/project/./evil",
        "files/project/a\\..\\..\\evil",
        "files/project/.git/hooks/post-checkout",
        "files/project/.GIT /config",
        "files/project/GIT~1/config",
        "patches/../evil.diff",
    ],
)
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    """Also where the document, which may be as hostile, has the same name."""
    document = described({name.removeprefix("files/"): b"x", "project/a.py": b"x"})
    with pytest.raises(StoreError, match="leads out of the folder"):
        restore(document, tar(head("files/project/a.py"), head(name)), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_what_is_no_plain_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    """Links above all, through which a later member would be written."""
    archive = tar(head("files/project/up", kind, "../.."), head("files/project/up/evil"))
    document = described({"project/up": b"x", "project/up/evil": b"x"})
    with pytest.raises(StoreError, match="no plain file"):
        restore(document, archive, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_only_what_the_document_describes_is_written(tmp_path: Path) -> None:
    """Another content, a file more, a file twice, a file in a file, a patch more."""
    document = described({"project/a.py": b"x", "project/a.py/b.py": b"x"}, {"project": b"y"})
    hostile = {
        "not the one": tar(head("files/project/a.py"), content=b"z"),
        "says nothing of it": tar(head("files/project/b.py")),
        "there twice": tar(head("files/project/a.py"), head("files/project/a.py")),
        "lies in a file": tar(head("files/project/a.py/b.py"), head("files/project/a.py")),
        "content is not": tar(head("patches/project.diff")),
        "elsewhere": tar(head("elsewhere/project/a.py")),
    }
    for reason, archive in hostile.items():
        with pytest.raises(StoreError, match=reason):
            restore(document, archive, tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_an_archive_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its size as it is read, not when the memory is full."""
    monkeypatch.setattr(sources, "_MOST_BYTES", 1 << 20)
    content = bytes(2 << 20)
    archive = io.BytesIO(pack(members({"project/a.py": content}), {}))
    with pytest.raises(StoreError, match="larger than any"):
        restore(described({"project/a.py": content}), archive, tmp_path / "back")


@pytest.mark.parametrize("damage", ["cut", "turned", "plain", "empty", "bomb"])
def test_a_damaged_archive_is_refused(damage: str, tmp_path: Path) -> None:
    """With a message, not with whatever the library raises."""
    files = {f"project/{n}.py": os.urandom(3000) for n in range(5)}
    archive = bytearray(pack(members(files), {}))
    if damage == "turned":
        archive[len(archive) // 2] ^= 255
    content = {
        "cut": bytes(archive[: len(archive) // 2]),
        "turned": bytes(archive),
        "plain": b"no archive at all",
        "empty": b"",
        "bomb": gzip.compress(bytes(1 << 20)),
    }[damage]
    try:
        restored = restore(described(files), io.BytesIO(content), tmp_path / "back")
    except StoreError:
        assert not (tmp_path / "back").exists()
    else:
        assert damage == "bomb"  # zeros are the end of a tar
        assert restored.files == []


@pytest.mark.parametrize(
    "document", [{}, {"files": [], "trees": {}}, {"files": {"project/a.py": {}}, "trees": {}}]
)
def test_a_document_of_another_kind_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    """With a message."""
    archive = io.BytesIO(pack(members({"project/a.py": b"x"}), {}))
    with pytest.raises(StoreError, match="document"):
        restore(document, archive, tmp_path / "back")


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    """Whatever is in it, and also where a link has its name."""
    files = {"project/a.py": b"x"}
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "project").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name in ("used", "link", "file"):
        with pytest.raises(StoreError, match="in use"):
            restore(described(files), io.BytesIO(pack(members(files), {})), tmp_path / name)
    assert not (tmp_path / "a.py").exists()
