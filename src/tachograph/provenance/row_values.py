"""Values of rows as words of 64 bits: equal values have equal words, whatever their type.

1, 1.0 and True are equal, in 8 bits or in 64; so are 0.0 and -0.0, and all NaN and None. Words are
mixed, so that sums of them times odd numbers tell rows apart; 0 stays 0.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
from typing import Any

from tachograph.provenance.digest import NotPlain, plain_bytes

_FACTOR = 0x9E3779B97F4A7C15
_EXACT_INTEGERS = 1 << 53
_NUMBERS = (bool, int, float)
_CACHED = (*_NUMBERS, str, bytes)
_TEXT_BYTES = 64 << 20
_MOST_DISTINCT = 1_000_000


class NotHashed(Exception):
    """Why the rows of some data have no hashes."""


def numpy() -> Any:
    """The module, where it is loaded; NotHashed elsewhere."""
    if "numpy" not in sys.modules:
        raise NotHashed("numpy is not loaded")
    return sys.modules["numpy"]


def mix(words: Any) -> Any:
    """Spread each bit of a word over all of it, in place; no two words become the same."""
    np = numpy()
    spread = np.right_shift(words, np.uint64(32))
    np.bitwise_xor(words, spread, out=words)
    np.multiply(words, np.uint64(_FACTOR), out=words)
    np.right_shift(words, np.uint64(29), out=spread)
    return np.bitwise_xor(words, spread, out=words)


def factors(first: int, count: int) -> Any:
    """Odd factors of the columns from `first` on, the same everywhere."""
    np = numpy()
    words = np.arange(first + 1, first + count + 1, dtype="u8")
    return mix(mix(words * np.uint64(_FACTOR))) | np.uint64(1)


def number_words(values: Any) -> Any:
    """Mixed words of an array of numbers or dates; of complex ones, two for each in a last axis."""
    np = numpy()
    if values.dtype.kind == "c":
        return number_words(np.stack([values.real, values.imag], axis=-1))
    if values.dtype.kind in "mM":
        values = values.astype(f"{values.dtype.kind}8[ns]").view("i8")
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.itemsize <= 2:
        patterns = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        return _table(values.dtype.name).take(patterns)
    if values.dtype.kind not in "iuf":
        raise NotHashed(f"values of type {values.dtype} are not read")
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        return mix(_integer_words(values))
    return mix(_float_words(values))


def _float_words(values: Any) -> Any:
    np = numpy()
    with np.errstate(all="ignore"):
        floats = np.add(values, 0.0, dtype="f8", casting="same_kind")  # -0.0 becomes 0.0
        if np.isnan(np.add.reduce(floats, axis=None)):
            floats[np.isnan(floats)] = np.nan  # there are many, of other bits
    return floats.view("u8")


def _integer_words(values: Any) -> Any:
    """As of floats, and what of a large number no float holds."""
    np = numpy()
    floats = values.astype("f8")
    words = floats.view("u8")
    large = np.abs(floats) >= _EXACT_INTEGERS
    if large.any():
        with np.errstate(all="ignore"):
            rest = (values - floats.astype(values.dtype)).astype("u8")
        words ^= np.where(large, rest * np.uint64(_FACTOR), np.uint64(0))
    return words


@functools.cache
def _table(dtype: str) -> Any:
    """Mixed words of all values that a type of at most 16 bits has, by their bits."""
    np = numpy()
    if dtype == "bfloat16":  # not a type of numpy: the upper half of a float32
        values = (np.arange(1 << 16, dtype="u4") << np.uint32(16)).view("f4")
    elif dtype == "bool":
        values = np.arange(256) != 0
    elif np.dtype(dtype).kind in "iuf":
        bits = 8 * np.dtype(dtype).itemsize
        values = np.arange(1 << bits, dtype=f"u{bits // 8}").view(dtype)
    else:
        raise NotHashed(f"values of type {dtype} are not read")
    return mix(_float_words(values))


def bfloat16_words(patterns: Any) -> Any:
    """Mixed words of an array that has the bits of bfloat16 as uint16."""
    return _table("bfloat16").take(patterns)


class Vocabulary:
    """Words of Python's own values; each distinct one is looked at once."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._bytes = 0

    def words(self, values: list[Any]) -> Any:
        """Mixed words of a list of plain values; NotHashed for others, and for long texts."""
        np = numpy()
        return mix(np.array([self.word(value) for value in values], dtype="u8"))

    def word(self, value: Any) -> int:
        """The word of one value, not mixed."""
        if type(value) not in _CACHED:  # a hash of the user's own is not asked for
            return self._new_word(value)
        word = self._known.get(value)
        if word is None:
            word = self._new_word(value)
            if len(self._known) < _MOST_DISTINCT:
                self._known[value] = word
        return word

    def _new_word(self, value: Any) -> int:
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()
        if value is None:
            value = float("nan")
        if type(value) in _NUMBERS and (word := _number_word(value)) is not None:
            return word
        try:
            content = plain_bytes([value])
        except NotPlain as error:
            raise NotHashed(str(error)) from error
        self._bytes += len(content)
        if self._bytes > _TEXT_BYTES:
            raise NotHashed(f"its texts are longer than {_TEXT_BYTES >> 20} MiB")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _number_word(value: Any) -> int | None:
    """The bits of the same number as a float; None where none is equal."""
    try:
        number = float(value)
    except OverflowError:
        return None
    if number != number:
        number = float("nan")
    elif number != value:
        return None
    return int.from_bytes(struct.pack("<d", number + 0.0), "little")
