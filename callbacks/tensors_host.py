"""Statistics and histograms of arrays in the memory of the host.

Arrays are read once, in pieces that stay in the processor's cache while everything is taken from
them. Knows numpy, no framework: what is handed over is a numpy array that shares its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tachograph.tensors.histograms import LAST_BIN, RAW_BINS, SIDE
from tachograph.tensors.records import STATISTICS, TensorKey

_PIECE = 1 << 16
_SMALL = 4096
_SMALLEST_SQUARED = 1e-12
"""Where nothing is larger, squares leave the range of float32; they are taken in float64."""

Array = Any  # np.ndarray of any type and shape
Numbers = tuple[float, ...]
"""One for each of `STATISTICS`."""

EMPTY: Numbers = (math.nan,) * 5 + (0.0,) * 3
"""Statistics of a tensor without elements."""

_LARGEST = float(np.finfo(np.float32).max)


def key(
    name: str,
    kind: str,
    array: Array,
    context: str = "{}",
    *,
    dtype: str | None = None,
    logical_shape: tuple[int, ...] | None = None,
) -> TensorKey:
    """What an array is, for the record; `dtype` where it stands for another type."""
    shape = tuple(map(int, array.shape))
    size = math.prod(shape) * (2 if array.dtype.kind == "c" else 1)
    return TensorKey(name, kind, shape, dtype or str(array.dtype), size, context, logical_shape)


def pack(numbers: Sequence[Numbers]) -> bytes:
    """Statistics of some tensors as `Run.log_statistics` takes them."""
    return np.asarray(numbers, "<f8").reshape(len(numbers), len(STATISTICS)).tobytes()


class _Sums:
    """What one reading of an array gathers."""

    __slots__ = ("high", "low", "size", "squares", "total", "zeros")

    def __init__(self) -> None:
        self.size = self.zeros = 0
        self.total = self.squares = 0.0
        self.low, self.high = math.inf, -math.inf


class Meter:
    """Measures arrays; holds the memory that it needs for that. For one thread at a time.

    What it finds is what float64 arithmetic finds, but for the rounding of sums in float32: the
    mean within 1e-5 of the standard deviation or 1e-6 of itself, standard deviation and norm
    within 1e-5 of themselves. Min, max and the counts are exact. An update is the difference in
    the type of the arrays, as whoever computes with them finds it; where one leaves the range of
    that type, all are taken in float64.

    A complex array counts as its real and imaginary parts, an array of uint16 as the bits of
    bfloat16, one of integers or of truth values as float64.
    """

    def __init__(self) -> None:
        self._is_zero = np.empty(_PIECE, np.bool_)
        self._ones = {np.dtype(kind): np.ones(_PIECE, kind) for kind in (np.float32, np.float64)}
        self._update = {kind: np.empty(_PIECE, kind) for kind in self._ones}

    def measure(self, array: Array) -> Numbers:
        """Statistics of an array of numbers of any shape and layout."""
        flat = _flat(array)
        sums = _Sums()
        with np.errstate(all="ignore"):
            for piece in _pieces(flat):
                self._add(sums, piece)
            return _finish(sums, lambda: _pieces(flat))

    def measure_change(self, new: Array, old: Array) -> tuple[Numbers, Numbers]:
        """Statistics of `new`, and of ``new - old``, an update; ValueError for other shapes."""
        flat, before = _flat_alike(new, old)
        weight, update = _Sums(), _Sums()
        with np.errstate(all="ignore"):
            for piece, earlier in zip(_pieces(flat), _pieces(before), strict=True):
                self._add(weight, piece)
                out = self._update[piece.dtype][: piece.size]
                self._add(update, np.subtract(piece, earlier, out=out))
            return (
                _finish(weight, lambda: _pieces(flat)),
                _finish(update, lambda: map(_difference, _pieces(flat), _pieces(before))),
            )

    def measure_all(self, arrays: Sequence[Array]) -> Array:
        """Statistics of several arrays, of shape (arrays, statistics); small ones together."""
        found = np.empty((len(arrays), len(STATISTICS)))
        small = [place for place, array in enumerate(arrays) if _is_small(array)]
        single = set(range(len(arrays))).difference(small)
        if small:
            joined, starts = _joined([arrays[place] for place in small])
            found[small], is_sound = _measure_joined(joined, starts)
            single.update(np.asarray(small)[~is_sound].tolist())
        for place in single:
            found[place] = self.measure(arrays[place])
        return found

    def measure_changes(self, new: Sequence[Array], old: Sequence[Array]) -> tuple[Array, Array]:
        """As `measure_all`, of `new` and of ``new - old``."""
        weights, updates = (np.empty((len(new), len(STATISTICS))) for _ in range(2))
        small = [place for place, array in enumerate(new) if _is_small(array)]
        single = set(range(len(new))).difference(small)
        if small:
            joined, starts = _joined([new[place] for place in small])
            before, _ = _joined([old[place] for place in small])
            weights[small], is_sound = _measure_joined(joined, starts)
            with np.errstate(all="ignore"):
                updates[small], is_also = _measure_joined(joined - before, starts)
            single.update(np.asarray(small)[~(is_sound & is_also)].tolist())
        for place in single:
            weights[place], updates[place] = self.measure_change(new[place], old[place])
        return weights, updates

    def _add(self, sums: _Sums, piece: Array) -> None:
        low, high = float(np.minimum.reduce(piece)), float(np.maximum.reduce(piece))
        # A product with ones takes half the time of a sum.
        sums.total += float(np.dot(piece, self._ones[piece.dtype][: piece.size]))
        sums.squares += float(np.dot(piece, piece))
        if low <= 0.0 <= high:
            sums.zeros += int(np.count_nonzero(np.equal(piece, 0, out=self._is_zero[: piece.size])))
        sums.low, sums.high = min(sums.low, low), max(sums.high, high)
        sums.size += piece.size


def _is_small(array: Array) -> bool:
    """Whether calling for it takes longer than computing."""
    return 0 < array.size <= _SMALL and array.dtype in (np.float32, np.float16, np.uint16)


def _joined(arrays: Sequence[Array]) -> tuple[Array, Array]:
    """All elements of small arrays in a row, as float32, and where each begins."""
    sizes = [array.size for array in arrays]
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate([next(_pieces(array.ravel())) for array in arrays]), starts


def _measure_joined(joined: Array, starts: Array) -> tuple[Array, Array]:
    """Statistics of each part of a row, and for which of them they hold.

    In float64, where no square of a float32 leaves the range.
    """
    sizes = np.diff(starts, append=joined.size)
    with np.errstate(all="ignore"):
        wide = joined.astype(np.float64)
        mean = np.add.reduceat(wide, starts) / sizes
        squares = np.add.reduceat(wide * wide, starts)
        variance = squares / sizes - mean * mean
        low, high = np.minimum.reduceat(joined, starts), np.maximum.reduceat(joined, starts)
        zeros = np.add.reduceat(joined == 0, starts, dtype=np.int64)
        is_sound = np.isfinite(squares) & ((variance > 1e-8 * mean * mean) | (low == high))
        std = np.sqrt(np.where(low == high, 0.0, variance))
    none = np.zeros(len(starts))
    numbers = np.stack([mean, std, low, high, np.sqrt(squares), zeros, none, none], axis=1)
    return numbers, is_sound


def histogram(array: Array) -> list[tuple[int, int]]:
    """Pairs of bin and count of the finite values of an array; see `Meter` for its types."""
    flat = _flat(array)
    counts = np.zeros(RAW_BINS, np.int64)
    for piece in _pieces(flat):
        bits = _as_float32(piece).view(np.uint32)
        counts += np.bincount(bits >> 21, minlength=RAW_BINS)
    return pairs(counts)


def pairs(counts: Array) -> list[tuple[int, int]]:
    """Ascending pairs of bin and count, from a count for each value of the upper eleven bits."""
    ascending = np.concatenate((counts[: SIDE - 1 : -1], counts[:SIDE]))
    ascending[: SIDE - LAST_BIN - 1] = ascending[SIDE + LAST_BIN + 1 :] = 0  # infinities and NaN
    found = np.flatnonzero(ascending)
    return list(zip((found - SIDE).tolist(), ascending[found].tolist(), strict=True))


# ---------------------------------------------------------------------------- inside


def _flat(array: Array) -> Array:
    """All elements in the order of the memory, without a copy where they lie together."""
    return _as_real(np.asarray(array).ravel(order="K"))


def _flat_alike(new: Array, old: Array) -> tuple[Array, Array]:
    """The elements of two arrays in one order, whatever their layouts."""
    new, old = np.asarray(new), np.asarray(old)
    if new.shape != old.shape:
        raise ValueError(f"an update needs two arrays of one shape, not {new.shape}, {old.shape}")
    order = "K" if new.strides == old.strides else "C"
    return _as_real(new.ravel(order)), _as_real(old.ravel(order))


def _as_real(flat: Array) -> Array:
    return flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat


def _pieces(flat: Array) -> Iterator[Array]:
    """Pieces as float32, or float64 where the type holds more."""
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if piece.dtype == np.float32 or piece.dtype == np.float64:
            yield piece
        elif piece.dtype == np.uint16:  # the bits of bfloat16, which are float32's upper ones
            yield (piece.astype(np.uint32) << 16).view(np.float32)
        elif piece.dtype.kind in "fV" and piece.dtype.itemsize <= 2:
            yield piece.astype(np.float32)
        else:
            yield piece.astype(np.float64)


def _as_float32(piece: Array) -> Array:
    if piece.dtype == np.float32:
        return piece
    return np.clip(piece[np.isfinite(piece)], -_LARGEST, _LARGEST).astype(np.float32)


def _difference(new: Array, old: Array) -> Array:
    return new.astype(np.float64) - old.astype(np.float64)


def _finish(sums: _Sums, again: Callable[[], Iterable[Array]]) -> Numbers:
    """The statistics that sums lead to; `again` reads the array anew where they do not."""
    if not sums.size:
        return EMPTY
    largest = max(-sums.low, sums.high)
    if not math.isfinite(sums.squares) or not math.isfinite(sums.total):
        return _exact(again)
    if 0.0 < largest < _SMALLEST_SQUARED:
        return _exact(again)
    if sums.low == sums.high:
        norm = math.sqrt(sums.size) * abs(sums.low)
        return sums.low, 0.0, sums.low, sums.high, norm, float(sums.zeros), 0.0, 0.0
    mean = sums.total / sums.size
    variance = sums.squares / sums.size - mean * mean
    if variance < 0.1 * mean * mean:  # the difference of numbers that are nearly the same
        mean, variance = _centred(again(), mean, sums.size)
        sums.squares = (variance + mean * mean) * sums.size
    moments = mean, math.sqrt(max(variance, 0.0)), sums.low, sums.high, math.sqrt(sums.squares)
    return (*moments, float(sums.zeros), 0.0, 0.0)


def _centred(pieces: Iterable[Array], near: float, size: int) -> tuple[float, float]:
    """Mean and variance, from differences to a number near the mean; in float64."""
    total = squares = 0.0
    for piece in pieces:
        apart = piece.astype(np.float64) - near
        total += float(apart.sum())
        squares += float(np.dot(apart, apart))
    shift = total / size
    return near + shift, squares / size - shift * shift


def _exact(again: Callable[[], Iterable[Array]]) -> Numbers:
    """Statistics of the finite values among others, also of huge and tiny ones; in float64."""
    zeros = nan = inf = size = 0
    low, high = math.inf, -math.inf
    for piece in again():
        nan += int(np.count_nonzero(np.isnan(piece)))
        inf += int(np.count_nonzero(np.isinf(piece)))
        finite = piece[np.isfinite(piece)]
        if finite.size:
            zeros += int(np.count_nonzero(finite == 0))
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            size += finite.size
    if not size:
        return (*EMPTY[:5], 0.0, float(nan), float(inf))
    scale = max(-low, high) or 1.0  # so that no square leaves the range of float64
    near = sum(float(part.sum()) for part in _scaled(again(), scale)) / size
    squares = sum(float(np.dot(part, part)) for part in _scaled(again(), scale))
    mean, variance = _centred(_scaled(again(), scale), near, size)
    moments = mean * scale, math.sqrt(max(variance, 0.0)) * scale, low, high
    return (*moments, math.sqrt(squares) * scale, float(zeros), float(nan), float(inf))


def _scaled(pieces: Iterable[Array], scale: float) -> Iterator[Array]:
    for piece in pieces:
        yield piece[np.isfinite(piece)].astype(np.float64) / scale
