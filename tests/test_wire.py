"""Batches as bytes and as JSON: nothing is lost on the way, and nothing harmful comes in."""

from __future__ import annotations

import gzip
import json
import math
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_batches import batches

from tachograph import registry
from tachograph.backends.base import Backend, Query
from tachograph.errors import TooLarge, WireError
from tachograph.records import NO_STEP, TABLES, Batch, MetricBlock, Row, Series
from tachograph.tensors.records import TensorRows
from tachograph.testing import make_batch, make_block
from tachograph.wire.checks import MOST_ROWS
from tachograph.wire.encoding import compress, decode, decompress, encode, from_json
from tachograph.wire.json_input import MOST_DEPTH, MOST_VALUES, read_json
from tachograph.wire.tables import table_to_json

# ---------------------------------------------------------------------------- there and back


def content(batch: Batch) -> dict[str, Any]:
    """Everything in a batch, ready for ``==``; values by their bits, times in µs."""
    tensors = batch.rows.get("tensors", TensorRows())
    assert isinstance(tensors, TensorRows)
    blocks = [
        (block.series, [(row[:8], _micros(row), row[16:]) for row in _rows(block)])
        for block in batch.blocks
    ]
    return {
        "head": (batch.writer, batch.first, batch.next, batch.heartbeat),
        "points": blocks,
        "frames": [(frame.series, frame.seq, frame.body) for frame in tensors.frames],
        "loose": tensors.loose,
        "rows": {name: [*rows] for name, rows in batch.rows.items() if name != "tensors"},
    }


def _rows(block: MetricBlock) -> Iterator[bytes]:
    size = block.row_bytes
    return (block.data[at : at + size] for at in range(0, len(block.data), size))


def _micros(row: bytes) -> int:
    return int.from_bytes(row[8:16], "little", signed=True) // 1000


@settings(max_examples=30, deadline=None)
@given(batches())
def test_every_batch_comes_back_as_it_was(batch: Batch) -> None:
    """Every table, every bit of a value, steps and numbers of any size, packed statistics."""
    payload = encode(batch)
    assert content(decode(payload)) == content(batch)
    assert decompress(compress(payload), len(payload)) == payload


def test_format_is_the_documented_one() -> None:
    """A payload put together by hand, as protocol.md describes it, is understood."""
    header = {
        "writer": "w",
        "first": 3,
        "next": 9,
        "points": [{"run_id": "r", "names": ["a", "b"], "context": "{}", "count": 2}],
    }
    no_step = -(2**63)
    first = struct.pack("<qqqddd", 4, 1_000_000, no_step, math.nan, 0.5, -0.0)
    # The second row holds differences in its first three columns, modulo 2**64.
    step = (7 - no_step + 2**63) % 2**64 - 2**63
    second = struct.pack("<qqqddd", 3, -5, step, 1.5, math.inf, 2.0)
    planes = b"".join(bytes(pair) for pair in zip(first, second, strict=True))
    text = json.dumps(header).encode()
    batch = decode(b"TGB1" + struct.pack("<I", len(text)) + text + planes)
    assert (batch.writer, batch.first, batch.next, batch.heartbeat) == ("w", 3, 9, None)
    (block,) = batch.blocks
    assert block.series == Series("r", ("a", "b"), "{}", 0, 1)
    rows = [*block.unpack()]
    assert [row[:3] for row in rows] == [(4, 1_000_000_000, NO_STEP), (7, 999_995_000, 7)]
    assert math.isnan(rows[0][3])
    assert rows[1][3:] == (1.5, math.inf, 2.0)
    assert str(rows[0][4:]) == "(0.5, -0.0)"


def test_json_says_the_same_as_bytes() -> None:
    """The form for hand and other languages makes the same batch."""
    document = {
        "writer": "w",
        "first": 0,
        "next": 3,
        "heartbeat": 7,
        "rows": {
            "tags": [{"seq": 2, "run_id": "r", "key": "k", "value": "é", "changed_at": 5}],
            "tensors": [{"seq": 2, "run_id": "r", "name": "n", "kind": "weight", "mean": 1}],
        },
        "points": [
            {
                "run_id": "r",
                "names": ["loss", "accuracy"],
                "context": {"phase": "ü", "a": 1},
                "rows": [[0, 5, None, None, ["nan", -0.0]], [1, -6, 10, "inf", ["-inf", 3]]],
            }
        ],
    }
    batch = from_json(document)
    values = [*batch.blocks[0].unpack()]
    assert batch.blocks[0].series.context == '{"a":1,"phase":"ü"}'
    assert values[1][:4] == (1, -6000, 10, math.inf)
    assert math.isnan(values[0][4])
    assert math.copysign(1, values[0][5]) == -1
    assert batch.rows["tags"][0]["deleted"] == 0
    assert content(decode(encode(batch))) == content(batch)


def test_what_no_number_is_in_a_row_is_null() -> None:
    """Stores take NaN in a column for NULL, and JSON has none."""
    row: Row = {"run_id": "r", "name": "n", "kind": "weight", "mean": math.nan, "max": math.inf}
    row["epoch"] = -math.inf  # which every store keeps
    loose = TensorRows()
    loose.add(dict.fromkeys(TABLES["tensors"].columns) | row | {"writer": "w", "seq": 0})
    found = decode(encode(Batch("w", 0, 1, rows={"tensors": loose}))).rows["tensors"][0]
    assert (found["mean"], found["max"], found["epoch"]) == (None, None, -math.inf)


def test_rows_that_a_signal_handler_wrote_out_of_order_are_sent_in_order() -> None:
    """A client is never refused for what its own journal holds."""
    tags = [{"run_id": "r", "key": str(seq), "seq": seq} for seq in (1, 0, 2)]
    found = decode(encode(make_batch("w", 0, tags=tags))).rows["tags"]
    assert [row["seq"] for row in found] == [0, 1, 2]


def test_wire_holds_five_bytes_a_point() -> None:
    """Curves of float32, as frameworks log them, 20 at a time: at most five bytes a point."""
    random.seed(0)
    noise = [[random.gauss(0, 0.01) for _ in range(1000)] for _ in range(20)]
    values = {
        f"metric {n}": [
            struct.unpack("<f", struct.pack("<f", math.exp(-step / 300) + error))[0]
            for step, error in enumerate(row)
        ]
        for n, row in enumerate(noise)
    }
    batch = make_batch("w", 0, blocks=[make_block("r", values)])
    assert len(compress(encode(batch))) / batch.points <= 5


# ---------------------------------------------------------------------------- refusals


def plain() -> dict[str, Any]:
    """A small batch as JSON."""
    return {
        "writer": "w",
        "first": 0,
        "next": 9,
        "points": [{"run_id": "r", "names": ["a", "b"], "rows": [[0, 5, 1, 0.5, [1.0, 2.0]]]}],
        "rows": {"tags": [{"seq": 1, "run_id": "r", "key": "k", "changed_at": 1}]},
    }


def _changed(*path: Any) -> dict[str, Any]:
    """The small batch with the last of `path` at the place that the others name."""
    document = plain()
    place: Any = document
    for step in path[:-2]:
        place = place[step]
    place[path[-2]] = path[-1]
    return document


def _tag() -> Row:
    return {"seq": 0, "run_id": "r", "changed_at": 1}


def _tensor() -> Row:
    return {"seq": 0, "run_id": "r", "name": "n", "kind": "weight"}


_POINT = ("points", 0)
_ROW = ("rows", "tags", 0)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "does not describe a batch"),
        (_changed("writer", "a/b"), "writer 'a/b' is not 1 to 64 letters"),
        (_changed("writer", "w" * 65), "is not 1 to 64"),
        (_changed("writer", 7), "is not 1 to 64"),
        (_changed("writer", "relay-1"), "a server's own journal"),
        (_changed("first", 10), "are no range"),
        (_changed("first", -1), "are no range"),
        (_changed("first", True), "'first' is a whole number"),
        (_changed("next", 2**38), "are no range"),
        (_changed("heartbeat", -1), "out of range"),
        (_changed("heartbeat", 2**62), "out of range"),
        (_changed("colour", "red"), "cannot have 'colour': the client may be newer"),
        (_changed("tensors", [1]), "in JSON, statistics of tensors are rows"),
        (_changed("points", {}), "'points' is a list"),
        (_changed(*_POINT, "run_id", "../x"), "run_id '../x'"),
        (_changed(*_POINT, "run_id", "\ud800"), "run_id"),
        (_changed(*_POINT, "names", []), "at least one name"),
        (_changed(*_POINT, "names", "ab"), "'names' is a list"),
        (_changed(*_POINT, "names", ["a", "a"]), "names a metric twice"),
        (_changed(*_POINT, "names", ["a", 1]), "'names' is text"),
        (_changed(*_POINT, "names", ["a", "\udc00"]), "half of a character"),
        (_changed(*_POINT, "context", [1]), "'context' is text"),
        (_changed(*_POINT, "context", "[1]"), "'context' is an object"),
        (_changed(*_POINT, "context", "{"), "'context': this is no JSON"),
        (_changed(*_POINT, "rank", -1), "'rank' is out of range"),
        (_changed(*_POINT, "rank", 2**31), "'rank' is out of range"),
        (_changed(*_POINT, "attempt", 0.5), "'attempt' is a whole number"),
        (_changed(*_POINT, "unit", "m"), "points cannot have 'unit'"),
        (_changed(*_POINT, "rows", [[0, 5, 1, 0.5, [1.0]]]), "does not describe a batch"),
        (_changed(*_POINT, "rows", [[0, 5, 1, 0.5]]), "does not describe a batch"),
        (_changed(*_POINT, "rows", 0, 4, 0, "1"), "is not a number, 'nan', 'inf' or '-inf'"),
        (_changed(*_POINT, "rows", 0, 4, 0, True), "is not a number"),
        (_changed(*_POINT, "rows", 0, 4, 0, 10**400), "does not describe a batch"),
        (_changed(*_POINT, "rows", 0, 1, 2**60), "does not describe a batch"),
        (_changed(*_POINT, "rows", 0, 2, 2**63), "does not describe a batch"),
        (_changed(*_POINT, "rows", 0, 0, 9), "not all within records 0 to 8"),
        (_changed(*_POINT, "rows", [[n, 5, 1, 0.5, [1, 2]] for n in (1, 1)]), "do not ascend"),
        (_changed("rows", "metrics", [{"seq": 0}]), "no rows of a table 'metrics'"),
        (_changed("rows", "colours", []), "no rows of a table 'colours'"),
        (_changed(*_ROW, "seq", 9), "not all within records"),
        (_changed(*_ROW, "seq", None), "'seq' is a whole number"),
        (_changed(*_ROW, "colour", 1), "a row of tags cannot have 'colour'"),
        (_changed(*_ROW, "writer", "v"), "of another writer"),
        (_changed(*_ROW, "key", None), "has no 'key'"),
        (_changed(*_ROW, "changed_at", None), "has no 'changed_at'"),
        (_changed(*_ROW, "changed_at", 2**63 - 1), "'changed_at' is out of range"),
        (_changed(*_ROW, "deleted", 7), "'deleted' is out of range"),
        (_changed(*_ROW, "run_id", None), "has no 'run_id'"),
        (_changed(*_ROW, "value", 1), "'value' is text"),
        (_changed("rows", "events", [{"seq": 0}]), "has no 'run_id'"),
        (
            _changed("rows", "runs", [{"seq": 0, "run_id": "r", "changed_at": 1, "kind": 0}]),
            "'kind' is text",
        ),
        (
            _changed("rows", "params", [_tag() | {"path": "p", "value": "{"}]),
            "'value': this is no JSON",
        ),
        (
            _changed("rows", "artifacts", [_tag() | {"path": "p", "sha256": "../x"}]),
            "'sha256' has 64 hexadecimal digits",
        ),
        (
            _changed("rows", "tensors", [_tensor() | {"shape": "[1.5]"}]),
            "'shape' is a whole number",
        ),
        (_changed("rows", "tensors", [_tensor() | {"mean": 2**70}]), "'mean' is a finite number"),
    ],
)
def test_what_is_no_batch_is_refused(document: Any, said: str) -> None:
    """With the place and the reason; whatever is not understood is an error."""
    with pytest.raises(WireError, match=said.replace("(", r"\(")) as caught:
        from_json(document)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()  # it is sent, in JSON


def test_limits_are_told_apart_from_mistakes() -> None:
    """What is only too much at once can be sent in parts: another error."""
    rows = [{"seq": 0, "run_id": "r", "key": "k", "changed_at": 1}] * (MOST_ROWS + 1)
    tracemalloc.start()
    with pytest.raises(TooLarge, match=f"at most {MOST_ROWS} rows"):
        from_json({"writer": "w", "first": 0, "next": 1, "rows": {"tags": rows}})
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # no row was made complete for that
    tracemalloc.stop()
    with pytest.raises(TooLarge, match=f"at most {MOST_VALUES} values"):
        read_json(b"[" + b"0," * MOST_VALUES + b"0]")
    with pytest.raises(WireError, match=f"nested more than {MOST_DEPTH} times"):
        read_json(b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1))
    inside = json.dumps({"text": "[,{" * MOST_VALUES}).encode()
    assert read_json(inside) == json.loads(inside)  # what a text holds is no structure


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "cut short"),
        (b"TGB1", "not compressed"),
        (compress(b"x" * 100)[:-1], "cut short"),
        (compress(b"x") + b"y", "something follows it"),
        (gzip.compress(b"x", mtime=0) * 2, "something follows it"),
        (compress(b"x")[:-4] + b"\0\0\0\0", "not compressed"),
    ],
)
def test_damaged_compression_is_refused(body: bytes, said: str) -> None:
    """A body that is not whole is not taken for a shorter one."""
    with pytest.raises(WireError, match=said):
        decompress(body, 1000)


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_bombs_take_no_more_memory_than_is_allowed(pack: Callable[[bytes], bytes]) -> None:
    """A body of kilobytes that unpacks to megabytes is left before that."""
    bomb = pack(bytes(32 << 20))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(TooLarge, match="more than 1048576 bytes"):
        decompress(bomb, 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert decompress(pack(b"x" * 1000), 1000) == b"x" * 1000


def _with_header(header: Any, rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return b"TGB1" + struct.pack("<I", len(text)) + text + rest


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"TGB1",
        b"TGB2" + bytes(100),
        b"TGB1" + struct.pack("<I", 2**32 - 1),
        b"TGB1" + struct.pack("<I", 2) + b"{}",
        b"TGB1" + struct.pack("<I", 3) + b"\xff{}",
        _with_header(plain() | {"points": [{"run_id": "r", "names": ["a"], "count": 2**31}]}),
        _with_header(plain() | {"points": [{"run_id": "r", "names": ["a"], "count": -1}]}),
        _with_header(plain() | {"points": [{"run_id": "r", "names": ["a"], "count": 10**400}]}),
        _with_header({"writer": "w", "first": 0, "next": 1}, b"more"),
        _with_header(
            {
                "writer": "w",
                "first": 0,
                "next": 1,
                "tensors": [
                    {"run_id": "r", "rank": 0, "attempt": 1, "tensors": [], "frames": [[0, 24]]}
                ],
            },
            bytes(24),
        ),
        _with_header(
            {
                "writer": "w",
                "first": 0,
                "next": 1,
                "tensors": [
                    {
                        "run_id": "r",
                        "rank": 0,
                        "attempt": 1,
                        "tensors": [["n", "weight", [2], "f4", 2, "{}", None]],
                        "frames": [[0, 92]],
                    }
                ],
            },
            bytes(88) + struct.pack("<I", 2**31),  # a histogram of that many pairs
        ),
    ],
)
def test_payload_that_claims_what_it_has_not_is_refused(payload: bytes) -> None:
    """No size in a header is believed: nothing of that size is made."""
    tracemalloc.start()
    with pytest.raises(WireError):
        decode(payload)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


# ---------------------------------------------------------------------------- fuzz

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, "r", "w", "{}", [], {}, "\ud800", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a document something stands."""
    if path:
        yield path
    pairs: Any = ()
    if isinstance(document, dict):
        pairs = document.items()
    elif isinstance(document, list):
        pairs = enumerate(document)
    for name, value in pairs:
        yield from _places(value, (*path, name))


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A payload of which some values, bytes or lengths are others."""
    payload = encode(draw(batches()))
    start = 8 + int.from_bytes(payload[4:8], "little")
    header, rest = json.loads(payload[8:start]), payload[start:]
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from([*_places(header)]))
        place = header
        for step in path:
            place = place[step]
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(st.text(max_size=5))] = place.pop(last)
        else:
            place[last] = draw(_JSON)
    data = bytearray(_with_header(header, rest))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
        if not data:
            break
    return bytes(data)


def _decoded(payload: bytes) -> Batch | None:
    """The batch; None where there is none, and an error that can be sent."""
    try:
        return decode(payload)
    except WireError as error:
        said = str(error)
    said.encode()
    assert len(said) < 400
    return None


@settings(max_examples=60, deadline=None)
@given(spoiled() | st.binary(max_size=200) | st.binary(max_size=99).map(b"TGB1".__add__))
def test_nothing_but_a_wire_error_comes_out_of_a_spoiled_payload(payload: bytes) -> None:
    """Whatever the bytes are; and what is taken for a batch can be sent on as it is."""
    if (batch := _decoded(payload)) is not None:
        assert content(decode(encode(batch))) == content(batch)


@settings(max_examples=100, deadline=None)
@given(
    _JSON | st.builds(lambda key, value: plain() | {key: value}, st.sampled_from([*plain()]), _JSON)
)
def test_nothing_but_a_wire_error_comes_out_of_a_document(document: Any) -> None:
    """Nor in JSON."""
    try:
        from_json(document)
    except WireError as error:
        str(error).encode()


# ---------------------------------------------------------------------------- stores

_ODD: dict[str, list[Any]] = {
    "int": [0, -1, 2**31, 2**53 + 1, -(2**53), 2**63 - 1, -(2**63)],
    "text": ["", "\0", "a\0b", "x" * 1_000_000, "\uffff", "../..", "\r\n", "'\"--;", "nonsense"],
    "json": ["null", "0", "[]", "1e400", '{"a":"\\u0000"}', "[[1,[2]]]", "9" * 30, '"\\ud800"'],
    "float": [0.0, -0.0, 5e-324, 1.7e308, -1.7e308, 1, -(2**63)],
}


def odd_rows() -> Iterator[tuple[str, Row]]:
    """Tables and rows of them, each with one value that no client of ours would send."""
    for table, spec in TABLES.items():
        needed = {"run_id": "r", "changed_at": 1, "attempt": 1, "key": "k", "path": "k"}
        needed |= {"section": "k"}
        for column, kind in spec.columns.items():
            for value in _ODD[kind] if table not in ("metrics", "summaries") else ():
                row = {name: needed[name] for name in needed if name in spec.columns}
                row |= {"run_id": "deleted"} if column == "deleted" and "run_id" in row else {}
                yield table, row | {column: value}
    yield "runs", {"run_id": "r", "parent_id": "r", "changed_at": 1}
    yield "runs", {"run_id": "a", "root_id": "b", "changed_at": 1}
    yield "runs", {"run_id": "b", "root_id": "a", "changed_at": 1}


def odd_points() -> Iterator[dict[str, Any]]:
    """Entries of `points`, each with one thing that no client of ours would send."""
    for number in _ODD["int"]:
        for place in (1, 2, 3):
            point: list[Any] = [0, 0, 0, 0.0, [1.0]]
            point[place] = number
            yield {"names": ["a"], "rows": [point]}
        for name in ("rank", "attempt"):
            yield {"names": ["a"], "rows": [[0, 0, 0, 0, [0]]], name: number}
    for text in _ODD["text"]:
        yield {"names": [text], "rows": [[0, 0, 0, math.inf, ["nan"]]]}
    for text in _ODD["json"]:
        yield {"names": ["a"], "context": text, "rows": [[0, 0, 0, 0, [0]]]}
    yield {"names": ["a"], "rows": [[0, 0, 0, 0, [1]], [2, 0, 0, 0, [1]]]}  # one series, and its
    yield {"names": ["a"], "rows": [[1, 0, 0, 0, [1]], [2, 0, 0, 0, [5]]]}  # other rows between
    yield {"names": [f"n{n}" for n in range(5000)], "rows": [[0, 0, 0, 0, [1] * 5000]]}


def _taken(**document: Any) -> bool:
    try:
        from_json({"writer": "w", "first": 0, "next": 3} | document)
    except WireError:
        return False
    return True


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Backend]]:
    """A store of each kind."""
    path = tmp_path_factory.mktemp("store") / "runs"
    urls = (f"sqlite:///{path}.sqlite", f"parquet:///{path}", f"memory://{path}")
    opened = [registry.open_backend(url, create=True) for url in urls]
    yield opened
    for store in opened:
        store.close()


@pytest.mark.slow
def test_no_store_stumbles_over_what_is_taken(stores: list[Backend]) -> None:
    """A batch that one of them could not write would stop all that come after it."""
    rows: dict[str, list[Row]] = {}
    for table, row in odd_rows():
        if _taken(rows={table: [row | {"seq": 0}]}):
            rows.setdefault(table, []).append(row | {"seq": 2})
    points = [
        one | {"run_id": "r"} for one in odd_points() if _taken(points=[one | {"run_id": "r"}])
    ]
    assert sum(map(len, rows.values())) > 300
    assert len(points) > 20
    document = {"writer": "odd", "first": 0, "next": 3, "rows": rows, "points": points}
    batch = decode(encode(from_json(document)))
    for store in stores:
        assert store.write(batch) == 3
        for table in (*TABLES, "all_metrics"):
            for raw in (False, True):
                found = store.read(Query(table, raw=raw, order=["-seq"]))
                assert table_to_json(found)
        assert len(store.read(Query("params"))) > 5


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(payload=spoiled())
def test_no_store_stumbles_over_a_spoiled_payload(stores: list[Backend], payload: bytes) -> None:
    """Nor over what is taken for a batch though it was another one."""
    if (batch := _decoded(payload)) is None:
        return
    for store in stores:
        known = store.write(Batch(batch.writer, 0, 0))
        store.write(Batch(batch.writer, known, max(known, batch.first)))
        store.write(batch)
