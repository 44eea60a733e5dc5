"""Statistics of torch tensors, on the host at once, on an accelerator without waiting for it.

Finds torch where it is loaded already; knows no trainer and no optimizer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from tachograph.callbacks import tensors_host
from tachograph.callbacks.tensors_host import Meter
from tachograph.tensors.histograms import RAW_BINS
from tachograph.tensors.records import Pairs, TensorKey

Tensor = Any  # torch.Tensor; torch is an optional library

_IN_FLIGHT = 16  # what has no events is taken for arrived behind so many others
_WRAPPERS = (
    "_orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)


# ---------------------------------------------------------------------------- what is measured


def clean_name(name: str) -> str:
    """The name of a module or parameter as it is without what wraps modules."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def outside_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that does nothing where torch compiles what it hangs on: it is no part of a graph."""
    is_compiling = sys.modules["torch"].compiler.is_compiling

    def call(*arguments: Any) -> None:
        if not is_compiling():
            hook(*arguments)

    return call


def is_capturing() -> bool:
    """Whether a graph of CUDA is being captured, into which nothing of ours may come."""
    cuda = sys.modules["torch"].cuda
    return bool(cuda.is_initialized() and cuda.is_current_stream_capturing())


def local_part(tensor: Tensor | None) -> Tensor | None:
    """What can be measured of a tensor here; None where there is nothing.

    The rank's own part of a distributed tensor, the stored values of a sparse one, the real view
    of a complex one. Starts no communication.
    """
    torch = sys.modules["torch"]
    if tensor is None or tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
        return None
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if hasattr(tensor, "wait"):  # the result of a collective that is on its way
        tensor = tensor.wait()
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout != torch.strided:
        tensor = tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.is_floating_point() else None


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds another part of it."""
    placements = getattr(tensor, "placements", ())
    return any(not placement.is_replicate() for placement in placements)


def key(name: str, kind: str, whole: Tensor, part: Tensor, context: str) -> TensorKey:
    """What a tensor is; `part` is `local_part` of `whole`."""
    shape, logical = tuple(part.shape), tuple(whole.shape)
    dtype = str(part.dtype).removeprefix("torch.")
    other = logical if is_sharded(whole) or whole.is_sparse else None
    return TensorKey(name, kind, shape, dtype, part.numel(), context, other)


def as_array(tensor: Tensor) -> Any:
    """A numpy array on the memory of a tensor of the host; bfloat16 as its bits."""
    torch = sys.modules["torch"]
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    if tensor.dtype in (torch.float32, torch.float64, torch.float16):
        return tensor.numpy()
    return tensor.float().numpy()  # the types of one byte


# ---------------------------------------------------------------------------- on an accelerator


@dataclass(slots=True)
class Flight:
    """Values on their way from an accelerator to the host.

    Attributes
    ----------
    host : Tensor
        Where they arrive; not to be read before.
    """

    host: Tensor
    _begun: Any = None
    _ended: Any = None

    def has_arrived(self, behind: int = 0) -> bool:
        """Whether they are there; asks and does not wait. `behind` are those sent later."""
        if self._ended is not None:
            return bool(self._ended.query())
        return self.host.is_cpu or behind > _IN_FLIGHT

    def wait(self) -> Tensor:
        """The values, on the host."""
        if self._ended is not None:
            self._ended.synchronize()
        return self.host.cpu()

    def device_seconds(self) -> float:
        """What the device worked on them, where that is known; after they have arrived."""
        if self._begun is None or self._ended is None:
            return 0.0
        return float(self._begun.elapsed_time(self._ended)) / 1e3


def begin(device: Any) -> Any:
    """An event before some work of a device; None where there are none."""
    if device.type != "cuda":
        return None
    torch = sys.modules["torch"]
    with torch.cuda.device(device):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
    return event


def send(values: Tensor, begun: Any = None) -> Flight:
    """Send values to the host without waiting for the device."""
    if values.device.type != "cuda":
        return Flight(values)
    torch = sys.modules["torch"]
    host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    with torch.cuda.device(values.device):
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event(enable_timing=begun is not None)
        event.record()
    return Flight(host, begun, event)


def device_statistics(tensor: Tensor) -> Tensor:
    """Statistics of one tensor where it lies, in the order of `STATISTICS`, without waiting.

    Squares are taken of values divided by the largest, so that none leaves the range.
    """
    torch = sys.modules["torch"]
    wide = torch.float32 if tensor.device.type == "mps" else torch.float64
    if not tensor.numel():
        return torch.tensor(tensors_host.EMPTY, dtype=wide, device=tensor.device)
    finite = torch.isfinite(tensor)
    count = finite.sum()
    values = torch.where(finite, tensor, 0).to(torch.promote_types(tensor.dtype, torch.float32))
    largest = values.abs().amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = values / scale
    mean = scaled.sum(dtype=wide) / count
    apart = torch.where(finite, scaled - mean.to(scaled.dtype), 0)
    variance = _squares(apart, wide) / count - (apart.sum(dtype=wide) / count) ** 2
    low = torch.where(finite, tensor, math.inf).amin()
    high = torch.where(finite, tensor, -math.inf).amax()
    nan = torch.isnan(tensor).sum()
    l2 = _squares(scaled, wide).sqrt() * scale
    moments = [mean * scale, variance.clamp(min=0).sqrt() * scale, low, high, l2]
    unknown = torch.full((), math.nan, dtype=wide, device=tensor.device)
    moments = [torch.where(count > 0, value.to(wide), unknown) for value in moments]
    counts = [(tensor == 0).sum(), nan, tensor.numel() - count - nan]
    return torch.stack([*moments, *(value.to(wide) for value in counts)])


def _squares(values: Tensor, wide: Any) -> Tensor:
    return (values * values).sum(dtype=wide)


def device_histogram(tensor: Tensor) -> Tensor:
    """Counts of the upper eleven bits of the float32 values, of shape (2048,)."""
    torch = sys.modules["torch"]
    bits = tensor.reshape(-1)
    if bits.dtype == torch.float64:
        limit = torch.finfo(torch.float32).max
        bits = torch.where(torch.isfinite(bits), bits.clamp(-limit, limit), bits)
    codes = (bits.to(torch.float32).view(torch.int32) >> 21) & (RAW_BINS - 1)
    counts = torch.zeros(RAW_BINS, dtype=torch.int64, device=tensor.device)
    # Not bincount, which waits for the largest code.
    return counts.scatter_add_(
        0, codes.to(torch.int64), torch.ones_like(counts[:1]).expand_as(codes)
    )


# ---------------------------------------------------------------------------- measuring lists


@dataclass(slots=True)
class Measured:
    """Statistics of a list of tensors, here or on their way.

    Attributes
    ----------
    histogram_seconds : float
        What taking histograms took of the training's time.
    """

    histogram_seconds: float = 0.0
    _numbers: Any = None
    _pairs: list[Pairs | None] | None = None
    _flights: tuple[Flight, ...] = ()

    def has_arrived(self, behind: int = 0) -> bool:
        """Whether `numbers` and `histograms` can be asked for without waiting."""
        return all(flight.has_arrived(behind) for flight in self._flights)

    def numbers(self) -> Any:
        """Float64 array of shape (tensors, statistics)."""
        if self._numbers is None:
            self._numbers = self._flights[0].wait().numpy().astype(np.float64)
        return self._numbers

    def histograms(self) -> list[Pairs | None] | None:
        """Pairs of bin and count of each tensor; None where none were taken."""
        if self._pairs is None and len(self._flights) > 1:
            self._pairs = [tensors_host.pairs(row) for row in self._flights[1].wait().numpy()]
        return self._pairs

    def device_seconds(self) -> float:
        """What a device worked on them beside that; known when they have arrived."""
        return sum(flight.device_seconds() for flight in self._flights)


class TorchMeter:
    """Measures lists of tensors that lie on one device."""

    def __init__(self) -> None:
        self._meter = Meter()

    def measure(self, tensors: Sequence[Tensor], *, histograms: bool = False) -> Measured:
        """Statistics of tensors as `local_part` gives them."""
        if not tensors[0].is_cpu:
            return _on_device(tensors, histograms)
        arrays = [as_array(tensor) for tensor in tensors]
        return self._done(self._meter.measure_all(arrays), arrays, histograms)

    def measure_changes(
        self, new: Sequence[Tensor], old: Sequence[Tensor], *, histograms: bool = False
    ) -> tuple[Measured, Measured]:
        """Statistics of `new`, and of ``new - old``; histograms of `new` alone."""
        if not new[0].is_cpu:
            measured = _on_device(new, histograms)
            torch = sys.modules["torch"]
            return measured, _on_device(torch._foreach_sub(new, old), False)
        arrays = [as_array(tensor) for tensor in new]
        weights, updates = self._meter.measure_changes(arrays, [as_array(one) for one in old])
        return self._done(weights, arrays, histograms), Measured(_numbers=updates)

    def _done(self, numbers: Any, arrays: list[Any], histograms: bool) -> Measured:
        measured = Measured(_numbers=numbers)
        if histograms:
            started = perf_counter()
            measured._pairs = [tensors_host.histogram(array) for array in arrays]
            measured.histogram_seconds = perf_counter() - started
        return measured


def _on_device(tensors: Sequence[Tensor], histograms: bool) -> Measured:
    torch = sys.modules["torch"]
    begun = begin(tensors[0].device)
    with torch.no_grad():
        flights = [send(torch.stack([device_statistics(tensor) for tensor in tensors]), begun)]
        started = perf_counter()
        if histograms:
            begun = begin(tensors[0].device)
            counts = torch.stack([device_histogram(tensor) for tensor in tensors])
            flights.append(send(counts, begun))
    return Measured(perf_counter() - started, _flights=tuple(flights))
