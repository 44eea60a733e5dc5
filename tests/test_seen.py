"""Whether the same was run before is told from what was recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tachograph
from tachograph.cli.app import run as command
from tachograph.comparing.seen import group_of, same_command, same_training
from tachograph.errors import RunNotFound

Train = Callable[..., str]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.sqlite"


@pytest.fixture
def train(tmp_path: Path, url: str) -> Train:
    """Run a script with its own module, and give the id of its run."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "model.py").write_text("width = 3\n")
    (folder / "train.py").write_text(
        "import model, sys, tachograph\n"
        f"with tachograph.start_run(config={{'backend': {url!r}}}) as run:\n"
        "    run.log_params({'seed': sys.argv[-1]}); print(run.run_id)\n"
    )

    def start(*arguments: str) -> str:
        words = [sys.executable, "train.py", *arguments]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return start


def test_runs_of_the_same_group_are_found(url: str) -> None:
    """With their seeds, the newest first, and not the run itself."""
    ids = []
    for lr, seed in ((1, 1), (1, 2), (2, 1), (1, 3)):
        params = {"lr": lr, "seed": seed}
        with tachograph.start_run(config={"backend": url}, params=params) as run:
            ids.append(run.run_id)
    with tachograph.open(url) as store:
        found = same_training(store, ids[0])
        assert list(found["run_id"]) == [ids[3], ids[1]]
        assert list(found["seeds"]) == ["seed=3", "seed=2"]
        assert len(same_training(store, ids[2])) == 0
        with pytest.raises(RunNotFound):
            same_training(store, "nothing")


def test_the_group_is_worked_out_where_none_was_recorded(url: str) -> None:
    """As for a run that was killed: the same id as a run that ended would have recorded."""
    params: dict[str, Any] = {
        "lr": 1e-3,
        "deep": {"a": [1, 2.5, None], "b": "ä"},
        "x": float("nan"),
    }
    with tachograph.start_run(config={"backend": url}, params=params, framework="f 1") as run:
        run.log_data([[1.0, 2.0]], "train")
    with tachograph.open(url) as store:
        record = store.run(run.run_id)
        recorded = record.row["group_id"]
        record.__dict__["row"] = record.row | {"group_id": None}
        assert group_of(record) == recorded


def test_runs_of_a_command_are_found_and_whether_their_code_is_as_it_was(
    train: Train, url: str, tmp_path: Path
) -> None:
    """Whatever the seed, wherever the script is called from, with or without Python."""
    folder = tmp_path / "lab"
    first, second, other = train("--seed", "1"), train("--seed=2"), train("--lr", "2")
    with tachograph.open(url) as store:
        words = ["/usr/bin/python3", f"{folder}/train.py", "--seed", "7"]
        found = same_command(store, words)
        assert list(found["run_id"]) == [second, first]
        assert set(found["code"]) == {"same"}
        assert list(same_command(store, ["train.py", "--lr", "2"])["run_id"]) == [other]
        assert len(same_command(store, ["train.py", "--lr", "3"])) == 0
        (folder / "model.py").write_text("width = 4\n")
        found = same_command(store, ["train.py"])
        assert set(found["code"]) == {"changed: project/model.py"}
        (folder / "model.py").unlink()
        assert set(same_command(store, ["train.py"])["code"]) == {"changed: project/model.py"}
        shutil.rmtree(folder)  # as `reproduce` does
        assert set(same_command(store, ["train.py"])["code"]) == {"unknown"}


def test_the_command_says_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table, as JSON, or in a sentence; and what it needs."""
    for seed in (1, 2):
        with tachograph.start_run(config={"backend": url}, params={"seed": seed}) as run:
            pass
    assert command(["seen", run.run_id, "--store", url]) == 0
    assert "seed=1" in capsys.readouterr().out
    assert command(["seen", run.run_id, "--store", url, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["seeds"], row["code"]) == ("seed=1", "same")
    assert command(["seen", "--command", "nothing.py", "--store", url]) == 0
    assert "no run was started like that" in capsys.readouterr().out
    for words in ([], [run.run_id, "--command", "x"]):
        assert command(["seen", *words, "--store", url]) == 1
        assert "name a run, or a command" in capsys.readouterr().err
