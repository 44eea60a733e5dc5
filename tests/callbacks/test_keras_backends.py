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
    evaluation_alone evaluation_that_fails data_raise raises_where streams keras_tensors
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_backend(backend: str) -> None:
    """What depends on the backend passes in a process whose Keras has another one."""
    for library in ("keras", backend):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    files = [f"tests/callbacks/test_{name}.py" for name in ("keras", "keras_tensors")]
    which = [*files, "-q", "-k", " or ".join(TESTS.split())]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *which],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend},
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]


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
