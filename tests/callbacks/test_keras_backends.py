"""What holds for KerasCallback on one backend of Keras holds on the others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TESTS = """
    training_is_unchanged fit_is_one failure_is interrupt_is nothing_is_kept resume
    values_of_epochs running_means asynchronous schedule steps_per_execution accumulation
    evaluation_alone evaluation_that_fails data_raise raises_where streams
    trainings_own clipped_gradients as_the_optimizer embedding in_a_graph every_mode left_as_it_was
    blocks_of_steps short_fit without_the_models would_change cannot_be_made
"""

SAME = "eager or several or scaled or mixed_float16"
"""Modes that come to the same as others where a graph is compiled, or do not matter there."""


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_backend(backend: str) -> None:
    """What depends on the backend passes in a process whose Keras has another one."""
    for library in ("keras", backend):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    files = [f"tests/callbacks/test_{name}.py" for name in ("keras", "keras_tensors")]
    which = [*files, "-q", "-k", f"({' or '.join(TESTS.split())}) and not ({SAME})"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *which],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend},
        check=False,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]


DEVICES = {
    "jax": """
import keras
import test_keras_tensors as tests
keras.distribution.set_distribution(keras.distribution.DataParallel())
tests.test_every_number_is_the_trainings_own(config, record, "host", None)
""",
    "tensorflow": """
import tensorflow as tf
(device,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_keras_tensors as tests
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = tests.linear()
tests.fit(model, [tests.KerasCallback(config=config)])
assert {step for _, step in tests.rows_of(record(), "weight")} == {3}
assert "each replica" in tests.reasons(record())[0]
""",
}
PREAMBLE = """
import sys
from tachograph.testing.callback_contract import Record
record = lambda: Record(sys.argv[1])
settings = {"system": False, "every": 1, "histograms": 2}
config = {"backend": sys.argv[1], "record": settings}
"""


@pytest.mark.parametrize("backend", DEVICES)
def test_several_devices(backend: str, store_url: str) -> None:
    """Gradients over all devices on JAX; on TensorFlow none, and it is said."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    ended = subprocess.run(
        [sys.executable, "-c", PREAMBLE + DEVICES[backend], store_url],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-5000:]


def test_import_needs_no_keras() -> None:
    """Where no backend of Keras can be imported, the package and its other names still can."""
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import tachograph.callbacks\n"
        "from tachograph.callbacks import track\n"
        "assert 'keras' not in sys.modules"
    )
    clean = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    subprocess.run([sys.executable, "-c", code], env=clean, check=True, timeout=100)
