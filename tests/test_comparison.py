"""Laws of comparing runs."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import pytest

from tachograph.backends.memory import MemoryBackend
from tachograph.comparing.causes import AREAS, facts_of, place
from tachograph.comparing.comparison import compare, diff
from tachograph.comparing.notebooks import told_alike
from tachograph.errors import RunNotFound
from tachograph.query import Store
from tachograph.testing.builders import make_batch, make_block
from tachograph.values import canonical_json

DIFF = "diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n@@ -1 +1,2 @@\n-x = 1\n"
SHARED = {
    "packages": {"versions": {"torch": "2.4", "numpy": "2"}, "origins": {}},
    "hardware": {"cpu": {"logical": 2}, "disk": {"free_bytes": 1}},
    "seeds": {"random": {"state": "aa"}},
    "data.train": {"name": "train", "digest": "d1"},
    "git": {
        "commit": "c1",
        "root": "/here",
        "diff": {"text": DIFF + "+x = 2\n", "bytes": 80},
        "changed": {"train.py": "M"},
    },
    "novel": {"x": 1},
}
OTHER = {
    "packages": {"versions": {"torch": "2.5", "numpy": "2"}, "origins": {}},
    "hardware": {"cpu": {"logical": 8}, "disk": {"free_bytes": 2}},
    "seeds": {"random": {"state": "bb"}},
    "data.train": {"name": "train", "digest": "d2"},
    "git": {"commit": "c1", "root": "/there", "diff": {"text": DIFF + "+x = 3\n"}, "changed": {}},
    "novel": {"x": 2},
    "argv": {"argv": ["train.py", "--lr", "1", "--seed", "2"]},
    "environment": {"variables": {"PYTHONHASHSEED": "2"}},  # which `seeds` has too
}


def write_run(
    backend: MemoryBackend,
    run_id: str,
    documents: dict[str, Any],
    params: dict[str, Any],
    loss: list[float],
    **columns: Any,
) -> None:
    """A run with documents, parameters and one metric."""
    row = {"run_id": run_id, "root_id": run_id, "name": run_id[-1], "started_at": 1} | columns
    backend.write(
        make_batch(
            f"writer of {run_id}",
            0,
            5,
            runs=[row],
            params=[
                {"run_id": run_id, "path": path, "value": canonical_json(value), "seq": 1}
                for path, value in params.items()
            ],
            provenance=[
                {"run_id": run_id, "section": name, "document": json.dumps(content), "seq": 1}
                for name, content in documents.items()
            ],
            tags=[{"run_id": run_id, "key": "team", "value": run_id[-1], "seq": 1}],
            blocks=[make_block(run_id, {"loss": loss}, seqs=[2, 3, 4], context='{"phase":"test"}')],
        )
    )


@pytest.fixture
def store() -> Store:
    """Two runs that differ in everything, and a child of the first."""
    backend = MemoryBackend(f"memory://{uuid.uuid4()}", create=True)
    write_run(
        backend, "run-a", SHARED, {"lr": 0.1, "same": [1]}, [3.0, 1.0, 2.0], ended_at=2_000_001
    )
    write_run(backend, "run-b", OTHER, {"lr": 0.2, "same": [1], "new": None}, [3.0, 2.0, math.nan])
    write_run(backend, "run-c", {}, {"lr": 0.1}, [1.0] * 3, parent_id="run-a", root_id="run-a")
    return Store(backend)


def test_compare_shows_parameters_side_by_side(store: Store) -> None:
    """Each parameter of any run is a row that says whether the runs differ in it."""
    found = compare(store, ["run-a", "run-b"])
    assert found.labels == ("a", "b")
    assert found.params.to_pylist() == [
        {"path": "lr", "differs": True, "a": 0.1, "b": 0.2},
        {"path": "same", "differs": False, "a": [1], "b": [1]},
        {"path": "new", "differs": True, "a": None, "b": None},
    ]
    assert found.tags.to_pylist() == [{"key": "team", "differs": True, "a": "a", "b": "b"}]
    assert list(found.runs["seconds"]) == [2.0, None]


def test_compare_shows_last_and_best(store: Store) -> None:
    """Last, smallest and largest value of each series."""
    found = compare(store, ["run-a", "run-b"]).metrics.to_pylist()
    assert [(row["name"], row["context"], row["statistic"]) for row in found] == [
        ("loss", '{"phase":"test"}', statistic) for statistic in ("last", "min", "max")
    ]
    assert [row["a"] for row in found] == [2.0, 1.0, 3.0]
    assert math.isnan(found[0]["b"])
    assert [row["b"] for row in found[1:]] == [2.0, 3.0]


def test_diff_is_ordered_by_where_to_look_first(store: Store) -> None:
    """Code, data, configuration, environment, seed, hardware; what is equal is left out."""
    changes = diff(store, "run-a", "run-b").changes
    areas = list(dict.fromkeys(changes["area"]))
    assert areas == list(AREAS)
    paths = {row["path"]: (row["a"], row["b"]) for row in changes}
    assert paths["packages.versions.torch"] == ("2.4", "2.5")
    assert paths["params.lr"] == (0.1, 0.2)
    assert paths["data.train.digest"] == ("d1", "d2")
    assert paths["argv.arguments"] == (None, ["--lr", "1"])
    assert set(paths) == {
        *("git.uncommitted.train.py", "data.train.digest", "params.lr", "params.new"),
        *("argv.arguments", "argv.seeds"),
        *("packages.versions.torch", "seeds.random.state", "hardware.cpu.logical", "novel.x"),
    }
    mine, theirs = paths["git.uncommitted.train.py"]
    assert mine.startswith("+1 -1 (")
    assert mine != theirs


def test_diff_says_by_how_much_results_differ(store: Store) -> None:
    """`change` is the second run less the first."""
    metrics = diff(store, "run-a", "run-b").metrics
    assert list(metrics["change"])[1:] == [1.0, 0.0]


def test_run_does_not_differ_from_itself(store: Store) -> None:
    """Asked for twice, a run has two columns and no change."""
    found = diff(store, "run-a", "run-a")
    assert found.labels == ("a (1)", "a (2)")
    assert len(found.changes) == 0
    assert set(found.metrics["change"]) == {0.0}


def test_child_has_the_documents_of_its_root(store: Store) -> None:
    """A trial or fold without documents of its own was recorded where its root was."""
    assert len(compare(store, ["run-a", "run-c"]).facts) == 0


def test_label_is_never_the_head_of_a_column() -> None:
    """Runs with awkward or equal names are labelled by their ids."""
    backend = MemoryBackend(f"memory://{uuid.uuid4()}", create=True)
    for run_id, name in (("one", "path"), ("two", "x"), ("three", "x"), ("four", None)):
        backend.write(make_batch(run_id, 0, runs=[{"run_id": run_id, "name": name}]))
    store = Store(backend)
    assert compare(store, ["one", "two"]).labels == ("one", "two")
    assert compare(store, ["two", "three"]).labels == ("two", "three")
    assert compare(store, ["two", "four"]).labels == ("two", "four")


def test_unknown_run_is_an_error(store: Store) -> None:
    """A run that is not there is named."""
    with pytest.raises(RunNotFound, match="run-x"):
        compare(store, ["run-a", "run-x"])


def test_a_notebook_and_the_script_of_its_cells_have_the_same_code() -> None:
    """Whichever comes first; where the script was changed, it is one file of another content."""
    cells = {"cells": [{"source": "x = 1"}], "script": {"sha256": "c1"}}
    entry = {"missing": "see notebook", "started_by": "notebook"}
    helper = {"project/helper.py": {"sha256": "h"}}
    notebook = {
        "notebook": cells,
        "source": {"entry": entry, "files": helper},
        "argv": {"argv": ["ipykernel_launcher.py", "-f", "kernel.json"]},
    }
    files = helper | {"project/notebook.py": {"sha256": "c1"}}
    script = {
        "source": {"entry": {"file": "project/notebook.py"}, "files": files},
        "argv": {"argv": ["notebook.py"], "started_by": "script"},
    }
    facts = [facts_of(documents) for documents in told_alike(notebook, script)]
    assert facts[0] == facts[1]
    files["project/notebook.py"] = {"sha256": "c2"}
    facts = [facts_of(documents) for documents in told_alike(script, notebook)]
    assert {path for area, path in facts[0] if facts[0][area, path] != facts[1][area, path]} == {
        "source.files.project/notebook.py.sha256"
    }


def test_a_config_file_is_what_is_in_it_wherever_it_lay() -> None:
    """Hydra writes it into a folder that is named by the time."""
    facts = facts_of(
        {
            "arguments": {
                "files": [
                    {"artifact": "config/a.yaml", "path": "/out/05-31/a.yaml", "sha256": "a"}
                ],
                "hydra": {"output_directory": "/out/05-31", "overrides": []},
            }
        }
    )
    assert facts == {("configuration", "arguments.files.config/a.yaml"): "a"}


def test_what_a_split_is_for_is_no_cause() -> None:
    """Of the whole run and of a fold alike: its rows tell more."""
    split = {"role": "training", "rows": 4, "missing": "it is a stream"}
    documents = {
        "splits": {"splits": {"train": split}},
        "splits.fold-0": {"splits": {"fold-0.train": split}},
    }
    paths = [path for _, path in facts_of(documents)]
    assert paths == ["splits.splits.train.rows", "splits.fold-0.splits.fold-0.train.rows"]


def test_packages_that_only_one_has_stand_behind_other_versions() -> None:
    """And behind hardware and seeds: an environment has more than a program uses."""
    lacking, other = ("environment", "packages.versions.a"), ("hardware", "hardware.cpu.logical")
    assert place(lacking) < place(other) < place(lacking, is_lacking=True)
    assert place(lacking, is_lacking=True) < place(("other", "git.dirty"))
    assert place(other) == place(other, is_lacking=True)
