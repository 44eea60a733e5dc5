"""What running a run again promises: nothing unasked, a true verdict, kept in the record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from laboratory import Laboratory

import tachograph
from tachograph.cli.app import run as command
from tachograph.errors import StoreError
from tachograph.reproduction.reproduce import Wishes, prepare
from tachograph.reproduction.verdict import DIFFERENT, EXACT, FAILED, STATISTICAL

LOOP = """
import random, sys, tachograph
random.seed(sys.argv[-1] if len(sys.argv) > 1 else 3)
with tachograph.start_run(name="loop", params={"n": 1}) as run:
    for step in range(20):
        run.log({"loss": random.random()}, step)
"""


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    """An empty project."""
    return Laboratory(tmp_path)


def test_a_loop_without_git_and_framework_is_reproduced(laboratory: Laboratory) -> None:
    """From the archive alone; the new run says what it is."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py")
    laboratory.write("train.py", "gone")
    verdict = laboratory.reproduce(original)
    assert verdict.verdict == EXACT
    assert (verdict.evidence.points, verdict.evidence.equal_points) == (20, 20)
    with tachograph.open(laboratory.url) as store:
        record = store.run(verdict.reproduction)
        document = record.provenance["reproduction"]
        assert record.tags["reproduces"] == original
        assert (document["of"], document["verdict"]) == (original, EXACT)
        assert document["exit_status"] == 0
        assert record.row["project"] == store.row(original)["project"]
        assert len(store.runs("tags.reproduces = '" + original + "'")) == 1


def test_the_first_point_that_differs_is_named(laboratory: Laboratory) -> None:
    """Though later ones differ as well; points before it are counted."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py")
    later = 'run.log({"loss": random.random() + (step > 12)}, step)'
    changed = laboratory.changed("train.py", 'run.log({"loss": random.random()}, step)', later)
    verdict = laboratory.reproduce(original, code=changed)
    assert verdict.verdict == DIFFERENT
    assert verdict.departure is not None
    assert (verdict.departure.metric, verdict.departure.step) == ("loss", 13)
    assert verdict.departure.second == verdict.departure.first + 1
    assert (verdict.evidence.points, verdict.evidence.equal_points) == (20, 13)
    assert verdict.changed_line is not None
    assert "train.py, line 6" in verdict.changed_line


@pytest.mark.parametrize(("old", "new"), [("range(20)", "range(18)"), ("range(20)", "range(22)")])
def test_a_longer_or_shorter_training_is_different(
    laboratory: Laboratory, old: str, new: str
) -> None:
    """Where all common points are the same, the first that one lacks is named."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py")
    verdict = laboratory.reproduce(original, code=laboratory.changed("train.py", old, new))
    assert verdict.verdict == DIFFERENT
    assert verdict.departure is not None
    assert verdict.departure.step == min(20, int(new[6:8]))
    assert None in (verdict.departure.first, verdict.departure.second)


def test_special_values_are_compared_by_their_bits(laboratory: Laboratory) -> None:
    """NaN is the same as NaN; zero is not the same as minus zero."""
    program = (
        "import tachograph\n"
        "with tachograph.start_run() as run:\n"
        "    for step, value in enumerate([float('nan'), float('inf'), 0.0]):\n"
        "        run.log({'x': value}, step)\n"
    )
    laboratory.write("train.py", program)
    original = laboratory.run("train.py")
    assert laboratory.reproduce(original).verdict == EXACT
    verdict = laboratory.reproduce(original, code=laboratory.changed("train.py", "0.0]", "-0.0]"))
    assert verdict.verdict == STATISTICAL
    assert verdict.departure is not None
    assert str(verdict.departure.second) == "-0.0"


def test_within_the_tolerance_is_statistical(laboratory: Laboratory) -> None:
    """The last values count."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py")
    near = laboratory.changed("train.py", "random.random()}", "random.random() * (1 + 1e-9)}")
    assert laboratory.reproduce(original, code=near).verdict == STATISTICAL
    assert laboratory.reproduce(original, code=near, tolerance=1e-12).verdict == DIFFERENT


def test_within_the_spread_of_the_group_is_statistical(laboratory: Laboratory) -> None:
    """Of runs that differ in nothing but the seed; reproductions are none of them."""
    laboratory.write("train.py", LOOP)
    runs = [laboratory.run("train.py", seed) for seed in ("--seed=1", "--seed=2", "--seed=3")]
    verdict = laboratory.reproduce(runs[0], arguments=["--seed=2"])
    assert verdict.verdict == STATISTICAL
    assert set(verdict.group) == set(runs)
    (final,) = verdict.finals
    assert final.spread is not None
    assert final.spread[0] <= final.second <= final.spread[1]
    with tachograph.open(laboratory.url) as store:
        lasts = [store.run(run).metrics["last"][0] for run in runs]
    assert final.spread == (min(lasts), max(lasts))


def test_a_reproduction_that_fails_is_told(laboratory: Laboratory) -> None:
    """With how both have ended, and where they part."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py")
    broken = laboratory.changed("train.py", "range(20):", "range(20):\n        assert step < 5")
    verdict = laboratory.reproduce(original, code=broken)
    assert verdict.verdict == FAILED
    assert "failed" in verdict.reason


def test_a_run_that_was_stopped_is_not_blamed_for_what_it_lacks(laboratory: Laboratory) -> None:
    """The points that it has are the same, and no seed or line of code has made the others."""
    stop = laboratory.folder / "stop"
    stop.touch()
    stopping = f"        if step == 9 and os.path.exists({str(stop)!r}): raise KeyboardInterrupt\n"
    ending = "import atexit, os\natexit.register(os._exit, 0)\n"  # so that it ends with 0
    laboratory.write("train.py", ending + LOOP + stopping)
    original = laboratory.run("train.py")
    stop.unlink()
    verdict = laboratory.reproduce(original)
    assert verdict.verdict == DIFFERENT
    assert "ended as interrupted" in verdict.reason
    assert "all its 10 points are the same" in verdict.reason
    assert verdict.cause is not None
    assert (verdict.cause.first, verdict.cause.second) == ("interrupted", "finished")


def test_a_program_that_records_nothing_is_an_error(laboratory: Laboratory) -> None:
    """It names the status and the folder, and files that are not in the restored code."""
    laboratory.write("train.py", "open('rows.csv')\n" + LOOP)
    laboratory.write("rows.csv", "")
    original = laboratory.run("train.py")
    empty = laboratory.changed("train.py", LOOP, "raise SystemExit(7)")
    with pytest.raises(StoreError, match=r"status 7 .* it ran in .*/project$"):
        laboratory.reproduce(original, code=empty)
    with pytest.raises(StoreError, match=r"holds rows\.csv: --link"):
        laboratory.reproduce(original)


def test_of_several_runs_of_a_process_the_same_one_is_compared(laboratory: Laboratory) -> None:
    """And parts are compared with the parts that stand where they stood."""
    laboratory.write(
        "train.py",
        "import tachograph\n"
        "for number in range(3):\n"
        "    with tachograph.start_run(name='same') as run:\n"
        "        for fold in range(2):\n"
        "            with run.child('fold', 'fold') as part:\n"
        "                part.log({'x': 10.0 * number + fold}, 1)\n",
    )
    laboratory.run("train.py")
    with tachograph.open(laboratory.url) as store:
        runs = list(store.runs(sort="started_at")["run_id"])
    verdict = laboratory.reproduce(runs[1])
    assert verdict.verdict == EXACT
    assert verdict.evidence.series == 2
    with tachograph.open(laboratory.url) as store:
        part = store.children(verdict.reproduction)["run_id"][1]
        assert store.series(part, "x")["value"] == [11.0]


def test_a_part_is_reproduced_with_its_root(laboratory: Laboratory) -> None:
    """Naming a trial runs the study again."""
    laboratory.write(
        "train.py",
        "import tachograph\n"
        "with tachograph.start_run() as run:\n"
        "    with run.child('trial', 'one') as part:\n"
        "        part.log({'x': 1.0}, 1)\n",
    )
    original = laboratory.run("train.py")
    with tachograph.open(laboratory.url) as store:
        part = store.children(original)["run_id"][0]
        wishes = Wishes(laboratory.folder / "restored", python=Path(sys.executable))
        notes = prepare(store, part, wishes).plan.notes
    assert "one is a part of it, and is run again with the whole" in notes
    assert laboratory.reproduce(part).original == original


# ---------------------------------------------------------------------------- the command line


def test_arguments_that_are_paths_lead_to_the_restored_code(laboratory: Laboratory) -> None:
    """Absolute and relative ones; what lay out of the project stays where it is."""
    outside = laboratory.folder / "outside.txt"
    outside.write_text("4")
    inner = laboratory.write("conf/inner.txt", "5")
    laboratory.write(
        "src/train.py",
        "import sys, tachograph\n"
        "with tachograph.start_run() as run:\n"
        "    for number, path in enumerate(sys.argv[1:]):\n"
        "        run.log({'x': float(open(path).read())}, number)\n"
        "        run.log_params({f'path{number}': path})\n",
    )
    laboratory.commit()
    original = laboratory.run(
        "src/train.py", str(inner), "conf/inner.txt", "../outside.txt", str(outside)
    )
    verdict = laboratory.reproduce(original)
    assert verdict.verdict == EXACT
    with tachograph.open(laboratory.url) as store:
        first, *_, last = store.run(verdict.reproduction).params.values()
    assert str(laboratory.folder / "again") in first
    assert last == str(outside)


def test_a_module_a_command_and_python_path_run_again(laboratory: Laboratory) -> None:
    """``-m package``, ``-c code``, and code that lies in another folder of the path."""
    laboratory.write("package/__init__.py", "")
    laboratory.write("package/__main__.py", "import lib\n" + LOOP)
    other = laboratory.write("elsewhere/lib.py", "").parent
    runs = [laboratory.run("-m", "package", PYTHONPATH=str(other)), laboratory.run("-c", LOOP)]
    laboratory.write("package/__main__.py", "gone")
    (other / "lib.py").unlink()
    assert laboratory.reproduce(runs[0]).verdict == EXACT
    # The code of a command is in its arguments; there is no archive to restore.
    with pytest.raises(StoreError, match="was not kept"):
        laboratory.reproduce(runs[1])
    assert laboratory.reproduce(runs[1], code=laboratory.project).verdict == EXACT


def test_a_program_from_standard_input_is_not_to_be_had(laboratory: Laboratory) -> None:
    """And that is said before anything is made."""
    from laboratory import environment

    laboratory.write("helper.py", "")
    subprocess.run(
        [sys.executable, "-"],
        input="import helper\n" + LOOP,
        cwd=laboratory.project,
        env=environment(laboratory.url),
        text=True,
        check=True,
    )
    with pytest.raises(StoreError, match="typed or piped"):
        laboratory.reproduce("latest")


def test_variables_are_as_they_were(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set again, taken away, or as it was asked for."""
    laboratory.write(
        "train.py",
        "import os, tachograph\n"
        "with tachograph.start_run() as run:\n"
        "    for name in ('MKL_CBWR', 'TORCH_X', 'OMP_NUM_THREADS', 'PYTHONHASHSEED'):\n"
        "        run.set_tags({name: os.environ.get(name, 'none')})\n"
        "    run.log({'x': float(hash('a'))}, 1)\n",
    )
    original = laboratory.run("train.py", MKL_CBWR="AVX2", PYTHONHASHSEED="5")
    monkeypatch.setenv("TORCH_X", "1")
    verdict = laboratory.reproduce(original, variables={"OMP_NUM_THREADS": None})
    assert verdict.verdict == EXACT  # the hash of a text is the same
    with tachograph.open(laboratory.url) as store:
        tags = store.run(verdict.reproduction).tags
    assert [
        tags[name] for name in ("MKL_CBWR", "TORCH_X", "OMP_NUM_THREADS", "PYTHONHASHSEED")
    ] == [
        "AVX2",
        "none",
        "none",
        "5",
    ]


def test_data_that_was_recorded_or_is_named_is_reached(laboratory: Laboratory) -> None:
    """A file that no commit and no archive holds."""
    laboratory.write(".gitignore", "data\n")
    laboratory.write(
        "train.py",
        "import tachograph\n"
        "with tachograph.start_run() as run:\n"
        "    run.log_data(__import__('pathlib').Path('data/rows.txt'), 'train')\n"
        "    found = open('data/rows.txt').read() + open('data/more.txt').read()\n"
        "    run.log({'x': float(found)}, 1)\n",
    )
    laboratory.commit()
    laboratory.write("data/rows.txt", "1")
    laboratory.write("data/more.txt", "2")
    original = laboratory.run("train.py")
    with pytest.raises(StoreError, match="no such file"):
        laboratory.reproduce(original, link=["data/none.txt"])
    assert laboratory.reproduce(original).verdict == FAILED  # the second file is not there
    assert laboratory.reproduce(original, link=["data/more.txt"]).verdict == EXACT
    laboratory.write("data/rows.txt", "3")
    verdict = laboratory.reproduce(original, link=["data/more.txt"])
    assert verdict.verdict == DIFFERENT
    assert verdict.cause is not None
    assert verdict.cause.path == "data.train.digest"


# ---------------------------------------------------------------------------- what must not be


def test_nothing_runs_unless_somebody_agrees(
    laboratory: Laboratory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is shown first; without a person to ask, --yes is needed.

    A temporary folder stays only where there is something to see in it.
    """
    temporary = laboratory.folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    laboratory.write("train.py", LOOP + f"open({str(laboratory.folder / 'ran')!r}, 'a').write('x')")
    original = laboratory.run("train.py")
    words = ["reproduce", original, "--here", "--store", laboratory.url]
    assert command(words) == 1
    assert not list(temporary.iterdir())
    output = capsys.readouterr()
    assert "train.py" in output.out
    assert "--yes" in output.err
    assert (laboratory.folder / "ran").read_text() == "x"
    assert command([*words, "--yes"]) == 0
    assert (laboratory.folder / "ran").read_text() == "xx"
    assert not list(temporary.iterdir())
    assert "exact: all 20 points of 1 metric are the same bit for bit" in capsys.readouterr().out

    def is_interrupted(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("tachograph.cli.reproducing.run_again", is_interrupted)
    assert command([*words, "--yes"]) == 130
    assert [path.name for path in temporary.glob("*/project/train.py")] == ["train.py"]


def test_nothing_is_fetched_unless_somebody_agrees(
    laboratory: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    """A remote is shown with the command, and asked after that, also where it is not there."""
    laboratory.write("train.py", "open('rows.txt')\n" + LOOP)
    laboratory.write("rows.txt", "")
    laboratory.commit()
    original, copy = laboratory.project, laboratory.folder / "copy"
    subprocess.run(["git", "clone", "-q", str(original), str(copy)], check=True)
    laboratory.project = copy
    run = laboratory.run("train.py")
    shutil.rmtree(copy)
    words = ["reproduce", run, "--here", "--store", laboratory.url, "--folder"]
    assert command([*words, str(laboratory.folder / "one")]) == 1
    shown = capsys.readouterr().out
    assert f"of project from {original}" in shown
    assert not (laboratory.folder / "one/project/rows.txt").exists()
    assert command([*words, str(laboratory.folder / "two"), "--yes"]) == 0
    assert (laboratory.folder / "two/project/rows.txt").exists()
    shutil.rmtree(original)
    assert command([*words, str(laboratory.folder / "three"), "--yes"]) == 1
    assert "not in the code that was kept: project: " in capsys.readouterr().out


def test_the_command_prints_json_and_its_status_tells(
    laboratory: Laboratory, capfd: pytest.CaptureFixture[str]
) -> None:
    """1 where the results are different."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py")
    words = ["reproduce", original, "--here", "--yes", "--store", laboratory.url]
    assert command([*words, "--json", "--", "--seed", "9"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert (found["verdict"], found["of"]) == (DIFFERENT, original)
    assert found["cause"]["path"] == "argv.seeds"
    assert Path(found["folder"], "project/train.py").exists()
    shutil.rmtree(found["folder"])
    folder = str(laboratory.folder / "kept")
    assert command([*words, "--folder", folder, "--", "--seed", "9"]) == 1
    output = capfd.readouterr().out
    assert "first apart" in output
    assert "first cause" in output


def test_secrets_are_not_in_the_record_of_a_reproduction(laboratory: Laboratory) -> None:
    """A secret argument is to be given again, and is redacted again; a variable is told by name."""
    laboratory.write("train.py", LOOP.replace("sys.argv[-1]", "3"))
    original = laboratory.run("train.py", "--api-key", "planted-1", TORCH_TOKEN="planted-2")
    with tachograph.open(laboratory.url) as store:
        wishes = Wishes(laboratory.folder / "look", python=Path(sys.executable))
        notes = " ".join(prepare(store, original, wishes).plan.notes)
    assert "secrets were taken out of the command" in notes
    assert "TORCH_TOKEN held a secret" in notes
    verdict = laboratory.reproduce(original, arguments=["--api-key", "planted-1"])
    assert verdict.verdict == EXACT
    for file in laboratory.folder.glob("runs.sqlite*"):
        content = file.read_bytes() if file.is_file() else b""
        assert b"planted" not in content


@pytest.mark.slow
def test_the_environment_is_made_of_the_recorded_packages(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for equal packages; the run that it gives is the same."""
    import shutil
    import subprocess

    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv makes the environment")
    monkeypatch.setenv("PATH", f"{Path(uv).parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(laboratory.folder / "cache"))
    small = laboratory.folder / "small"
    root = Path(__file__).parents[2]
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(small)], check=True)
    python = str(small / "bin/python")
    subprocess.run([uv, "pip", "install", "-q", "-p", python, str(root)], check=True)
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py", python=python)
    for _ in range(2):
        verdict = laboratory.reproduce(original, python=None)
        assert verdict.verdict == EXACT
        assert [c.path for c in verdict.changes if c.area == "environment"] == []
    (made,) = (laboratory.folder / "cache/tachograph/environments").iterdir()
    with tachograph.open(laboratory.url) as store:
        document = store.run(verdict.reproduction).provenance["reproduction"]
    assert document["environment"] == "made"
    assert str(made) in document["command"]


# ---------------------------------------------------------------------------- which run it is


def test_a_run_that_names_its_own_id_is_left_as_it_was(laboratory: Laboratory) -> None:
    """Its reproduction gets another id, also where it goes on with a run; else both are one."""
    laboratory.write(
        "train.py",
        "import random, sys, tachograph\n"
        "with tachograph.start_run(run_id='mine', resume='go on' in sys.argv) as run:\n"
        "    run.log({'x': random.random()}, 1)\n",
    )
    laboratory.run("train.py")
    for arguments in ([], ["go on"]):
        verdict = laboratory.reproduce("mine", arguments=arguments)
        assert verdict.verdict == DIFFERENT
        assert verdict.reproduction != "mine"
        with tachograph.open(laboratory.url) as store:
            assert len(store.series("mine", "x", attempts="all")) == 1
            assert store.run("mine").tags == {}
            assert store.row(verdict.reproduction)["started_at"] is not None


def test_runs_of_workers_are_not_taken_for_the_run_of_the_program(laboratory: Laboratory) -> None:
    """Though they begin first; and what is printed is no part of the document."""
    laboratory.write("work.py", "import tachograph\ntachograph.start_run().log({'x': 2.0}, 1)\n")
    laboratory.write(
        "train.py",
        "import subprocess, sys, tachograph\n"
        "subprocess.run([sys.executable, 'work.py'], check=True)\n"
        "tachograph.start_run().log({'x': 1.0}, 1)\n",
    )
    laboratory.commit()
    original = laboratory.run("train.py")
    with tachograph.open(laboratory.url) as store:
        assert len(store.runs()) == 2
    assert laboratory.reproduce(original).verdict == EXACT


def test_json_is_all_that_is_printed_and_needs_yes(
    laboratory: Laboratory, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without it a command would run that nobody was shown."""
    laboratory.write("train.py", LOOP + "print('said')")
    original = laboratory.run("train.py")
    words = ["reproduce", original, "--here", "--json", "--store", laboratory.url]
    assert command(words) == 1
    assert "needs --yes" in capfd.readouterr().err
    assert command([*words, "--yes", "--keep"]) == 0
    output = capfd.readouterr()
    found = json.loads(output.out)
    assert found["verdict"] == EXACT
    shutil.rmtree(found["folder"])
    assert "said" in output.err


# ---------------------------------------------------------------------------- hostile records


def _edit(laboratory: Laboratory, run: str, section: str, document: object) -> None:
    row = {"run_id": run, "section": section, "document": json.dumps(document), "digest": "0"}
    with tachograph.open(laboratory.url) as store:
        store.edit({"provenance": [row]})


@pytest.mark.parametrize("document", [None, [], "text", {"of": []}])
def test_documents_of_a_wrong_shape_are_errors(
    laboratory: Laboratory, document: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or do not matter; no command ends with a traceback."""
    with tachograph.start_run(config={"backend": laboratory.url}) as run:
        run.log({"x": 1.0}, 1)
    sections = ("source", "argv", "packages", "python", "environment", "seeds", "reproduction")
    for section in sections:
        _edit(laboratory, run.run_id, section, document)
        assert command(["reproduce", run.run_id, "--store", laboratory.url]) == 1
        assert "tachograph: " in capsys.readouterr().err


def test_what_is_shown_cannot_be_hidden(
    laboratory: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    """By letters that move the cursor, or by markup."""
    laboratory.write("train.py", LOOP.replace("sys.argv[-1]", "3").replace('"loop"', '"[/]"'))
    original = laboratory.run("train.py", "\x1b[2K\rharmless")
    assert command(["reproduce", original, "--here", "--store", laboratory.url]) == 1
    shown = capsys.readouterr().out
    assert "\x1b[2K" not in shown
    assert "train.py '\\x1b[2K\\rharmless'" in shown
    assert "[/]" in shown


def test_nothing_is_written_out_of_the_folder(laboratory: Laboratory) -> None:
    """Not the folder where the run stood, though a link leads there, nor a link to its data."""
    outside = laboratory.folder / "outside"
    outside.mkdir()
    laboratory.write("train.py", "import tachograph\n" + LOOP)
    (laboratory.project / "out").symlink_to(outside)
    laboratory.commit()
    original = laboratory.run("train.py")
    with tachograph.open(laboratory.url) as store:
        source = dict(store.run(original).provenance["source"])
    data = laboratory.write("data.txt", "1")
    _edit(laboratory, original, "data.x", {"path": str(data)})
    code = laboratory.folder / "code"
    code.mkdir()
    (code / "train.py").write_text(LOOP)
    assert laboratory.reproduce(original, code=code).verdict == EXACT
    assert [file.name for file in code.iterdir()] == ["train.py"]
    _edit(laboratory, original, "source", source | {"working_directory": "project/out/made"})
    with pytest.raises(StoreError, match="is not there"):
        laboratory.reproduce(original)
    empty = laboratory.folder / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="is not there"):
        laboratory.reproduce(original, code=empty)
    assert [*outside.iterdir(), *empty.iterdir()] == []


def test_a_run_whose_code_was_not_kept_runs_from_a_folder(laboratory: Laboratory) -> None:
    """Into a folder that is there and empty, as the command makes one."""
    laboratory.write("train.py", LOOP)
    original = laboratory.run("train.py", TACHOGRAPH_RECORD_CODE="allow")
    folder = laboratory.folder / "new"
    folder.mkdir()
    with pytest.raises(StoreError, match="was not kept"):
        laboratory.reproduce(original)
    assert laboratory.reproduce(original, code=laboratory.project, folder=folder).verdict == EXACT


def test_the_run_of_a_worker_is_not_started_alone(laboratory: Laboratory) -> None:
    """Python has started it for another process that is gone."""
    laboratory.write(
        "train.py",
        "import multiprocessing, tachograph\n"
        "def work():\n"
        "    tachograph.start_run().log({'x': 1.0}, 1)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n"
        "    process.join()\n",
    )
    with pytest.raises(StoreError, match="in a worker"):
        laboratory.reproduce(laboratory.run("train.py"))


def test_code_is_kept_though_the_process_ends_meanwhile(laboratory: Laboratory) -> None:
    """The archive is written by a thread, and temporary folders of Python are gone at once."""
    laboratory.write(
        "train.py",
        "import tempfile, threading, time, tachograph\n"
        "from tachograph.recording import artifacts\n"
        "copy, begun = artifacts._copy, threading.Event()\n"
        "def slowly(*given, **more):\n"
        "    begun.set()\n"
        "    time.sleep(0.5)\n"
        "    copy(*given, **more)\n"
        "artifacts._copy = slowly\n"
        "tachograph.start_run().log({'x': 1.0}, 1)\n"
        "tempfile.TemporaryDirectory().cleanup()  # what it does at the end is done first\n"
        "begun.wait(60)\n",
    )
    original = laboratory.run("train.py")
    with tachograph.open(laboratory.url) as store:
        assert list(store.run(original).artifacts["path"]) == ["source.tar.gz"]


@pytest.mark.skipif(sys.platform == "darwin", reason="names are text there")
def test_names_that_are_no_text_are_found_again(laboratory: Laboratory) -> None:
    """Of the script, and in its arguments."""
    name = os.fsdecode(b"tr\xfe.py")
    laboratory.write(name, LOOP.replace("sys.argv[-1]", "len(sys.argv[-1])"))
    assert laboratory.reproduce(laboratory.run(name, os.fsdecode(b"\xfd"))).verdict == EXACT
