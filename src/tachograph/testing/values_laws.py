"""Laws of values: what was recorded is read, exactly."""

from __future__ import annotations

import math
import struct

from tachograph.backends.base import Backend, Query
from tachograph.records import TABLES, Batch, Row, join_special
from tachograph.testing.builders import make_batch, make_block, make_row
from tachograph.testing.fixtures import StoreFixtures, read, read_one, where

FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1.7976931348623157e308,
    -1e308,
    0.1,
    1 / 3,
    struct.unpack("<f", struct.pack("<f", 0.1))[0],
    struct.unpack("<f", b"\x01\x00\x00\x00")[0],
    2.0**53 + 2,
    -(2.0**63),
    123456789.0,
]
NAMES = [
    "loss",
    "val/loss",
    "a.b.c",
    "it's",
    'say "hi"',
    "semi;colon--",
    "two\nlines\tand tab",
    "naïve-метрика-损失-🔥",
    "e\u0301",  # stays decomposed: not the same text as é
    "\u00e9",
    " spaces ",
    "%_like\\",
    "null",
    "NULL",
    "x" * 5000,
    "../../etc/passwd",
    "a=b&c",
    "",
]

LIMITED = {
    **{"rank": 7, "attempt": 8, "shape": "[2,3]", "logical_shape": "[4,3]"},
    "sha256": "0123456789abcdef" * 4,
}
"""Columns that hold less than others of their type."""


def bits(value: float | None) -> bytes:
    """The bytes of a float; every NaN is the same one."""
    assert value is not None
    return struct.pack("<d", math.nan if value != value else value)


class ValueLaws(StoreFixtures):
    """Numbers keep every bit, texts every character."""

    def test_floats_are_exact(self, backend: Backend) -> None:
        """`join_special` gives back the bits of every float."""
        backend.write(make_batch("w", 0, blocks=[make_block("r", {"loss": FLOATS})]))
        rows = read(backend, "metrics", "value special", order=("seq",))
        assert [bits(join_special(*row)) for row in rows] == [bits(value) for value in FLOATS]

    def test_what_is_no_number_is_null_and_named(self, backend: Backend) -> None:
        """`value` is NULL where an engine could not hold it, and `special` says what it was."""
        values = [math.nan, math.inf, -math.inf, -0.0, 0.0]
        backend.write(make_batch("w", 0, blocks=[make_block("r", {"loss": values})]))
        assert read(backend, "metrics", "value special", order=("seq",)) == [
            (None, "nan"),
            (None, "inf"),
            (None, "-inf"),
            (0.0, "-0"),
            (0.0, None),
        ]

    def test_steps_are_64_bit_integers(self, backend: Backend) -> None:
        """Steps are exact up to ±2^62, in any order, and may be absent."""
        steps = [2**62, -(2**62), 2**62 - 1, 2**53 + 1, 0, None, -1, 7, 7]
        block = make_block("r", {"loss": [0.5] * len(steps)}, steps=steps)
        backend.write(make_batch("w", 0, blocks=[block]))
        found = [step for (step,) in read(backend, "metrics", "step", order=("seq",))]
        assert found == steps
        assert [type(step) for step in found] == [type(step) for step in steps]

    def test_epochs_are_floats_or_absent(self, backend: Backend) -> None:
        """An epoch may be a fraction, or not be there."""
        epochs = [None, 0.0, 0.5, 3.0, None]
        block = make_block("r", {"loss": [1.0] * 5}, epochs=epochs)
        backend.write(make_batch("w", 0, blocks=[block]))
        assert read(backend, "metrics", "epoch", order=("seq",)) == [(e,) for e in epochs]

    def test_times_are_microseconds(self, backend: Backend) -> None:
        """The time of a point is its call's, in whole microseconds."""
        backend.write(make_batch("w", 0, blocks=[make_block("r", {"a": [1.0], "b": [2.0]})]))
        rows = read(backend, "metrics", "name time value", order=("name",))
        assert rows == [("a", 1_700_000_000_000_000, 1.0), ("b", 1_700_000_000_000_000, 2.0)]

    def test_point_carries_its_whole_series(self, backend: Backend) -> None:
        """Every column of a point is what its block said."""
        context = '{"dataset":"é","phase":"test"}'
        block = make_block(
            "r", {"acc": [0.25]}, seqs=[3], epochs=[1.5], context=context, rank=2, attempt=4
        )
        backend.write(make_batch("w", 0, blocks=[block]))
        assert read_one(backend, "metrics") == {
            "run_id": "r",
            "name": "acc",
            "context": context,
            "rank": 2,
            "attempt": 4,
            "step": 3,
            "epoch": 1.5,
            "time": 1_700_000_000_003_000,
            "value": 0.25,
            "special": None,
            "writer": "w",
            "seq": 3,
        }

    def test_names_keep_every_character(self, backend: Backend) -> None:
        """Quotes, dots, slashes, line ends, any script, long and empty names come back."""
        values = {name: [float(i)] for i, name in enumerate(NAMES)}
        backend.write(make_batch("w", 0, blocks=[make_block("r", values)]))
        assert dict(read(backend, "metrics", "name value")) == {
            name: number for name, (number,) in values.items()
        }
        for i, name in enumerate(NAMES):
            found = backend.read(Query("metrics", where=where("name", "=", name)))
            assert list(found["value"]) == [float(i)], name

    def test_texts_of_rows_keep_every_character(self, backend: Backend) -> None:
        """Tags, too, keep what they were given, as keys and as values."""
        tags = [{"run_id": "r", "key": name, "value": name} for name in NAMES]
        backend.write(make_batch("w", 0, tags=tags))
        assert sorted(read(backend, "tags", "key value")) == sorted((n, n) for n in NAMES)

    def test_series_differ_by_context_rank_and_attempt(self, backend: Backend) -> None:
        """One name in two contexts, ranks or attempts is several series."""
        train, test = '{"phase":"train"}', '{"phase":"test"}'
        blocks = [
            make_block("r", {"loss": [1.0]}, seqs=[0], context=train),
            make_block("r", {"loss": [2.0]}, seqs=[1], context=test),
            make_block("r", {"loss": [3.0]}, seqs=[2], context=train, rank=1),
            make_block("r", {"loss": [4.0]}, seqs=[3], context=train, attempt=2),
        ]
        backend.write(make_batch("w", 0, blocks=blocks))
        expected = [
            (train, 0, 1, 1.0),
            (test, 0, 1, 2.0),
            (train, 1, 1, 3.0),
            (train, 0, 2, 4.0),
        ]
        assert read(backend, "metrics", "context rank attempt value", order=("seq",)) == expected
        found = read(backend, "summaries", "context rank attempt last", order=("last",))
        assert found == expected

    def test_call_may_hold_a_thousand_metrics(self, backend: Backend) -> None:
        """A call is as wide as its caller likes."""
        values = {f"layer.{i}": [float(i), float(-i)] for i in range(1000)}
        backend.write(make_batch("w", 0, blocks=[make_block("r", values)]))
        assert len(backend.read(Query("metrics"))) == 2000
        found = backend.read(Query("metrics", where("name", "=", "layer.999"), order=("seq",)))
        assert list(found["value"]) == [999.0, -999.0]

    def test_batch_may_hold_a_hundred_thousand_points(self, backend: Backend) -> None:
        """A long batch is stored whole, in order."""
        values = [i / 7 for i in range(100_000)]
        backend.write(make_batch("w", 0, blocks=[make_block("r", {"loss": values})]))
        found = backend.read(Query("metrics", columns=("value",), order=("seq",)))
        assert list(found["value"]) == values

    def test_tensor_rows_come_back_whole(self, backend: Backend) -> None:
        """Every column of `tensors`, also of several rows in one record."""
        full: Row = {
            "run_id": "r",
            "kind": "gradient",
            "context": '{"scope":"rank"}',
            "rank": 1,
            "attempt": 2,
            "step": 2**40,
            "epoch": 0.5,
            "time": 1_700_000_000_000_001,
            "shape": "[2,3]",
            "logical_shape": "[4,3]",
            "dtype": "bfloat16",
            "size": 6,
            "mean": 1 / 3,
            "std": 5e-324,
            "min": -1e308,
            "max": 0.1,
            "l2": 2.0,
            "zeros": 0,
            "nan": 1,
            "inf": 2,
            "histogram": "[[-5,1],[1020,5]]",
        }
        rows = [full | {"name": name} for name in ("w", "b")]
        backend.write(make_batch("w", 0, tensors=[row | {"seq": 0} for row in rows]))
        found = backend.read(Query("tensors", order=("name",))).to_pylist()
        assert found == [make_row("tensors", "w", 0, **row) for row in rows[::-1]]

    def test_events_keep_order_and_duplicates(self, backend: Backend) -> None:
        """Nothing is left out because it was said before, also in the same record."""
        event = {"run_id": "r", "time": 5, "level": "info", "kind": "note", "message": "again"}
        rows = [event | {"seq": seq} for seq in (0, 0, 1, 4)]
        backend.write(make_batch("w", 0, events=rows))
        backend.write(make_batch("w", 5, events=[event | {"data": '{"a":1}'}]))
        found = read(backend, "events", "seq message data", order=("seq",))
        assert found == [(seq, "again", None) for seq in (0, 0, 1, 4)] + [(5, "again", '{"a":1}')]

    def test_every_table_keeps_every_column(self, backend: Backend) -> None:
        """A row with a value in each column comes back as it was, in every table."""
        samples = {"text": "é'\"\n", "json": '{"a":[1,null,"ü"]}', "int": 2**40, "float": 0.1}
        for table, spec in TABLES.items():
            if table in ("metrics", "summaries"):
                continue
            row: Row = {name: samples[kind] for name, kind in spec.columns.items()}
            row |= {"writer": table, "seq": 0} | ({} if spec.grows else {"deleted": 0})
            of_run = dict.fromkeys(("run_id", "parent_id", "root_id"), f"run-{table}")
            row |= {name: value for name, value in (of_run | LIMITED).items() if name in row}
            backend.write(Batch(table, 0, 1, rows={table: [row]}))
            assert read_one(backend, table) == row, table

    def test_large_documents_come_back(self, backend: Backend) -> None:
        """A provenance document may be large; its text and digest are kept."""
        document = '{"diff":"' + "+é\\n" * 200_000 + '"}'
        row = {"run_id": "r", "section": "git", "document": document, "digest": "sha256:x"}
        backend.write(make_batch("w", 0, provenance=[row]))
        found = read(backend, "provenance", "section document digest")
        assert found == [("git", document, "sha256:x")]
