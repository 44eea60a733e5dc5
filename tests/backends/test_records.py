"""Records keep what they are given, whatever it is."""

from __future__ import annotations

import math
import os
import struct
import time
import uuid
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.errors import RecordError
from tachograph.records import (
    NO_STEP,
    TABLES,
    Batch,
    MetricBlock,
    Series,
    Summary,
    check_run_id,
    join_special,
    split_special,
    uuid7,
)
from tachograph.testing import make_batch, make_block, make_row

floats = st.floats(width=64)
int64 = st.integers(-(1 << 63) + 1, (1 << 63) - 1)
times = st.integers(0, 2**62 // 1000)
calls = st.tuples(times, st.none() | int64, st.none() | st.floats(allow_nan=False))


def bits(value: float | None) -> bytes:
    """The bytes of a float; every NaN is the same one."""
    assert value is not None
    return struct.pack("<d", math.nan if value != value else value)


# ---------------------------------------------------------------------------- identity


def test_uuid7_is_a_version_7_uuid() -> None:
    """Version and variant bits are as RFC 9562 says, and the text is the canonical one."""
    for _ in range(1000):
        text = uuid7()
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.int >> 76 & 0xF, parsed.variant) == (7, uuid.RFC_4122)


def test_uuid7_carries_its_time_and_differs() -> None:
    """The first 48 bits are milliseconds, so ids sort by birth; the rest is random."""
    before = time.time_ns() // 1_000_000
    ids = [uuid.UUID(uuid7()) for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1000
    assert all(before <= born.int >> 80 <= after for born in ids)


def test_uuid7_keeps_every_other_random_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """74 bits are random: with all ones drawn, only version and variant hold zeros."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)
    assert uuid.UUID(uuid7()).int & (1 << 80) - 1 == 0x7FFF_BFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize("run_id", ["a", "A-b_9", "x" * 64, "0196f2f0-0000-7000-8000-000000000000"])
def test_usable_run_ids_are_returned(run_id: str) -> None:
    """Letters, digits, '_' and '-', up to 64 of them."""
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", ["", "x" * 65, "a b", "a/b", "../a", "ä", "a\n", "a.b", None, 7])
def test_unusable_run_ids_are_refused(run_id: Any) -> None:
    """What could leave a folder or break a name is no run id, also with a line end behind it."""
    with pytest.raises(RecordError):
        check_run_id(run_id)


# ---------------------------------------------------------------------------- values


@given(floats)
def test_special_is_undone_bit_by_bit(value: float) -> None:
    """`join_special` undoes `split_special` for every float."""
    assert bits(join_special(*split_special(value))) == bits(value)


@given(floats)
def test_value_column_is_a_number_every_engine_keeps(value: float) -> None:
    """What goes into `value` is finite and no negative zero; only then is `special` empty."""
    number, special = split_special(value)
    plain = math.isfinite(value) and not (value == 0 and math.copysign(1, value) < 0)
    assert (special is None) == plain
    assert number is None or (math.isfinite(number) and bits(number) != bits(-0.0))


def test_absent_value_stays_absent() -> None:
    """NULL without a name is no float."""
    assert join_special(None, None) is None


# ---------------------------------------------------------------------------- blocks


@st.composite
def blocks(draw: st.DrawFn) -> tuple[MetricBlock, list[tuple[Any, ...]]]:
    """A block and the rows it was packed from, seq ascending with holes and repeats."""
    width = draw(st.integers(1, 4))
    seqs = sorted(draw(st.lists(st.integers(0, 50), max_size=20)))
    rows = [
        (seq, *draw(calls), draw(st.lists(floats, min_size=width, max_size=width))) for seq in seqs
    ]
    series = Series("r", tuple(f"m{i}" for i in range(width)))
    return MetricBlock.pack(series, rows), rows


@given(blocks())
def test_unpack_undoes_pack(packed: tuple[MetricBlock, list[tuple[Any, ...]]]) -> None:
    """Every row comes back: microseconds as nanoseconds, absent steps and epochs as marked."""
    block, rows = packed
    assert len(block) == len(rows)
    assert len(block.data) == len(rows) * block.row_bytes
    for found, (seq, time_us, step, epoch, values) in zip(block.unpack(), rows, strict=True):
        assert found[:3] == (seq, time_us * 1000, NO_STEP if step is None else step)
        assert bits(found[3]) == bits(math.nan if epoch is None else epoch)
        assert [bits(value) for value in found[4:]] == [bits(value) for value in values]


@given(blocks(), st.integers(-1, 55))
def test_since_keeps_the_rows_from_a_number_on(
    packed: tuple[MetricBlock, list[tuple[Any, ...]]], seq: int
) -> None:
    """The binary search finds the first of several equal numbers, and both ends."""
    block, _ = packed
    kept = list(block.since(seq).unpack())
    assert repr(kept) == repr([row for row in block.unpack() if row[0] >= seq])


@given(blocks())
def test_numpy_reads_a_block_as_it_is(packed: tuple[MetricBlock, list[Any]]) -> None:
    """`dtype` describes the bytes that `unpack` reads."""
    block, _ = packed
    array = numpy.frombuffer(block.data, dtype=block.dtype)
    found = [(*head, *values.tolist()) for *head, values in array.tolist()]
    assert repr(found) == repr(list(block.unpack()))


# ---------------------------------------------------------------------------- batches


@given(st.integers(0, 12), st.lists(st.integers(0, 9), max_size=8).map(sorted))
def test_batch_since_keeps_every_table_from_a_number_on(seq: int, seqs: list[int]) -> None:
    """Blocks and rows lose what is older, the range shrinks, empty parts vanish."""
    block = make_block("r", {"loss": [1.0] * len(seqs)}, seqs=seqs)
    rows = [{"run_id": "r", "seq": number} for number in seqs]
    batch = make_batch("w", 0, 10, blocks=[block], tags=rows, heartbeat=5)
    part = batch.since(seq)
    kept = [number for number in seqs if number >= seq]
    assert (part.writer, part.first, part.next, part.heartbeat) == ("w", min(seq, 10), 10, 5)
    assert [row[0] for block in part.blocks for row in block.unpack()] == kept
    assert [row["seq"] for row in part.rows.get("tags", ())] == kept
    assert seq == 0 or all(len(block) for block in part.blocks)


def test_batch_since_its_own_start_is_itself() -> None:
    """Nothing is copied where nothing is left out."""
    batch = make_batch("w", 3, tags=[{"run_id": "r"}])
    assert batch.since(3) is batch
    assert batch.since(0) is batch


def test_points_counts_calls_times_names() -> None:
    """`points` is what a store will hold in `metrics`."""
    blocks = [make_block("r", {"a": [1.0, 2.0], "b": [3.0, 4.0]}), make_block("r", {"c": [5.0]})]
    assert make_batch("w", 0, blocks=blocks).points == 5
    assert Batch("w", 0, 0).points == 0


def test_make_row_is_complete() -> None:
    """A row in few words has every column of its table."""
    for table, spec in TABLES.items():
        assert list(make_row(table, "w", 0)) == list(spec.columns)


# ---------------------------------------------------------------------------- summaries

pieces = st.lists(st.lists(floats, min_size=1, max_size=10), min_size=1, max_size=5)


def summary_of(values: list[list[float]]) -> Summary:
    """The summary of pieces added one after the other."""
    summary = Summary()
    for number, piece in enumerate(values):
        summary.add(piece, number, number * 10)
    return summary


@given(pieces)
def test_summary_in_pieces_is_that_of_all_values(values: list[list[float]]) -> None:
    """Count, extremes and last are exact, in however many pieces the values come."""
    everything = [value for piece in values for value in piece]
    finite = [value for value in everything if math.isfinite(value)]
    row = summary_of(values).as_row()
    assert (row["count"], row["finite"]) == (len(everything), len(finite))
    assert (row["min"], row["max"]) == (min(finite, default=None), max(finite, default=None))
    assert bits(join_special(row["last"], row["special"])) == bits(everything[-1])
    assert (row["last_step"], row["last_time"]) == (len(values) - 1, (len(values) - 1) * 10)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1), min_size=1))
def test_mean_is_that_of_all_finite_values(values: list[list[float]]) -> None:
    """The mean agrees with the exact sum to rounding."""
    everything = [value for piece in values for value in piece]
    exact = math.fsum(everything) / len(everything)
    assert summary_of(values).as_row()["mean"] == pytest.approx(exact, rel=1e-9, abs=1e-9)


@given(pieces)
def test_no_column_of_a_summary_is_nan_or_infinite(values: list[list[float]]) -> None:
    """What a store could not keep is NULL, also a mean whose sum is no float."""
    for name, value in summary_of(values).as_row().items():
        assert value is None or name == "special" or math.isfinite(value), name


@given(pieces)
def test_summary_goes_on_from_its_row(values: list[list[float]]) -> None:
    """Kept in a store after each piece, it ends as the one that was never kept."""
    kept = Summary()
    for number, piece in enumerate(values):
        kept.add(piece, number, number * 10)
        kept = Summary.from_row(kept.as_row())
    found, expected = kept.as_row(), summary_of(values).as_row()
    found.pop("mean"), expected.pop("mean")
    assert found == expected


def test_every_table_grows_or_has_a_key() -> None:
    """Growing tables say who recorded a row, keyed ones also in which order changes count."""
    for spec in TABLES.values():
        change = {"writer", "seq"} if spec.grows else {"changed_at", "writer", "seq", "deleted"}
        assert change <= set(spec.columns)
        assert set(spec.key) <= set(spec.columns)
    assert {name for name, spec in TABLES.items() if spec.grows} == {"metrics", "tensors", "events"}
