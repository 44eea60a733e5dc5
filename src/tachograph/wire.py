"""Batches as bytes: what travels to a server, and what the server keeps in its journal.

docs/reference/protocol.md describes the format for authors of other clients. Knows batches, no
HTTP and no store.

Format (all little-endian)
--------------------------
::

    "TGB1" | length of the header u32 | header, JSON in UTF-8 | points | statistics of tensors

The header is ``{"writer", "first", "next", "heartbeat", "points", "tensors", "rows"}``. `points`
lists the blocks: ``{"run_id", "names", "context", "rank", "attempt", "count"}``; `tensors` what
`TensorSeries.facts` says, and ``frames``, pairs of sequence number and bytes; `rows` maps the
names of other tables to their rows, without NULLs and without the writer.

The points of a block are `count` rows ``seq i64 | time i64 (µs) | step i64 | epoch f64 | a f64
per name``, as a `MetricBlock` but for the time. In the columns seq, time and step each value but
the first is replaced by its difference from the one before, modulo 2**64. Then the bytes are put
in order of their place in the row: first the first byte of each row, then the second of each.
Columns whose high bytes hardly change compress to next to nothing that way.

Both are sent with ``Content-Encoding: deflate`` (zlib, RFC 1950).
"""

from __future__ import annotations

import json
import math
import operator
import re
import struct
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from tachograph.batches import complete_row
from tachograph.errors import RecordError, TooLarge, WireError
from tachograph.records import TABLES, Batch, MetricBlock, Row, Series
from tachograph.tensor_records import TensorFrame, TensorRows, TensorSeries

MAGIC = b"TGB1"
MEDIA_TYPE = "application/vnd.tachograph.batch"
_LENGTH = struct.Struct("<I")
_MASK = (1 << 64) - 1
_DELTAS = 3  # columns of a row that hold differences
_HEAD_BYTES = 32
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IDS = ("run_id", "parent_id", "root_id")
_MOST_NAMES = 100_000
_LIMITS = {"rank": 1 << 31, "attempt": 1 << 31}

# ---------------------------------------------------------------------------- bytes


def compress(payload: bytes) -> bytes:
    """A payload as zlib has it, for speed rather than size."""
    return zlib.compress(payload, 1)


def decompress(body: bytes, limit: int) -> bytes:
    """Undo `compress`, or gzip.

    Raises
    ------
    TooLarge
        It has more than `limit` bytes.
    WireError
        It is damaged, or not whole.
    """
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, by what it begins with
    try:
        payload = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise WireError(f"the body is not compressed with zlib or gzip: {error}") from error
    if len(payload) > limit:
        raise TooLarge(f"the body has more than {limit} bytes when it is decompressed")
    if not inflater.eof or inflater.unused_data:
        raise WireError("the compressed body is cut short, or something follows it")
    return payload


def encode(batch: Batch) -> bytes:
    """A batch as a payload, not compressed."""
    tensors, rows = _split_rows(batch)
    bodies = [frame.body for _, frames in tensors for frame in frames]
    header = {
        "writer": batch.writer,
        "first": batch.first,
        "next": batch.next,
        "heartbeat": batch.heartbeat,
        "points": [block.series.facts() | {"count": len(block)} for block in batch.blocks],
        "tensors": [
            series.facts() | {"frames": [[frame.seq, len(frame.body)] for frame in frames]}
            for series, frames in tensors
        ],
        "rows": rows,
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    points = [_to_planes(block) for block in batch.blocks]
    return b"".join((MAGIC, _LENGTH.pack(len(text)), text, *points, *bodies))


def decode(payload: bytes, *, trusted: bool = False) -> Batch:
    """Undo `encode`.

    Parameters
    ----------
    payload : bytes
    trusted : bool, default False
        It was checked before: values are not looked at again.

    Raises
    ------
    WireError
        It is no batch; nothing that a store could stumble over gets through.
    """
    if payload[:4] != MAGIC or len(payload) < 8:
        raise WireError(f"a batch begins with {MAGIC.decode()} and the length of its header")
    start = 8 + _LENGTH.unpack_from(payload, 4)[0]
    if start > len(payload):
        raise WireError("the header is longer than the body")
    header = read_json(payload[8:start])
    try:
        batch = _from_header(header, payload, start)
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecordError) as error:
        raise WireError(f"the header does not describe a batch: {_said(error)}") from error
    return batch if trusted else check(batch)


def from_json(document: Any) -> Batch:
    """A batch from its form in JSON.

    As the header of `encode`; but an entry of `points` has ``rows`` instead of ``count``, a list
    of ``[seq, time in µs, step or null, epoch or null, [value, …]]``, values may be the texts
    'nan', 'inf' and '-inf', and statistics of tensors are rows of the table `tensors`.

    Raises
    ------
    WireError
        It is no batch.
    """
    try:
        if document.get("tensors"):
            raise WireError("in JSON, statistics of tensors are rows of the table 'tensors'")
        blocks = tuple(_json_block(entry) for entry in document.get("points") or ())
        batch = _batch(document, blocks, TensorRows())
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise WireError(f"the document does not describe a batch: {_said(error)}") from error
    return check(batch)


def read_json(text: bytes) -> Any:
    """A JSON document; WireError where it is none, or nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"this is no JSON: {_said(error)}") from error


# ---------------------------------------------------------------------------- points


def _to_planes(block: MetricBlock) -> bytes:
    data, size, width = block.data, block.row_bytes, block.row_bytes // 8
    if not data:
        return b""
    words = memoryview(data).cast("q")
    changed = bytearray(data)
    seqs, steps = words[0::width].tolist(), words[2::width].tolist()
    times = [time // 1000 for time in words[1::width].tolist()]
    for column, values in enumerate((seqs, times, steps)):
        deltas = map(_MASK.__and__, map(operator.sub, values[1:], values))
        packed = array("Q", (values[0] & _MASK, *deltas)).tobytes()
        for byte in range(8):
            changed[8 * column + byte :: size] = packed[byte::8]
    return b"".join([changed[byte::size] for byte in range(size)])


def _from_planes(planes: bytes, size: int) -> bytes:
    count = len(planes) // size
    data = bytearray(len(planes))
    for byte in range(size):
        data[byte::size] = planes[byte * count : (byte + 1) * count]
    if not count:
        return b""
    for column in range(_DELTAS):
        deltas = array("Q", bytes(8 * count))
        view = memoryview(deltas).cast("B")
        for byte in range(8):
            view[byte::8] = data[8 * column + byte :: size]
        values = [value & _MASK for value in accumulate(deltas)]
        if column == 1:
            values = [_signed(value) * 1000 & _MASK for value in values]
        packed = array("Q", values).tobytes()
        for byte in range(8):
            data[8 * column + byte :: size] = packed[byte::8]
    return bytes(data)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _json_block(entry: Mapping[str, Any]) -> MetricBlock:
    series = _series(entry)
    rows = [
        (seq, time, step, epoch, [_number(value) for value in values])
        for seq, time, step, epoch, values in entry["rows"]
    ]
    return MetricBlock.pack(series, rows)


def _number(value: Any) -> float:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise WireError(f"{value!r:.40} is not a number, 'nan', 'inf' or '-inf'")
    return float(value)


# ---------------------------------------------------------------------------- header


def _split_rows(
    batch: Batch,
) -> tuple[list[tuple[TensorSeries, list[TensorFrame]]], dict[str, list[Row]]]:
    """Packed statistics by series, and all other rows without what goes without saying."""
    packed: dict[int, tuple[TensorSeries, list[TensorFrame]]] = {}
    rows: dict[str, list[Row]] = {}
    for table, given in batch.rows.items():
        loose: Iterable[Row] = given
        if isinstance(given, TensorRows):
            loose = given.loose
            for frame in given.frames:
                packed.setdefault(id(frame.series), (frame.series, []))[1].append(frame)
        if short := [_short(row) for row in loose]:
            rows[table] = short
    return [*packed.values()], rows


def _short(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None and name != "writer"}


def _from_header(header: Mapping[str, Any], payload: bytes, start: int) -> Batch:
    blocks, at = [], start
    for entry in header["points"]:
        series, count = _series(entry), _whole(entry["count"])
        size = _HEAD_BYTES + 8 * len(series.names)
        if count < 0 or at + count * size > len(payload):
            raise WireError(f"the body ends within the points of run {series.run_id}")
        data = _from_planes(payload[at : at + count * size], size)
        blocks.append(MetricBlock(series, data))
        at += count * size
    frames = []
    for entry in header["tensors"]:
        tensors = TensorSeries.from_facts(entry)
        for seq, size in entry["frames"]:
            if not 0 <= _whole(size) <= len(payload) - at:
                raise WireError(f"the body ends within the statistics of run {tensors.run_id}")
            frames.append(
                TensorFrame(tensors, header["writer"], _whole(seq), payload[at : at + size])
            )
            at += size
    if at != len(payload):
        raise WireError(f"{len(payload) - at} bytes follow what the header describes")
    packed = TensorRows()
    for frame in sorted(frames, key=lambda frame: frame.seq):
        packed.add(frame)
    return _batch(header, tuple(blocks), packed)


def _batch(
    header: Mapping[str, Any], blocks: tuple[MetricBlock, ...], tensors: TensorRows
) -> Batch:
    writer = header["writer"]
    rows: dict[str, Sequence[Row]] = {}
    for table, given in (header.get("rows") or {}).items():
        if table not in TABLES or table in ("metrics", "summaries"):
            raise WireError(f"a batch has no rows of a table {table!r:.40}")
        done = [complete_row(table, row, writer, _whole(row["seq"])) for row in given]
        if table == "tensors":
            for row in done:
                tensors.add(row)
        elif done:
            rows[table] = done
    if len(tensors):
        rows["tensors"] = tensors
    heartbeat = header.get("heartbeat")
    beat = None if heartbeat is None else _whole(heartbeat)
    return Batch(writer, _whole(header["first"]), _whole(header["next"]), blocks, rows, beat)


def _series(entry: Mapping[str, Any]) -> Series:
    facts = {"context": "{}", "rank": 0, "attempt": 1, **entry}
    if isinstance(facts["context"], dict):
        facts["context"] = json.dumps(facts["context"], sort_keys=True, separators=(",", ":"))
    if not isinstance(facts["names"], list | tuple) or not 0 < len(facts["names"]) <= _MOST_NAMES:
        raise WireError(f"'names' lists 1 to {_MOST_NAMES} metrics")
    return Series.from_facts(facts)


# ---------------------------------------------------------------------------- checks


def check(batch: Batch) -> Batch:
    """Return the batch, or raise WireError where a store could stumble over it."""
    _check_id("writer", batch.writer)
    if not 0 <= batch.first <= batch.next < 1 << 38:
        raise WireError(f"records {batch.first} to {batch.next} are no range")
    for block in batch.blocks:
        _check_series(block.series)
        _check_seqs(batch, [*block.seqs()], f"points of run {block.series.run_id}")
    for table, given in batch.rows.items():
        rows: Sequence[Row] = given
        if isinstance(given, TensorRows):
            for frame in given.frames:
                _check_tensors(frame.series)
            _check_seqs(batch, [frame.seq for frame in given.frames], "statistics of tensors")
            rows = given.loose
        for row in rows:
            _check_row(table, row)
        _check_seqs(batch, [row["seq"] for row in rows], f"rows of {table}")
    return batch


def _check_seqs(batch: Batch, seqs: list[int], what: str) -> None:
    if not seqs:
        return
    if any(map(operator.gt, seqs, seqs[1:])):
        raise WireError(f"the {what} are not in order of their sequence numbers")
    if seqs[0] < batch.first or seqs[-1] >= batch.next:
        raise WireError(f"the {what} are not all within records {batch.first} to {batch.next - 1}")


def _check_series(series: Series) -> None:
    _check_id("run_id", series.run_id)
    _check_json("context", series.context)
    for name in series.names:
        _check_text("names", name)
    if len(set(series.names)) != len(series.names):
        raise WireError(f"a series of run {series.run_id} names a metric twice")
    for name, value in (("rank", series.rank), ("attempt", series.attempt)):
        if not 0 <= _whole(value) < _LIMITS[name]:
            raise WireError(f"{name} {value} is out of range")


def _check_tensors(series: TensorSeries) -> None:
    _check_id("run_id", series.run_id)
    for row in series.rows:
        _check_row("tensors", row)


def _check_row(table: str, row: Row) -> None:
    columns = TABLES[table].columns
    for name, value in row.items():
        kind = columns.get(name)
        if kind is None:
            raise WireError(
                f"table {table!r} has no column {name!r:.40}: the client may be newer than"
                " this server"
            )
        if value is not None:
            _CHECKS[kind](name, value)
    for name in TABLES[table].key:
        if row.get(name) is None:
            raise WireError(f"a row of {table} has no {name!r}")
    for name in _IDS:
        if row.get(name) is not None:
            _check_id(name, row[name])


def _check_id(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise WireError(f"{name} {value!r:.80} is not 1 to 64 letters, digits, '_' or '-'")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise WireError(f"{name!r} is text, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WireError(f"{name!r} holds half of a character: {value!r:.40}") from None


def _check_json(name: str, value: Any) -> None:
    _check_text(name, value)
    read_json(value.encode())


def _check_whole(name: str, value: Any) -> None:
    if not -(1 << 63) <= _whole(value) < 1 << 63:
        raise WireError(f"{name!r} does not fit into 64 bits: {value}")


def _check_float(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"{name!r} is a finite number, not {value!r:.40}")


_CHECKS = {"text": _check_text, "json": _check_json, "int": _check_whole, "float": _check_float}


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireError(f"{value!r:.40} is not a whole number")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not in JSON")


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return f"{type(error).__name__}: {error}"[:200]
