"""Points as they travel: what hardly changes from row to row compresses to next to nothing.

The points of a block are `count` rows ``seq i64 | time i64 (µs) | step i64 | epoch f64 | a f64
per name``, as a `MetricBlock` but for the time. In the columns seq, time and step each value but
the first is replaced by its difference from the one before, modulo 2**64. Then the bytes are put
in order of their place in the row: first the first byte of each row, then the second of each.

Knows packed rows; knows no header.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import Literal

from tachograph.records import MetricBlock, words

_MASK = (1 << 64) - 1
_WORD = 8
_DELTA_BYTES = 3 * _WORD  # of a row: the columns that hold differences


def to_planes(block: MetricBlock) -> bytes:
    """The rows of a block; times lose what is below a microsecond."""
    data, size = block.data, block.row_bytes
    if len(data) == size:  # a training that logs once a second: its row lies in order already
        return _scaled_time(data, lambda time: time // 1000)
    numbers = words("q", data)
    seqs, times, steps = (numbers[column :: size // _WORD].tolist() for column in range(3))
    times = [time // 1000 for time in times]
    packed = [_differences(values) for values in (seqs, times, steps)]
    planes = [column[byte::_WORD] for column in packed for byte in range(_WORD)]
    return b"".join((*planes, *(data[byte::size] for byte in range(_DELTA_BYTES, size))))


def from_planes(planes: bytes, size: int) -> bytes:
    """Undo `to_planes`, of rows of so many bytes; OverflowError where a time is no time."""
    count = len(planes) // size
    if count == 1:
        return _scaled_time(planes, lambda time: time * 1000)
    data = bytearray(len(planes))
    for column in range(_DELTA_BYTES // _WORD):
        start = column * _WORD * count
        values = _sums(planes[start : start + _WORD * count])
        if column == 1:
            values = _packed("q", [time * 1000 for time in words("q", values)])
        for byte in range(_WORD):
            data[column * _WORD + byte :: size] = values[byte::_WORD]
    for byte in range(_DELTA_BYTES, size):
        data[byte::size] = planes[byte * count : (byte + 1) * count]
    return bytes(data)


def _scaled_time(row: bytes, scaled: Callable[[int], int]) -> bytes:
    """One row with another time."""
    (time,) = words("q", row[_WORD : 2 * _WORD])
    return row[:_WORD] + _packed("q", [scaled(time)]) + row[2 * _WORD :]


def _differences(values: list[int]) -> bytes:
    """Each number's difference from the one before, modulo 2**64."""
    differences = [*values[:1], *map(operator.sub, values[1:], values)]
    try:
        return _packed("q", differences)
    except OverflowError:  # two neighbours lie more than 2**63 apart
        return _packed("Q", [number & _MASK for number in differences])


def _sums(planes: bytes) -> bytes:
    """Undo `_differences`, of bytes that lie in planes."""
    together = bytearray(len(planes))
    count = len(planes) // _WORD
    for byte in range(_WORD):
        together[byte::_WORD] = planes[byte * count : (byte + 1) * count]
    differences = words("q", together)
    try:
        return _packed("q", list(accumulate(differences)))
    except OverflowError:
        return _packed("Q", [number & _MASK for number in accumulate(differences)])


def _packed(typecode: Literal["q", "Q"], values: list[int]) -> bytes:
    """Undo `words`."""
    return words(typecode, array(typecode, values).tobytes()).tobytes()
