"""Every number equals the one that float64 arithmetic finds in the same array, however odd."""

from __future__ import annotations

import math
import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.callbacks import tensors_host
from tachograph.callbacks.tensors_host import EMPTY, Meter, histogram, key, pack
from tachograph.tensors import histograms
from tachograph.tensors.records import STATISTICS

RANDOM = np.random.default_rng(7)
FLOATS = {name: RANDOM.standard_normal(70_001).astype(name) for name in ("f2", "f4", "f8")}


def with_gaps(array: Any, *values: float) -> Any:
    """A copy in which some elements are these values."""
    changed = array.copy()
    for position, value in enumerate(values):
        changed[position :: 7 + position] = value
    return changed


NORMAL = FLOATS["f4"]
ARRAYS: dict[str, Any] = {
    **FLOATS,
    "big-endian": NORMAL[:1000].astype(">f4"),
    "no elements": np.empty((0, 3), "f4"),
    "no dimension": np.float32(3.5),
    "one element": np.array([-2.5], "f4"),
    "one zero": np.zeros(1, "f4"),
    "strided": NORMAL[:60_000].reshape(200, 300)[::3, ::-2],
    "fortran": np.asfortranarray(NORMAL[:60_000].reshape(200, 300)),
    "transposed": NORMAL[:60_000].reshape(20, 30, 100).transpose(2, 0, 1),
    "repeated": np.broadcast_to(np.float32(0.1), (50, 60)),
    "huge": NORMAL * np.float32(1e37),
    "huge f8": FLOATS["f8"] * 1e300,
    "beyond squares": np.array([3e38, -3e38, 1.0], "f4"),
    "tiny": NORMAL * np.float32(1e-30),
    "denormal": NORMAL[:500] * np.float32(1e-42),
    "denormal f8": FLOATS["f8"][:500] * 1e-320,
    "largest f2": np.array([65504, -65504, 6e-8], "f2"),
    "all NaN": np.full(300, np.nan, "f4"),
    "all Inf": np.array([np.inf, -np.inf] * 50, "f4"),
    "mixed": with_gaps(NORMAL, np.nan, np.inf, -np.inf, 0.0, -0.0),
    "mixed f2": with_gaps(FLOATS["f2"], np.nan, np.inf),
    "mixed f8": with_gaps(FLOATS["f8"], np.nan, -np.inf, 1e300),
    "constant": np.full(200_000, 0.1, "f4"),
    "nearly constant": (1 + 1e-6 * NORMAL).astype("f4"),
    "far from zero": (1e4 + NORMAL).astype("f4"),
    "positive": RANDOM.random(200_000).astype("f4"),
    "sparse": np.where(RANDOM.random(70_000) < 0.99, 0, NORMAL[:70_000]).astype("f4"),
    "zeros": np.zeros((30, 40), "f4"),
    "integers": np.arange(-50, 1000),
    "bytes": np.arange(256, dtype="u1"),
    "truths": np.array([True, False, True]),
    "complex": (NORMAL[:500] + 1j * NORMAL[500:1000]).astype("c8").reshape(20, 25)[:, ::2],
    "read-only": np.frombuffer(NORMAL[:100].tobytes(), "f4"),
}


def reals(array: Any) -> Any:
    """All numbers of an array as float64, in any order."""
    flat = np.asarray(array).ravel()
    if flat.dtype.kind == "c":
        flat = np.concatenate([flat.real, flat.imag])
    return flat.astype(np.float64)


def slow(array: Any) -> dict[str, float]:
    """What `Meter.measure` should find, from Python's exact sums."""
    values = reals(array)
    finite = values[np.isfinite(values)].tolist()
    counts = {
        "zeros": float(sum(value == 0 for value in finite)),
        "nan": float(np.isnan(values).sum()),
        "inf": float(np.isinf(values).sum()),
    }
    if not finite:
        return dict.fromkeys(STATISTICS[:5], math.nan) | counts
    size, scale = len(finite), max(map(abs, finite)) or 1.0
    mean = math.fsum(value / scale for value in finite) / size
    variance = math.fsum((value / scale - mean) ** 2 for value in finite) / size
    norm = math.sqrt(math.fsum((value / scale) ** 2 for value in finite))
    moments = [mean * scale, math.sqrt(variance) * scale, min(finite), max(finite), norm * scale]
    return dict(zip(STATISTICS[:5], moments, strict=True)) | counts


def check(found: tensors_host.Numbers, array: Any, *, rel: float = 0.0) -> None:
    """Compare with the slow reference, to the tolerances that `Meter` states.

    `rel` is for extremes of what was itself rounded.
    """
    numbers, wanted = dict(zip(STATISTICS, found, strict=True)), slow(array)
    for name in ("min", "max", "zeros", "nan", "inf"):
        assert numbers[name] == pytest.approx(wanted[name], rel=rel, abs=0, nan_ok=True), name
    if math.isnan(wanted["mean"]):
        assert all(math.isnan(numbers[name]) for name in STATISTICS[:5])
        return
    size = max(abs(wanted["min"]), abs(wanted["max"]))
    least = 1e-12 * size  # below that a float64 sum cannot tell it from zero
    mean = max(1e-5 * wanted["std"], 1e-6 * abs(wanted["mean"]), least)
    assert numbers["mean"] == pytest.approx(wanted["mean"], abs=mean, rel=0)
    assert numbers["std"] == pytest.approx(wanted["std"], rel=1e-5, abs=least)
    assert numbers["l2"] == pytest.approx(wanted["l2"], rel=1e-5)


@pytest.mark.parametrize("name", ARRAYS)
def test_statistics_equal_those_of_float64(name: str) -> None:
    """For each type, layout and range; NaN and infinities stand apart from the finite values."""
    check(Meter().measure(ARRAYS[name]), ARRAYS[name])


@pytest.mark.parametrize("name", ARRAYS)
def test_a_meter_keeps_nothing_of_what_it_measured_before(name: str) -> None:
    """One meter measures all tensors of a model."""
    meter = Meter()
    for other in ("mixed", "f8", "no elements"):
        meter.measure(ARRAYS[other])
    check(meter.measure(ARRAYS[name]), ARRAYS[name])


@pytest.mark.parametrize("name", ["f4", "huge", "denormal", "mixed", "constant"])
def test_bfloat16_comes_as_its_bits(name: str) -> None:
    """The upper half of a float32; numpy has no type for it."""
    bits = (np.ascontiguousarray(ARRAYS[name]).view(np.uint32) >> 16).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    check(Meter().measure(bits), values)
    assert histogram(bits) == histogram(values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), max_size=40))
def test_any_floats(values: list[float]) -> None:
    """Whatever 32 bits can be."""
    array = np.array(values, np.float32)
    if array.size:
        check(Meter().measure(array), array)
    assert sum(count for _, count in histogram(array)) == np.isfinite(array).sum()


def test_nothing_is_written_and_no_warning_is_shown(recwarn: pytest.WarningsRecorder) -> None:
    """A measure of NaN, infinities and overflows is silent, and the arrays are as they were."""
    meter = Meter()
    for array in ARRAYS.values():
        before = np.array(array)
        meter.measure(array)
        meter.measure_change(array, before)
        histogram(array)
        assert np.array(array).tobytes() == before.tobytes()
    assert not recwarn


# ---------------------------------------------------------------------------- updates


@pytest.mark.parametrize("name", ARRAYS)
def test_an_update_is_the_difference(name: str) -> None:
    """Both tensors are measured in one reading."""
    new = np.asarray(ARRAYS[name])
    old = np.ones_like(new) if new.dtype.kind in "biu" else new * new.dtype.type(0.875)
    weight, update = Meter().measure_change(new, old)
    check(weight, new)
    single = new.dtype.kind == "f" and new.dtype.itemsize <= 4
    kind = np.float32 if single else np.float64  # the difference in the type of the arrays
    with np.errstate(invalid="ignore"):
        check(update, reals(new).astype(kind) - reals(old).astype(kind), rel=1e-6 * single)


def test_an_update_pairs_elements_whatever_the_layouts() -> None:
    """Weights before a step may have been copied in another order of the memory."""
    new = np.arange(12, dtype="f4").reshape(3, 4)
    old = np.asfortranarray(new - 1)
    _, update = Meter().measure_change(new, old)
    assert update[:5] == pytest.approx((1, 0, 1, 1, math.sqrt(12)))
    with pytest.raises(ValueError, match="one shape"):
        Meter().measure_change(new, new.T)


def test_an_update_beyond_the_type_is_taken_in_float64() -> None:
    """Its norm is a number, as that of the tensors is."""
    new = np.array([3e38, 1.0], "f4")
    _, update = Meter().measure_change(new, -new)
    assert update[3] == pytest.approx(6e38, rel=1e-6)
    assert update[5:] == (0, 0, 0)


def test_no_update_is_exactly_zero() -> None:
    """So that a layer that does not change can be told from one that hardly does."""
    weight, update = Meter().measure_change(NORMAL, NORMAL.copy())
    assert update == (0, 0, 0, 0, 0, NORMAL.size, 0, 0)
    assert weight == Meter().measure(NORMAL)


# ---------------------------------------------------------------------------- histograms


def test_several_at_once_are_as_each_by_itself() -> None:
    """Small arrays are measured together, and what is special among them is not lost."""
    arrays = [np.asarray(array) for array in ARRAYS.values()]
    arrays += [np.ones(9, "f4"), np.float32(1) + np.arange(9, dtype="f4") * np.float32(1e-7)]
    for array, row in zip(arrays, Meter().measure_all(arrays), strict=True):
        check(tuple(row.tolist()), array)
    old = [array * array.dtype.type(0.5) for array in arrays if array.dtype.kind == "f"]
    new = [array for array in arrays if array.dtype.kind == "f"]
    weights, updates = Meter().measure_changes(new, old)
    for after, before, weight, update in zip(new, old, weights, updates, strict=True):
        check(tuple(weight.tolist()), after)
        alone = Meter().measure_change(after, before)[1]
        mean, *others = update.tolist()
        assert mean == pytest.approx(alone[0], rel=1e-5, abs=1e-5 * alone[1], nan_ok=True)
        assert others == pytest.approx(alone[1:], rel=1e-5, abs=1e-300, nan_ok=True)
    assert Meter().measure_all([]).shape == (0, 8)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_histogram_is_exact(name: str) -> None:
    """Each finite value counts once, in the bin of its float32 value."""
    values = reals(ARRAYS[name])
    bins = (histograms.bin_of(value) for value in values[np.isfinite(values)].tolist())
    assert dict(histogram(ARRAYS[name])) == Counter(bins)


def test_bins_meet_without_gap_at_every_edge() -> None:
    """A value on an edge belongs to the bin that begins there; its neighbour to the one before."""
    for bin_ in range(1, histograms.LAST_BIN + 1):
        edge = np.float32(histograms.edge(bin_))
        below = np.nextafter(edge, np.float32(0))
        bins = (bin_, bin_ - 1, -1 - bin_, -bin_)
        assert dict(histogram(np.array([edge, below, -edge, -below]))) == dict.fromkeys(bins, 1)


# ---------------------------------------------------------------------------- what is recorded


def test_a_key_says_what_an_array_is() -> None:
    """Shape, type and number of what was measured."""
    array = np.zeros((2, 3), "f4")
    assert (found := key("w", "weight", array)).as_row()["shape"] == "[2,3]"
    assert (found.dtype, found.size, found.context) == ("float32", 6, "{}")
    assert key("w", "weight", np.float32(1)).shape == ()
    assert key("w", "weight", array.astype("c8")).size == 12
    assert key("w", "weight", array.astype("u2"), dtype="bfloat16").dtype == "bfloat16"


def test_numbers_are_packed_in_order() -> None:
    """Eight little-endian float64 a tensor, in the order of `STATISTICS`."""
    rows = [EMPTY, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)]
    numbers = struct.unpack("<16d", pack(rows))
    assert numbers[8:] == rows[1]
    assert all(map(math.isnan, numbers[:5]))
    assert pack([]) == b""
