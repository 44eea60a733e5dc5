"""Points become row groups and summaries without loss, however they were logged."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from tachograph.backends import parquet_points, parquet_write
from tachograph.backends.parquet import ParquetBackend
from tachograph.backends.parquet_points import WriterSummaries, row_groups
from tachograph.merge import point_rows
from tachograph.records import TABLES, MetricBlock, Row, Summary, join_special
from tachograph.testing import dump, make_batch, make_block

FLOATS = [0.0, -0.0, 1.0, 0.1, -3.5, 5e-324, 1e300, math.nan, math.inf, -math.inf]


def random_blocks(seed: int) -> list[MetricBlock]:
    """Blocks that share runs, names and contexts; their records interleave."""
    chance = random.Random(seed)
    owners = [chance.randrange(4) for _ in range(chance.choice([1, 50, 700]))]
    blocks = []
    for owner in sorted(set(owners)):
        seqs = [seq for seq, one in enumerate(owners) if one == owner]
        names = [f"m{i}" for i in range(owner, owner + chance.randrange(1, 8))]
        blocks.append(
            make_block(
                chance.choice(["a", "b"]),
                {name: [chance.choice(FLOATS) for _ in seqs] for name in names},
                seqs=seqs,
                steps=[None if seq % 7 == 3 else seq // 2 for seq in seqs],
                epochs=[None if seq % 5 == 3 else seq / 2 for seq in seqs],
            )
        )
    return blocks


@pytest.mark.parametrize("rows", [512, 1000, 65_536])
@pytest.mark.parametrize("seed", range(6))
def test_row_groups_hold_every_point_once_by_series(
    seed: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However blocks are cut: each point is there, groups are small, a series ascends."""
    monkeypatch.setattr(parquet_points, "GROUP_ROWS", rows)
    blocks = random_blocks(seed)
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


def _summaries() -> WriterSummaries:
    return WriterSummaries(0, complete=True)


@pytest.mark.parametrize("seed", range(6))
def test_summaries_are_those_of_records(seed: int) -> None:
    """The vectorised summary of a batch is what `records.Summary` says point by point."""
    blocks = random_blocks(seed)
    points = sorted(
        (row for block in blocks for row in point_rows(block, "w")), key=lambda row: row["seq"]
    )
    expected: dict[Any, Summary] = {}
    for row in points:
        summary = expected.setdefault((row["run_id"], row["name"]), Summary())
        value = join_special(row["value"], row["special"])
        summary.add([float("nan") if value is None else value], row["step"], row["time"])
    found = {(key.run_id, key.name): row for key, row in _summaries().add(blocks)}
    assert found.keys() == expected.keys()
    for series, row in found.items():
        wanted = expected[series].as_row()
        for name in ("last", "special", "last_step", "last_time", "min", "max", "count", "finite"):
            assert row[name] == wanted[name], name
        assert (row["mean"] is None) == (wanted["mean"] is None)
        if row["mean"] is not None:
            largest = max(abs(row["min"]), abs(row["max"]))
            assert row["mean"] == pytest.approx(wanted["mean"], rel=1e-9, abs=largest * 1e-12)


@pytest.mark.parametrize("kept", [0, 3, 100_000])
def test_summaries_are_right_whatever_is_remembered_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """A writer of more series than memory holds: each batch reads those that it adds to."""
    monkeypatch.setattr(parquet_write, "_KEPT_SERIES", kept)
    store = ParquetBackend(f"parquet:///{tmp_path}/store", create=True)
    for writer in ("v", "w"):
        for seq in range(12):
            names = [f"m{seq % 4}", f"once {seq}", "always"]
            block = make_block(f"r{seq % 2}", {name: [float(seq)] for name in names}, seqs=[seq])
            store.write(make_batch(writer, seq, blocks=[block]))
    found = dump(store)["summaries"]
    counts = {(row["run_id"], row["name"]): (row["count"], row["last"]) for row in found}
    assert counts["r0", "always"] == (12, 10.0)
    assert counts["r1", "always"] == (12, 11.0)
    assert counts["r1", "m3"] == (6, 11.0)
    assert counts["r0", "once 4"] == (2, 4.0)
    assert len(counts) == 2 + 4 + 12
