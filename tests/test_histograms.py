"""Histograms: bins that meet, counts that add up, text that comes back, quantiles in bounds."""

from __future__ import annotations

import json
import math
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.tensors.histograms import (
    LAST_BIN,
    RAW_BINS,
    SIDE,
    bin_of,
    bin_of_raw,
    bounds,
    edge,
    from_text,
    merge,
    quantiles,
    to_text,
)

counts = st.dictionaries(
    st.one_of(st.integers(-1 - LAST_BIN, LAST_BIN), st.integers(-12, 12)),
    st.integers(1, 2**53),
    max_size=60,
)
single = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(single)
def test_a_value_lies_in_its_bin(value: float) -> None:
    """Between its bounds, the outer of which belongs to the next bin."""
    bin_ = bin_of(value)
    low, high = bounds(bin_)
    if bin_ >= 0:
        assert low <= value < high
    else:
        assert low < value <= high
    assert (bin_ < 0) is (math.copysign(1.0, value) < 0)


@given(single, single)
def test_bins_ascend_as_values_do(one: float, other: float) -> None:
    """But for the two zeros."""
    if one < other:
        assert bin_of(one) <= bin_of(other)


def test_bins_cover_the_line_once() -> None:
    """Each begins where the one before ends, from the largest negative to the largest."""
    ends = [bounds(bin_) for bin_ in range(-1 - LAST_BIN, LAST_BIN + 1)]
    assert ends[0][0] == -(2.0**128)
    assert ends[-1][1] == 2.0**128
    assert all(before[1] == after[0] for before, after in pairwise(ends))


@pytest.mark.parametrize("bin_", range(4, LAST_BIN + 1))
def test_a_bin_is_narrow(bin_: int) -> None:
    """The middle is within an eighth of every value, but near zero."""
    low, high = bounds(bin_)
    middle = (low + high) / 2
    assert high - low <= low / 4 * (1 if bin_ >= 8 else 2)
    assert (high - middle) / low <= 0.125 * (1 if bin_ >= 8 else 2)


def test_what_is_beyond_float32_counts_in_the_last_bin() -> None:
    """Also what only rounding takes there."""
    largest = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
    assert [bin_of(value) for value in (largest, 1e300, -1e300)] == [
        *(LAST_BIN, LAST_BIN, -1 - LAST_BIN)
    ]
    assert edge(LAST_BIN + 1) == 2.0**128


def test_raw_bits_are_bins() -> None:
    """The upper eleven bits of a float32, the sign first."""
    for value in (0.0, 1.0, -1.0, 1.3, -3e38, 1e-44):
        raw = struct.unpack("<I", struct.pack("<f", value))[0] >> 21
        assert bin_of_raw(raw) == bin_of(value)
    assert sorted(map(bin_of_raw, range(RAW_BINS))) == list(range(-SIDE, SIDE))


# ---------------------------------------------------------------------------- text


@given(counts)
def test_text_comes_back(histogram: dict[int, int]) -> None:
    """Whatever bins are used."""
    assert from_text(to_text(histogram)) == histogram


@given(counts)
def test_text_is_runs_that_sql_can_take_apart(histogram: dict[int, int]) -> None:
    """Ascending runs of a first bin and counts, neither begun nor ended by an empty bin."""
    text = to_text(histogram)
    runs = json.loads(text)
    assert text == json.dumps(runs, separators=(",", ":"))
    ends = [(first, first + len(found)) for first, found in runs]
    assert all(before[1] + 2 < after[0] for before, after in pairwise(ends))
    assert all(found[0] and found[-1] for _, found in runs)


def test_text_of_an_example() -> None:
    """As the reference of tables shows it."""
    assert to_text({}) == "[]"
    assert to_text({480: 7, -3: 5, -1: 2}) == "[[-3,[5,0,2]],[480,[7]]]"
    assert to_text({0: 1, 3: 1, 7: 1}) == "[[0,[1,0,0,1]],[7,[1]]]"


# ---------------------------------------------------------------------------- together


@given(st.lists(st.lists(single, max_size=20), max_size=5))
def test_merging_is_counting_all_values(parts: list[list[float]]) -> None:
    """Exactly, however the values are spread."""

    def count(values: list[float]) -> dict[int, int]:
        return merge({bin_of(value): 1} for value in values)

    assert merge(map(count, parts)) == count([value for part in parts for value in part])


@given(st.lists(single, min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_within_a_bin_of_the_true_one(values: list[float], share: float) -> None:
    """Off by a quarter at most, plus the width of the bin at zero."""
    ordered = sorted(values, key=lambda value: (value, math.copysign(1, value)))
    true = ordered[max(0, math.ceil(share * len(values)) - 1)]
    (found,) = quantiles(merge({bin_of(value): 1} for value in values), [share])
    assert abs(found - true) <= 0.25 * abs(true) + 2.0**-126


def test_quantiles_of_nothing_and_of_the_ends() -> None:
    """NaN where there is nothing; the shares 0 and 1 are the outer bounds of the bins."""
    assert all(map(math.isnan, quantiles({}, [0.0, 0.5])))
    assert all(map(math.isnan, quantiles({3: 0}, [0.5])))
    one = bin_of(1.0)
    assert quantiles({one: 3, one + 4: 1, one + 9: 0}, [0.0, 1.0]) == [1.0, 2.5]
    assert quantiles({one: 4}, [0.25, 0.5]) == [1.0625, 1.125]
