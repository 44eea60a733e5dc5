"""What a batch from outside may hold: whatever passes, no store stumbles over.

docs/reference/protocol.md lists these limits for authors of other clients. Knows the tables and no
format.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tachograph.errors import TooLarge, WireError
from tachograph.records import RELAY, RUN_ID, TABLES, Batch, Row, Series
from tachograph.tensors.records import TensorRows, TensorSeries
from tachograph.wire.json_input import read_json

MOST_ROWS = 100_000
"""Rows of a batch other than points; each is held with all columns of its table."""

LAST_SEQ = 1 << 38
"""Records of one writer that every store can number."""

_TIME = (1 << 63) // 1000  # µs: what a point has as nanoseconds in 64 bits
_RANGES = {
    **dict.fromkeys(("changed_at", "started_at", "ended_at", "time"), (-_TIME, _TIME)),
    "heartbeat_at": (0, _TIME),  # the time of a file
    "deleted": (0, 2),
    **dict.fromkeys(("rank", "attempt"), (0, 1 << 31)),
}
_INT64 = (-(1 << 63), 1 << 63)
_IDS = ("run_id", "parent_id", "root_id")
_NEEDED = {"run_id", "changed_at"}  # wherever a table has them
_SHAPES = ("shape", "logical_shape")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(batch: Batch) -> Batch:
    """Return the batch, or raise WireError where a store could stumble over it."""
    _check_id("writer", batch.writer)
    if batch.writer.startswith(RELAY):
        raise WireError(f"a writer {batch.writer!r:.80} is a server's own journal")
    if not 0 <= batch.first <= batch.next < LAST_SEQ:
        raise WireError(f"records {batch.first!r:.40} to {batch.next!r:.40} are no range")
    if batch.heartbeat is not None:
        _check_whole("heartbeat_at", batch.heartbeat)
    for block in batch.blocks:
        _check_series(block.series)
        seqs = block.seqs()
        if any(map(operator.ge, seqs, seqs[1:])):
            raise WireError(f"the points of run {block.series.run_id} do not ascend by seq")
        _check_range(batch, seqs, "points")
    for table, given in batch.rows.items():
        rows: Sequence[Row] = given
        if isinstance(given, TensorRows):
            _check_frames(batch, given)
            rows = given.loose
        for row in rows:
            _check_row(table, row)
        seqs = [row["seq"] for row in rows]
        if any(map(operator.gt, seqs, seqs[1:])):
            raise WireError(f"the rows of {table} do not ascend by seq")
        _check_range(batch, seqs, f"rows of {table}")
    return batch


def check_count(rows: Iterable[Sequence[Any]]) -> None:
    """TooLarge where tables have too many rows together, before they are made complete."""
    if sum(map(len, rows)) > MOST_ROWS:
        raise TooLarge(f"a batch has at most {MOST_ROWS} rows; send less at once")


def check_names(what: str, entry: Mapping[str, Any], known: Collection[str]) -> None:
    """WireError where an object has a name that is not known: nothing is ignored silently."""
    for name in entry.keys() - known:
        raise WireError(
            f"{what} cannot have {name!r:.40}: the client may be newer than this server"
        )


def whole(name: str, value: Any) -> int:
    """The value; WireError where it is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireError(f"{name!r} is a whole number, not {value!r:.40}")
    return value


# ---------------------------------------------------------------------------- parts


def _check_range(batch: Batch, seqs: Sequence[int], what: str) -> None:
    """The numbers ascend."""
    if seqs and (seqs[0] < batch.first or seqs[-1] >= batch.next):
        raise WireError(f"the {what} are not all within records {batch.first} to {batch.next - 1}")


def _check_series(series: Series) -> None:
    _check_id("run_id", series.run_id)
    _check_context("context", series.context)
    for name in series.names:
        _check_text("names", name)
    if len(set(series.names)) != len(series.names):
        raise WireError(f"a series of run {series.run_id} names a metric twice")
    _check_whole("rank", series.rank)
    _check_whole("attempt", series.attempt)


def _check_frames(batch: Batch, rows: TensorRows) -> None:
    frames = rows.frames
    for series in {id(frame.series): frame.series for frame in frames}.values():
        _check_tensors(series)
    _check_range(batch, [frame.seq for frame in frames], "statistics of tensors")


def _check_tensors(series: TensorSeries) -> None:
    for key in series.tensors:
        for size in (*key.shape, *(key.logical_shape or ())):
            whole("shape", size)
    for row in series.rows:
        _check_row("tensors", row)


def _check_row(table: str, row: Row) -> None:
    columns = TABLES[table].columns
    check_names(f"a row of {table}", row, columns)
    for name, value in row.items():
        if value is not None:
            _CHECKS.get(name, _OF_KIND[columns[name]])(name, value)
    for name in (*TABLES[table].key, *columns.keys() & _NEEDED):
        if row.get(name) is None:
            raise WireError(f"a row of {table} has no {name!r}")


# ---------------------------------------------------------------------------- values


def _check_id(name: str, value: Any) -> None:
    if not isinstance(value, str) or not RUN_ID.fullmatch(value):
        raise WireError(f"{name} {value!r:.80} is not 1 to 64 letters, digits, '_' or '-'")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise WireError(f"{name!r} is text, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WireError(f"{name!r} holds half of a character: {value!r:.40}") from None


def _check_json(name: str, value: Any) -> None:
    _read(name, value)


def _check_context(name: str, value: Any) -> None:
    if not isinstance(_read(name, value), dict):
        raise WireError(f"{name!r} is an object, not {value!r:.40}")


def _check_shape(name: str, value: Any) -> None:
    sizes = _read(name, value)
    if not isinstance(sizes, list):
        raise WireError(f"{name!r} is a list of whole numbers, not {value!r:.40}")
    for size in sizes:
        whole(name, size)


def _check_digest(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise WireError(f"{name!r} has 64 hexadecimal digits in lower case, not {value!r:.80}")


def _check_whole(name: str, value: Any) -> None:
    low, high = _RANGES.get(name, _INT64)
    if not low <= whole(name, value) < high:
        raise WireError(f"{name!r} is out of range: {value!r:.40}")


def _check_float(name: str, value: Any) -> None:
    if not isinstance(value, float):  # a whole number as JSON may have it
        low, high = _INT64
        fits = low <= whole(name, value) < high
    else:
        fits = math.isfinite(value)
    if not fits:
        raise WireError(f"{name!r} is a finite number, not {value!r:.40}")


def _check_epoch(name: str, value: Any) -> None:
    if value not in (math.inf, -math.inf):
        _check_float(name, value)


def _read(name: str, value: Any) -> Any:
    _check_text(name, value)
    try:
        return read_json(value.encode())
    except WireError as error:
        raise WireError(f"{name!r}: {error}") from error


_OF_KIND = {"text": _check_text, "json": _check_json, "int": _check_whole, "float": _check_float}
_CHECKS = {
    **dict.fromkeys(_IDS, _check_id),
    **dict.fromkeys(_SHAPES, _check_shape),
    "context": _check_context,
    "sha256": _check_digest,
    "epoch": _check_epoch,
}
