"""Statistics of tensors on their way: what is the same at each step, and the numbers of a step.

Knows the table `tensors` and the journal's packing of it, no framework and no store.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tachograph import histograms
from tachograph.records import NO_STEP, Row

KINDS = ("weight", "gradient", "hessian", "update", "activation")

STATISTICS = ("mean", "std", "min", "max", "l2", "zeros", "nan", "inf")
"""What is known of each tensor, in this order; the last three are counts.

Mean, std (of the population), min, max and l2 are of the finite values; NaN where there is none.
`zeros` counts both zeros, `nan` and `inf` what is not finite."""

_HEAD = struct.Struct("<qqd")  # time in ns, step, epoch
_NUMBERS = struct.Struct(f"<{len(STATISTICS)}d")
_FIRST_COUNT = STATISTICS.index("zeros")
_NO_HISTOGRAM = 0xFFFFFFFF

Pairs = Sequence[tuple[int, int]]
"""A histogram as pairs of bin and count."""


@dataclass(frozen=True, slots=True)
class TensorKey:
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
        row = asdict(self)
        for column in ("shape", "logical_shape"):
            if row[column] is not None:
                row[column] = "[" + ",".join(map(str, row[column])) + "]"
        return row


@dataclass(frozen=True, slots=True)
class TensorSeries:
    """Tensors that are recorded together, of one run, rank and attempt."""

    run_id: str
    tensors: tuple[TensorKey, ...]
    rank: int = 0
    attempt: int = 1

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
            TensorKey(name, kind, tuple(shape), dtype, size, context, whole and tuple(whole))
            for name, kind, shape, dtype, size, context, whole in facts["tensors"]
        )
        return cls(facts["run_id"], tensors, facts["rank"], facts["attempt"])


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
    flat = [pair for pairs in histogram_pairs if pairs is not None for pair in pairs]
    bins, counts = zip(*flat, strict=True) if flat else ((), ())
    return b"".join(
        (
            head,
            statistics,
            struct.pack(f"<{len(lengths)}I", *lengths),
            struct.pack(f"<{len(bins)}h", *bins),
            struct.pack(f"<{len(counts)}q", *counts),
        )
    )


def unpack(series: TensorSeries, known: Sequence[Row], body: bytes) -> Iterator[Row]:
    """The rows of the table `tensors` for one step; writer and seq are not in them.

    Parameters
    ----------
    series : TensorSeries
    known : sequence of rows
        `TensorKey.as_row` of its tensors.
    body : bytes
        What `pack` made.
    """
    time_ns, step, epoch = _HEAD.unpack_from(body)
    common: Row = {
        "run_id": series.run_id,
        "rank": series.rank,
        "attempt": series.attempt,
        "step": None if step == NO_STEP else step,
        "epoch": None if epoch != epoch else epoch,
        "time": time_ns // 1000,
    }
    end = _HEAD.size + _NUMBERS.size * len(known)
    texts = _histograms(body, end, len(known))
    numbers = _NUMBERS.iter_unpack(memoryview(body)[_HEAD.size : end])
    for key, values, text in zip(known, numbers, texts, strict=True):
        moments = [value if math.isfinite(value) else None for value in values[:_FIRST_COUNT]]
        counts = map(int, values[_FIRST_COUNT:])
        found = dict(zip(STATISTICS, (*moments, *counts), strict=True))
        yield key | common | found | {"histogram": text}


def _histograms(body: bytes, start: int, count: int) -> Sequence[str | None]:
    if start == len(body):
        return [None] * count
    lengths = struct.unpack_from(f"<{count}I", body, start)
    total = sum(length for length in lengths if length != _NO_HISTOGRAM)
    start += 4 * count
    bins = struct.unpack_from(f"<{total}h", body, start)
    counts = struct.unpack_from(f"<{total}q", body, start + 2 * total)
    texts: list[str | None] = []
    at = 0
    for length in lengths:
        if length == _NO_HISTOGRAM:
            texts.append(None)
            continue
        pairs = zip(bins[at : at + length], counts[at : at + length], strict=True)
        texts.append(histograms.to_text(dict(pairs)))
        at += length
    return texts
