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


def test_the_seed_that_was_given_is_told_while_nothing_was_drawn() -> None:
    """Also of `random`, which does not tell it, where another library was given the same."""
    seed_all(77)
    document = collect()
    assert [document[name]["seed"] for name in ("random", "numpy")] == [77, 77]
    random.random()
    np.random.rand()
    document = collect()
    assert "seed" not in document["random"]
    assert "seed" not in document["numpy"]


def generators_of(*values: Any) -> dict[str, Any]:
    """What is told where a function has the values in variables; see test_arguments."""
    rng, order, loader, key, old_key = (*values, *[None] * 5)[:5]
    found = collect()["generators"]
    del rng, order, loader, key, old_key
    return {name: facts for name, facts in found.items() if name.startswith("generators_of.")}


def test_generators_that_the_user_holds_are_told() -> None:
    """By function and name, with a digest that follows the state; none is moved."""
    rng, order = np.random.default_rng(5), torch.Generator().manual_seed(6)
    data = torch.utils.data.TensorDataset(torch.zeros(4, 2))
    loader = torch.utils.data.DataLoader(data, shuffle=True, generator=order)
    first = generators_of(rng, order, loader)
    assert generators_of(rng, order, loader) == first
    assert first["generators_of.rng"]["kind"] == "numpy.PCG64"
    assert first["generators_of.order"]["initial_seed"] == 6
    held = first["generators_of.loader"]
    assert held["generator"] == held["sampler_generator"] == first["generators_of.order"]
    assert (held["workers"], held["worker_init_fn"]) == (0, None)
    rng.random()
    torch.rand(1, generator=order)
    second = generators_of(rng, order, loader)
    for name in ("rng", "order", "loader"):
        assert second[f"generators_of.{name}"] != first[f"generators_of.{name}"], name


def test_keys_of_jax_are_told() -> None:
    """The typed ones by their type, the older ones by their name."""
    jax = pytest.importorskip("jax")
    first = generators_of(None, None, None, jax.random.key(0), jax.random.PRNGKey(0))
    other = generators_of(None, None, None, jax.random.key(1), jax.random.PRNGKey(1))
    assert first["generators_of.key"]["kind"] == "jax.key<fry>"
    assert first["generators_of.old_key"]["kind"] == "jax.uint32"
    assert first.keys() == other.keys()
    assert not [name for name in first if first[name]["state"] == other[name]["state"]]


def test_a_generator_among_parameters_is_told_by_its_state() -> None:
    """`random_state=RandomState(3)` says more than where the object lies in memory."""
    from tachograph.values import plain

    first, same = (plain({"random_state": np.random.RandomState(3)}) for _ in range(2))
    assert first == same
    assert first["random_state"]["kind"] == "numpy.MT19937"
    assert plain(np.random.RandomState(4)) != first["random_state"]


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
        "['environment', 'generators', 'hash_randomization', 'random']",
        "False",
    ]


@pytest.mark.slow
def test_keras_tensorflow_and_jax_are_read_and_seeded(tmp_path: Path) -> None:
    """In a process of their own; the draw after reading is the draw without reading.

    `seed_everything` seeds them too, and says that jax has nothing to seed.
    """
    script = (
        "import keras, tensorflow, jax, numpy; from tachograph.provenance.seeds import collect\n"
        "def draw():\n"
        "    return float(tensorflow.random.uniform([])), keras.random.uniform([2]).tolist()\n"
        "keras.utils.set_random_seed(3); plain = draw()\n"
        "keras.utils.set_random_seed(3); document = collect(); assert draw() == plain\n"
        "assert document['keras']['seed'] == 3 and document['keras']['backend'] == 'jax'\n"
        "found = document['tensorflow']\n"
        "assert (found['seed'], found['deterministic_operations']) == (3, False)\n"
        "tensorflow.random.uniform([]); moved = collect()['tensorflow']\n"
        "assert found['state'] and moved['state'] not in (None, found['state'])\n"
        "keras.random.uniform([2]); drawn = collect()['keras']['state']\n"
        "keras.random.uniform([2]); assert collect()['keras']['state'] != drawn\n"
        "assert found['global_generator'] is None\n"
        "tensorflow.random.get_global_generator(); again = collect()['tensorflow']\n"
        "assert again['global_generator']['kind'] == 'tensorflow.Generator'\n"
        "assert document['jax']['default_prng_impl'] == 'threefry2x32'\n"
        "assert not any('missing' in p for p in document.values() if isinstance(p, dict))\n"
        "import tachograph; seeding = tachograph.seed_everything(4, deterministic=True)\n"
        "first = draw(); tachograph.seed_everything(4); assert draw() == first\n"
        "assert {'keras', 'tensorflow'} <= set(seeding['seeded']), seeding\n"
        "assert seeding['stateless'] == ['jax']; document = collect()\n"
        "assert document['keras']['seed'] == document['tensorflow']['seed'] == 4\n"
        "assert document['tensorflow']['deterministic_operations'] is True\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
