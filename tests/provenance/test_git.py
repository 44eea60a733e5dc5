"""The state of the code is told truthfully, and asking changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import git

from tachograph.provenance import collect as collect_sections
from tachograph.provenance.contents import content_of
from tachograph.provenance.git import collect, look

SECRET = "ghp_0123456789abcdefghijABCDEFGHIJ012345"


def test_a_clean_tree_is_told_as_clean(repository: Path) -> None:
    """Commit, branch, author and no diff."""
    document = collect(repository)
    assert document["commit"] == git(repository, "rev-parse", "HEAD")
    assert document["branch"] == "main"
    assert document["author"] == "Ada"
    assert document["root"] == str(repository)
    assert (document["dirty"], document["shallow"], document["diff"]) == (False, False, None)
    assert document["untracked"] == {"count": 0, "files": []}


def test_the_diff_restores_the_uncommitted_work(repository: Path, tmp_path: Path) -> None:
    """Staged, unstaged, binary, renamed and removed files, applied to a fresh clone."""
    git(repository, "mv", "train.py", "fit.py")
    (repository / "fit.py").write_text("print(2)\n")
    (repository / "weights.bin").write_bytes(bytes(reversed(range(256))))
    (repository / "latin.txt").write_bytes("gr\xfc\xdfe\n".encode("latin-1"))
    git(repository, "add", "latin.txt")
    document = collect(repository)
    assert document["dirty"]
    assert set(document["changed"]) == {"train.py", "fit.py", "weights.bin", "latin.txt"}

    diff = document["diff"]
    assert not diff["truncated"]
    assert diff["redacted"] == 0
    data = diff["text"].encode(diff["encoding"])
    assert hashlib.sha256(data).hexdigest() == diff["sha256"]
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    (tmp_path / "work.diff").write_bytes(data)
    git(clone, "apply", "--binary", str(tmp_path / "work.diff"))
    for name in ("fit.py", "weights.bin", "latin.txt"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()
    assert not (clone / "train.py").exists()


def test_asking_writes_nothing(repository: Path) -> None:
    """Not even git's index is refreshed, although the time of a file has changed."""
    os.utime(repository / "train.py", (1, 1))
    before = {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")}
    index = (repository / ".git" / "index").read_bytes()
    collect(repository)
    assert (repository / ".git" / "index").read_bytes() == index
    assert before == {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")}


def test_no_program_that_the_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    """External diff, text conversion and file system monitor stay unused."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    for key in ("diff.external", "core.fsmonitor", "diff.x.textconv", "diff.x.command"):
        git(repository, "config", key, str(trap))
    (repository / ".gitattributes").write_text("*.py diff=x\n")
    (repository / "train.py").write_text("print(2)\n")
    document = collect(repository)
    assert "+print(2)" in document["diff"]["text"]
    assert not (tmp_path / "sprung").exists()


def test_untracked_files_are_listed_with_their_sizes(repository: Path) -> None:
    """Also with names that are not UTF-8; a link is not followed, what git ignores is left out."""
    (repository / ".gitignore").write_text("*.log\n")
    (repository / "noise.log").write_text("x")
    (repository / "new.py").write_bytes(b"x = 1\n")
    (repository / "link").symlink_to("/etc/passwd")
    Path(os.fsdecode(os.fsencode(repository) + b"/caf\xe9.py")).write_text("")
    untracked = collect(repository)["untracked"]
    files = {entry["path"]: entry for entry in untracked["files"]}
    assert untracked["count"] == len(files) == 4
    assert files["new.py"] == {"path": "new.py", "bytes": 6}
    assert files["link"] == {"path": "link", "link": "/etc/passwd"}


def test_a_name_that_is_not_utf8_can_be_stored(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through `collect`, every text is one that UTF-8 can hold."""
    Path(os.fsdecode(os.fsencode(repository) + b"/caf\xe9.py")).write_text("")
    monkeypatch.chdir(repository)
    document = collect_sections(["git"])["git"]
    assert document["root"] == str(repository)
    assert [entry["path"] for entry in document["untracked"]["files"]] == ["caf\\udce9.py"]
    str(document).encode()


def test_secrets_in_remote_and_diff_are_redacted_and_counted(repository: Path) -> None:
    """The remote loses its credentials, the diff its planted key, and says so."""
    git(repository, "remote", "add", "origin", "https://me:hunter22@host/x.git")
    (repository / "train.py").write_text(f"key = '{SECRET}'\npassword = 'hunter22'\n")
    document = collect(repository)
    assert document["remote"] == "https://host/x.git"
    assert document["diff"]["redacted"] == 2
    assert "hunter22" not in str(document)
    assert SECRET not in str(document)


def test_a_secret_in_a_changed_binary_file_is_not_in_the_diff(repository: Path) -> None:
    """Git packs such files, so that their text shows nothing of it; other files stay."""
    found = {}
    for text in (b"", f" {SECRET} ".encode(), f" {SECRET} ".encode("utf-16-le")):
        (repository / "weights.bin").write_bytes(b"\0" + text + bytes(range(200, 256)))
        (repository / "train.py").write_text("print(3)\n")
        found[text] = collect(repository)["diff"]
    assert ["weights.bin" in diff["text"] for diff in found.values()] == [True, False, False]
    assert ["train.py" in diff["text"] for diff in found.values()] == [True] * 3
    assert [diff["redacted"] for diff in found.values()] == [0, 1, 1]


def test_a_secret_in_another_encoding_is_taken_out() -> None:
    """Text with the mark of its encoding is redacted; without one it is not kept at all."""
    text = f"# gr\xfc\xdfe\r\ntoken = '{SECRET}'\r\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-32", "latin-1"):
        content = content_of(text.encode(encoding))
        assert content.kept is not None
        assert content.kept.decode(encoding) == text.replace(SECRET, "[redacted]")
    assert content_of(text.encode("utf-16-le")).kept is None
    assert content_of("a = 1\r\n".encode("utf-16-le")).redactions == 0


def test_a_huge_diff_is_cut_at_a_line_and_says_so(repository: Path) -> None:
    """Its size and digest are those of the whole, which is kept beside the document."""
    (repository / "train.py").write_text("".join(f"x{i} = {i}\n" for i in range(100_000)))
    found = look(repository)
    diff = found.document["diff"]
    whole = git(repository, "diff", "HEAD", "--binary", "--full-index").encode() + b"\n"
    assert diff["truncated"]
    assert diff["bytes"] == len(whole) > len(diff["text"]) > 1_000_000
    assert diff["sha256"] == hashlib.sha256(whole).hexdigest()
    assert diff["text"].endswith("\n")
    assert found.patch is not None
    assert found.patch.kept == whole


def test_a_diff_beyond_all_bounds_is_not_kept(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning, size and digest are."""
    monkeypatch.setattr("tachograph.provenance.git.PATCH_BYTES", 1000)
    (repository / "train.py").write_text("x = 1\n" * 1000)
    found = look(repository)
    assert found.patch is None
    assert found.document["diff"]["truncated"]
    assert found.document["diff"]["bytes"] > 7000
    assert 500 < len(found.document["diff"]["text"]) <= 1000


def test_facts_alone_have_no_content(repository: Path) -> None:
    """Of the diff its size and digest."""
    (repository / "train.py").write_text("print(2)\n")
    found = look(repository, content=False)
    assert found.patch is None
    assert found.document["dirty"]
    assert set(found.document["diff"]) == {"bytes", "sha256"}


def test_files_of_secrets_are_neither_named_nor_in_the_diff(repository: Path) -> None:
    """Tracked, renamed or untracked; their number is told."""
    (repository / ".env").write_text("DATABASE=planted1\n")
    (repository / "deploy.pem").write_text("planted2\n")
    git(repository, "add", "-f", ".")
    git(repository, "commit", "-q", "-m", "oops")
    (repository / "deploy.pem").write_text("planted3\n")
    git(repository, "mv", ".env", "settings.txt")
    (repository / "credentials.json").write_text("{}")
    document = collect(repository)
    assert document["secret_files"] == 3
    assert list(document["changed"]) == ["settings.txt"]
    assert document["untracked"] == {"count": 0, "files": []}
    for trace in (".env", "deploy", "credentials", "planted2", "planted3", "-DATABASE"):
        assert trace not in str(document)


def test_configuration_of_git_does_not_change_what_is_told(repository: Path) -> None:
    """Nor does it spoil the diff for ``git apply``."""
    settings = {
        "diff.noprefix": "true",
        "diff.renames": "copies",
        "diff.submodule": "log",
        "status.showUntrackedFiles": "no",
        "status.relativePaths": "true",
        "color.ui": "always",
        "diff.relative": "true",
    }
    (repository / "sub").mkdir()
    (repository / "sub" / "new.py").write_text("")
    git(repository, "mv", "train.py", "fit.py")
    before = collect(repository / "sub")
    for key, value in settings.items():
        git(repository, "config", key, value)
    assert collect(repository / "sub") == before
    assert list(before["changed"]) == ["fit.py", "train.py"]
    assert before["untracked"]["count"] == 1
    assert before["folder"] == "sub"


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    """The commit is still told."""
    git(repository, "checkout", "-q", "--detach")
    document = collect(repository)
    assert document["branch"] is None
    assert document["commit"] == git(repository, "rev-parse", "HEAD")


def test_a_repository_without_commits_has_none(tmp_path: Path) -> None:
    """Staged files are in the diff all the same."""
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    document = collect(tmp_path)
    assert (document["commit"], document["branch"], document["describe"]) == (None, "main", None)
    assert "+x = 1" in document["diff"]["text"]


def test_a_shallow_clone_says_so(repository: Path, tmp_path: Path) -> None:
    """Its history cannot be followed."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=1", repository.as_uri(), str(clone))
    assert collect(clone)["shallow"] is True


def test_commits_that_no_remote_has_are_counted(repository: Path, tmp_path: Path) -> None:
    """So a later reader knows that the remote cannot give this one."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    git(clone, "commit", "-q", "--allow-empty", "-m", "more")
    document = collect(clone)
    assert (document["upstream"], document["ahead"]) == ("origin/main", 1)
    assert document["remote"] == str(repository)


def test_the_record_itself_is_no_uncommitted_work(repository: Path) -> None:
    """A store in its default folder does not make the tree dirty."""
    (repository / ".tachograph").mkdir()
    (repository / ".tachograph" / "runs.sqlite").write_text("")
    assert not collect(repository)["dirty"]


def test_a_changed_submodule_makes_the_tree_dirty(repository: Path, tmp_path: Path) -> None:
    """The diff names the commit that the submodule stands at, and its own state is told."""
    inner = tmp_path / "inner"
    shutil.copytree(repository, inner)
    git(repository, "submodule", "add", "-q", str(inner), "inner")
    git(repository, "commit", "-q", "-m", "submodule")
    git(repository / "inner", "commit", "-q", "--allow-empty", "-m", "more")
    document = collect(repository)
    assert list(document["changed"]) == ["inner"]
    assert "+Subproject commit" in document["diff"]["text"]
    state = document["submodules"]["inner"]
    assert state["commit"] == git(repository / "inner", "rev-parse", "HEAD")
    assert state["recorded"] == git(repository, "rev-parse", "HEAD:inner")
    assert not state["dirty"]

    (repository / "inner" / "train.py").write_text("changed\n")
    (repository / "inner" / "new.py").write_text("")
    state = collect(repository)["submodules"]["inner"]
    assert (state["dirty"], state["changed_count"], state["untracked_count"]) == (True, 1, 1)

    shutil.rmtree(repository / "inner")
    (repository / "inner").mkdir()
    assert collect(repository)["submodules"] == {"inner": {"missing": "not checked out"}}


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repository, a folder that is gone, no git."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "not a git repository" in collect(tmp_path)["missing"]
    assert "cannot be started" in collect(tmp_path / "gone")["missing"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect(tmp_path) == {"missing": "git is not installed"}


def test_variables_of_a_git_hook_do_not_mislead(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training started from a hook of another repository still tells its own state."""
    monkeypatch.setenv("GIT_DIR", "/nowhere/.git")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert collect(repository)["branch"] == "main"


def test_the_entry_script_decides_which_repository(repository: Path, tmp_path: Path) -> None:
    """Not the working directory, unless the script belongs to the environment."""
    script = "from tachograph.provenance import collect\nprint(collect(['git'])['git'].get('root'))"
    (repository / "train.py").write_text(script)
    by_script = subprocess.run(
        [sys.executable, str(repository / "train.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert by_script.stdout.strip() == str(repository)
    by_folder = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=True
    )
    assert by_folder.stdout.strip() == str(repository)
