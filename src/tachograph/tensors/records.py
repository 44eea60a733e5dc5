"""Statistics of tensors on their way: what is the same at each step, and the numbers of a step.

Knows the table `tensors` and the journal's packing of it, no framework and no store.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, overload

from tachograph.errors import RecordError
from tachograph.records import NO_STEP, TABLES, Row
from tachograph.tensors import histograms
from tachograph.values import json_text, plain

KINDS = ("weight", "gradient", "hessian", "update", "activation")

STATISTICS = ("mean", "std", "min", "max", "l2", "zeros", "nan", "inf")
"""What is known of each tensor, in this order; the last three are counts.

Mean, std (of the population), min, max and l2 are of the finite values; NaN where there is none.
`zeros` counts both zeros, `nan` and `inf` what is not finite."""

_HEAD = struct.Struct("<qqd")  # time in ns, step, epoch
_NUMBERS = struct.Struct(f"<{len(STATISTICS)}d")
_MEASURED = (*STATISTICS, "histogram")
_NO_HISTOGRAM = 0xFFFFFFFF

Pairs = Sequence[tuple[int, int]]
"""A histogram as pairs of bin and count."""


class TensorKey(NamedTuple):
    """What a tensor is, at each step alike.

    Attributes
    ----------
    name : str
        As the framework names it.
    kind : str
        One of `KINDS`.
    shape : tuple of int
        Of what was measured: in a sharded training the part that this rank holds.
    dtype : str
        Such as 'float32'.
    size : int
        Number of elements measured.
    context : str
        Canonical JSON: optimizer, stage, class, scope.
    logical_shape : tuple of int or None
        Of the whole tensor, where `shape` is a part of it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    context: str = "{}"
    logical_shape: tuple[int, ...] | None = None

    def as_row(self) -> Row:
        """The columns of the table `tensors` that it fills."""
        row = self._asdict()
        for column in ("shape", "logical_shape"):
            if row[column] is not None:
                row[column] = "[" + ",".join(map(str, row[column])) + "]"
        return row


class _TensorSeries(NamedTuple):
    run_id: str
    tensors: tuple[TensorKey, ...]
    rank: int = 0
    attempt: int = 1


class TensorSeries(_TensorSeries):
    """Tensors that are recorded together, of one run, rank and attempt."""

    def facts(self) -> dict[str, Any]:
        """What JSON can say of it; `from_facts` undoes it."""
        tensors = [
            [key.name, key.kind, key.shape, key.dtype, key.size, key.context, key.logical_shape]
            for key in self.tensors
        ]
        head = {"run_id": self.run_id, "rank": self.rank, "attempt": self.attempt}
        return head | {"tensors": tensors}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> TensorSeries:
        """Undo `facts`."""
        tensors = tuple(
            TensorKey(name, kind, tuple(shape), dtype, size, context, _shape(whole))
            for name, kind, shape, dtype, size, context, whole in facts["tensors"]
        )
        return cls(facts["run_id"], tensors, facts["rank"], facts["attempt"])

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The columns of the table `tensors` that are the same at each step, per tensor."""
        common = {"run_id": self.run_id, "rank": self.rank, "attempt": self.attempt}
        return tuple(key.as_row() | common for key in self.tensors)

    @property
    def statistics_bytes(self) -> int:
        """Bytes that the statistics of one step take."""
        return _NUMBERS.size * len(self.tensors)


def _shape(sizes: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if sizes is None else tuple(sizes)


# ---------------------------------------------------------------------------- one step


def pack(
    time_ns: int,
    step: int | None,
    epoch: float | None,
    statistics: bytes,
    histogram_pairs: Sequence[Pairs | None] | None = None,
) -> bytes:
    """The numbers of one step, for the journal.

    Layout (little-endian): time i64 (ns), step i64, epoch f64; per tensor one f64 for each of
    `STATISTICS`; where there are histograms, per tensor a u32 with its number of pairs
    (0xFFFFFFFF where it has none), then all bins as i16, then all counts as i64.
    """
    head = _HEAD.pack(
        time_ns, NO_STEP if step is None else step, math.nan if epoch is None else epoch
    )
    if histogram_pairs is None:
        return head + statistics
    lengths = [_NO_HISTOGRAM if pairs is None else len(pairs) for pairs in histogram_pairs]
    # Bin and count in turn: taking pairs apart one by one would need three times as long.
    flat = list(chain.from_iterable(chain.from_iterable(filter(None, histogram_pairs))))
    bins, counts = flat[0::2], flat[1::2]
    return b"".join(
        (
            head,
            statistics,
            struct.pack(f"<{len(lengths)}I", *lengths),
            struct.pack(f"<{len(bins)}h", *bins),
            struct.pack(f"<{len(counts)}q", *counts),
        )
    )


class TensorFrame:
    """The statistics of some tensors at one step, packed until somebody asks for rows.

    Parameters
    ----------
    series : TensorSeries
    writer, seq
        Of the record.
    body : bytes
        What `pack` made; RecordError where it does not fit to the series.

    Attributes
    ----------
    step : int or None
    epoch : float or None
    time : int
        µs since 1970.
    """

    __slots__ = ("_body", "_end", "epoch", "seq", "series", "step", "time", "writer")

    def __init__(self, series: TensorSeries, writer: str, seq: int, body: bytes) -> None:
        self.series, self.writer, self.seq, self._body = series, writer, seq, body
        self._end = _HEAD.size + series.statistics_bytes
        if not _fits(body, self._end, len(series.tensors)):
            raise RecordError(f"statistics of {len(series.tensors)} tensors do not fit to them")
        time_ns, step, epoch = _HEAD.unpack_from(body)
        self.time = time_ns // 1000
        self.step = None if step == NO_STEP else step
        self.epoch = None if epoch != epoch else epoch

    @property
    def body(self) -> bytes:
        """What `pack` made."""
        return self._body

    @property
    def statistics(self) -> memoryview:
        """Per tensor one little-endian float64 for each of `STATISTICS`."""
        return memoryview(self._body)[_HEAD.size : self._end]

    def histograms(self) -> Sequence[str | None]:
        """The histogram of each tensor as text."""
        body, start, count = self._body, self._end, len(self.series.tensors)
        if start == len(body):
            return [None] * count
        lengths = struct.unpack_from(f"<{count}I", body, start)
        total = sum(length for length in lengths if length != _NO_HISTOGRAM)
        start += 4 * count
        bins = struct.unpack_from(f"<{total}h", body, start)
        counts = struct.unpack_from(f"<{total}q", body, start + 2 * total)
        texts: list[str | None] = []
        end = 0
        for length in lengths:
            if length == _NO_HISTOGRAM:
                texts.append(None)
                continue
            begin, end = end, end + length
            texts.append(_histogram(bins[begin:end], counts[begin:end]))
        return texts

    def values(self) -> Iterator[tuple[float | int | str | None, ...]]:
        """Per tensor its statistics and histogram as the table has them."""
        texts = self.histograms()
        for numbers, text in zip(_NUMBERS.iter_unpack(self.statistics), texts, strict=True):
            mean, std, low, high, l2, *counts = numbers
            if math.isfinite(sum(numbers)) and min(counts) >= 0.0 and max(counts) < 2.0**63:
                yield mean, std, low, high, l2, *map(int, counts), text
            else:  # seldom
                moments = (number if math.isfinite(number) else None for number in numbers[:5])
                yield *moments, *map(_count, numbers[5:]), text

    def rows(self) -> Iterator[Row]:
        """Complete rows of the table `tensors`."""
        common: Row = {
            "step": self.step,
            "epoch": self.epoch,
            "time": self.time,
            "writer": self.writer,
            "seq": self.seq,
        }
        for known, values in zip(self.series.rows, self.values(), strict=True):
            yield known | common | dict(zip(_MEASURED, values, strict=True))


class TensorRows(Sequence[Row]):
    """Rows of the table `tensors`, of which most stay packed.

    A sequence of rows like any other. A store that wants to be quick takes `frames`, and `loose`,
    the rows that were never packed.
    """

    def __init__(self) -> None:
        self._parts: list[TensorFrame | Row] = []

    def add(self, part: TensorFrame | Row) -> None:
        """Add the rows of a frame, or one row, in order of sequence numbers."""
        self._parts.append(part)

    def run_ids(self) -> set[str | None]:
        """The runs that they belong to."""
        return {_run_of(part) for part in self._parts}

    def split(self, place: Callable[[str | None], str]) -> dict[str, TensorRows]:
        """The rows by what `place` says of their runs."""
        found: dict[str, TensorRows] = {}
        for part in self._parts:
            found.setdefault(place(_run_of(part)), TensorRows()).add(part)
        return found

    def extend(self, rows: TensorRows) -> None:
        """Add the rows of another, which come behind these."""
        self._parts.extend(rows._parts)

    def since(self, seq: int) -> TensorRows:
        """The rows of records from `seq` on."""
        return self._chosen(lambda part: _seq_of(part) >= seq)

    def until(self, seq: int) -> TensorRows:
        """The rows of records before `seq`."""
        return self._chosen(lambda part: _seq_of(part) < seq)

    def _chosen(self, wanted: Callable[[TensorFrame | Row], bool]) -> TensorRows:
        kept = TensorRows()
        kept._parts = [part for part in self._parts if wanted(part)]
        return kept

    @property
    def frames(self) -> list[TensorFrame]:
        """What is packed."""
        return [part for part in self._parts if isinstance(part, TensorFrame)]

    @property
    def loose(self) -> list[Row]:
        """What is not."""
        return [part for part in self._parts if not isinstance(part, TensorFrame)]

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            if isinstance(part, TensorFrame):
                yield from part.rows()
            else:
                yield part

    def __len__(self) -> int:
        return len(self.loose) + sum(len(frame.series.tensors) for frame in self.frames)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return list(self)[index]


def _histogram(bins: Sequence[int], counts: Sequence[int]) -> str:
    if sorted(bins) == [*bins]:  # as they nearly always are
        return histograms.runs_to_text(bins, counts)
    return histograms.to_text(dict(zip(bins, counts, strict=True)))


def _run_of(part: TensorFrame | Row) -> str | None:
    run_id: str | None = part.series.run_id if isinstance(part, TensorFrame) else part["run_id"]
    return run_id


def _seq_of(part: TensorFrame | Row) -> int:
    return int(part.seq if isinstance(part, TensorFrame) else part["seq"])


def _fits(body: bytes, end: int, count: int) -> bool:
    if len(body) < end:
        return False
    if len(body) == end:
        return True
    if len(body) < end + 4 * count:
        return False
    lengths = struct.unpack_from(f"<{count}I", body, end)
    pairs = sum(length for length in lengths if length != _NO_HISTOGRAM)
    wanted: int = end + 4 * count + 10 * pairs
    return len(body) == wanted


def _count(value: float) -> int | None:
    """A count; None for what none can be, which would block a store."""
    return int(value) if 0.0 <= value < 2.0**63 else None


# ---------------------------------------------------------------------------- rows by hand


def loose_row(given: Mapping[str, Any]) -> Row:
    """A row of the table `tensors` as every store takes it, from what a user gave.

    Shapes may be sequences, a context a mapping, a histogram pairs of bin and count or a mapping;
    numbers anything that ``int()`` and ``float()`` take.

    Raises
    ------
    RecordError
        An unknown column, no name or kind, or a value that is not of the column's type.
    """
    columns = TABLES["tensors"].columns
    if unknown := given.keys() - columns.keys():
        raise RecordError(f"the table tensors has no column {', '.join(sorted(unknown))}")
    if not given.get("name") or not given.get("kind"):
        raise RecordError(f"a tensor needs a name and a kind: {dict(given)!r:.200}")
    try:
        row = {name: _CLEAN[columns[name]](name, value) for name, value in given.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"statistics of {given['name']}: {error}") from error
    return {"context": "{}"} | {name: value for name, value in row.items() if value is not None}


def _clean_json(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if name == "histogram":
        return histograms.to_text({int(bin_): int(count) for bin_, count in dict(value).items()})
    return json_text(plain(list(map(int, value)) if name.endswith("shape") else value))


def _clean_int(name: str, value: Any) -> int | None:
    number = None if value is None else int(value)
    if number is not None and not -(2**63) <= number < 2**63:
        raise OverflowError(f"{name} is too large")
    return number


def _clean_float(_: str, value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


_CLEAN: Mapping[str, Callable[[str, Any], Any]] = {
    "text": lambda _, value: None if value is None else str(value),
    "json": _clean_json,
    "int": _clean_int,
    "float": _clean_float,
}
