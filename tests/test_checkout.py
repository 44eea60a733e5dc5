"""The whole tree of a run comes back: commit, uncommitted work, untracked files."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tachograph.errors import StoreError
from tachograph.provenance import source
from tachograph.provenance.source import Member, Source
from tachograph.restoring import sources
from tachograph.restoring.checkout import checkout


def git(folder: Path, *arguments: str) -> None:
    """Run git, whatever is configured on this machine."""
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    options = ["-c", "user.name=Ada", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(
        ["git", *options, *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with one commit, a link out of it, and work that is not committed."""
    origin, folder = tmp_path / "origin", tmp_path / "project"
    origin.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/shared.py").write_text("S = 1\n")
    git(origin, "init", "-q", "-b", "main")
    (origin / "train.py").write_text("x = 1\n")
    (origin / "data.bin").write_bytes(bytes(range(256)))
    (origin / "README").write_text("read me\n")
    (origin / "linked").symlink_to(tmp_path / "outside")
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "first")
    git(tmp_path, "clone", "-q", str(origin), str(folder))
    (folder / "train.py").write_text("x = 2\n")
    (folder / "data.bin").write_bytes(bytes(range(255, -1, -1)))
    (folder / "fresh.py").write_text("y = 1\n")
    return folder


@pytest.fixture
def recorded(project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], io.BytesIO]:
    """Document and archive of that project."""
    names = ("train.py", "fresh.py", "linked/shared.py")
    files = {str(project / name): "module" for name in names}
    monkeypatch.setattr(source, "imported", lambda: files)
    found = Source(str(project), str(project))
    found.update()
    return found.document, io.BytesIO(sources.pack(found.files, found.patches))


def test_the_whole_tree_comes_back(
    project: Path, recorded: tuple[dict[str, Any], io.BytesIO], tmp_path: Path
) -> None:
    """From where it was recorded: committed, changed, binary, untracked and linked files."""
    document, archive = recorded
    restored = checkout(document, archive, tmp_path / "back")
    assert (restored.missing, restored.patches) == ({}, {})
    back = tmp_path / "back/project"
    for name in ("train.py", "fresh.py", "data.bin", "README", "linked/shared.py"):
        assert (back / name).read_bytes() == (project / name).read_bytes()
    assert not (back / "linked").is_symlink()
    assert (tmp_path / "outside/shared.py").read_text() == "S = 1\n"


def test_the_remote_is_asked_where_the_folder_is_gone(
    project: Path, recorded: tuple[dict[str, Any], io.BytesIO], tmp_path: Path
) -> None:
    """And where that is gone too, the files of the archive are there all the same."""
    document, archive = recorded
    shutil.rmtree(project)
    document["trees"]["project"]["root"] = f"file://{tmp_path}/origin"  # no folder of this machine
    restored = checkout(document, archive, tmp_path / "unasked", ask_remotes=False)
    assert (restored.missing, restored.remotes) == ({}, {"project": str(tmp_path / "origin")})
    assert (tmp_path / "unasked/project/train.py").read_text() == "x = 2\n"
    assert not (tmp_path / "unasked/project/README").exists()

    archive.seek(0)
    restored = checkout(document, archive, tmp_path / "back")
    assert (restored.missing, restored.remotes) == ({}, {})
    assert (tmp_path / "back/project/README").read_text() == "read me\n"

    shutil.rmtree(tmp_path / "origin")
    archive.seek(0)
    restored = checkout(document, archive, tmp_path / "less")
    assert set(restored.missing) == {"project"}
    assert set(restored.patches) == {"project"}
    assert (tmp_path / "less/project/train.py").read_text() == "x = 2\n"
    assert not (tmp_path / "less/project/README").exists()


def test_no_program_of_a_repository_is_run(
    project: Path, recorded: tuple[dict[str, Any], io.BytesIO], tmp_path: Path
) -> None:
    """Hooks of a template, and remotes that are commands."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    document, archive = recorded
    document["trees"]["project"] |= {"root": "", "remote": f"ext::{trap}"}
    assert set(checkout(document, archive, tmp_path / "one").missing) == {"project"}
    for commit in (f"--upload-pack={trap}", "HEAD", ["x"]):
        archive.seek(0)
        document["trees"]["project"] |= {"root": str(project), "commit": commit}
        missing = checkout(document, archive, tmp_path / f"two {commit[0]}{len(commit)}").missing
        assert "is none" in missing["project"]
    assert not (tmp_path / "sprung").exists()


def test_a_tree_that_leads_out_is_refused(
    recorded: tuple[dict[str, Any], io.BytesIO], tmp_path: Path
) -> None:
    """By its name in the document."""
    document, archive = recorded
    document["trees"]["../evil"] = document["trees"]["project"]
    with pytest.raises(StoreError, match="leads out"):
        checkout(document, archive, tmp_path / "back")
    assert not (tmp_path / "evil").exists()


def test_links_of_a_commit_are_not_written_through(
    recorded: tuple[dict[str, Any], io.BytesIO], tmp_path: Path
) -> None:
    """A file of the archive takes the place of a link, whatever that leads to."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "up").symlink_to(tmp_path)
    (folder / "file.py").symlink_to(tmp_path / "victim")
    sources.write_below(folder, "up/evil.py", Member(b"x"))
    sources.write_below(folder, "file.py", Member(b"x"))
    assert not (tmp_path / "evil.py").exists()
    assert not (tmp_path / "victim").exists()
    assert (folder / "up/evil.py").read_bytes() == (folder / "file.py").read_bytes() == b"x"


def test_files_in_lfs_come_from_where_the_commit_does(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their filter is told the folder. Where it fails there are pointers; the rest is as it was."""
    content = tmp_path / "content"
    content.write_text("large\n")
    smudge = f"grep -q pointer && git config lfs.url | grep -q '^file:///' && cat {content}"
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[filter "lfs"]\n\trequired\n\tclean = sed s/.*/pointer/\n\tsmudge = "{smudge}"\n'
    )
    (project / "data.bin").write_text("large\n")
    (project / ".gitattributes").write_text("*.bin filter=lfs -text\n")
    git(project, "-c", "filter.lfs.clean=sed s/.*/pointer/", "add", ".")
    git(project, "commit", "-q", "-m", "second")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setattr(source, "imported", lambda: {str(project / "train.py"): "train"})
    found = Source(str(project), str(project))
    found.update()
    archive = sources.pack(found.files, found.patches)

    restored = checkout(found.document, io.BytesIO(archive), tmp_path / "back")
    assert restored.missing == {}
    assert (tmp_path / "back/project/data.bin").read_text() == "large\n"
    content.unlink()
    restored = checkout(found.document, io.BytesIO(archive), tmp_path / "pointers")
    assert list(restored.missing) == ["project, files in Git LFS"]
    assert "pointer" in (tmp_path / "pointers/project/data.bin").read_text()
    assert (tmp_path / "pointers/project/train.py").read_text() == "x = 2\n"
