"""Random states are read exactly and never moved."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tachograph.provenance.seeds import collect


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)
    keys = numpy_state["state"]["key"].tobytes()
    rest = (numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"])
    return random.getstate(), keys, rest, torch.get_rng_state().numpy().tobytes()


def test_reading_moves_no_generator() -> None:
    """Bit for bit, also between two draws of a pair of normals."""
    seed_all(3)
    random.gauss(0, 1)
    np.random.randn()
    before = states()
    collect()
    assert states() == before


def test_the_digest_follows_the_state() -> None:
    """Equal after the same seed, different after one draw from each generator."""
    seed_all(3)
    first = collect()
    seed_all(3)
    assert collect() == first
    for library, draw in (
        ("random", random.random),
        ("numpy", np.random.rand),
        ("torch", lambda: torch.rand(1)),
    ):
        draw()
        now = collect()
        assert now[library]["state"] != first[library]["state"], library
        first = now


def test_torch_tells_seed_and_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, without touching a device."""
    torch.manual_seed(41)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    document = collect()["torch"]
    assert document["initial_seed"] == 41
    assert document["cudnn_benchmark"] is True
    assert document["deterministic_algorithms"] is torch.are_deterministic_algorithms_enabled()
    assert document["cuda"] == {}
    assert not torch.cuda.is_initialized()


def test_variables_that_seed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps its seed in them."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert (
        collect()["environment"].items() >= {"PL_GLOBAL_SEED": "7", "PYTHONHASHSEED": "0"}.items()
    )


def test_a_library_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """And hides no other."""
    monkeypatch.setattr(torch, "initial_seed", lambda: 1 / 0)
    document = collect()
    assert document["torch"] == {"missing": "ZeroDivisionError: division by zero"}
    assert "state" in document["numpy"]


def test_libraries_that_are_not_loaded_stay_so(tmp_path: Path) -> None:
    """Nothing is imported to be read."""
    script = "import sys; from tachograph.provenance.seeds import collect; print(sorted(collect()))"
    answer = subprocess.run(
        [sys.executable, "-c", script + "; print('numpy' in sys.modules)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split("\n")[:2] == [
        "['environment', 'hash_randomization', 'random']",
        "False",
    ]


@pytest.mark.slow
def test_keras_tensorflow_and_jax_are_read(tmp_path: Path) -> None:
    """In a process of their own; the draw after reading is the draw without reading."""
    script = (
        "import keras, tensorflow, jax, numpy; from tachograph.provenance.seeds import collect\n"
        "def draw():\n"
        "    return float(tensorflow.random.uniform([])), keras.random.uniform([2]).tolist()\n"
        "keras.utils.set_random_seed(3); plain = draw()\n"
        "keras.utils.set_random_seed(3); document = collect(); assert draw() == plain\n"
        "assert document['keras']['seed'] == 3 and document['keras']['backend'] == 'jax'\n"
        "assert document['tensorflow'] == {'seed': 3, 'deterministic_operations': False}\n"
        "assert document['jax']['default_prng_impl'] == 'threefry2x32'\n"
        "assert not any('missing' in p for p in document.values() if isinstance(p, dict))\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
