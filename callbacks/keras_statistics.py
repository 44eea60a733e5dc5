"""Statistics of tensors as operations of a Keras backend, inside of a graph, and their reading.

For accelerators, where a tensor is measured where it lies. Knows `keras.ops` alone, no model.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from tachograph.callbacks import tensors_host
from tachograph.tensors.histograms import LAST_BIN, RAW_BINS, SIDE
from tachograph.tensors.records import Pairs

_SHIFT = 21  # the upper eleven bits of a float32 are sign, exponent and two of the mantissa

_ROW = 1 << 10
_SMALLEST_SCALE = 1e-30  # it and its reciprocal are normal numbers of float32


def statistics(tensors: list[Any]) -> tuple[Any, Any]:
    """Moments, floating point of shape (n, 6), and counts, int32 of shape (n, 3); see `read`.

    All tensors are laid out in rows of one matrix, so that the graph stays small: compiling a
    dozen operations for each tensor takes minutes. Sums are of values divided by about the
    largest, so that no square leaves the range.
    """
    ops = keras.ops
    rows, owner, is_value = _rows(tensors)
    finite = ops.logical_and(is_value, ops.isfinite(rows))
    known = ops.where(finite, rows, 0.0)

    def total(values: Any) -> Any:
        return ops.segment_sum(ops.sum(values, axis=1), owner, num_segments=len(tensors))

    def largest(values: Any) -> Any:
        return ops.segment_max(ops.max(values, axis=1), owner, num_segments=len(tensors))

    def count(mask: Any) -> Any:
        return total(ops.cast(mask, "int32"))

    def spread(values: Any) -> Any:
        return ops.take(values, owner, axis=0)[:, None]

    counts = [count(ops.logical_and(finite, ops.equal(rows, 0)))]
    counts += [count(ops.logical_and(is_value, ops.isnan(rows))), count(finite)]
    size = ops.cast(ops.maximum(counts[2], 1), rows.dtype)
    scale = ops.clip(largest(ops.abs(known)), _SMALLEST_SCALE, 1 / _SMALLEST_SCALE)
    scaled = known / spread(scale)
    mean = total(scaled) / size
    apart = ops.where(finite, scaled - spread(mean), 0.0)
    off = total(apart) / size  # what rounding has left in the mean
    variance = ops.maximum(total(ops.square(apart)) / size - ops.square(off), 0.0)
    low = -largest(ops.where(finite, -rows, -math.inf))
    high = largest(ops.where(finite, rows, -math.inf))
    l2 = ops.sqrt(total(ops.square(scaled)))
    moments = [mean + off, ops.sqrt(variance), low, high, l2, scale]
    return ops.stack(moments, axis=1), ops.stack(counts, axis=1)


def histograms(tensors: list[Any]) -> Any:
    """For each value of the upper eleven bits of a float32 how many there are, (n, 2048)."""
    ops = keras.ops
    rows, owner, is_value = _rows(tensors)
    if keras.backend.standardize_dtype(rows.dtype) == "float64":
        limit = float(np.finfo(np.float32).max)
        rows = ops.where(ops.isfinite(rows), ops.clip(rows, -limit, limit), rows)
    bits = ops.view(ops.cast(rows, "float32"), "int32")
    codes = ops.bitwise_and(ops.right_shift(bits, _SHIFT), RAW_BINS - 1)
    bins = len(tensors) * RAW_BINS
    places = ops.where(is_value, codes + owner[:, None] * RAW_BINS, bins)  # the last is left out
    places = ops.reshape(places, (-1,))
    counts = ops.segment_sum(ops.ones_like(places), places, num_segments=bins + 1)
    return ops.reshape(counts[:bins], (len(tensors), RAW_BINS))


def _rows(tensors: list[Any]) -> tuple[Any, Any, Any]:
    """All values in rows, the number of the tensor of each row, and what in them is a value."""
    ops = keras.ops
    types = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    wide = "float64" if "float64" in types else "float32"
    parts: list[Any] = []
    owner: list[int] = []
    lengths: list[int] = []
    for number, tensor in enumerate(tensors):
        size = math.prod(tensor.shape)
        rows = max(1, -(-size // _ROW))
        flat = ops.reshape(ops.cast(tensor, wide), (-1,))
        parts.append(ops.reshape(ops.pad(flat, (0, rows * _ROW - size)), (rows, _ROW)))
        owner += [number] * rows
        lengths += [min(_ROW, size - row * _ROW) for row in range(rows)]
    places = np.arange(_ROW, dtype="int32")[None, :]
    is_value = ops.convert_to_tensor(places) < ops.convert_to_tensor(
        np.array(lengths, "int32")[:, None]
    )
    return ops.concatenate(parts), ops.convert_to_tensor(np.array(owner, "int32")), is_value


# ---------------------------------------------------------------------------- reading


def read(moments: Any, counts: Any, sizes: list[int]) -> Any:
    """What `statistics` has found, as float64 array of shape (tensors, `STATISTICS`)."""
    found = np.asarray(moments, np.float64)
    zeros, nan, finite = np.asarray(counts, np.float64).T
    mean, std, low, high, l2, scale = found.T
    numbers = np.stack(
        [mean * scale, std * scale, low, high, l2 * scale, zeros, nan, sizes - finite - nan], axis=1
    )
    numbers[finite == 0, :5] = math.nan
    numbers[np.asarray(sizes) == 0] = tensors_host.EMPTY
    return numbers


def read_histograms(counts: Any) -> list[Pairs | None]:
    """What `histograms` has found, as pairs of bin and count of the finite values."""
    counts = np.array(counts, np.int64)
    counts[:, LAST_BIN + 1 : SIDE] = counts[:, SIDE + LAST_BIN + 1 :] = 0  # infinities and NaN
    return [tensors_host.pairs(row) for row in counts]
