"""The page on provenance has every field of the documents, and no other."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tachograph.provenance import (
    arguments,
    argv,
    configs,
    container,
    environment,
    git,
    hardware,
    notebook,
    numerics,
    packages,
    python,
    seeds,
    source,
)
from tachograph.provenance.outcomes import outcome
from tachograph.recording import seeding, splits

PAGE = Path(__file__).parents[2] / "docs/reference/provenance.md"


def documented(section: str, table: str = "field") -> set[str]:
    """The names in a table of a section, by the head of its first column."""
    part = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = part.split(f"\n| {table} | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    firsts = re.findall(r"^\| (.+?) \|", rows, re.MULTILINE)
    return {name for first in firsts for name in re.findall(r"`(\w+)`", first)}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a changed file that holds a secret, which counts as imported."""
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        (tmp_path / "train.py").write_text("x = 1\n")
        command = ["git", "-c", "user.name=Ada", "-c", "user.email=a@b", *words]
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "train.py").write_text("password = 'hunter22'\n")
    monkeypatch.setattr(source, "imported", lambda: {str(tmp_path / "train.py"): "train"})
    return tmp_path


def test_fields_of_the_command(repository: Path) -> None:
    """Section `argv`."""
    assert set(argv.collect()) == documented("argv")


def test_fields_of_the_repository(repository: Path) -> None:
    """Section `git`, and its diff."""
    document = git.collect(repository)
    assert set(document) == documented("git")
    assert set(document["diff"]) == documented("git", "field of `diff`")


def test_fields_of_the_source(repository: Path) -> None:
    """Section `source`, its trees and its files; some are there only where there is need."""
    found = source.Source(str(repository), str(repository))
    found.update()
    document = found.document
    assert set(document) | {"archive"} == documented("source")
    (tree,) = document["trees"].values()
    assert set(tree) | {"missing"} == documented("source", "field of a tree")
    (file,) = document["files"].values()
    sometimes = {"role", "link", "modified_since_start"}
    assert set(file) | sometimes == documented("source", "field of a file")


def test_fields_of_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section `notebook`, and the order of its cells."""
    saved = tmp_path / "work.ipynb"
    saved.write_text(json.dumps({"cells": [{"cell_type": "code", "source": "a"}]}))
    cells = [notebook.Cell(1, "a", "a", None)]
    monkeypatch.setattr(notebook, "cells", lambda: cells)
    document: dict[str, Any] = notebook.collect()
    assert set(document) | {"script"} == documented("notebook")
    unknown = notebook.order(cells, None)
    known = notebook.order(cells, saved)
    assert set(unknown) | set(known) == documented("notebook", "field of `order`")


def test_fields_of_the_arguments(tmp_path: Path) -> None:
    """Section `arguments`, and its files; `artifact` is there once a file was kept."""
    assert set(arguments.collect()) == documented("arguments")
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "bad.json").write_text("{")
    files = [configs.read(tmp_path / name).document for name in ("good.json", "bad.json")]
    found = {"artifact"}.union(*files)
    assert found == documented("arguments", "field of a file")


def test_fields_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections `seeds`, with a field per loaded library, and `seeding`."""
    libraries = set(seeds._READERS)
    assert set(seeds.collect()) | libraries == documented("seeds")
    monkeypatch.setattr(seeding, "_last", None)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert set(seeding.seed_everything(1)) | {"runs_since"} == documented("seeding")


@pytest.mark.parametrize("section", [packages, python, container, hardware, environment])
def test_fields_of_the_environment(section: Any) -> None:
    """Sections on what a run ran in."""
    assert set(section.collect()) == documented(section.__name__.rpartition(".")[2])


def test_fields_of_the_splits() -> None:
    """Section `splits`, of a root whose runs were compared, too."""
    family = splits.Family()
    for number, (run, name) in enumerate([("a", "train"), ("a", "test"), ("b", "test")]):
        split = splits.Split(run, name, str(splits.role_of(name)), None)
        rows = splits.hash_split(split, np.arange(5.0) + number)
        family.add(split, rows)
        family.look_across(split)
    document = family.document("a", across=True)
    assert set(document) == documented("splits")
    (known, *_) = document["splits"].values()
    assert set(known) | {"missing"} == documented("splits", "field of a split")
    (overlap,) = document["across_runs"]
    assert set(overlap) == documented("splits", "field of an overlap")
    assert set(document["overlaps"][0]) <= set(overlap)


def test_fields_of_numerics() -> None:
    """Section `numerics`, with a field per loaded library."""
    assert set(numerics.collect()) | set(numerics._READERS) == documented("numerics")


# ---------------------------------------------------------------------------- data


def examples(folder: Path) -> list[Any]:
    """Data of the kinds whose documents differ."""
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    data = pytest.importorskip("torch.utils.data")
    xgboost = pytest.importorskip("xgboost")
    tensor = pytest.importorskip("torch").arange(4)
    tensors = data.TensorDataset(tensor)
    (folder / "a.csv").write_text("1")
    (folder / "a.csv.dvc").write_text("outs:\n- md5: 1\n  path: a.csv\n")
    pointer = f"oid sha256:{'0' * 64}\nsize 1\n"
    (folder / "b.bin").write_text(f"version https://git-lfs.github.com/spec/v1\n{pointer}")
    frame = pandas.DataFrame({"n": [1.0, numpy.inf] * 9, "t": ["a", 1] * 9, "l": ["x"] * 18})
    frame.attrs = {"a": 1}
    return [
        *(numpy.ones((2, 2)), numpy.ones(4), frame, sparse.eye(3), iter(())),
        *(data.DataLoader(tensors), data.Subset(tensors, [1]), xgboost.DMatrix(numpy.eye(2))),
        *({"train": tensor}, folder, folder / "a.csv", folder / "b.bin"),
    ]


def test_fields_of_data(tmp_path: Path) -> None:
    """Section `data`: what is found in documents of any kind stands there, and nothing else."""
    from tachograph.provenance import data, dataset_names, versioned_files

    found: dict[str, set[str]] = {"field": {"element"}, "field of a sketch": {"failed"}}

    def look(document: dict[str, Any]) -> None:
        found["field"] |= set(document)
        parts = document.get("parts", {})
        inside = [document.get(name) for name in ("dataset", "indices", "label", "weight")]
        for part in [*parts.values(), *inside]:
            if part:
                look(part)
        for sketch in [document.get("sketch"), *document.get("column_sketches", {}).values()]:
            found["field of a sketch"] |= set(sketch or {}) - {"redacted"}

    for example in examples(tmp_path):
        look(data.fingerprint(example, name="train"))
    for table, fields in found.items():
        assert fields == documented("data", table)

    tracked = versioned_files.versions(tmp_path / "a.csv")["dvc"]
    assert set(tracked) | {"etag", "checksum", "failed"} == documented("data", "field of `dvc`")
    assert {"failed", "attributes"} <= documented("data", "field of `source`")
    torch_names = {name.removeprefix("_") for name in dataset_names._TORCH}
    assert torch_names <= documented("data", "field of `source`")


def test_fields_of_outcomes_and_pipelines() -> None:
    """Sections `outcome` and `pipeline`, with and without parts."""
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("sklearn")
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import StandardScaler

    from tachograph.callbacks.sklearn_pipeline import Tree

    rows = numpy.ones((4, 2))
    transformer = ColumnTransformer([("first", StandardScaler(), [0])]).fit(rows)
    tree = Tree(transformer, fitted=True)
    found = [outcome([rows, rows], batches=True), outcome({"a": rows, "b": object()})]
    assert set().union(*found, tree.outcome()) == documented("outcome")
    sometimes = {"version", "more", "digest_of", "missing"}
    assert set().union(*tree.document.values()) | sometimes == documented("pipeline")
