"""What a Keras model, its optimizer and the call of a method say about themselves.

Reads, and never changes, what it is given; keeps no reference to it. Runs no layer.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tachograph.callbacks.keras_gradients import inner
from tachograph.values import qualified_name

FRAMEWORK = f"keras {keras.__version__}"

_ARGUMENTS = (
    "batch_size",
    "epochs",
    "initial_epoch",
    "steps",
    "steps_per_epoch",
    "shuffle",
    "validation_split",
    "validation_steps",
    "validation_batch_size",
    "validation_freq",
    "class_weight",
)
_STOPPING = (
    "monitor",
    "patience",
    "min_delta",
    "baseline",
    "best",
    "best_epoch",
    "stopped_epoch",
    "wait",
    "restore_best_weights",
)

# ---------------------------------------------------------------------------- params


def params(
    model: Any, call: Mapping[str, Any], callbacks: Sequence[Any]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Parts of what Keras knows of a call; one that fails does not cost the others."""
    yield keras_settings
    yield lambda: {"fit": call_settings(call) | {"callbacks": _names(callbacks)}}
    yield lambda: {"optimizer": optimizer_settings(model.optimizer)}
    yield lambda: {"compile": compile_settings(model)}


def _names(callbacks: Sequence[Any]) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def keras_settings() -> dict[str, Any]:
    """The backend, the default types, and the seed as far as it can be read."""
    backend = keras.config.backend()
    library = sys.modules.get(backend)
    settings = {
        "version": keras.__version__,
        "backend": backend,
        "backend_version": getattr(library, "__version__", None),
        "floatx": keras.config.floatx(),
        "dtype_policy": keras.config.dtype_policy().name,
        "image_data_format": keras.config.image_data_format(),
    }
    with contextlib.suppress(Exception):  # Keras shows it in a private place only
        state: Any = sys.modules["keras.src.backend.common.global_state"]
        settings["seed"] = state.get_global_attribute("global_random_seed")
    return {"keras": settings}


def call_settings(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the call, and what Keras made of them."""
    settings = {name: call[name] for name in _ARGUMENTS if call.get(name) is not None}
    iterator = call.get("epoch_iterator")
    adapter = getattr(iterator, "data_adapter", None)
    effective = {
        "batch_size": getattr(adapter, "batch_size", None),
        "steps_per_epoch": getattr(iterator, "num_batches", None),
    }
    settings = {name: value for name, value in effective.items() if value is not None} | settings
    if adapter is not None:
        settings["data"] = qualified_name(type(call.get("x")))
    return settings


def optimizer_settings(optimizer: Any) -> dict[str, Any]:
    """The optimizer's configuration under the name of its class."""
    return dict(optimizer.get_config()) | {"name": type(optimizer).__name__}


def compile_settings(model: Any) -> dict[str, Any]:
    """How the model was compiled, and what became of what was left to Keras."""
    settings = dict(model.get_compile_config())
    settings.pop("optimizer", None)
    for name in ("jit_compile", "run_eagerly", "steps_per_execution"):
        settings[name] = getattr(model, name, None)
    return settings


# ---------------------------------------------------------------------------- data


def data(call: Mapping[str, Any], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data of a call as they were given, by split."""
    for name, prefix in ((split, ""), ("val", "val_")):
        parts = {part: call.get(prefix + part) for part in ("x", "y", "sample_weight")}
        if parts["x"] is not None:
            yield name, {part: value for part, value in parts.items() if value is not None}


# ---------------------------------------------------------------------------- model


def model_document(model: Any) -> dict[str, Any]:
    """Layers in order with their class, shapes and number of parameters, and the totals."""
    return {
        "class": qualified_name(type(model)),
        "name": model.name,
        "parameters": _count(model.weights),
        "trainable": _count(model.trainable_weights),
        "layers": list(_layers(model, "")),
    }


def _layers(model: Any, prefix: str) -> Iterator[dict[str, Any]]:
    for layer in model.layers:
        name = prefix + layer.name
        yield {
            "name": name,
            "class": qualified_name(type(layer)),
            "parameters": _count(layer.weights),
            "trainable": bool(layer.trainable_weights),
            "shapes": {_own_path(one, layer): list(one.shape) for one in layer.weights},
            "output": _output(layer),
            "dtype": getattr(layer.dtype_policy, "name", None),
        }
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{name}/")


def _count(weights: Sequence[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _own_path(weight: Any, layer: Any) -> str:
    path: str = getattr(weight, "path", weight.name)
    return path.rpartition(f"{layer.name}/")[2]


def _output(layer: Any) -> Any:
    try:
        return list(layer.output.shape)
    except Exception:  # a layer that was called several times or outside of a graph, or several
        return None


def weights(model: Any) -> dict[str, Any]:
    """The variables that `get_weights` gives, in its order; a path that comes again is numbered."""
    found: dict[str, Any] = {}
    for variable in model.weights:
        path = str(getattr(variable, "path", variable.name))
        number = sum(name.partition("#")[0] == path for name in found) if path in found else 0
        found[f"{path}#{number + 1}" if number else path] = variable
    return found


def predicted(call: Mapping[str, Any]) -> list[Any]:
    """What a `predict` has worked out, batch by batch, from its variables at its end."""
    batch, gathered = call.get("batch_outputs"), call.get("outputs")
    if batch is None or gathered is None:
        return []
    lists: list[list[Any]] = []
    keras.tree.map_structure_up_to(batch, lists.append, gathered)
    return [
        keras.tree.pack_sequence_as(batch, [one[number] for one in lists])
        for number in range(min(map(len, lists), default=0))
    ]


# ---------------------------------------------------------------------------- progress


def steps_done(model: Any) -> int | None:
    """Steps that the optimizer has done; None where that cannot be read now."""
    try:
        return int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    except Exception:  # no optimizer, or under JAX in the middle of an epoch
        return None


def batches_done(model: Any) -> int | None:
    """Batches that the optimizer has been given; None where that cannot be read now."""
    try:
        return int(keras.ops.convert_to_numpy(inner(model.optimizer)._iterations))
    except Exception:  # as above
        return None


def batches_per_step(model: Any) -> int:
    """Batches whose gradients make one step of the optimizer."""
    optimizer = inner(getattr(model, "optimizer", None))
    return int(getattr(optimizer, "gradient_accumulation_steps", None) or 1)


def learning_rate(model: Any, step: int | None) -> float | None:
    """The learning rate that step number `step`, counted from 1, has used."""
    optimizer = inner(getattr(model, "optimizer", None))
    rate = getattr(optimizer, "_learning_rate", None)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        if not step:
            return None
        rate = rate(step * batches_per_step(model) - 1)
    elif callable(rate) and not hasattr(rate, "assign"):
        return None  # the user's function, which may not be called more often than Keras does
    elif rate is None:
        rate = getattr(optimizer, "learning_rate", None)
    return None if rate is None else float(keras.ops.convert_to_numpy(rate))


def numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The values of logs that are numbers; nested logs are joined as Keras does."""
    found: dict[str, float] = {}
    for name, value in (logs or {}).items():
        if isinstance(value, Mapping):
            found |= numbers(value)
            continue
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            found[str(name)] = float(value)
    return found


# ---------------------------------------------------------------------------- the end


def why_ended(
    model: Any, callbacks: Sequence[Any], logs: Mapping[str, float]
) -> tuple[str, dict[str, Any], str]:
    """Why a fit that raised nothing has ended: a line, facts for a program, and a level."""
    if not getattr(model, "stop_training", False):
        return "all epochs are done", {"reason": "epochs"}, "info"
    for callback in callbacks:
        if getattr(callback, "stopped_epoch", 0) and hasattr(callback, "patience"):
            facts = {name: getattr(callback, name, None) for name in _STOPPING}
            facts |= {"reason": "early_stopping", "callback": type(callback).__name__}
            message = f"early stopping at epoch {callback.stopped_epoch} on {callback.monitor}"
            return message, facts, "info"
    loss = logs.get("loss", 0.0)
    if not math.isfinite(loss):
        facts = {"reason": "nan", "loss": loss, "callbacks": _names(callbacks)}
        return f"training was stopped with a loss of {loss}", facts, "warning"
    return "model.stop_training was set", {"reason": "stop_training"}, "info"


def checkpoint_marks(callbacks: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Files of the checkpoint callbacks that exist, with time of change (ns) and size."""
    marks: dict[str, tuple[int, int]] = {}
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ModelCheckpoint):
            for path in glob.glob(_pattern(str(callback.filepath))):
                found = os.stat(path)
                marks[path] = (found.st_mtime_ns, found.st_size)
    return marks


def _pattern(path: str) -> str:
    """A glob for the names that a template such as ``{epoch:02d}.keras`` can become."""
    parts = re.split(r"\{[^{}]*\}", path)
    return "*".join(glob.escape(part) for part in parts)


def backup_folder(callbacks: Sequence[Any]) -> str | None:
    """The folder of BackupAndRestore, where it is on this machine."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            folder = str(callback.backup_dir)
            return None if "://" in folder else folder
    return None
