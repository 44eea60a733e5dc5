"""What tapped steps of JAX and TensorFlow have put out, measured and made ready for the record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from tachograph.callbacks import keras_statistics, tensors_host
from tachograph.callbacks.keras_graph import Keys, Outputs
from tachograph.callbacks.keras_record import Part
from tachograph.callbacks.tensors_host import Meter

_IN_FLIGHT = 2  # what cannot be asked is taken for arrived behind so many others


class GraphFound:
    """The outputs of one tapped step.

    Parameters
    ----------
    outputs : dict
        As `GraphTap` gives them.
    keys : dict
        What they are.
    accumulates : int
        Batches that make one step of the optimizer.
    whole : bool
        Whether they are whole tensors, and not statistics of them.
    histograms : bool
        Whether histograms of whole tensors are wanted.
    meter : Meter
    """

    def __init__(
        self,
        outputs: Outputs,
        keys: Keys,
        accumulates: int,
        *,
        whole: bool,
        histograms: bool,
        meter: Meter,
    ) -> None:
        self._outputs = outputs
        self._keys = keys
        self._accumulates = accumulates
        self._whole = whole
        self._meter = meter
        self._histograms = histograms
        self.moment_seconds = self.histogram_seconds = 0.0

    def has_arrived(self, behind: int) -> bool:
        """Whether the device has worked them out; asks where it can be asked."""
        one: Any = next(iter(self._outputs.values()))
        one = one[-1] if isinstance(one, tuple) else one
        ready = getattr(one, "is_ready", None)
        return behind > _IN_FLIGHT if ready is None else bool(ready())

    def step(self) -> int | None:
        """The number of the step; one that was skipped for its infinities is tried once more."""
        iterations = self._outputs.get("iterations")
        return None if iterations is None else int(iterations) // self._accumulates + 1

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Whole tensors by name; empty where statistics were put out."""
        found: dict[str, dict[str, Any]] = {"weights": {}, "gradients": {}}
        groups = [("new", "weight", "weights"), ("other", "other", "weights")]
        for output, kind, group in [*groups, ("gradient", "gradient", "gradients")]:
            values = self._outputs.get(output, ()) if self._whole else ()
            if values:
                names = [key.name for key in self._keys[kind]]
                found[group] |= dict(zip(names, map(_array, values), strict=True))
        return found

    def parts(self) -> Iterator[Part]:
        """Measure them."""
        for output in ("gradient", "clipped", "other"):
            values = self._outputs.get(output)
            if values is not None:
                yield (self._measured if self._whole else self._read)(output, values)
        if "new" in self._outputs:
            yield from self._changes(self._outputs["new"], self._outputs["old"])
        else:
            for output in ("weight", "update"):
                if output in self._outputs:
                    yield self._read(output, self._outputs[output])

    def _measured(self, output: str, values: Sequence[Any]) -> Part:
        started = perf_counter()
        arrays = [_array(value) for value in values]
        numbers = self._meter.measure_all(arrays)
        self.moment_seconds += perf_counter() - started
        wanted = self._histograms and output != "clipped"
        return self._part(output, numbers, arrays if wanted else None)

    def _changes(self, new: Sequence[Any], old: Sequence[Any]) -> Iterator[Part]:
        started = perf_counter()
        arrays = [_array(value) for value in new]
        weights, updates = self._meter.measure_changes(arrays, [_array(before) for before in old])
        self.moment_seconds += perf_counter() - started
        yield self._part("update", updates, None)
        yield self._part("weight", weights, arrays if self._histograms else None)

    def _part(self, output: str, numbers: Any, arrays: list[Any] | None) -> Part:
        started = perf_counter()
        found = None if arrays is None else [tensors_host.histogram(array) for array in arrays]
        if found is not None:
            self.histogram_seconds += perf_counter() - started
        keys = self._keys[output]
        return Part(keys, np.array(numbers, np.float64).reshape(len(keys), -1), found)

    def _read(self, output: str, values: Any) -> Part:
        keys = self._keys[output]
        moments, counts = map(_array, values)
        numbers = keras_statistics.read(moments, counts, [key.size for key in keys])
        bins = self._outputs.get(f"{output} histograms")
        found = None if bins is None else keras_statistics.read_histograms(_array(bins))
        return Part(keys, numbers, found)


def _array(value: Any) -> Any:
    """An array of numpy, without a copy where the memory is the host's."""
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)
