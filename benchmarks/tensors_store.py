"""What statistics of tensors take on the disk, how fast they get there, and what a call costs.

The tensors are those of a transformer of ten layers, 13.6 million parameters in 124 tensors:
gradients, weights and updates of each, from a made-up training with Adam in which values change as
they do in a real one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from common import (
    Figures,
    Options,
    Result,
    at_most,
    folder_bytes,
    for_information,
    fresh,
    in_turn,
    scratch,
)

STORES = ("sqlite", "parquet")
_BYTES = {False: 60, True: 160}  # a tensor and step in Parquet, without and with a histogram
_CONTENT = {False: "moments", True: "moments and histogram"}
_LAYERS = 10
_WIDTH = 320


def shapes(layers: int = _LAYERS, width: int = _WIDTH) -> dict[str, tuple[int, ...]]:
    """The parameters of a small transformer by name."""
    found: dict[str, tuple[int, ...]] = {"embedding.weight": (1000, width)}
    for layer in range(layers):
        parts: dict[str, tuple[int, ...]] = {
            "attention.in_projection.weight": (3 * width, width),
            "attention.in_projection.bias": (3 * width,),
            "attention.out_projection.weight": (width, width),
            "attention.out_projection.bias": (width,),
            "linear1.weight": (4 * width, width),
            "linear1.bias": (4 * width,),
            "linear2.weight": (width, 4 * width),
            "linear2.bias": (width,),
        }
        for norm in (1, 2):
            parts |= {f"norm{norm}.weight": (width,), f"norm{norm}.bias": (width,)}
        found |= {f"layers.{layer}.{name}": shape for name, shape in parts.items()}
    return found | {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (1000, width)}


class _Training:
    """Weights that move towards a target under noisy gradients, by Adam."""

    def __init__(self, named: dict[str, tuple[int, ...]], steps: int) -> None:
        import numpy as np

        self._random = np.random.default_rng(3)
        self._steps = steps
        self._step = 0
        self.weights = [self._initial(name, shape) for name, shape in named.items()]
        self._targets = [w + self._normal(w.shape, 0.03) for w in self.weights]
        self._first = [np.zeros_like(w) for w in self.weights]
        self._second = [np.zeros_like(w) for w in self.weights]

    def step(self) -> Iterator[tuple[Any, Any, Any]]:
        """Gradient, new weight and old weight of each tensor."""
        import numpy as np

        self._step += 1
        warm = min(1.0, self._step / 20)
        rate = np.float32(1e-3 * warm * (0.5 + 0.5 * math.cos(3 * self._step / self._steps)))
        for place, old in enumerate(self.weights):
            gradient = self._gradient(place, old)
            first, second = self._first[place], self._second[place]
            first += np.float32(0.1) * (gradient - first)
            second += np.float32(0.01) * (gradient * gradient - second)
            mean = first / np.float32(1 - 0.9**self._step)
            scale = np.sqrt(second / np.float32(1 - 0.99**self._step)) + np.float32(1e-8)
            new = self.weights[place] = old - rate * mean / scale
            yield gradient, new, old

    def _gradient(self, place: int, weight: Any) -> Any:
        """Noise whose size differs between tensors, rows and steps, and a pull."""
        import numpy as np

        size = 1e-3 * math.exp(-0.3 * math.sin(place)) * (1 + self._step / 50) ** -0.3
        size *= math.exp(0.2 * self._random.standard_normal())
        rows = np.exp(self._normal((weight.shape[0],) + (1,) * (weight.ndim - 1), 0.7))
        pull = np.float32(0.01) * (weight - self._targets[place])
        return self._normal(weight.shape, size) * rows + pull

    def _initial(self, name: str, shape: tuple[int, ...]) -> Any:
        import numpy as np

        if len(shape) > 1:
            return self._normal(shape, shape[-1] ** -0.5)
        return np.full(shape, name.endswith("weight"), np.float32)

    def _normal(self, shape: tuple[int, ...], size: float) -> Any:
        import numpy as np

        return self._random.standard_normal(shape, dtype=np.float32) * np.float32(size)


# ---------------------------------------------------------------------------- measuring


def stores(steps: int) -> Figures:
    """Train, record twice, without and with histograms, and drain both into each store."""
    from tachograph.callbacks.tensors_host import Meter, histogram, key, pack
    from tachograph.journal import JournalWriter
    from tachograph.records import uuid7
    from tachograph.tensors.records import TensorSeries

    named = shapes()
    training, meter = _Training(named, steps), Meter()
    keys = tuple(
        key(name, kind, weight)
        for name, weight in zip(named, training.weights, strict=True)
        for kind in ("gradient", "weight", "update")
    )
    journals = {full: JournalWriter(scratch() / f"{full}", uuid7(), {}) for full in (False, True)}
    handles = {full: j.tensors(TensorSeries("run", keys)) for full, j in journals.items()}
    calls: dict[bool, list[float]] = {False: [], True: []}
    for step in range(steps):
        numbers, pairs = [], []
        for gradient, new, old in training.step():
            weight, update = meter.measure_change(new, old)
            numbers += [meter.measure(gradient), weight, update]
            pairs += [histogram(gradient), histogram(new), histogram(new - old)]
        packed = pack(numbers)
        for full, journal in journals.items():
            taken = pairs if full else None
            began = time.thread_time()  # others on the machine interrupt a thread that has worked
            journal.append_tensors(handles[full], 8 * step, step / 10, packed, taken)
            calls[full].append(time.thread_time() - began)
    figures = {f"call/{full}": sorted(times)[steps // 2] * 1e6 for full, times in calls.items()}
    for full, journal in journals.items():
        journal.close()
        for scheme in STORES:
            figures |= _drain(scheme, full, journal.writer, steps * len(keys))
    return figures


def _drain(scheme: str, full: bool, writer: str, rows: int) -> Figures:
    from tachograph.journal_reader import JournalReader
    from tachograph.registry import open_backend

    path = scratch() / f"{scheme}-{full}"
    end = "runs.sqlite" if scheme == "sqlite" else "runs"
    backend = open_backend(f"{scheme}:///{path}/{end}", create=True)
    empty = folder_bytes(path)
    began, processor = time.perf_counter(), time.process_time()
    reader = JournalReader(scratch() / f"{full}", writer)
    while (batch := reader.read(backend.batch_bytes)) is not None:
        backend.write(batch)
    seconds, used = time.perf_counter() - began, time.process_time() - processor
    backend.close()
    size = folder_bytes(path) - empty
    if scheme == "parquet":
        size = folder_bytes(path / end / "tensors")
    name = f"{scheme}/{full}"
    return {
        f"bytes/{name}": size / rows,
        f"rows/{name}": rows / seconds,
        f"cpu/{name}": 1e6 * used / rows,
    }


def results(options: Options) -> Iterator[Result]:
    """Sizes, speeds, and the cost of a call."""
    steps = 40 if options.quick else 200
    repeats = min(2, options.repeats)
    found = in_turn({"all": partial(fresh, stores, steps=steps)}, repeats)["all"]
    for full, content in _CONTENT.items():
        for scheme in STORES:
            size = found[f"bytes/{scheme}/{full}"]
            what = f"{scheme}: size of a tensor and step, {content}"
            if scheme == "parquet":
                yield at_most(what, size, _BYTES[full], "bytes")
            else:
                yield for_information(what, size, "bytes")
        for scheme in STORES:
            rate, cpu = (found[f"{kind}/{scheme}/{full}"] for kind in ("rows", "cpu"))
            what = f"{scheme}: journal to disk, {content}"
            yield for_information(what, rate / 1e3, "thousand rows/s", f"{cpu:.3g} us of CPU each")
    for full, content in _CONTENT.items():
        what = f"a call with {3 * len(shapes())} tensors, {content}"
        yield for_information(what, found[f"call/{full}"], "us of CPU")
