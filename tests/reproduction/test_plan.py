"""What is to be run, worked out from documents alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tachograph.reproduction import interpreter
from tachograph.reproduction.places import Places
from tachograph.reproduction.plan import Plan, make_plan
from tachograph.restoring.restore import Command


def plan(folder: Path, words: list[str], own: int, **documents: Any) -> Plan:
    """The plan for a program whose last `own` words are its own arguments."""
    argv = {"argv": ["train.py", *words[len(words) - own :]], "working_directory": "/then/lab"}
    places = Places([("/then/lab", f"{folder}/project"), ("/then/venv", "/now/venv")])
    return make_plan({"argv": argv} | documents, Command(words, folder, [], []), places, "python")


def test_paths_in_the_middle_of_a_word_lead_to_the_restored_code(tmp_path: Path) -> None:
    """As Hydra has them; and a word that only looks like a path is left alone."""
    own = ["data.file=/then/lab/x.csv", "--in=/then/lab/x.csv", "train", "conf/x", "/then/labor"]
    words = plan(tmp_path, ["train.py", *own], len(own)).words[2:]
    now = f"{tmp_path}/project/x.csv"
    assert words == [f"data.file={now}", f"--in={now}", "train", "conf/x", "/then/labor"]


def test_a_program_of_the_environment_is_that_of_the_present_one(tmp_path: Path) -> None:
    """Such as pytest, which Python is given by its path."""
    assert plan(tmp_path, ["/then/venv/bin/pytest", "-q"], 1).words[1] == "/now/venv/bin/pytest"


def test_variables_stay_where_none_were_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some were, those that were not among them are taken away."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plan(tmp_path, ["train.py"], 0).environment["OMP_NUM_THREADS"] == "3"
    known = {"variables": {"MKL_CBWR": "AVX2"}}
    found = plan(tmp_path, ["train.py"], 0, environment=known).environment
    assert "OMP_NUM_THREADS" not in found
    assert found["MKL_CBWR"] == "AVX2"


def test_a_seed_that_the_program_has_set_itself_is_not_set_for_it(tmp_path: Path) -> None:
    """As Lightning does; one that was there when the run began is part of what it was given."""
    known = {"variables": {"PL_GLOBAL_SEED": "3"}}
    for at_start, given in (({}, False), ({"PL_GLOBAL_SEED": "3"}, True)):
        seeds = {"environment": at_start}
        found = plan(tmp_path, ["train.py"], 0, environment=known, seeds=seeds).environment
        assert ("PL_GLOBAL_SEED" in found) == given


@pytest.mark.parametrize("version", ["/tmp/evil", "--no-index", "3.11 x", "3"])
def test_what_is_no_version_of_python_names_no_interpreter(version: str) -> None:
    """As uv would start the program that it is the path of."""
    assert interpreter._version({"python": {"version": version}}) == ""
    assert interpreter._version({"python": {"version": "3.13.0rc1"}}) == "3.13.0rc1"
