"""The page on provenance has every field of the documents, and no other."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tachograph import seeding
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


def test_fields_of_numerics() -> None:
    """Section `numerics`, with a field per loaded library."""
    assert set(numerics.collect()) | set(numerics._READERS) == documented("numerics")
