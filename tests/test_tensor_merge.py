"""Shards of a tensor merge to what numpy says of the whole tensor."""

from __future__ import annotations

import math
import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from tachograph.callbacks import tensors_host
from tachograph.records import Row
from tachograph.tensors.histograms import from_text, to_text
from tachograph.tensors.merge import is_shard, merge_shards
from tachograph.tensors.records import STATISTICS

SHARD = '{"scope":"rank"}'


def row_of(part: Any, rank: int, whole: tuple[int, ...], **columns: Any) -> Row:
    """What a rank records of its shard."""
    numbers = tensors_host.Meter().measure(part)
    moments = [value if math.isfinite(value) else None for value in numbers[:5]]
    counts = map(int, numbers[5:])
    return {
        "run_id": "r",
        "name": "w",
        "kind": "weight",
        "context": SHARD,
        "rank": rank,
        "attempt": 1,
        "step": 3,
        "time": 10 + rank,
        "shape": str(list(part.shape)),
        "logical_shape": str(list(whole)),
        "size": int(part.size),
        "histogram": to_text(dict(tensors_host.histogram(part))),
        **dict(zip(STATISTICS, (*moments, *counts), strict=True)),
    } | columns


def close(found: float | None, expected: float, scale: float) -> bool:
    """Whether a merged moment is the true one, to the rounding of what was measured."""
    if found is None:
        return math.isnan(expected) or not math.isfinite(expected)
    return math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-4 * scale + 1e-300)


WIDE = st.floats(width=64, allow_nan=True, allow_infinity=True)
PLAIN = st.floats(-1e3, 1e3, width=32)


@st.composite
def split_arrays(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    """An array, and the pieces that ranks hold; some may be empty."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    values = PLAIN if dtype == np.float32 else draw(st.sampled_from([WIDE, PLAIN]))
    array = draw(arrays(dtype, st.integers(0, 60), elements=values))
    cuts = draw(st.lists(st.integers(0, array.size), max_size=5).map(sorted))
    return array, np.split(array, cuts)


@settings(deadline=None, max_examples=200)
@given(split_arrays())
def test_any_split_merges_to_the_whole(case: tuple[Any, list[Any]]) -> None:
    """Counts, extremes and histogram exactly, moments to rounding, whatever the values are."""
    array, parts = case
    rows = [row_of(part, rank, array.shape) for rank, part in enumerate(parts)]
    (merged,) = merge_shards(rows)
    whole = row_of(array, 0, array.shape)
    for exact in ("size", "zeros", "nan", "inf", "min", "max"):
        assert merged[exact] == whole[exact], exact
    assert from_text(merged["histogram"]) == from_text(whole["histogram"])
    finite = array[np.isfinite(array)].astype(np.float64)
    if not finite.size:
        assert merged["mean"] is merged["std"] is merged["l2"] is None
        return
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        largest = float(np.abs(finite).max()) or 1.0
        scaled = finite / largest
        assert close(merged["mean"], float(scaled.mean()) * largest, largest)
        assert close(merged["std"], float(scaled.std()) * largest, largest)
        assert close(merged["l2"], float(np.linalg.norm(scaled)) * largest, largest)


def test_means_that_cancel_and_differ() -> None:
    """The spread between shards is part of the spread of the whole, with no digits lost."""
    parts = [np.full(7, 1e6), np.full(3, 1e6 + 1)]
    (merged,) = merge_shards([row_of(p, rank, (10,)) for rank, p in enumerate(parts)])
    whole = np.concatenate(parts)
    assert merged["mean"] == pytest.approx(whole.mean(), rel=1e-15)
    assert merged["std"] == pytest.approx(whole.std(), rel=1e-9)


def test_merged_row_reads_as_that_of_a_whole_tensor() -> None:
    """It has the logical shape, no scope, the lowest rank and the latest time."""
    rows = [row_of(np.ones((2, 3)), rank, (4, 3), context=CLIPPED) for rank in (1, 0)]
    (merged,) = merge_shards(rows)
    assert merged["shape"] == "[4, 3]"
    assert merged["logical_shape"] is None
    assert merged["context"] == '{"stage":"clipped"}'
    assert (merged["rank"], merged["time"], merged["shards"]) == (0, 11, 2)


CLIPPED = '{"scope":"rank","stage":"clipped"}'


def test_only_whole_steps_are_merged() -> None:
    """A step without a shard is left out; steps, kinds, attempts and contexts stay apart."""
    part = np.ones(2)
    both = [row_of(part, rank, (4,)) for rank in (0, 1)]
    assert len(merge_shards(both)) == 1
    assert merge_shards(both[:1]) == []
    assert merge_shards([*both, row_of(part, 2, (4,))]) == []  # more than there is
    assert merge_shards([row_of(part, 0, (2,), logical_shape=None)]) == []
    for column, value in (("step", 4), ("kind", "gradient"), ("attempt", 2), ("context", CLIPPED)):
        assert merge_shards([both[0], both[1] | {column: value}]) == []


def test_a_rank_that_says_it_again_counts_once() -> None:
    """The later row of a rank replaces its earlier one."""
    old, new, other = (row_of(np.full(2, value), rank, (4,)) for value, rank in OLD_NEW_OTHER)
    (merged,) = merge_shards([old, other, new])
    assert merged["max"] == 5.0
    assert merged["size"] == 4


OLD_NEW_OTHER = ((9.0, 0), (5.0, 0), (1.0, 1))


def test_what_a_shard_lacks_the_whole_lacks() -> None:
    """No histogram where one has none; but a shard without finite values lacks nothing."""
    parts = [np.ones(2), np.full(2, np.nan)]
    rows = [row_of(part, rank, (4,)) for rank, part in enumerate(parts)]
    (merged,) = merge_shards([rows[0], rows[1] | {"histogram": None}])
    assert from_text(merged["histogram"]) == {508: 2}
    assert (merged["mean"], merged["nan"]) == (1.0, 2)
    (merged,) = merge_shards([rows[0] | {"histogram": None, "std": None}, rows[1]])
    assert merged["histogram"] is None
    assert merged["std"] is None
    assert merged["l2"] == pytest.approx(math.sqrt(2))


def test_columns_that_were_not_read_stay_absent() -> None:
    """A query for few columns merges those."""
    rows = [row_of(np.ones(2), rank, (4,)) for rank in (0, 1)]
    few = [{k: v for k, v in row.items() if k not in ("histogram", "mean", "std")} for row in rows]
    (merged,) = merge_shards(few)
    assert not {"histogram", "mean", "std"} & set(merged)
    assert merged["l2"] == 2.0


def test_which_contexts_are_shards() -> None:
    """Only the scope 'rank' is; a replica's own gradient is a tensor of its own."""
    assert is_shard(SHARD)
    assert is_shard(CLIPPED)
    assert not is_shard('{"scope":"replica"}')
    assert not is_shard('{"layer":"\\"scope\\":\\"rank\\""}')
    assert not is_shard("{}")
