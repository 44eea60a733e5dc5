"""Histograms of tensors: bins that are the same everywhere, so that counts add up exactly.

A bin is a sign, an exponent and two bits of the mantissa of a float32, as IEEE 754 lays them out:
the upper eleven bits of the value. Four bins cover each power of two, so a value lies within
12.5 % of the middle of its bin. Bin ``b >= 0`` holds the values from the float32 with the bits
``b << 21`` up to the next bin; bin ``-1 - b`` holds their negatives. Bin 0 begins at zero and holds
what is smaller than 2 ** -128, and bin 1019 ends at infinity; NaN and infinities have no bin.

Knows numbers and text; needs no library.
"""

from __future__ import annotations

import json
import math
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import sub

SIDE = 1024
"""Bins of one sign, of which the last four would be infinities and NaN."""

LAST_BIN = 1019
"""The bin of the largest finite float32."""

RAW_BINS = 2 * SIDE
"""Values of the upper eleven bits of a float32, the sign first."""

_GAP = 2  # bins without values that a run may go over: a new run takes more room

Counts = Mapping[int, int]
"""Bin to number of values; bins without values are left out."""


def edge(bin_: int) -> float:
    """The value in a bin that is nearest to zero."""
    magnitude = bin_ if bin_ >= 0 else -1 - bin_
    if magnitude > LAST_BIN:
        return math.copysign(2.0**128, bin_)
    value: float = struct.unpack("<f", struct.pack("<I", magnitude << 21))[0]
    return value if bin_ >= 0 else -value


def bounds(bin_: int) -> tuple[float, float]:
    """Lowest and highest value of a bin, the outer one just not in it."""
    if bin_ >= 0:
        return edge(bin_), edge(bin_ + 1)
    return edge(bin_ - 1), edge(bin_)


def bin_of(value: float) -> int:
    """The bin of a finite value; one beyond float32 goes into the last."""
    try:
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        return LAST_BIN if value > 0 else -1 - LAST_BIN
    return bin_of_raw(bits >> 21)


def bin_of_raw(raw: int) -> int:
    """The bin for the upper eleven bits of a float32."""
    return raw if raw < SIDE else SIDE - 1 - raw


def to_text(counts: Counts) -> str:
    """Runs of neighbouring bins as JSON: ``[[first bin, [count, count, …]], …]``, ascending.

    Small gaps inside a run have counts of 0. Only here and in `from_text` is it known how a store
    keeps a histogram.
    """
    bins = sorted(counts)
    return runs_to_text(bins, [counts[bin_] for bin_ in bins])


def runs_to_text(bins: Sequence[int], counts: Sequence[int]) -> str:
    """`to_text` of bins in ascending order and the count of each."""
    if not bins:
        return "[]"
    steps = list(map(sub, bins[1:], bins))
    text, start = f"[{bins[0]},[", 0
    for stop in (place for place, step in enumerate(steps, 1) if step != 1):
        gap = steps[stop - 1] - 1
        text += ",".join(map(str, counts[start:stop]))
        text += "," + "0," * gap if gap <= _GAP else f"]],[{bins[stop]},["
        start = stop
    return f"[{text}{','.join(map(str, counts[start:]))}]]]"


def from_text(text: str) -> dict[int, int]:
    """Undo `to_text`."""
    return {
        int(first) + place: int(count)
        for first, counts in json.loads(text)
        for place, count in enumerate(counts)
        if count
    }


def merge(histograms: Iterable[Counts]) -> dict[int, int]:
    """The histogram of all values together; exact."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bin_, count in histogram.items():
            total[bin_] = total.get(bin_, 0) + count
    return total


def quantiles(counts: Counts, shares: Sequence[float]) -> list[float]:
    """Values below which these shares of all values lie, interpolated inside a bin.

    Each is within its bin, so off by at most a quarter of the true quantile, plus 2 ** -128.
    NaN where the histogram is empty.
    """
    bins = sorted(bin_ for bin_, count in counts.items() if count)
    if not bins:
        return [math.nan] * len(shares)
    up_to = list(accumulate(counts[bin_] for bin_ in bins))
    found = []
    for share in shares:
        wanted = share * up_to[-1]
        place = min(bisect_left(up_to, wanted), len(bins) - 1)
        count = counts[bins[place]]
        low, high = bounds(bins[place])
        inside = (wanted - (up_to[place] - count)) / count
        found.append(low + (high - low) * min(1.0, max(0.0, inside)))
    return found
