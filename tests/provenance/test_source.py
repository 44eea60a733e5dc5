"""The code of a run is recorded as it was imported, however the program was started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from programs import RECORD, Program, git, make_repository

from tachograph.errors import ConfigError
from tachograph.provenance import source
from tachograph.provenance.git import Look
from tachograph.recording.origin import refuse_uncommitted
from tachograph.restoring import sources

TOKEN = "ghp_Zq8vN3xK7mT2wR5yB9cD4fG6hJ1kL0pQsUaE"
PASSWORD = "correcthorse77"


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write modules, by their paths without '.py'."""
    for name, text in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


# ---------------------------------------------------------------------------- what is recorded


def test_a_dirty_tree_comes_back_as_it_was_imported(
    repository: Path, program: Program, tmp_path: Path
) -> None:
    """Committed, changed, untracked, ignored and lazily imported files, with their states."""
    write(repository, {"train": "", "package/model": "RATE = 1\n", "package/unused": ""})
    (repository / ".gitignore").write_text("generated.py\n*.yaml\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "more")
    write(
        repository,
        {
            "package/model": "RATE = 2\n",
            "fresh": "X = 1\n",
            "generated": "Y = 1\n",
            "lazy": "Z = 1\n",
            "never": "",
        },
    )
    (repository / "given.json").write_text('{"lr": 0.1}')
    (repository / "ignored.yaml").write_text("lr: 0.1\n")
    write(
        repository,
        {
            "train": "import time, tachograph, package.model, fresh, generated\n"
            "with tachograph.start_run() as run:\n"
            "    time.sleep(1.5)\n"
            "    import lazy\n"
        },
    )
    (repository / "train.py").chmod(0o755)
    run = program.run(repository, "train.py", "--config=given.json", "ignored.yaml")
    assert run.states() == {
        "project/fresh.py": "untracked",
        "project/generated.py": "ignored",
        "project/given.json": "untracked",
        "project/ignored.yaml": "ignored",
        "project/lazy.py": "untracked",
        "project/package/model.py": "changed",
        "project/train.py": "changed",
    }
    assert run.source["left_out"] == {"project/ignored.yaml": "git ignores it"}
    assert run.source["files"]["project/given.json"]["role"] == "configuration"
    assert run.source["entry"] == {"started_by": "script", "file": "project/train.py"}
    assert run.source["working_directory"] == "project"
    assert run.source["python_path"] == ["project"]
    assert run.artifacts["source.tar.gz"]["kind"] == "source"

    restored = run.restore(tmp_path / "back")
    assert restored.redacted == []
    for key in restored.files:
        original = repository / key.removeprefix("project/")
        assert (tmp_path / "back" / key).read_bytes() == original.read_bytes()
        assert os.access(tmp_path / "back" / key, os.X_OK) == os.access(original, os.X_OK)
    assert set(restored.files) == set(run.states()) - {"project/ignored.yaml"}
    assert restored.patches["project"].startswith(b"diff --git a/package/model.py")


def test_a_file_that_changes_while_the_program_runs_is_marked(
    tmp_path: Path, program: Program
) -> None:
    """What was imported may have been another content."""
    write(
        tmp_path / "lab",
        {
            "steady": "",
            "moving": "X = 1\n",
            "train": "import time, steady, moving, pathlib\n"
            "time.sleep(0.1)\npathlib.Path('moving.py').write_text('X = 2')\n" + RECORD,
        },
    )
    files = program.run(tmp_path / "lab", "train.py").source["files"]
    assert files["project/moving.py"]["modified_since_start"] is True
    assert "modified_since_start" not in files["project/steady.py"]


def test_other_local_projects_are_told_with_their_own_commit(
    repository: Path, program: Program, tmp_path: Path
) -> None:
    """As an editable install, a folder on the path, or a submodule, whichever is imported."""
    library = make_repository(tmp_path / "my lib")
    write(library, {"src/library/__init__": "V = 1\n"})
    git(library, "add", ".")
    git(library, "commit", "-q", "-m", "library")
    write(library, {"src/library/__init__": "V = 2\n"})
    write(tmp_path / "plain", {"helper": ""})
    inner = make_repository(tmp_path / "inner")
    write(inner, {"sub/__init__": ""})
    git(inner, "add", ".")
    git(inner, "commit", "-q", "-m", "inner")
    git(repository, "submodule", "add", "-q", str(inner), "inner")
    write(repository, {"train": "import library, helper, inner.sub\n" + RECORD})
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "submodule")
    write(repository, {"inner/sub/__init__": "CHANGED = 1\n"})
    path = [str(library / "src"), str(tmp_path / "plain"), os.environ.get("PYTHONPATH", "")]
    run = program.run(repository, "train.py", PYTHONPATH=os.pathsep.join(path).rstrip(os.pathsep))
    assert run.states() == {
        "my_lib/src/library/__init__.py": "changed",
        "plain/helper.py": "no git",
        "project/inner/sub/__init__.py": "changed",
        "project/train.py": "committed",
    }
    trees = run.source["trees"]
    assert set(trees) == {"project", "my_lib", "plain", "project/inner"}
    assert trees["my_lib"]["commit"] == git(library, "rev-parse", "HEAD")
    assert trees["my_lib"]["dirty"]
    assert trees["plain"]["missing"] == "not a git repository"
    assert trees["project/inner"]["commit"] == git(repository / "inner", "rev-parse", "HEAD")
    assert trees["project/inner"]["patch"]["bytes"] > 0
    assert run.documents["git"]["submodules"]["inner"]["dirty"]
    assert run.source["python_path"] == ["project", "my_lib/src", "plain"]
    restored = run.restore(tmp_path / "back")
    assert set(restored.patches) == {"my_lib", "project/inner"}


def test_names_and_links_of_any_kind_are_recorded(
    repository: Path, program: Program, tmp_path: Path
) -> None:
    """Names that are not UTF-8, binary modules, links that lead out of the tree."""
    write(tmp_path / "elsewhere", {"shared": "S = 1\n"})
    (repository / "linked").symlink_to(tmp_path / "elsewhere")
    strange = Path(os.fsdecode(os.fsencode(repository) + b"/caf\xe9"))
    strange.mkdir()
    (strange / "inner.py").write_text("")
    write(
        repository,
        {
            "train": "import sys, os\n"
            "sys.path += ['linked', os.fsdecode(b'caf\\xe9')]\n"
            "import shared, inner\n" + RECORD
        },
    )
    run = program.run(repository, "train.py")
    files = run.source["files"]
    assert files["project/linked/shared.py"]["link"] == str(tmp_path / "elsewhere/shared.py")
    assert run.states() == {
        "project/caf\\udce9/inner.py": "untracked",
        "project/linked/shared.py": "linked",
        "project/train.py": "changed",
    }
    run.restore(tmp_path / "back")
    assert (tmp_path / "back/project/linked/shared.py").read_text() == "S = 1\n"
    assert not (tmp_path / "back/project/linked").is_symlink()
    names = [os.fsencode(path.name) for path in (tmp_path / "back/project").iterdir()]
    assert b"caf\xe9" in names


def test_code_without_git_is_kept_all_the_same(tmp_path: Path, program: Program) -> None:
    """Also where git is not installed."""
    write(tmp_path / "lab", {"train": "import helper\n" + RECORD, "helper": "H = 1\n"})
    run = program.run(tmp_path / "lab", "train.py", PATH=str(tmp_path))
    assert run.documents["git"] == {"missing": "git is not installed"}
    assert run.states() == {"project/helper.py": "no git", "project/train.py": "no git"}
    run.restore(tmp_path / "back")
    assert (tmp_path / "back/project/helper.py").read_text() == "H = 1\n"


# ---------------------------------------------------------------------------- how it was started


def test_a_script_from_standard_input_says_what_is_missing(
    repository: Path, program: Program
) -> None:
    """Its text is not to be had; what it imports is."""
    write(repository, {"helper": ""})
    run = program.run(repository, "-", input="import helper\n" + RECORD)
    assert run.source["entry"]["started_by"] == "stdin"
    assert "standard input" in run.source["entry"]["missing"]
    assert run.states() == {"project/helper.py": "untracked"}


def test_a_script_that_ends_before_it_is_looked_at_is_known(
    repository: Path, program: Program
) -> None:
    """Python forgets the script's file as it ends; a run that is left open is recorded after."""
    write(repository, {"short": "import tachograph\ntachograph.start_run()\n"})
    run = program.run(repository, "short.py")
    assert run.source["entry"] == {"started_by": "script", "file": "project/short.py"}
    assert run.states() == {"project/short.py": "untracked"}


def test_a_command_is_in_the_arguments(repository: Path, program: Program) -> None:
    """The code of ``python -c``, and no archive where there is nothing to keep."""
    run = program.run(repository, "-c", RECORD)
    assert run.source["entry"]["started_by"] == "command"
    assert run.documents["argv"]["original_argv"][-1] == RECORD
    assert "archive" not in run.source
    assert run.artifacts == {}


def test_a_module_is_told_by_its_name(repository: Path, program: Program) -> None:
    """``python -m package`` begins in a file of the project."""
    write(
        repository, {"package/__init__": "", "package/__main__": "import package.model\n" + RECORD}
    )
    write(repository, {"package/model": ""})
    run = program.run(repository, "-m", "package")
    assert run.source["entry"] == {
        "started_by": "module",
        "module": "package",
        "file": "project/package/__main__.py",
    }
    assert set(run.states()) == {
        f"project/package/{name}.py" for name in ("__init__", "__main__", "model")
    }


def test_code_inside_pytest_is_the_project_of_the_test(repository: Path, program: Program) -> None:
    """pytest itself belongs to the environment."""
    write(
        repository,
        {"test_model": "import model\ndef test():\n    " + RECORD.replace("\n", "; ", 1)},
    )
    write(repository, {"model": ""})
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_model.py")
    run = program.run(repository, *command, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert run.source["entry"] == {
        "started_by": "pytest",
        "missing": "it belongs to the environment",
    }
    assert run.states() == {"project/model.py": "untracked", "project/test_model.py": "untracked"}


@pytest.mark.slow
def test_of_two_processes_of_torchrun_rank_0_records_the_code(
    repository: Path, program: Program
) -> None:
    """One run, one document, with the script of the ranks as entry."""
    write(repository, {"train": RECORD})
    run = program.run(repository, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py")
    assert run.source["entry"] == {"started_by": "script", "file": "project/train.py"}
    assert len(run.store.runs()) == 1
    assert len(run.store.sql("select distinct rank from writers")) == 2


def test_files_that_hydra_composes_are_config_files(repository: Path, program: Program) -> None:
    """Those of the groups that were chosen, wherever the job stands."""
    pytest.importorskip("hydra")
    for name, text in {
        "main": "defaults:\n  - model: small\nlr: 1\n",
        "model/small": "size: 1\n",
        "model/large": "size: 9\n",
    }.items():
        file = repository / f"conf/{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    script = (
        "import hydra\n"
        "@hydra.main(config_path='conf', config_name='main', version_base=None)\n"
        "def train(config):\n    import tachograph\n    tachograph.start_run().finish()\n"
        "train()\n"
    )
    write(repository, {"train": script})
    run = program.run(repository, "train.py", "model=large", "hydra.job.chdir=true")
    assert {key for key in run.states() if key.endswith(".yaml")} == {
        "project/conf/main.yaml",
        "project/conf/model/large.yaml",
    }


# ---------------------------------------------------------------------------- policy


def test_allow_records_facts_and_no_content(repository: Path, program: Program) -> None:
    """That there is uncommitted work, digests, and no byte of what it is."""
    write(repository, {"train": "MARK = 'unmistakable'\n" + RECORD})
    run = program.run(repository, "train.py", TACHOGRAPH_RECORD_CODE="allow")
    assert run.documents["git"]["dirty"]
    assert run.states() == {"project/train.py": "changed"}
    assert len(run.source["files"]["project/train.py"]["sha256"]) == 64
    assert run.artifacts == {}
    assert "unmistakable" not in str(run.documents)


def test_refuse_wants_a_commit_that_holds_all(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the project, and of other local projects that are imported; and a repository at all."""
    monkeypatch.chdir(repository)
    monkeypatch.setattr(source, "imported", dict)
    refuse_uncommitted()

    library = make_repository(tmp_path / "library")
    write(library, {"train": "changed = 1\n"})
    monkeypatch.setattr(source, "imported", lambda: {str(library / "train.py"): "train"})
    with pytest.raises(ConfigError, match=r"library .*commit it"):
        refuse_uncommitted()

    monkeypatch.setattr(source, "imported", dict)
    (repository / "new.py").write_text("")
    with pytest.raises(ConfigError, match=r"project \(1 files: new.py"):
        refuse_uncommitted()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConfigError, match="not a git repository"):
        refuse_uncommitted()


# ---------------------------------------------------------------------------- secrets


def test_no_secret_reaches_the_store_by_way_of_the_code(
    repository: Path, program: Program, tmp_path: Path
) -> None:
    """In source, in changed lines, in a file of secrets, in a config file; what is left says so."""
    (repository / ".env").write_text(f"ANYTHING={PASSWORD}\n")
    (repository / "secrets.yaml").write_text(f"anything: {PASSWORD}\n")
    (repository / "config.json").write_text(f'{{"password": "{PASSWORD}"}}')
    write(repository, {"train": f"TOKEN = '{TOKEN}'\nimport keys, credentials\n" + RECORD})
    write(
        repository,
        {"keys": f"password = '{PASSWORD}'\n", "credentials": f"anything = '{PASSWORD}'\n"},
    )
    git(repository, "add", "keys.py")
    run = program.run(repository, "train.py", "--config=config.json", "--env=secrets.yaml")
    files = run.source["files"]
    assert run.source["secret_files"] == 1
    assert files["project/train.py"]["redacted"] == files["project/keys.py"]["redacted"] == 1
    assert run.source["trees"]["project"]["patch"]["redacted"] == 2
    assert ".env" not in str(run.documents["git"])
    assert "credentials" not in str(run.source)
    restored = run.restore(tmp_path / "back")
    assert set(restored.redacted) == {"project/train.py", "project/keys.py", "project/config.json"}
    written = b"".join(path.read_bytes() for path in tmp_path.glob("back/**/*.*"))
    patches = b"".join(restored.patches.values())
    stored = b"".join(p.read_bytes() for p in tmp_path.glob("runs.sqlite*") if p.is_file())
    for secret in (TOKEN, PASSWORD):
        assert secret.encode() not in written + patches + stored
        assert secret not in str(run.documents)


# ---------------------------------------------------------------------------- bounds and cost


def collected(folder: Path) -> source.Source:
    """The code of this process, with an entry in that folder."""
    found = source.Source(str(folder), str(folder))
    found.update()
    return found


def test_what_exceeds_a_bound_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long files, too many bytes, too many files, too much time; committed files come last."""
    write(repository, {"committed": "0" * 90})
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "more")
    write(repository, {"long": "x = 1\n" * 1000, "untracked": "1" * 90})
    names = ("committed", "long", "untracked")
    files = {str(repository / f"{name}.py"): name for name in names}
    monkeypatch.setattr(source, "imported", lambda: files)
    monkeypatch.setattr("tachograph.provenance.source_files.FILE_BYTES", 5000)
    monkeypatch.setattr("tachograph.provenance.source_files._CACHED_BYTES", 1000)
    monkeypatch.setattr(source, "TOTAL_BYTES", 100)
    found = collected(repository)
    assert set(found.document["files"]) == {f"project/{name}.py" for name in names}
    assert set(found.document["left_out"]) == {"project/long.py", "project/committed.py"}
    assert set(found.files) == {"project/untracked.py"}
    assert len(found.document["files"]["project/long.py"]["sha256"]) == 64

    monkeypatch.setattr(source, "FILES", 2)
    assert set(collected(repository).document["files"]) == {
        "project/long.py",
        "project/untracked.py",
    }
    monkeypatch.setattr(source, "SECONDS", -1.0)
    assert len(collected(repository).document["left_out"]) == 3


def test_what_was_imported_first_stays_as_it_was(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later look adds what is new, and reads nothing again."""
    files = {str(repository / "train.py"): "train"}
    monkeypatch.setattr(source, "imported", lambda: files)
    found = collected(repository)
    before = found.document["files"]["project/train.py"]
    assert not found.update()
    (repository / "train.py").write_text("changed\n")
    write(repository, {"later": ""})
    files[str(repository / "later.py")] = "later"
    assert found.update()
    assert found.document["files"]["project/train.py"] == before
    assert found.document["files"]["project/later.py"]["state"] == "untracked"


def test_many_runs_of_a_process_share_one_archive(tmp_path: Path, program: Program) -> None:
    """Equal code is packed once and stored once; parts of a run have none of their own."""
    write(
        tmp_path / "lab",
        {
            "train": "import tachograph\n"
            "from tachograph.restoring import sources\n"
            "packed, pack = [], sources.pack\n"
            "sources.pack = lambda *a: packed.append(1) or pack(*a)\n"
            "for number in range(5):\n"
            "    with tachograph.start_run(name=str(number)) as run:\n"
            "        run.child('trial').finish()\n"
            "with tachograph.start_run() as run:\n"
            "    run.log({'packed': len(packed)})\n"
        },
    )
    run = program.run(tmp_path / "lab", "train.py")
    values = {row["name"]: row["last"] for row in run.store.run("latest").metrics}
    assert values["packed"] == 1
    digests = run.store.sql("select distinct sha256 from artifacts").to_pylist()
    assert [row["sha256"] for row in digests] == [run.source["archive"]["sha256"]]
    assert len(run.store.sql("select * from provenance where section = 'source'")) == 6


def test_a_repository_is_looked_at_now_and_then(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each of many short runs: a look takes a tenth of the time at most."""
    looks = []

    def slow_look(root: str, *, content: bool) -> Look:
        looks.append(root)
        time.sleep(0.05)
        return Look({})

    monkeypatch.setattr(source, "look", slow_look)
    for _ in range(3):
        source.Source(str(repository), str(repository))
    assert looks == [str(repository)]
    monkeypatch.setattr(source, "_LOOK_SECONDS", 0.0)
    source._looks.clear()
    for _ in range(3):
        source.Source(str(repository), str(repository))
    assert len(looks) == 4


def test_the_archive_does_not_depend_on_where_the_project_lies(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on when its files were written, so that equal code is stored once."""
    archives = []
    for folder in (repository, tmp_path / "copy"):
        if folder != repository:
            subprocess.run(["cp", "-r", str(repository), str(folder)], check=True)
            os.utime(folder / "train.py", (1, 1))
        write(folder, {"train": "changed = 1\n"})
        monkeypatch.setattr(source, "imported", lambda f=folder: {str(f / "train.py"): "train"})
        found = collected(folder)
        archives.append(sources.pack(found.files, found.patches))
    assert archives[0] == archives[1]


def test_a_lazy_module_is_not_loaded_by_looking(tmp_path: Path, program: Program) -> None:
    """And not recorded as imported, for its file was not run."""
    write(
        tmp_path / "lab",
        {
            "lazy": "raise SystemExit('loaded')\n",
            "train": "import importlib.util, sys, tachograph\n"
            "spec = importlib.util.find_spec('lazy')\n"
            "spec.loader = importlib.util.LazyLoader(spec.loader)\n"
            "module = sys.modules['lazy'] = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(module)\n" + RECORD,
        },
    )
    assert program.run(tmp_path / "lab", "train.py").states() == {"project/train.py": "no git"}


def test_installed_and_generated_modules_are_no_code_of_the_user(
    tmp_path: Path, program: Program
) -> None:
    """A virtual environment in the project, what a library writes for itself, the recorder."""
    write(
        tmp_path / "lab",
        {
            "venv/lib/site-packages/package": "",
            "train": "import sys, types, tachograph\n"
            "sys.path.append('venv/lib/site-packages')\n"
            "import package\n"
            "for name in ('torch', 'torch.generated'):\n"
            "    module = sys.modules[name] = types.ModuleType(name)\n"
            "    module.__file__ = '/x/site-packages/torch/__init__.py'\n"
            "module.__file__ = __file__.replace('train', 'generated')\n" + RECORD,
            "generated": "",
        },
    )
    assert program.run(tmp_path / "lab", "train.py").states() == {"project/train.py": "no git"}


def test_asking_for_the_code_imports_nothing_more(tmp_path: Path) -> None:
    """Of libraries; the standard library is used."""
    script = (
        "import sys; from tachograph.provenance import source, notebook;"
        "source.Source('.', '.').update(); notebook.collect();"
        "print([m for m in sys.modules if '.' not in m and m not in sys.stdlib_module_names"
        " and not m.startswith(('__editable__', '_sysconfigdata'))])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(eval(answer.stdout)) <= {"tachograph", "_distutils_hack", "__main__"}
