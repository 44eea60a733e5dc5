"""Cutting batches and putting them together: properties that hold for every batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from wire_batches import batches

from tachograph.batches import join, until, weight
from tachograph.records import Batch
from tachograph.tensors.records import TensorRows
from tachograph.testing import make_batch, make_block


def records(batch: Batch) -> Counter[Any]:
    """Every point, packed statistic and row of a batch, in any order."""
    found: Counter[Any] = Counter()
    for block in batch.blocks:
        size = block.row_bytes
        found.update((block.series, block.data[n * size :][:size]) for n in range(len(block)))
    for table, rows in batch.rows.items():
        loose: Any = rows
        if isinstance(rows, TensorRows):
            found.update((frame.series, frame.seq, frame.body) for frame in rows.frames)
            loose = rows.loose
        found.update((table, repr(row)) for row in loose)
    return found


def seqs(batch: Batch) -> list[int]:
    """The number of every record that a batch holds."""
    of_points = [seq for block in batch.blocks for seq in block.seqs()]
    return of_points + [row["seq"] for rows in batch.rows.values() for row in rows]


@settings(max_examples=30, deadline=None)
@given(batch=batches(), data=st.data())
def test_two_halves_are_the_whole(batch: Batch, data: st.DataObject) -> None:
    """Cut anywhere, nothing is in both parts or in none; joined, it is what it was."""
    at = data.draw(st.integers(batch.first, batch.next))
    before, after = until(batch, at), batch.since(at)
    assert (before.first, before.next, after.first, after.next) == (
        *(batch.first, at),
        *(at, batch.next),
    )
    assert all(seq < at for seq in seqs(before))
    assert all(seq >= at for seq in seqs(after))
    assert records(before) + records(after) == records(batch)
    whole = join([before, after])
    assert (whole.writer, whole.first, whole.next) == (batch.writer, batch.first, batch.next)
    assert records(whole) == records(batch)
    assert whole.heartbeat == batch.heartbeat


@settings(max_examples=30, deadline=None)
@given(batch=batches(), data=st.data())
def test_pieces_joined_are_a_batch_that_can_be_cut_again(batch: Batch, data: st.DataObject) -> None:
    """Also where a series came in several blocks whose records alternate."""
    cuts = sorted(data.draw(st.lists(st.integers(batch.first, batch.next), max_size=3)))
    pieces = [batch.since(start) for start in [batch.first, *cuts]]
    pieces = [until(piece, end) for piece, end in zip(pieces, [*cuts, batch.next], strict=True)]
    whole = join(pieces)
    at = data.draw(st.integers(batch.first, batch.next))
    assert records(until(whole, at)) + records(whole.since(at)) == records(batch)


def test_blocks_of_one_series_that_alternate_are_joined_in_order() -> None:
    """Two handles of one series record in turn; cutting by a number needs them in order."""
    even = make_block("r", {"loss": [0.0, 2.0]}, seqs=[0, 2])
    odd = make_block("r", {"loss": [1.0, 3.0]}, seqs=[1, 3])
    more = make_block("r", {"loss": [4.0]}, seqs=[4])
    whole = join([make_batch("w", 0, blocks=[even, odd]), make_batch("w", 4, blocks=[more])])
    assert [block.seqs() for block in whole.blocks] == [[0, 1, 2, 3, 4]]
    assert [row[4] for row in whole.since(3).blocks[0].unpack()] == [3.0, 4.0]


def test_cutting_outside_of_a_batch_leaves_all_or_nothing() -> None:
    """Numbers that it does not have are no error."""
    block = make_block("r", {"loss": [1.0, 2.0]}, seqs=[5, 6])
    batch = make_batch("w", 5, blocks=[block], heartbeat=7)
    assert until(batch, 7) is batch
    assert until(batch, 99) is batch
    nothing = until(batch, 3)
    assert (nothing.first, nothing.next, records(nothing)) == (5, 5, Counter())
    gone = batch.since(99)
    assert (gone.first, gone.next, records(gone)) == (7, 7, Counter())
    assert gone.heartbeat == 7


def test_the_latest_heartbeat_counts() -> None:
    """Whichever of the joined batches has it."""
    beats = [None, 30, 20]
    parts = [Batch("w", n, n + 1, heartbeat=beat) for n, beat in enumerate(beats)]
    assert join(parts).heartbeat == 30
    assert join(parts[:1]).heartbeat is None


def test_weight_is_about_what_a_batch_takes() -> None:
    """Points by their bytes, texts by their length, rows by their columns."""
    points = make_batch("w", 0, blocks=[make_block("r", {"loss": [1.0] * 1000})])
    assert weight(points) == 40_000
    row = {"run_id": "r", "section": "git", "document": '"' + "x" * 50_000 + '"'}
    assert 50_000 < weight(make_batch("w", 0, provenance=[row])) < 52_000
    many = make_batch("w", 0, tags=[{"run_id": "r", "key": str(n)} for n in range(1000)])
    assert 300_000 < weight(many) < 1_500_000
