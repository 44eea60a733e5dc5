"""What can be recorded: tables, their columns and keys, and batches of rows.

Knows no file, thread, framework or store. `docs/reference/tables.md` says the same in words, and
a test keeps the two equal.
"""

from __future__ import annotations

import math
import operator
import os
import re
import struct
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tachograph.errors import RecordError

FORMAT_VERSION = 1
"""Version of the tables; a store carries it, a reader refuses a newer one."""

ColumnType = Literal["text", "int", "float", "json"]
Row = dict[str, Any]


class TableSpec(NamedTuple):
    """Columns of a table in order, and its key if the latest change of a key wins.

    `key` is empty for the tables that only grow (metrics, tensors, events).
    """

    name: str
    columns: Mapping[str, ColumnType]
    key: tuple[str, ...] = ()

    @property
    def grows(self) -> bool:
        """Whether rows are only ever added."""
        return not self.key


_POINT: dict[str, ColumnType] = {"writer": "text", "seq": "int"}
_CHANGE: dict[str, ColumnType] = {
    "changed_at": "int",
    "writer": "text",
    "seq": "int",
    "deleted": "int",
}


def _table(name: str, key: str, /, **columns: ColumnType) -> TableSpec:
    return TableSpec(name, columns | (_CHANGE if key else _POINT), tuple(key.split()))


TABLES: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        _table(
            "runs",
            "run_id",
            run_id="text",
            parent_id="text",
            root_id="text",
            kind="text",
            project="text",
            name="text",
            group_id="text",
            status="text",
            attempt="int",
            started_at="int",
            ended_at="int",
            framework="text",
            user="text",
            host="text",
            description="text",
            hypothesis="text",
            verdict="text",
            error="text",
        ),
        _table(
            "attempts",
            "run_id attempt",
            run_id="text",
            attempt="int",
            first_step="int",
            started_at="int",
            ended_at="int",
            status="text",
            host="text",
            error="text",
        ),
        _table(
            "writers",
            "writer",
            writer="text",
            host="text",
            pid="int",
            pid_started="text",
            boot_id="text",
            rank="int",
            local_rank="int",
            world_size="int",
            attempt="int",
            started_at="int",
            heartbeat_at="int",
        ),
        _table("params", "run_id path", run_id="text", path="text", value="json", source="text"),
        _table("tags", "run_id key", run_id="text", key="text", value="text"),
        _table(
            "metrics",
            "",
            run_id="text",
            name="text",
            context="json",
            rank="int",
            attempt="int",
            step="int",
            epoch="float",
            time="int",
            value="float",
            special="text",
        ),
        _table(
            "tensors",
            "",
            run_id="text",
            name="text",
            kind="text",
            context="json",
            rank="int",
            attempt="int",
            step="int",
            epoch="float",
            time="int",
            shape="json",
            logical_shape="json",
            dtype="text",
            size="int",
            mean="float",
            std="float",
            min="float",
            max="float",
            l2="float",
            zeros="int",
            nan="int",
            inf="int",
            histogram="json",
        ),
        _table(
            "provenance",
            "run_id section",
            run_id="text",
            section="text",
            document="json",
            digest="text",
        ),
        _table(
            "artifacts",
            "run_id path",
            run_id="text",
            path="text",
            sha256="text",
            bytes="int",
            media_type="text",
            kind="text",
            step="int",
            uri="text",
        ),
        _table(
            "events",
            "",
            run_id="text",
            time="int",
            level="text",
            kind="text",
            message="text",
            data="json",
        ),
        _table(
            "summaries",
            "run_id name context rank attempt writer",
            run_id="text",
            name="text",
            context="json",
            rank="int",
            attempt="int",
            last="float",
            special="text",
            last_step="int",
            last_time="int",
            min="float",
            max="float",
            mean="float",
            count="int",
            finite="int",
        ),
    )
}

STATUSES = ("running", "finished", "failed", "interrupted", "pruned", "lost")
KINDS = ("run", "study", "trial", "fold", "candidate", "step", "validate", "test", "predict")
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
RELAY = "relay-"
"""What ids of writers begin with that only pass on what others recorded: those of servers."""

# ---------------------------------------------------------------------------- identity and time


def now_us() -> int:
    """Wall-clock time in microseconds since 1970."""
    return time.time_ns() // 1000


def uuid7() -> str:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, then random; ids sort by birth."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def check_run_id(run_id: str) -> str:
    """Return `run_id`, or raise RecordError where it is not `[A-Za-z0-9_-]{1,64}`."""
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise RecordError(
            f"run id {run_id!r} is not usable: 1 to 64 letters, digits, '_' or '-' are"
        )
    return run_id


# ---------------------------------------------------------------------------- values


def split_special(value: float) -> tuple[float | None, str | None]:
    """Split a float into the columns `value` and `special`.

    Not every store or engine keeps NaN, infinities and the sign of zero. `value` is None where
    the float is not a number that all of them keep; `special` ('nan', 'inf', '-inf', '-0')
    makes it exact again.
    """
    if value == 0.0:
        return (0.0, "-0") if math.copysign(1.0, value) < 0 else (0.0, None)
    if value != value:
        return None, "nan"
    if value in (math.inf, -math.inf):
        return None, "inf" if value > 0 else "-inf"
    return value, None


_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-0": -0.0}


def join_special(value: float | None, special: str | None) -> float | None:
    """Undo `split_special`."""
    return value if special is None else _SPECIAL[special]


# ---------------------------------------------------------------------------- batches

NO_STEP = -(1 << 63)
"""In a packed row: this point has no step."""


class Series(NamedTuple):
    """What the packed rows of one block have in common.

    `names` are the metrics of one `log` call in order; `context` is canonical JSON text.
    """

    run_id: str
    names: tuple[str, ...]
    context: str = "{}"
    rank: int = 0
    attempt: int = 1

    def facts(self) -> dict[str, Any]:
        """What JSON can say of it; `from_facts` undoes it."""
        return {
            "run_id": self.run_id,
            "names": self.names,
            "context": self.context,
            "rank": self.rank,
            "attempt": self.attempt,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Series:
        """Undo `facts`."""
        names = tuple(facts["names"])
        return cls(facts["run_id"], names, facts["context"], facts["rank"], facts["attempt"])


def words(typecode: Literal["q", "Q", "d"], data: bytes | bytearray) -> array[Any]:
    """Little-endian words of 64 bits: integers with or without a sign, or floats."""
    found: array[Any] = array(typecode, bytes(data))
    if sys.byteorder == "big":
        found.byteswap()
    return found


_HEAD = "qqqd"  # seq, time in ns since 1970, step, epoch; NaN is 'no epoch'


class MetricBlock:
    """Points of one `Series`, packed as the journal holds them.

    `data` is a sequence of little-endian rows ``<qqqd{k}d``: seq, time (ns), step (`NO_STEP`
    where there is none), epoch (NaN where there is none), then one float64 per name. Numpy
    reads it with ``numpy.frombuffer(block.data, block.dtype)`` and no copy.
    """

    __slots__ = ("data", "series")

    def __init__(self, series: Series, data: bytes) -> None:
        self.series = series
        self.data = data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MetricBlock):
            return NotImplemented
        return (self.series, self.data) == (other.series, other.data)

    def __hash__(self) -> int:
        return hash((self.series, self.data))

    def __repr__(self) -> str:
        return f"<MetricBlock {len(self)} rows of {self.series}>"

    @staticmethod
    def row_struct(width: int) -> struct.Struct:
        """The layout of one row with `width` metrics."""
        return struct.Struct(f"<{_HEAD}{width}d")

    @classmethod
    def pack(
        cls,
        series: Series,
        rows: Iterable[tuple[int, int, int | None, float | None, Sequence[float]]],
    ) -> MetricBlock:
        """Build a block from (seq, time in µs, step, epoch, values) tuples."""
        pack = cls.row_struct(len(series.names)).pack
        return cls(
            series,
            b"".join(
                pack(
                    seq,
                    time_us * 1000,
                    NO_STEP if step is None else step,
                    math.nan if epoch is None else epoch,
                    *values,
                )
                for seq, time_us, step, epoch, values in rows
            ),
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return 32 + 8 * len(self.series.names)

    @property
    def dtype(self) -> list[tuple[Any, ...]]:
        """The numpy dtype of one row: fields seq, time (ns), step, epoch, values."""
        width = len(self.series.names)
        return [
            ("seq", "<i8"),
            ("time", "<i8"),
            ("step", "<i8"),
            ("epoch", "<f8"),
            ("values", "<f8", (width,)),
        ]

    def __len__(self) -> int:
        """Number of rows, that is of `log` calls."""
        return len(self.data) // self.row_bytes

    def unpack(self) -> Iterator[tuple[Any, ...]]:
        """Yield ``(seq, time in ns, step or NO_STEP, epoch or NaN, *values)``."""
        return self.row_struct(len(self.series.names)).iter_unpack(self.data)

    def seqs(self) -> list[int]:
        """The sequence number of each row."""
        return words("q", self.data)[:: self.row_bytes // 8].tolist()

    def ascending(self) -> MetricBlock:
        """The block with its rows in ascending order of sequence numbers."""
        seqs = self.seqs()
        if all(map(operator.le, seqs, seqs[1:])):
            return self
        size = self.row_bytes
        order = sorted(range(len(seqs)), key=seqs.__getitem__)
        rows = [self.data[row * size : (row + 1) * size] for row in order]
        return MetricBlock(self.series, b"".join(rows))

    def since(self, seq: int) -> MetricBlock:
        """The rows whose sequence number is at least `seq`; rows are in ascending order."""
        size, count = self.row_bytes, len(self)
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if struct.unpack_from("<q", self.data, middle * size)[0] < seq:
                low = middle + 1
            else:
                high = middle
        return self if low == 0 else MetricBlock(self.series, self.data[low * size :])


class Batch(NamedTuple):
    """Records `first` to `next` - 1 of one writer, over any number of runs.

    Attributes
    ----------
    writer : str
        Whose records these are.
    first, next : int
        Sequence range, half open. `first == next` asks the store for the number it expects.
    blocks : tuple of MetricBlock
        The points, for the table `metrics`. The rows of a block ascend by seq.
    rows : mapping of table name to rows
        Rows of all other tables, complete as `TABLES` names them (a missing column is NULL),
        in ascending order of seq.
    heartbeat : int or None
        When the writer was last seen alive (µs). None where its process is gone.
    """

    writer: str
    first: int
    next: int
    blocks: tuple[MetricBlock, ...] = ()
    rows: Mapping[str, Sequence[Row]] = MappingProxyType({})
    heartbeat: int | None = None

    def since(self, seq: int) -> Batch:
        """The part of this batch that starts at record `seq`."""
        if seq <= self.first:
            return self
        blocks = tuple(block for old in self.blocks if len(block := old.since(seq)))
        rows = {
            name: kept for name, table in self.rows.items() if len(kept := _rows_since(table, seq))
        }
        return self._replace(first=min(seq, self.next), blocks=blocks, rows=rows)

    @property
    def points(self) -> int:
        """Number of metric points."""
        return sum(len(block) * len(block.series.names) for block in self.blocks)


def _rows_since(rows: Sequence[Row], seq: int) -> Sequence[Row]:
    since = getattr(rows, "since", None)  # packed statistics of tensors stay packed
    kept: Sequence[Row] = since(seq) if since else [row for row in rows if row["seq"] >= seq]
    return kept


# ---------------------------------------------------------------------------- summaries


class Summary:
    """Running summary of one series as one writer saw it.

    `minimum`, `maximum` and `mean` are over the finite values; `last` is the last value of all.
    A mean whose sum is too large for a float is None.
    """

    __slots__ = (
        "count",
        "finite",
        "last",
        "last_step",
        "last_time",
        "maximum",
        "minimum",
        "total",
    )

    def __init__(
        self,
        last: float = math.nan,
        last_step: int | None = None,
        last_time: int = 0,
        minimum: float = math.inf,
        maximum: float = -math.inf,
        total: float = 0.0,
        count: int = 0,
        finite: int = 0,
    ) -> None:
        self.last, self.last_step, self.last_time = last, last_step, last_time
        self.minimum, self.maximum, self.total = minimum, maximum, total
        self.count, self.finite = count, finite

    def add(self, values: Sequence[float], last_step: int | None, last_time: int) -> None:
        """Add points in order; the last one was at `last_step` and `last_time` (µs)."""
        finite = values
        total = math.fsum(values) if _all_finite(values) else math.nan
        if total != total:
            finite = [value for value in values if math.isfinite(value)]
            total = _sum(finite)
        if finite:
            low, high = min(finite), max(finite)
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.total += total
        self.count += len(values)
        self.finite += len(finite)
        self.last, self.last_step, self.last_time = values[-1], last_step, last_time

    def as_row(self) -> Row:
        """The columns of the table `summaries` that are not its key."""
        last, special = split_special(self.last)
        return {
            "last": last,
            "special": special,
            "last_step": self.last_step,
            "last_time": self.last_time,
            "min": self.minimum if self.finite else None,
            "max": self.maximum if self.finite else None,
            "mean": self.total / self.finite if self.finite and math.isfinite(self.total) else None,
            "count": self.count,
            "finite": self.finite,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Summary:
        """Undo `as_row`."""
        finite, mean = int(row["finite"]), row["mean"]
        last = join_special(row["last"], row["special"])
        return cls(
            last=math.nan if last is None else last,
            last_step=row["last_step"],
            last_time=row["last_time"],
            minimum=row["min"] if finite else math.inf,
            maximum=row["max"] if finite else -math.inf,
            total=(math.nan if mean is None else mean * finite) if finite else 0.0,
            count=int(row["count"]),
            finite=finite,
        )


def _all_finite(values: Sequence[float]) -> bool:
    return math.isfinite(sum(values))


def _sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return sum(values)
