"""What a Lightning Trainer, its module and its data say about themselves, as plain values.

Reads attributes only: no property that reduces over ranks, builds a loader or runs the model.
Imports no framework.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tachograph.values import qualified_name

_SETTINGS = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "num_devices",
    "num_nodes",
    "world_size",
    "val_check_interval",
    "check_val_every_n_epoch",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "fast_dev_run",
    "barebones",
    "num_sanity_val_steps",
    "reload_dataloaders_every_n_epochs",
    "ckpt_path",
)
_SEEDS = {"seed": "PL_GLOBAL_SEED", "seed_workers": "PL_SEED_WORKERS"}
_LOADER = (
    "batch_size",
    "num_workers",
    "drop_last",
    "pin_memory",
    "persistent_workers",
    "worker_init_fn",
    "generator",
)
_SHARDING = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}
_PLAIN = (bool, int, float, str)


def framework(trainer: Any) -> str:
    """Name and version of the package that the Trainer is from."""
    for base in type(trainer).__mro__:
        package = base.__module__.partition(".")[0]
        if package in ("lightning", "pytorch_lightning"):
            return f"{package} {getattr(sys.modules.get(package), '__version__', '')}".strip()
    return "lightning"


# ---------------------------------------------------------------------------- params


def hyperparameters(module: Any, datamodule: Any) -> dict[str, Any]:
    """What the module and the data module saved; where both know a name, the module's is it."""
    own = dict(getattr(module, "hparams_initial", None) or {})
    data = dict(getattr(datamodule, "hparams_initial", None) or {})
    clash = {name: value for name, value in data.items() if name in own}
    return data | own | ({"datamodule": clash} if clash else {})


def trainer_settings(trainer: Any) -> dict[str, Any]:
    """How the Trainer was set up, and what makes its result reproducible."""
    settings = {name: getattr(trainer, name, None) for name in _SETTINGS}
    settings["strategy"] = type(trainer.strategy).__name__
    settings["accelerator"] = type(trainer.accelerator).__name__
    settings["callbacks"] = [type(callback).__name__ for callback in trainer.callbacks]
    settings["loggers"] = [type(logger).__name__ for logger in trainer.loggers]
    settings |= {name: os.environ[key] for name, key in _SEEDS.items() if key in os.environ}
    return settings | _determinism()


def sharding(trainer: Any) -> str | None:
    """The strategy, where it spreads the weights over processes."""
    names = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    return type(trainer.strategy).__name__ if names & _SHARDING else None


def _determinism() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "detect_anomaly": torch.is_anomaly_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def optimizer_settings(trainer: Any) -> dict[str, Any]:
    """The optimizers and learning rate schedulers with their settings."""
    optimizers = [_optimizer(optimizer) for optimizer in trainer.optimizers]
    schedulers = [_scheduler(config) for config in trainer.lr_scheduler_configs]
    return {
        key: found[0] if len(found) == 1 else {str(i): one for i, one in enumerate(found)}
        for key, found in (("optimizer", optimizers), ("scheduler", schedulers))
        if found
    }


def _optimizer(optimizer: Any) -> dict[str, Any]:
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    settings = {"name": type(optimizer).__name__} | dict(optimizer.defaults)
    if len(groups) == 1:
        return settings | groups[0] | {"name": type(optimizer).__name__}
    return settings | {"groups": groups}


def _scheduler(config: Any) -> dict[str, Any]:
    scheduler = config.scheduler
    own = {
        key: value
        for key, value in vars(scheduler).items()
        if not key.startswith("_") and key != "last_epoch" and _is_plain(value)
    }
    how = {key: getattr(config, key, None) for key in ("interval", "frequency", "monitor")}
    return {"name": type(scheduler).__name__} | own | how


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(item, _PLAIN) for item in items)


# ---------------------------------------------------------------------------- model


def model_summary(module: Any) -> dict[str, Any]:
    """Layers in order with their class, shapes and number of parameters, and the totals."""
    layers = [_layer(name, layer) for name, layer in module.named_modules() if name]
    sizes = [(_size(one), one.requires_grad) for one in module.parameters()]
    return {
        "class": qualified_name(_public(type(module))),
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trained in sizes if trained),
        "layers": layers,
    }


def _layer(name: str, layer: Any) -> dict[str, Any]:
    own = dict(layer.named_parameters(recurse=False))
    return {
        "name": name.replace("_orig_mod.", ""),
        "class": qualified_name(type(layer)),
        "parameters": sum(_size(one) for one in own.values()),
        "trainable": any(one.requires_grad for one in own.values()),
        "shapes": {key: _shape(one) for key, one in own.items()},
    }


def _size(parameter: Any) -> int:
    try:
        return int(parameter.numel())
    except (ValueError, RuntimeError):  # a lazy layer that no batch has shaped yet
        return 0


def _shape(parameter: Any) -> list[int] | None:
    try:
        return [int(size) for size in parameter.shape]
    except (ValueError, RuntimeError):
        return None


def _public(kind: type) -> type:
    """The class that the user wrote, where a framework made one of it."""
    return next((base for base in kind.__mro__ if "<locals>" not in base.__qualname__), kind)


# ---------------------------------------------------------------------------- data


def loaders(found: Any) -> Iterator[Any]:
    """The loaders in whatever structure the user gave them."""
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, list | tuple):
        for one in found:
            yield from loaders(one)
    elif found is not None:
        yield found


def loader_settings(loader: Any) -> dict[str, Any]:
    """Batch size, lengths, sampling and classes of one loader."""
    dataset = getattr(loader, "dataset", None)
    settings = {name: getattr(loader, name) for name in _LOADER if hasattr(loader, name)}
    settings["dataset"] = qualified_name(type(dataset if dataset is not None else loader))
    if (sampler := getattr(loader, "sampler", None)) is not None:
        settings["sampler"] = type(sampler).__name__
    with contextlib.suppress(Exception):  # a dataset of the user's own may have no length
        settings["samples"] = len(dataset)  # type: ignore[arg-type]
        settings["batches"] = len(loader)
    return settings


def arrays(dataset: Any) -> dict[str, Any]:
    """The arrays that a dataset holds in memory; empty where it makes its samples.

    Samples are never asked for: making one may take random numbers from the training.
    """
    found: dict[str, Any] = {}
    if (indices := getattr(dataset, "indices", None)) is not None and hasattr(dataset, "dataset"):
        inner = arrays(dataset.dataset)
        return inner | {"indices": _array(indices)} if inner else {}
    if isinstance(tensors := getattr(dataset, "tensors", None), tuple | list):
        found = {str(index): tensor for index, tensor in enumerate(tensors)}
    else:
        found = {key: getattr(dataset, key, None) for key in ("data", "targets")}
    return {key: _array(value) for key, value in found.items() if hasattr(value, "shape")}


def _array(value: Any) -> Any:
    """A numpy view of what lies on the host; anything else as it is."""
    if hasattr(value, "detach"):
        value = value.detach()
        if not value.is_cpu or value.is_sparse or value.dtype == sys.modules["torch"].bfloat16:
            return value
        return value.numpy()
    return value


# ---------------------------------------------------------------------------- the end


def why_ended(trainer: Any) -> tuple[str, dict[str, Any]]:
    """Why a fit that raised nothing has ended: a line for a person, and facts for a program."""
    if trainer.should_stop:
        for callback in trainer.callbacks:
            if callback_facts := _stopped(callback):
                return callback_facts
        return "trainer.should_stop was set", {"reason": "should_stop"}
    for name, reached in (
        ("max_steps", trainer.global_step),
        ("max_epochs", trainer.current_epoch),
    ):
        limit = getattr(trainer, name, None)
        if limit is not None and 0 <= limit <= reached:
            return f"{name}={limit} reached", {"reason": name, name: limit}
    return "the training loop ended", {"reason": "done"}


def _stopped(callback: Any) -> tuple[str, dict[str, Any]] | None:
    message = getattr(callback, "stopping_reason_message", None)
    epoch = getattr(callback, "stopped_epoch", 0)
    if not hasattr(callback, "patience") or not (message or epoch):
        return None
    names = ("monitor", "mode", "patience", "min_delta", "best_score", "wait_count")
    facts = {name: getattr(callback, name, None) for name in names}
    facts |= {"reason": "early_stopping", "stopped_epoch": epoch}
    facts["callback"] = type(callback).__name__
    return message or f"early stopping at epoch {epoch} on {facts['monitor']}", facts


def checkpoint_paths(trainer: Any) -> Iterator[Path]:
    """Checkpoints that the Trainer's checkpoint callbacks name and that exist."""
    for callback in getattr(trainer, "checkpoint_callbacks", ()):
        names: Iterable[Any] = [
            getattr(callback, "_last_checkpoint_saved", None),
            getattr(callback, "best_model_path", None),
            getattr(callback, "last_model_path", None),
            *(getattr(callback, "best_k_models", None) or ()),
        ]
        for name in dict.fromkeys(str(name) for name in names if name):
            if os.path.exists(name):
                yield Path(name)
