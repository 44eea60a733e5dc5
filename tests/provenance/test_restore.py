"""The code of a run comes back into a folder, as it ran, with the command that ran it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import RECORD, Program, Run, git

import tachograph
from tachograph.backends.base import SupportsArtifacts
from tachograph.cli.app import run as command
from tachograph.errors import StoreError
from tachograph.provenance.source import Member
from tachograph.restoring.restore import command_of, restore_run
from tachograph.restoring.sources import pack

TRAIN = (
    "import sys\n"
    "import fresh\n"
    "import tachograph\n"
    "with tachograph.start_run() as run:\n"
    "    run.log({'loss': fresh.WIDTH * float(sys.argv[-1])})\n"
)


@pytest.fixture
def dirty(repository: Path) -> Path:
    """A repository with changes, an imported untracked file, and an executable one."""
    (repository / "train.py").write_text(TRAIN)
    (repository / "fresh.py").write_text("WIDTH = 3\n")
    (repository / "weights.bin").write_bytes(b"\x00changed\xff")
    return repository


def replace(run: Run, section: str, document: dict[str, Any]) -> None:
    """Have a store say something else of the last run."""
    text = json.dumps(document)
    row = {"run_id": run.store.run("latest").run_id, "section": section, "document": text}
    run.store.edit({"provenance": [row | {"digest": hashlib.sha256(text.encode()).hexdigest()}]})


def loss(program: Program) -> float:
    """What the last run has measured."""
    with tachograph.open(program.url) as store:
        value: float = store.series("latest", "loss")["value"][0]
        return value


def test_the_tree_of_a_run_comes_back_and_runs_again(
    dirty: Path, program: Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Committed, changed, binary and untracked files; the printed line computes the same."""
    program.run(dirty, "train.py", "--scale", "2")
    expected = {path.name: path.read_bytes() for path in dirty.iterdir() if path.is_file()}
    (dirty / "fresh.py").write_text("WIDTH = 99\n")
    assert command(["restore", "latest", str(tmp_path / "back"), "--store", program.url]) == 0
    back = tmp_path / "back/project"
    assert {path.name: path.read_bytes() for path in back.iterdir() if path.is_file()} == expected

    said = capfd.readouterr().out
    commit = git(dirty, "rev-parse", "HEAD")
    assert f"project: commit {commit[:12]}, its uncommitted work, 2 files as they ran" in said
    assert f"  cd {back} && python train.py --scale 2\n" in said
    line = next(line.strip() for line in said.splitlines() if line.startswith("  cd "))
    variables = {"TACHOGRAPH_BACKEND": program.url, "TACHOGRAPH_RECORD_SYSTEM": "false"}
    subprocess.run(
        ["sh", "-c", line.replace(" python ", f" {sys.executable} ")],
        env=os.environ | variables,
        check=True,
    )
    with tachograph.open(program.url) as store:
        assert len(store.runs()) == 2
    assert loss(program) == 6.0


def test_line_ends_are_those_of_the_repository(
    repository: Path, program: Program, tmp_path: Path
) -> None:
    """Other bytes than what was committed, in files that nobody imports; a patch fits them too."""
    git(repository, "config", "core.autocrlf", "true")
    (repository / "train.py").write_text(RECORD)
    (repository / "table.csv").write_bytes(b"a,b\r\n1,2\r\n")
    (repository / "more.csv").write_bytes(b"c\r\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "tables")
    (repository / "more.csv").write_bytes(b"c\r\nd\r\n")
    run = program.run(repository, "train.py")
    assert run.source["trees"]["project"]["line_ends"] == {"core.autocrlf": "true"}
    restore_run(run.store, run.store.run("latest"), tmp_path / "again")
    for name in ("table.csv", "more.csv"):
        there = tmp_path / "again" / "project" / name
        assert there.read_bytes() == (repository / name).read_bytes()


def test_files_alone_come_back_without_git(dirty: Path, program: Program, tmp_path: Path) -> None:
    """Those that were imported; the diff is not applied, and that is said."""
    run = program.run(dirty, "train.py", "1")
    record = run.store.run("latest")
    restored = restore_run(run.store, record, tmp_path / "back", files_only=True)
    assert restored.files == ["project/fresh.py", "project/train.py"]
    assert set(restored.patches) == {"project"}
    assert command_of(run.documents, restored).words == ["train.py", "1"]
    found = {path.name for path in (tmp_path / "back").rglob("*")}
    assert found == {"project", "fresh.py", "train.py"}


def test_what_is_missing_is_said(
    dirty: Path, program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A commit that nobody has any more, and secrets that were taken out."""
    token = "ghp_Zq8vN3xK7mT2wR5yB9cD4fG6hJ1kL0pQsUaE"
    (dirty / "fresh.py").write_text(f"WIDTH = 3\nTOKEN = {token!r}\n")
    program.run(dirty, "train.py", "--api-key", token, "1")
    dirty.rename(tmp_path / "moved")
    words = ["restore", "latest", str(tmp_path / "back"), "--store", program.url]
    assert command(words) == 0
    said = capsys.readouterr().out
    assert "missing:\n  the rest of project: " in said
    assert "without the secrets that were in it:\n  project/fresh.py" in said
    assert "fill in each [redacted]" in said
    assert token not in said

    assert command([*words[:2], str(tmp_path / "again"), *words[3:], "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["redacted"] == ["project/fresh.py"]
    assert set(facts["missing"]) == {"project"}


def test_code_without_git_comes_back(program: Program, tmp_path: Path) -> None:
    """The imported files are all that there is; the script may have been named by its path."""
    folder = tmp_path / "loose"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/train.py").write_text(TRAIN)
    (folder / "inner/fresh.py").write_text("WIDTH = 4\n")
    run = program.run(tmp_path, str(folder / "inner/train.py"), "2")
    restored = restore_run(run.store, run.store.run("latest"), tmp_path / "back")
    assert restored.files == ["project/fresh.py", "project/train.py"]
    assert set(restored.missing) == {"project"}
    again = command_of(run.documents, restored)
    assert again.words == [str(tmp_path / "back/project/train.py"), "2"]
    assert any("not part of the code" in note for note in again.notes)
    program.run(tmp_path, *again.words)
    assert loss(program) == 8.0


def test_the_command_of_a_module_and_of_a_text(program: Program, tmp_path: Path) -> None:
    """`python -m` is run where it stood, a folder by its file; `-c` is its text; input is gone."""
    package = tmp_path / "work/tool"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(RECORD)
    told = {}
    for name, words, given in (
        ("module", ("-m", "tool", "-v"), None),
        ("folder", ("tool", "-v"), None),
        ("text", ("-c", f"import tool\n{RECORD}"), None),
        ("input", ("-",), f"import tool\n{RECORD}"),
    ):
        run = program.run(tmp_path / "work", *words, input=given)
        restored = restore_run(run.store, run.store.run("latest"), tmp_path / name)
        told[name] = command_of(run.documents, restored)
        assert told[name].folder == tmp_path / name / "project"
    assert told["module"].words == ["-m", "tool", "-v"]
    assert told["folder"].words == [f"{tmp_path}/folder/project/__main__.py", "-v"]
    assert told["text"].words[0] == "-c"
    assert told["input"].words == []
    assert "typed or piped" in told["input"].notes[0]


CELLS = ["import notebook, tachograph", "run = tachograph.start_run()", "run.finish()"]


@pytest.fixture
def cells(program: Program, tmp_path: Path) -> Run:
    """A shell of IPython that ran these cells, in a folder with a file of the script's name."""
    pytest.importorskip("IPython")
    (tmp_path / "work").mkdir()
    (tmp_path / "work/notebook.py").write_text("OWN = 1\n")
    script = (
        "import sys; sys.path.insert(0, '')\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"for cell in {CELLS!r}:\n"
        "    shell.run_cell(cell, store_history=True)\n"
    )
    return program.run(tmp_path / "work", "-c", script, IPYTHONDIR=str(tmp_path))


def test_the_cells_of_a_notebook_come_back_as_a_script(cells: Run, tmp_path: Path) -> None:
    """Where the notebook stood, so that it imports what it did, and over no file of its own."""
    restored = restore_run(cells.store, cells.store.run("latest"), tmp_path / "back")
    assert (tmp_path / "back/project/notebook.py").read_text() == "OWN = 1\n"
    made = tmp_path / "back/project/notebook-2.py"
    assert "project/notebook-2.py" in restored.files
    assert [line for line in made.read_text().splitlines() if line in CELLS] == CELLS
    assert command_of(cells.documents, restored).words == [str(made)]


def test_a_notebook_that_imported_nothing_has_its_commit(cells: Run, tmp_path: Path) -> None:
    """There is no archive then, and it may read what was committed."""
    work = tmp_path / "work"
    (work / "rows.csv").write_text("1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(work, *words)
    tree = {"root": str(work), "commit": git(work, "rev-parse", "HEAD").strip()}
    source = {"files": {}, "left_out": {}, "working_directory": "project"}
    replace(cells, "source", source | {"trees": {"project": tree}})
    restored = restore_run(cells.store, cells.store.run("latest"), tmp_path / "back")
    assert (tmp_path / "back/project/rows.csv").read_text() == "1\n"
    assert restored.files == ["project/notebook-2.py"]


def test_the_script_of_a_notebook_stays_in_the_folder(cells: Run, tmp_path: Path) -> None:
    """Wherever the document says that the notebook stood."""
    (tmp_path / "outside").mkdir()
    replace(cells, "source", cells.source | {"working_directory": "../outside"})
    record = cells.store.run("latest")
    restored = restore_run(cells.store, record, tmp_path / "back")
    assert "notebook.py" in restored.files
    assert not list((tmp_path / "outside").iterdir())
    assert command_of(record.provenance, restored).folder == tmp_path / "back/project"


def test_a_script_that_was_changed_is_refused(cells: Run, tmp_path: Path) -> None:
    """As an archive is."""
    digest = cells.documents["notebook"]["script"]["sha256"]
    next(tmp_path.rglob(digest)).write_text("import os; os.abort()\n")
    with pytest.raises(StoreError, match=r"notebook.py is refused"):
        restore_run(cells.store, cells.store.run("latest"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"TACHOGRAPH_RECORD_CODE": "allow"}, 'record.code = "allow"; commit'),
        ({}, "no file of the user's was imported"),
    ],
)
def test_a_run_without_an_archive_is_an_error_that_says_why(
    variables: dict[str, str],
    told: str,
    repository: Path,
    program: Program,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And makes no folder."""
    (repository / "train.py").write_text(RECORD)
    git(repository, "commit", "-q", "-a", "-m", "second")
    words = ("train.py",) if variables else ("-c", RECORD)
    program.run(repository, *words, **variables)
    words = ("restore", "latest", str(tmp_path / "back"), "--store", program.url)
    assert command(list(words)) == 1
    error = capsys.readouterr().err
    assert told in error
    assert git(repository, "rev-parse", "HEAD") in error
    assert not (tmp_path / "back").exists()


def test_uncommitted_work_that_was_not_kept_is_named(
    dirty: Path, program: Program, tmp_path: Path
) -> None:
    """The commit alone is not the code that ran."""
    run = program.run(dirty, "train.py", "1", TACHOGRAPH_RECORD_CODE="allow")
    with pytest.raises(StoreError, match="without what was not committed"):
        restore_run(run.store, run.store.run("latest"), tmp_path / "back")


def test_an_archive_that_the_store_lacks_is_an_error(
    dirty: Path, program: Program, tmp_path: Path
) -> None:
    """As of a run whose files are still on the machine that recorded it."""
    run = program.run(dirty, "train.py", "1")
    digest = run.source["archive"]["sha256"]
    next(tmp_path.rglob(digest)).unlink()
    with pytest.raises(StoreError, match=f"does not have the archive of the code .{digest[:12]}"):
        restore_run(run.store, run.store.run("latest"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_in_use_is_left_alone(
    dirty: Path, program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in it is changed, also by `--files-only`."""
    program.run(dirty, "train.py", "1")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/mine").write_text("mine")
    for option in ([], ["--files-only"]):
        words = ["restore", "latest", str(tmp_path / "back"), "--store", program.url, *option]
        assert command(words) == 1
        assert "back is in use" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["mine"]


def test_an_archive_that_was_changed_is_refused(
    dirty: Path, program: Program, tmp_path: Path
) -> None:
    """Code of another than the run's is not written."""
    run = program.run(dirty, "train.py", "1")
    kept = next(tmp_path.rglob(run.source["archive"]["sha256"]))
    kept.write_bytes(pack({"project/train.py": Member(b"import os; os.abort()\n")}, {}))
    for files_only in (True, False):
        with pytest.raises(StoreError, match="refused"):
            restore_run(
                run.store, run.store.run("latest"), tmp_path / "back", files_only=files_only
            )
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("key", ["../evil.py", "project/../../evil.py", "/evil.py"])
@pytest.mark.parametrize("files_only", [True, False])
def test_nothing_is_written_outside_of_the_folder(
    key: str, files_only: bool, dirty: Path, program: Program, tmp_path: Path
) -> None:
    """Whatever a document and an archive that fits it say."""
    run = program.run(dirty, "train.py", "1")
    assert isinstance(run.store.backend, SupportsArtifacts)
    archive = tmp_path / "evil.tar.gz"
    archive.write_bytes(pack({key: Member(b"evil")}, {}))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    run.store.backend.put_artifact(archive, digest)
    files = {key: {"sha256": hashlib.sha256(b"evil").hexdigest(), "state": "no git"}}
    document = run.source | {"files": files, "archive": {"sha256": digest}}
    replace(run, "source", document)
    with pytest.raises(StoreError, match="leads out of the folder"):
        restore_run(run.store, run.store.run("latest"), tmp_path / "back", files_only=files_only)
    assert not list(tmp_path.rglob("evil.py"))


def test_a_part_of_a_run_has_the_code_of_the_run(program: Program, tmp_path: Path) -> None:
    """As a trial of a study."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work/train.py").write_text(
        "import tachograph\n"
        "with tachograph.start_run() as run, run.child('trial', 'one'):\n"
        "    pass\n"
    )
    run = program.run(tmp_path / "work", "train.py")
    restored = restore_run(run.store, run.store.run("one"), tmp_path / "back")
    assert restored.files == ["project/train.py"]
