"""`seed_everything` seeds what is loaded, only when it is called, and the record says so."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tachograph
from tachograph.errors import ConfigError
from tachograph.recording import seeding


@pytest.fixture(autouse=True)
def nothing_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process; what a test sets in the environment is taken back."""
    monkeypatch.setattr(seeding, "_last", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.sqlite"


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def recorded(url: str, run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    with tachograph.open(url) as store:
        record = store.run(run.run_id)
        return record.provenance, record.params


def test_the_same_seed_gives_the_same_numbers() -> None:
    """Of every library that is loaded, and children are told."""
    document = tachograph.seed_everything(7)
    first = draws()
    assert draws() != first
    tachograph.seed_everything(np.int64(7))  # type: ignore[arg-type]
    assert draws() == first
    tachograph.seed_everything(8)
    assert not set(draws()) & set(first)
    assert {"random", "numpy", "torch"} <= set(document["seeded"])
    assert document["environment"] == {"PYTHONHASHSEED": "7"}
    assert torch.initial_seed() == 8


def test_nothing_is_made_deterministic_unless_it_is_asked() -> None:
    """And then torch is, which the document says."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    assert tachograph.seed_everything(1)["settings"] == {}
    now = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    assert now == before
    try:
        document = tachograph.seed_everything(1, deterministic=True)
        assert document["settings"]["torch.use_deterministic_algorithms"] is True
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.5, "3", True, None])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    """Before anything is set."""
    state = random.getstate()
    with pytest.raises(ConfigError, match=r"a seed is an integer from 0 to 2\*\*32 - 1"):
        tachograph.seed_everything(seed)
    assert random.getstate() == state


def test_the_current_run_records_it(url: str) -> None:
    """As a document and as the parameter `seed`."""
    with tachograph.start_run(config={"backend": url}) as run:
        tachograph.seed_everything(5)
    documents, params = recorded(url, run)
    assert documents["seeding"]["seed"] == 5
    assert params["seed"] == 5


def test_runs_that_start_later_record_it(url: str) -> None:
    """With how many runs have drawn numbers since; a run says the seed that it was given."""
    with tachograph.start_run(config={"backend": url}) as run:
        pass
    assert "seeding" not in recorded(url, run)[0]
    tachograph.seed_everything(5)
    for number in range(2):
        with tachograph.start_run(config={"backend": url}, params={"seed": 6}) as run:
            pass
        documents, params = recorded(url, run)
        assert documents["seeding"]["runs_since"] == number
        assert params["seed"] == 6
    assert documents["seeds"]["numpy"]["seed"] == 5


def test_libraries_that_are_not_loaded_stay_so(tmp_path: Path) -> None:
    """Nothing is imported to be seeded, and the process says what was seeded."""
    script = (
        "import json, sys, tachograph; document = tachograph.seed_everything(3)\n"
        "print(json.dumps([document['seeded'], sorted({'numpy', 'torch'} & set(sys.modules))]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) == [["random"], []]
