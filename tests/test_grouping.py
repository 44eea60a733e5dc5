"""Runs that differ in nothing but the seed have the same group, and no others have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tachograph
from tachograph.provenance.grouping import code_digest, group_id, is_seed, own_digest
from tachograph.run import Run

Record = Callable[..., str]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.sqlite"


@pytest.fixture
def record(url: str) -> Record:
    """Record a run with those parameters, and give its group."""

    def run(params: dict[str, Any], *, data: Any = None, **arguments: Any) -> str:
        with tachograph.start_run(config={"backend": url}, params=params, **arguments) as started:
            if data is not None:
                started.log_data(data, "train")
        return group(url, started)

    return run


def group(url: str, run: Run | str) -> str:
    with tachograph.open(url) as store:
        found: str = store.run(run if isinstance(run, str) else run.run_id).row["group_id"]
    return found


def test_only_the_seed_may_differ(record: Record) -> None:
    """Of parameters, data, kind and framework; where results go is no difference."""
    data = np.arange(12.0).reshape(4, 3)
    first = record({"lr": 0.1, "seed": 1, "out_dir": "runs/1"}, data=data, framework="f 1")
    assert len(first) == 32
    same = record({"lr": 0.1, "seed": 2, "out_dir": "runs/2"}, data=data.copy(), framework="f 1")
    assert same == first
    others = [
        record({"lr": 0.2, "seed": 1}, data=data, framework="f 1"),
        record({"lr": 0.1, "seed": 1, "depth": 3}, data=data, framework="f 1"),
        record({"lr": 0.1, "seed": 1}, data=data + 1, framework="f 1"),
        record({"lr": 0.1, "seed": 1}, data=data, framework="f 2"),
        record({"lr": 0.1, "seed": 1}, data=data, framework="f 1", kind="test"),
    ]
    assert len({first, *others}) == 6


def test_a_parameter_that_was_taken_back_is_no_difference(record: Record, url: str) -> None:
    """As if it had never been said."""
    with tachograph.start_run(config={"backend": url}, params={"lr": 1, "gone": 2}) as run:
        run.record_rows("params", {"path": "gone", "deleted": 1})
    assert group(url, run) == record({"lr": 1})


def test_a_group_that_the_user_gave_stays(url: str) -> None:
    """Nothing is worked out over it."""
    with tachograph.start_run(config={"backend": url}) as run:
        run.update(group_id="mine")
    assert group(url, run) == "mine"


def test_parts_of_a_run_are_grouped_when_it_ends(url: str) -> None:
    """Trials by their own parameters and what was given to the study; folds are not."""

    def study(epochs: int, results: int) -> list[str]:
        config = {"backend": url}
        with tachograph.start_run(config=config, kind="study", params={"epochs": epochs}) as run:
            trials = [run.child("trial", params={"lr": lr, "seed": lr}) for lr in (0.1, 0.2)]
            trials += [run.child("trial", params={"lr": 0.1, "seed": 9}), run.child("fold")]
            for trial in trials:
                trial.finish(wait=False)
            run.log_params({"best": {"lr": results}}, source="framework")
        return [group(url, one) for one in (run, *trials)]

    whole, first, second, again, fold = study(3, 1)
    assert first == again != second
    assert whole not in (None, first, second)
    assert fold is None
    assert study(3, 2) == [whole, first, second, again, fold]
    assert not {whole, first, second} & set(study(4, 1))


def test_a_part_that_ends_after_the_run_is_grouped_too(url: str) -> None:
    """As a trial in a thread may."""
    with tachograph.start_run(config={"backend": url}) as run:
        late = run.child("trial", params={"lr": 1})
        early = run.child("trial", params={"lr": 1})
        early.finish()
    late.finish()
    assert group(url, late) == group(url, early) is not None


def test_the_code_that_ran_counts_and_no_other(tmp_path: Path, url: str) -> None:
    """A comment in a file that was not imported is no other code; a changed module is."""
    (tmp_path / "model.py").write_text("width = 3\n")
    (tmp_path / "train.py").write_text(
        "import sys, tachograph, model\n"
        "with tachograph.start_run(config={'backend': sys.argv[1]}) as run:\n"
        "    print(run.run_id)\n"
    )

    def train(*arguments: str) -> str:
        command = [sys.executable, "train.py", url, *arguments]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return group(url, answer.stdout.strip())

    first = train("--seed", "3")
    (tmp_path / "other.py").write_text("# not imported\n")
    assert train("--seed=4") == first
    assert train("--lr=4") != first
    (tmp_path / "model.py").write_text("width = 4\n")
    assert train() != first


def test_trainings_of_xgboost_are_grouped(url: str) -> None:
    """Whatever name the seed has there, and whatever the library adds by itself."""
    xgboost = pytest.importorskip("xgboost")
    from tachograph.callbacks import XGBoostCallback

    data = xgboost.DMatrix(np.arange(40.0).reshape(20, 2), label=np.arange(20.0))

    def train(**params: Any) -> str:
        with tachograph.start_run(config={"backend": url}) as run:
            xgboost.train(params, data, num_boost_round=2, callbacks=[XGBoostCallback()])
        return group(url, run)

    first = train(seed=1, max_depth=2)
    assert train(seed=2, max_depth=2) == train(random_state=3, max_depth=2) == first
    assert train(seed=1, max_depth=3) != first


def test_trainings_of_sklearn_are_grouped(url: str) -> None:
    """The seed may stand deep in a pipeline, and be a generator."""
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tachograph.callbacks.sklearn import track

    features, target = np.arange(40.0).reshape(20, 2), np.arange(20.0)

    def train(seed: Any, trees: int) -> str:
        with tachograph.start_run(config={"backend": url}) as run:
            forest = RandomForestRegressor(trees, random_state=seed)
            pipeline = make_pipeline(StandardScaler(), forest)
            with track(pipeline):
                pipeline.fit(features, target)
        return group(url, run)

    first = train(1, 3)
    assert train(np.random.RandomState(2), 3) == first
    assert train(1, 4) != first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed", True),
        ("trainer.seed", True),
        ("clf__random_state", True),
        ("--random-seed", True),
        ("cv.seed", True),
        ("seed_workers", True),
        ("data.train.generator.initial_seed", True),
        ("data.train.generator.state", True),
        ("generator.lr", False),
        ("n_seedlings", False),
        ("n_seeds", False),
        ("seed_per_iteration", False),
        ("--seed-words", False),
        ("state", False),
        ("lr", False),
    ],
)
def test_seeds_are_known_by_name(name: str, expected: bool) -> None:
    """In the spellings of the frameworks."""
    assert is_seed(name) is expected


def test_addresses_in_memory_are_no_difference() -> None:
    """A `repr` shows where an object lies."""
    first = own_digest("run", "", {"f": '"<function f at 0x7f12cb6a9310>"'}, {})
    assert own_digest("run", "", {"f": '"<function f at 0x7f88aa6a9310>"'}, {}) == first
    assert own_digest("run", "", {"f": '"<function g at 0x7f88aa6a9310>"'}, {}) != first


def test_data_without_a_digest_are_what_they_say() -> None:
    """Two streams are not the same because nothing was read of either."""
    first, second = ({"digest": None, "source": {"version": version}} for version in "12")
    groups = {own_digest("run", "", {}, {"data.x": data}) for data in (first, second, dict(first))}
    assert len(groups) == 2


@pytest.mark.parametrize(
    ("command", "same"),
    [
        ("t.py a.csv --lr=1 --dry-run", True),
        ("t.py --seed 3 --lr 1.0 a.csv", True),
        ("t.py a.csv --lr 1 --depth 3", False),
        ("t.py a.csv --lr 1 depth=3", False),
    ],
)
def test_what_a_parser_left_to_others_counts(command: str, same: bool) -> None:
    """As with `parse_known_args`; how the rest is written does not."""
    values = {"data": "a.csv", "lr": 1.0, "dry_run": True, "seed": 0}

    def code(words: str) -> str:
        arguments = {"parsed": [{"values": values}]}
        return code_digest({"argv": {"argv": words.split()}, "arguments": arguments})

    assert (code(command) == code("t.py a.csv --lr 1")) is same


def test_documents_of_another_shape_have_a_group() -> None:
    """Anyone may record a section of any name."""
    other = {"argv": ["x"], "source": 3, "notebook": {"cells": [1]}, "arguments": {"files": [1]}}
    assert code_digest(other) == code_digest(other | {"git": "text", "argv": {"argv": 3}})


def test_without_source_files_the_commit_counts() -> None:
    """With what was changed since; and arguments where no parser was seen to read them."""
    git = {"commit": "a", "diff": {"sha256": "b"}}
    argv = {"argv": ["train.py", "--seed", "3", "x", "--lr=1"], "started_by": "script"}
    first = code_digest({"git": git, "argv": argv})
    moved = {"argv": ["/else/train.py", "x", "seed=4", "--lr=1"], "started_by": "script"}
    assert code_digest({"git": git, "argv": moved}) == first
    assert code_digest({"git": git | {"diff": None}, "argv": argv}) != first
    assert code_digest({"git": git, "argv": argv | {"argv": ["train.py", "y"]}}) != first
    parsed = {"parsed": [{"values": {"lr": 1, "data": "x"}}], "files": []}
    read = code_digest({"git": git, "argv": argv, "arguments": parsed})
    assert code_digest({"git": git, "argv": {"argv": ["t.py"]}, "arguments": parsed}) == read
    unread = {"files": [{"sha256": "c", "missing": "too long"}], "parsed": parsed["parsed"]}
    assert code_digest({"git": git, "argv": argv, "arguments": unread}) != read
    assert json.dumps(group_id(first, read))
