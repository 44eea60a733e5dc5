"""The final state of a model of torch, as a run keeps its digests.

Reads parameters and buffers where they are, runs no code of the user's, and keeps nothing.
"""

from __future__ import annotations

from typing import Any

from tachograph.callbacks.tensors_torch import clean_name
from tachograph.run import Run


def log_weights(run: Run, model: Any) -> None:
    """Record `outcome.weights` of a model: parameters, and buffers that a checkpoint would have."""
    tensors = state(model)
    if any(map(_is_sharded, tensors.values())):
        run.log_provenance("outcome.weights", {"missing": "spread over processes"})
    else:
        run.log_outcome(tensors, "weights")


def state(model: Any) -> dict[str, Any]:
    """Tensors by name, as in `state_dict`, each once.

    `state_dict` itself may run hooks, which may do anything.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        left_out = module._non_persistent_buffers_set
        own = [*module._parameters.items()]
        own += [item for item in module._buffers.items() if item[0] not in left_out]
        for name, tensor in own:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[clean_name(f"{prefix}.{name}" if prefix else name)] = tensor
    return found


def _is_sharded(tensor: Any) -> bool:
    """Whether this process has a part alone, or nothing: FSDP, DeepSpeed."""
    return (
        hasattr(tensor, "_is_flat_param") or hasattr(tensor, "ds_id") or hasattr(tensor, "to_local")
    )
