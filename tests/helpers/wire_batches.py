"""Batches of every shape, for hypothesis: what a client may have recorded."""

from __future__ import annotations

import math
import struct
from typing import Any

from hypothesis import strategies as st

from tachograph.records import NO_STEP, TABLES, Batch, MetricBlock, Row, Series
from tachograph.tensors.records import TensorFrame, TensorKey, TensorRows, TensorSeries, pack

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.one_of(
    st.floats(),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -1.7976931348623157e308]),
    # Every pattern of bits, also of a NaN that says something.
    st.binary(min_size=8, max_size=8).map(lambda bits: struct.unpack("<d", bits)[0]),
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["", "\0", "a/b", "../..", "'\"", "é", "e\u0301", "🔥", "x" * 5000]),
)
RUN_IDS = st.sampled_from(["r1", "r2", "R-_9", "x" * 64])
CONTEXTS = st.sampled_from(["{}", '{"phase":"val"}', '{"ü":[1,null]}'])
_JSONS = st.sampled_from(["null", "0", '"é"', "[1,2]", '{"a":{"b":[]}}', "-0.5e-3", "1e400"])
_STEPS = st.one_of(st.just(NO_STEP), st.integers(-10, 10), INT64)
_TIMES = st.one_of(st.integers(0, 2**62), st.integers(-(2**63) + 1000, 2**63 - 1))
_SENT = [name for name in TABLES if name not in ("metrics", "summaries", "tensors")]
_OF_KIND = {
    "text": TEXTS,
    "json": _JSONS,
    "int": st.integers(0, 2**31 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
}


def ascending(first: int, after: int, **sizes: int) -> st.SearchStrategy[list[int]]:
    """Numbers of some records in a range, in order; others are left out."""
    numbers = st.integers(first, after - 1)
    return st.lists(numbers, unique=True, **sizes).map(sorted) if first < after else st.just([])


@st.composite
def blocks(draw: st.DrawFn, first: int, after: int) -> MetricBlock:
    """Points of one series within some records."""
    names = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    series = Series(
        draw(RUN_IDS),
        tuple(names),
        draw(CONTEXTS),
        draw(st.integers(0, 9)),
        draw(st.integers(0, 9)),
    )
    row = struct.Struct(f"<qqqd{len(names)}d")
    values = st.lists(FLOATS, min_size=len(names), max_size=len(names))
    rows = [
        row.pack(seq, draw(_TIMES), draw(_STEPS), draw(FLOATS), *draw(values))
        for seq in draw(ascending(first, after, max_size=4))
    ]
    return MetricBlock(series, b"".join(rows))


@st.composite
def rows(draw: st.DrawFn, table: str, writer: str, seqs: list[int]) -> list[Row]:
    """Complete rows of a table, one for each of some records."""
    spec = TABLES[table]
    made = []
    for seq in seqs:
        row: Row = dict.fromkeys(spec.columns)
        needed = {*spec.key, "run_id", "changed_at"} & spec.columns.keys()
        for name in needed | draw(st.sets(st.sampled_from([*spec.columns]), max_size=3)):
            row[name] = draw(_value(name, spec.columns[name]))
        row |= {"writer": writer, "seq": seq}
        if spec.key and table != "runs":
            row["deleted"] = row["deleted"] or 0
        made.append(row)
    return made


def _value(name: str, kind: str) -> st.SearchStrategy[Any]:
    special: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("run_id", "parent_id", "root_id"), RUN_IDS),
        **dict.fromkeys(("shape", "logical_shape"), st.sampled_from(["[]", "[2,3]"])),
        "context": CONTEXTS,
        "deleted": st.integers(0, 1),
        "sha256": st.just("0" * 64),
    }
    return special.get(name, _OF_KIND[kind])


@st.composite
def statistics(draw: st.DrawFn, writer: str, seqs: list[int]) -> TensorRows:
    """Statistics of tensors, packed and not."""
    shape = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    key = st.builds(
        TensorKey, TEXTS, TEXTS, shape, TEXTS, st.integers(0, 99), CONTEXTS, st.none() | shape
    )
    keys = tuple(draw(st.lists(key, min_size=1, max_size=2)))
    series = TensorSeries(draw(RUN_IDS), keys, draw(st.integers(0, 9)), draw(st.integers(0, 9)))
    pair = st.tuples(st.integers(-(2**15), 2**15 - 1), INT64)
    histogram = st.none() | st.lists(pair, max_size=4)
    found = TensorRows()
    for seq in seqs:
        if draw(st.booleans()):
            size = 64 * len(keys)
            packed = draw(st.binary(min_size=size, max_size=size))
            pairs = [draw(histogram) for _ in keys] if draw(st.booleans()) else None
            body = pack(draw(INT64), draw(_STEPS), draw(FLOATS), packed, pairs)
            found.add(TensorFrame(series, writer, seq, body))
    return found


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch of one writer with whatever it may hold."""
    writer = draw(st.sampled_from(["w", "0198c7e2-0000-7000-8000-000000000000"]))
    first = draw(st.sampled_from([0, 7, 2**38 - 100]))
    after = first + draw(st.integers(0, 40))
    tables: dict[str, Any] = {}
    for table in draw(st.lists(st.sampled_from(_SENT), unique=True, max_size=2)):
        if seqs := draw(ascending(first, after, max_size=2)):
            tables[table] = draw(rows(table, writer, seqs))
    tensors = draw(statistics(writer, draw(ascending(first, after, max_size=3))))
    for row in draw(rows("tensors", writer, draw(ascending(first, after, max_size=2)))):
        tensors.add(row)
    if len(tensors):
        tables["tensors"] = tensors
    found = draw(st.lists(blocks(first, after), max_size=2)) if first < after else []
    beat = draw(st.none() | st.integers(0, 2**52))
    return Batch(writer, first, after, tuple(found), tables, beat)
