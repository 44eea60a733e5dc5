"""Statistics of tensors as operations of a Keras backend, inside of a graph, and their reading.

For accelerators, where a tensor is measured where it lies. Knows `keras.ops` alone, no model.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from tachograph.callbacks import tensors_host
from tachograph.histograms import LAST_BIN, RAW_BINS, SIDE
from tachograph.tensor_records import Pairs

_SHIFT = 21  # the upper eleven bits of a float32 are sign, exponent and two of the mantissa

_SMALLEST_SCALE = 1e-30  # it and its reciprocal are normal numbers of float32


def statistics(tensors: list[Any]) -> tuple[Any, Any]:
    """Moments, floating point of shape (n, 6), and counts, int32 of shape (n, 3); see `read`."""
    ops = keras.ops
    both = [_statistics(tensor) for tensor in tensors]
    return ops.stack([moments for moments, _ in both]), ops.stack([counts for _, counts in both])


def _statistics(tensor: Any) -> tuple[Any, Any]:
    """Sums are of values divided by the largest, so that no square leaves the range."""
    ops = keras.ops
    values = _wide(tensor)
    if not math.prod(values.shape):
        return ops.full((6,), math.nan, values.dtype), ops.zeros((3,), "int32")
    finite = ops.isfinite(values)
    count = _count(finite)
    size = ops.cast(ops.maximum(count, 1), values.dtype)
    known = ops.where(finite, values, 0.0)
    largest = ops.max(ops.abs(known))
    scale = ops.clip(largest, _SMALLEST_SCALE, 1 / _SMALLEST_SCALE)
    scaled = known / scale
    mean = ops.sum(scaled) / size
    apart = ops.where(finite, scaled - mean, 0.0)
    off = ops.sum(apart) / size  # what rounding has left in the mean
    variance = ops.maximum(ops.sum(ops.square(apart)) / size - ops.square(off), 0.0)
    moments = ops.stack(
        [
            mean + off,
            ops.sqrt(variance),
            ops.min(ops.where(finite, values, math.inf)),
            ops.max(ops.where(finite, values, -math.inf)),
            ops.sqrt(ops.sum(ops.square(scaled))),
            scale,
        ]
    )
    counts = ops.stack([_count(ops.equal(values, 0)), _count(ops.isnan(values)), count])
    return moments, counts


def histograms(tensors: list[Any]) -> Any:
    """For each value of the upper eleven bits of a float32 how many there are, (n, 2048)."""
    return keras.ops.stack([_histogram(tensor) for tensor in tensors])


def _histogram(tensor: Any) -> Any:
    ops = keras.ops
    values = ops.reshape(tensor, (-1,))
    if keras.backend.standardize_dtype(values.dtype) == "float64":
        limit = float(np.finfo(np.float32).max)
        values = ops.where(ops.isfinite(values), ops.clip(values, -limit, limit), values)
    bits = ops.view(ops.cast(values, "float32"), "int32")
    codes = ops.bitwise_and(ops.right_shift(bits, _SHIFT), RAW_BINS - 1)
    return ops.segment_sum(ops.ones_like(codes), codes, num_segments=RAW_BINS)


def _wide(tensor: Any) -> Any:
    name = keras.backend.standardize_dtype(tensor.dtype)
    return tensor if name in ("float32", "float64") else keras.ops.cast(tensor, "float32")


def _count(mask: Any) -> Any:
    return keras.ops.sum(keras.ops.cast(mask, "int32"))


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
