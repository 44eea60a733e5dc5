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

The points of a block are `count` rows as `wire_planes` puts them.

Both are sent with ``Content-Encoding: deflate`` (zlib, RFC 1950).
"""

from __future__ import annotations

import math
import operator
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tachograph.batches import complete_row
from tachograph.errors import RecordError, TooLarge, WireError
from tachograph.records import TABLES, Batch, MetricBlock, Row, Series
from tachograph.tensors.records import TensorFrame, TensorRows, TensorSeries
from tachograph.values import json_text
from tachograph.wire.checks import check, check_count, check_names, whole
from tachograph.wire.json_input import read_json
from tachograph.wire.planes import from_planes, to_planes

MAGIC = b"TGB1"
MEDIA_TYPE = "application/vnd.tachograph.batch"
_LENGTH = struct.Struct("<I")
_HEAD_BYTES = 32
_OF_BATCH = frozenset(["writer", "first", "next", "heartbeat", "points", "tensors", "rows"])
_OF_SERIES = frozenset(["run_id", "names", "context", "rank", "attempt"])
_OF_TENSORS = frozenset(["run_id", "rank", "attempt", "tensors", "frames"])
_NOT_SENT = ("metrics", "summaries")  # they follow from the points
# What a document that is no batch raises while it is taken apart.
_MISFITS = (
    *(KeyError, TypeError, ValueError, AttributeError, OverflowError),
    *(RecordError, struct.error),
)

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
    text = json_text(header).encode()
    points = [to_planes(block) for block in batch.blocks]
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
        return batch if trusted else check(batch)
    except _MISFITS as error:
        raise _wire_error("header", error) from error


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
        blocks = tuple(_json_block(entry) for entry in _listed(document, "points"))
        return check(_batch(document, blocks, TensorRows()))
    except _MISFITS as error:
        raise _wire_error("document", error) from error


def _wire_error(what: str, error: Exception) -> WireError:
    if isinstance(error, WireError):
        return error
    said = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
    return WireError(f"the {what} does not describe a batch: {said!r:.200}")


# ---------------------------------------------------------------------------- points


def _json_block(entry: Mapping[str, Any]) -> MetricBlock:
    series = _series(entry, "rows")
    rows = []
    for seq, time, step, epoch, values in _listed(entry, "rows"):
        at = None if step is None else whole("step", step)
        when = None if epoch is None else _number(epoch)
        rows.append((whole("seq", seq), whole("time", time), at, when, [*map(_number, values)]))
    return MetricBlock.pack(series, rows)


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("nan", "inf", "-inf")):
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
        # A signal handler that recorded within a call has written before that call.
        if short := [_short(row) for row in sorted(loose, key=operator.itemgetter("seq"))]:
            rows[table] = short
    return [*packed.values()], rows


def _short(row: Row) -> Row:
    """What of a row is not NULL; a float that is no number is, but for an infinite epoch."""
    short = {
        name: value
        for name, value in row.items()
        if value is not None
        and name != "writer"
        and not (isinstance(value, float) and not math.isfinite(value))
    }
    if row.get("epoch") in (math.inf, -math.inf):
        short["epoch"] = str(row["epoch"])  # JSON has no number for it
    return short


def _from_header(header: Mapping[str, Any], payload: bytes, start: int) -> Batch:
    blocks, at = [], start
    for entry in _listed(header, "points"):
        series, count = _series(entry, "count"), whole("count", entry["count"])
        size = _HEAD_BYTES + 8 * len(series.names)
        if count < 0 or at + count * size > len(payload):
            raise WireError("the body ends within the points that the header names")
        blocks.append(MetricBlock(series, from_planes(payload[at : at + count * size], size)))
        at += count * size
    frames = []
    for entry in _listed(header, "tensors"):
        check_names("statistics", entry, _OF_TENSORS)
        if not _listed(entry, "tensors"):
            raise WireError("statistics have at least one tensor")
        tensors = TensorSeries.from_facts(entry)
        for seq, size in _listed(entry, "frames"):
            if not 0 <= whole("bytes", size) <= len(payload) - at:
                raise WireError("the body ends within the statistics that the header names")
            body = payload[at : at + size]
            frames.append(TensorFrame(tensors, header["writer"], whole("seq", seq), body))
            at += size
    if at != len(payload):
        raise WireError(f"{len(payload) - at} bytes follow what the header describes")
    packed = TensorRows()
    for frame in sorted(frames, key=operator.attrgetter("seq")):
        packed.add(frame)
    return _batch(header, tuple(blocks), packed)


def _batch(
    header: Mapping[str, Any], blocks: tuple[MetricBlock, ...], tensors: TensorRows
) -> Batch:
    check_names("a batch", header, _OF_BATCH)
    writer = header["writer"]
    tables = header.get("rows") or {}
    rows: dict[str, Sequence[Row]] = {}
    check_count(tables.values())
    for table, given in tables.items():
        if table not in TABLES or table in _NOT_SENT:
            raise WireError(f"a batch has no rows of a table {table!r:.40}")
        done = [_complete(table, row, writer) for row in given]
        if table == "tensors":
            for row in done:
                tensors.add(row)
        elif done:
            rows[table] = done
    if len(tensors):
        rows["tensors"] = tensors
    first, after = whole("first", header["first"]), whole("next", header["next"])
    heartbeat = header.get("heartbeat")
    beat = None if heartbeat is None else whole("heartbeat", heartbeat)
    return Batch(writer, first, after, blocks, rows, beat)


def _complete(table: str, row: Row, writer: str) -> Row:
    if row.get("writer", writer) != writer:
        raise WireError(f"a row of {table} is of another writer than the batch")
    if row.get("epoch") in ("inf", "-inf"):
        row = {**row, "epoch": float(row["epoch"])}
    return complete_row(table, row, writer, whole("seq", row["seq"]))


def _series(entry: Mapping[str, Any], *more: str) -> Series:
    check_names("points", entry, _OF_SERIES.union(more))
    facts = {"context": "{}", "rank": 0, "attempt": 1, **entry}
    if isinstance(facts["context"], dict):
        facts["context"] = json_text(facts["context"])
    if not _listed(facts, "names"):
        raise WireError("points have at least one name")
    return Series.from_facts(facts)


def _listed(entry: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = entry.get(name, ())
    if not isinstance(found, list | tuple):
        raise WireError(f"{name!r} is a list, not {found!r:.40}")
    return found
