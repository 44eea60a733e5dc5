"""Points of packed blocks as row groups, each of few series, and as summaries; vectorised.

Knows no file. Memory is bounded by one row group beside the blocks, whatever a batch holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tachograph.backends.parquet_arrays import Numbers, from_list, from_numpy
from tachograph.backends.parquet_files import GROUP_ROWS, SCHEMAS
from tachograph.records import NO_STEP, MetricBlock, Row, Summary

POINTS = pa.schema(
    [
        (name, pa.dictionary(pa.int32(), pa.string()) if kind == pa.string() else kind)
        for name, kind in zip(SCHEMAS["metrics"].names, SCHEMAS["metrics"].types, strict=True)
    ]
)
"""How points are handed to the Parquet writer; in the file, texts are plain strings."""


class SeriesKey(NamedTuple):
    """What makes points one series."""

    run_id: str
    name: str
    context: str
    rank: int
    attempt: int


_SIDE_BY_SIDE = 4
_DELTA_BLOCK = 128  # values in a block of DELTA_BINARY_PACKED
_SLICE = 4096  # rows of a block that are summarised at a time


class _Calls:
    """One block as arrays: what all its series share once, the values as they lie."""

    def __init__(self, block: MetricBlock) -> None:
        rows = np.frombuffer(block.data, block.dtype)
        self.values: Numbers = rows["values"]
        self.seq = np.ascontiguousarray(rows["seq"])
        self.time = rows["time"] // 1000
        self.step = np.ascontiguousarray(rows["step"])
        self.epoch = np.ascontiguousarray(rows["epoch"])


@dataclass(slots=True)
class _Piece:
    """Rows `start` to `stop` of one series in one block."""

    key: SeriesKey
    calls: _Calls
    column: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def gather(self, name: str) -> Numbers:
        if name == "value":
            return self.calls.values[self.start : self.stop, self.column]
        shared: Numbers = getattr(self.calls, name)
        return shared[self.start : self.stop]


def series_keys(block: MetricBlock) -> list[SeriesKey]:
    """The key of each column of a block."""
    series = block.series
    return [
        SeriesKey(series.run_id, name, series.context, series.rank, series.attempt)
        for name in series.names
    ]


def row_groups(blocks: Iterable[MetricBlock], writer: str) -> Iterator[pa.Table]:
    """Points as rows of the table `metrics`, in row groups of few series.

    Series that were logged together lie side by side, at least `_SIDE_BY_SIDE` in a row group
    if there are as many: a reader of one decodes little else, and their equal steps and times,
    cut where the delta encoding starts anew, are compressed once (1.3 bytes a point less).
    """
    waiting: list[_Piece] = []
    rows = 0
    for tile in _tiles(blocks):
        length = sum(map(len, tile))
        if waiting and rows + length > GROUP_ROWS:
            yield _group(waiting, writer)
            waiting, rows = [], 0
        waiting += tile
        rows += length
    if waiting:
        yield _group(waiting, writer)


def _tiles(blocks: Iterable[MetricBlock]) -> Iterator[list[_Piece]]:
    """Pieces that belong into one row group, of at most `GROUP_ROWS` rows."""
    found: dict[SeriesKey, list[_Piece]] = defaultdict(list)
    for block in blocks:
        calls = _Calls(block)
        for column, key in enumerate(series_keys(block)):
            found[key].append(_Piece(key, calls, column, 0, len(calls.seq)))
    bundle: list[_Piece] = []
    for key in sorted(found):
        for piece in _in_sequence(found.pop(key)):
            together = max(_SIDE_BY_SIDE, GROUP_ROWS // len(piece))
            if bundle and (bundle[0].calls is not piece.calls or len(bundle) == together):
                yield from _cut(bundle)
                bundle = []
            bundle.append(piece)
    if bundle:
        yield from _cut(bundle)


def _in_sequence(pieces: list[_Piece]) -> list[_Piece]:
    """Pieces of one series whose concatenation ascends; interleaved ones become one piece."""
    pieces.sort(key=lambda piece: int(piece.calls.seq[0]))
    ends = [int(piece.calls.seq[-1]) for piece in pieces]
    starts = [int(piece.calls.seq[0]) for piece in pieces]
    if all(end <= start for end, start in zip(ends, starts[1:], strict=False)):
        return pieces
    merged = object.__new__(_Calls)
    order = np.argsort(np.concatenate([piece.gather("seq") for piece in pieces]), kind="stable")
    for name in ("seq", "time", "step", "epoch"):
        setattr(merged, name, np.concatenate([piece.gather(name) for piece in pieces])[order])
    merged.values = np.concatenate([piece.gather("value") for piece in pieces])[order, np.newaxis]
    return [_Piece(pieces[0].key, merged, 0, 0, len(order))]


def _cut(bundle: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Cut series of the same calls into tiles, where blocks of the delta encoding end."""
    length = len(bundle[0])
    height = GROUP_ROWS // len(bundle) // _DELTA_BLOCK * _DELTA_BLOCK or length
    for start in range(0, length, height):
        stop = min(length, start + height)
        whole = stop - (stop - start) % _DELTA_BLOCK
        yield [
            replace(piece, start=first, stop=last)
            for first, last in ((start, whole), (whole, stop))
            if first < last
            for piece in bundle
        ]


# ---------------------------------------------------------------------------- arrow


def _group(pieces: Sequence[_Piece], writer: str) -> pa.Table:
    lengths = [len(piece) for piece in pieces]
    keys = [piece.key for piece in pieces]
    step = _gather(pieces, "step")
    epoch = _gather(pieces, "epoch")
    value, special = _split_special(_gather(pieces, "value"))
    columns: list[pa.Array] = [
        _repeat_text([key.run_id for key in keys], lengths),
        _repeat_text([key.name for key in keys], lengths),
        _repeat_text([key.context for key in keys], lengths),
        _repeat_number([key.rank for key in keys], lengths),
        _repeat_number([key.attempt for key in keys], lengths),
        from_numpy(step, step != NO_STEP),
        from_numpy(epoch, ~np.isnan(epoch)),
        from_numpy(_gather(pieces, "time")),
        value,
        special,
        _repeat_text([writer] * len(pieces), lengths),
        from_numpy(_gather(pieces, "seq")),
    ]
    return pa.Table.from_arrays(columns, schema=POINTS)


def _gather(pieces: Sequence[_Piece], name: str) -> Numbers:
    arrays = [piece.gather(name) for piece in pieces]
    return np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)


def _repeat_text(texts: Sequence[str], lengths: Sequence[int]) -> pa.DictionaryArray:
    """Each text as often as its piece has rows; in the file it is a plain string column."""
    codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    indices = np.repeat(np.array([codes[text] for text in texts], np.int32), lengths)
    return pa.DictionaryArray.from_arrays(from_numpy(indices), from_list([*codes], "text"))


def _repeat_number(numbers: Sequence[int], lengths: Sequence[int]) -> pa.Array:
    return from_numpy(np.repeat(np.array(numbers, np.int64), lengths))


_SPECIAL = from_list(["nan", "inf", "-inf", "-0"], "text")


def _split_special(values: Numbers) -> tuple[pa.Array, pa.Array]:
    """The columns `value` and `special`, as `records.split_special` defines them."""
    infinite = ~np.isfinite(values)
    zero = (values == 0.0) & np.signbit(values)
    code = np.zeros(len(values), np.int32)
    if infinite.any():
        code[infinite] = np.where(values[infinite] > 0, 1, 2)
        code[np.isnan(values)] = 0
    code[zero] = 3
    plain = ~(infinite | zero)
    special = pa.DictionaryArray.from_arrays(from_numpy(code, ~plain), _SPECIAL)
    return from_numpy(np.where(zero, 0.0, values), ~infinite), special


# ---------------------------------------------------------------------------- summaries


@dataclass(slots=True)
class _State:
    summary: Summary = field(default_factory=Summary)
    changed_at: int = 0
    seq: int = -1


class WriterSummaries:
    """The summaries of series of one writer, up to record `next`.

    Parameters
    ----------
    next : int
    complete : bool
        The writer has no other series so far.
    """

    def __init__(self, next: int, *, complete: bool) -> None:
        self.next = next
        self._complete = complete
        self._states: dict[SeriesKey, _State] = {}

    def __len__(self) -> int:
        """Number of series."""
        return len(self._states)

    def unknown(self, blocks: Iterable[MetricBlock]) -> set[str]:
        """Names of series that may have summaries which are not here."""
        if self._complete:
            return set()
        keys = {key for block in blocks if len(block) for key in series_keys(block)}
        return {key.name for key in keys - self._states.keys()}

    def learn(self, rows: Iterable[Row]) -> None:
        """Take summaries as they were at `next`."""
        for row in rows:
            key = SeriesKey(*(row[name] for name in SeriesKey._fields))
            state = _State(Summary.from_row(row), row["changed_at"], row["seq"])
            self._states.setdefault(key, state)

    def add(self, blocks: Iterable[MetricBlock]) -> Iterator[tuple[SeriesKey, Row]]:
        """Add the points of a batch; yield the rows of its series."""
        touched: dict[SeriesKey, _State] = {}
        arrays = [(block, np.frombuffer(block.data, block.dtype)) for block in blocks if len(block)]
        for block, rows in sorted(arrays, key=lambda pair: int(pair[1]["seq"][-1])):
            states = [self._states.setdefault(key, _State()) for key in series_keys(block)]
            for start in range(0, len(rows), _SLICE):
                _add(states, rows["values"][start : start + _SLICE])
            _set_last(states, rows[-1])
            touched.update(zip(series_keys(block), states, strict=True))
        for key, state in touched.items():
            change = {"changed_at": state.changed_at, "seq": state.seq, "deleted": 0}
            yield key, state.summary.as_row() | change


def _add(states: Sequence[_State], values: Numbers) -> None:
    finite = np.isfinite(values)
    with np.errstate(over="ignore"):
        totals = values.sum(axis=0, where=finite).tolist()
    minima = values.min(axis=0, where=finite, initial=np.inf).tolist()
    maxima = values.max(axis=0, where=finite, initial=-np.inf).tolist()
    counts = np.count_nonzero(finite, axis=0).tolist()
    columns = zip(states, totals, minima, maxima, counts, strict=True)
    for state, total, minimum, maximum, count in columns:
        summary = state.summary
        summary.total += total
        summary.minimum = min(summary.minimum, minimum)
        summary.maximum = max(summary.maximum, maximum)
        summary.count += len(values)
        summary.finite += count


def _set_last(states: Sequence[_State], last: Any) -> None:
    step, time, seq = int(last["step"]), int(last["time"]) // 1000, int(last["seq"])
    for state, value in zip(states, last["values"].tolist(), strict=True):
        summary = state.summary
        summary.last, summary.last_time = value, time
        summary.last_step = None if step == NO_STEP else step
        state.changed_at, state.seq = max(time, state.changed_at), seq
