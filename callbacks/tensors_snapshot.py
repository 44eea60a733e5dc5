"""Snapshots: whole tensors of one step, kept as a safetensors file among a run's artifacts.

The tensors are copied at once and written beside the training. Knows arrays of numpy and tensors
of torch by what they can do.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tachograph.errors import RecordError
from tachograph.run import Run

MOST_WAITING = 4 << 30
"""Bytes of copies that may wait to be written; a training must not run out of memory for them."""

_BYTES_PER_SECOND = 300e6
"""How fast files are taken to be written and hashed, where only the copy can be measured."""

_waiting = 0


def save(run: Run, tensors: Mapping[str, Any], kind: str, step: int) -> float:
    """Keep tensors as the artifact ``<kind>/<step>.safetensors`` of a run.

    Parameters
    ----------
    run : Run
    tensors : mapping of str to array
        By name: numpy arrays, or tensors of torch. What numpy has no type for, such as
        bfloat16, is kept as float32.
    kind : str
        'weights' or 'gradients'.
    step : int

    Returns
    -------
    float
        Seconds that writing it will take about, beside the training.

    Raises
    ------
    ModuleNotFoundError
        safetensors is not installed.
    RecordError
        So many bytes wait to be written that this snapshot is left out.
    """
    global _waiting
    of_torch = any(hasattr(tensor, "detach") for tensor in tensors.values())
    library = _library("safetensors.torch" if of_torch else "safetensors.numpy")
    size = sum(tensor.nbytes for tensor in tensors.values())
    if _waiting and _waiting + size > MOST_WAITING:
        raise RecordError(
            f"{kind} of step {step} are left out: {_waiting} bytes wait to be written"
        )
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() if of_torch else _array(tensor)
        for name, tensor in tensors.items()
    }

    def write() -> None:
        global _waiting
        try:
            # A TemporaryDirectory is gone as soon as the process begins to end, too early for this.
            folder = tempfile.mkdtemp(prefix="tachograph-")
            try:
                file = Path(folder, f"{step}.safetensors")
                library.save_file(copies, file, metadata={"run_id": run.run_id, "step": str(step)})
                run.log_artifact(file, f"{kind}/{file.name}", kind="snapshot", step=step)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            _waiting -= size

    _waiting += size
    run.in_background(write)
    return float(size / _BYTES_PER_SECOND)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("snapshots need safetensors: pip install safetensors") from error


def _array(tensor: Any) -> Any:
    """A copy that shares no memory, of a type that the file format has."""
    import numpy

    array = numpy.array(tensor, order="C")
    return array if array.dtype.kind in "fiub" else array.astype(numpy.float32)
