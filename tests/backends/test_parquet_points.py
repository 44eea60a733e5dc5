"""Points become row groups and summaries without loss, however they were logged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.backends import parquet_points
from tachograph.backends.parquet_points import WriterSummaries, row_groups
from tachograph.merge import point_rows
from tachograph.records import TABLES, MetricBlock, Row, Summary, join_special
from tachograph.testing import make_block

numbers = st.floats() | st.sampled_from([0.0, -0.0, 1.0])


@st.composite
def block_lists(draw: st.DrawFn) -> list[MetricBlock]:
    """Blocks that share runs, names and contexts; their records interleave."""
    count = draw(st.integers(1, 300))
    owners = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    blocks = []
    for owner in set(owners):
        seqs = [seq for seq, one in enumerate(owners) if one == owner]
        width = draw(st.integers(1, 7))
        run = draw(st.sampled_from(["a", "b"]))
        some = draw(st.lists(numbers, min_size=1, max_size=5))
        values = {
            f"m{i}": [some[(i + seq) % len(some)] for seq in seqs]
            for i in range(owner, width + owner)
        }
        steps = [None if seq % 7 == 3 else seq // 2 for seq in seqs]
        epochs = [None if seq % 5 == 3 else seq / 2 for seq in seqs]
        blocks.append(make_block(run, values, seqs=seqs, steps=steps, epochs=epochs))
    return blocks


@settings(max_examples=30, deadline=None)
@given(blocks=block_lists(), rows=st.sampled_from([512, 1000, 65_536]))
def test_row_groups_hold_every_point_once_by_series(blocks: list[MetricBlock], rows: int) -> None:
    """However blocks are cut: each point is there, groups are small, a series ascends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_points, "GROUP_ROWS", rows)
        groups = [group.to_pylist() for group in row_groups(blocks, "w")]
    found = [row for group in groups for row in group]
    expected = [row for block in blocks for row in point_rows(block, "w")]
    assert sorted(map(repr, map(_ordered, found))) == sorted(map(repr, map(_ordered, expected)))
    assert max(map(len, groups)) <= rows
    series: dict[tuple[str, str], list[int]] = {}
    for row in found:
        series.setdefault((row["run_id"], row["name"]), []).append(row["seq"])
    assert all(seqs == sorted(seqs) for seqs in series.values())


def _ordered(row: Row) -> list[Any]:
    return [row[name] for name in TABLES["metrics"].columns]


@settings(max_examples=30, deadline=None)
@given(blocks=block_lists())
def test_summaries_are_those_of_records(blocks: list[MetricBlock]) -> None:
    """The vectorised summary of a batch is what `records.Summary` says point by point."""
    points = sorted(
        (row for block in blocks for row in point_rows(block, "w")), key=lambda row: row["seq"]
    )
    expected: dict[Any, Summary] = {}
    for row in points:
        summary = expected.setdefault((row["run_id"], row["name"]), Summary())
        value = join_special(row["value"], row["special"])
        summary.add([float("nan") if value is None else value], row["step"], row["time"])
    found = {(key.run_id, key.name): row for key, row in WriterSummaries().add(blocks)}
    assert found.keys() == expected.keys()
    for series, row in found.items():
        wanted = expected[series].as_row()
        for name in ("last", "special", "last_step", "last_time", "min", "max", "count", "finite"):
            assert row[name] == wanted[name], name
        if wanted["mean"] is not None and row["mean"] is not None:
            assert row["mean"] == pytest.approx(
                wanted["mean"], rel=1e-9, abs=1e-300 + row["max"] * 1e-9
            )
