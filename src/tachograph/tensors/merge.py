"""One row of statistics from the rows of all ranks that each hold a shard of a tensor.

Pure functions over rows of the table `tensors`. Knows what the columns mean, no store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence

from tachograph.reading.facts import decode_context
from tachograph.records import Row
from tachograph.tensors import histograms
from tachograph.values import canonical_json

_SERIES = ("run_id", "name", "kind", "attempt", "step")
_COUNTS = ("size", "zeros", "nan", "inf")


def is_shard(context: str) -> bool:
    """Whether a row with this context describes the part of a tensor that one rank holds."""
    return decode_context(context).get("scope") == "rank"


def merge_shards(rows: Iterable[Row]) -> list[Row]:
    """Merge the shards of each tensor and step; the result stands where its first shard stood.

    Sizes, zeros, NaN, infinities, min, max and histograms are exact. Mean, std and l2 are those
    of all finite values together, to rounding. A statistic is None where a shard with finite
    values lacks it. A step of a tensor is left out where a shard is missing, that is where the
    sizes do not add up to the size of the logical shape: a part would look like the whole. Where
    a rank recorded a tensor twice at a step, its later row counts.

    Parameters
    ----------
    rows : iterable of rows
        Of shards, in the order of recording; columns that are absent stay absent.

    Returns
    -------
    list of rows
        `shape` is the logical one, `logical_shape` None, `context` without its scope, `rank` the
        lowest, `time` the latest, and `shards` says from how many rows it was made.
    """
    groups: dict[tuple[object, ...], dict[int, Row]] = {}
    for row in rows:
        key = (*(row[name] for name in _SERIES), row["context"])
        groups.setdefault(key, {})[row["rank"]] = row
    merged = (_merge([group[rank] for rank in sorted(group)]) for group in groups.values())
    return [row for row in merged if row is not None]


def _merge(shards: Sequence[Row]) -> Row | None:
    first = shards[0]
    if not _is_whole(shards):
        return None
    context = json.loads(first["context"])
    context.pop("scope")
    whole = first | {
        "context": canonical_json(context),
        "shape": first["logical_shape"],
        "logical_shape": None,
        "time": max((row["time"] for row in shards if row.get("time") is not None), default=None),
        "shards": len(shards),
    }
    whole |= {name: _total(shards, name) for name in _COUNTS if name in first}
    return whole | {name: merge(shards) for name, merge in _MERGES.items() if name in first}


def _is_whole(shards: Sequence[Row]) -> bool:
    logical, sizes = shards[0]["logical_shape"], [row["size"] for row in shards]
    if logical is None or None in sizes:
        return False
    return bool(sum(sizes) == math.prod(json.loads(logical)))


def _total(shards: Sequence[Row], column: str) -> int | None:
    counts = [row[column] for row in shards]
    return None if None in counts else sum(counts)


# ---------------------------------------------------------------------------- statistics


def _finite(row: Row) -> int:
    return int(row["size"]) - (row["nan"] or 0) - (row["inf"] or 0)


def _known(shards: Sequence[Row], *columns: str) -> list[Row] | None:
    """Those shards that have finite values; None where there are none, or one lacks a column."""
    used = [row for row in shards if _finite(row)]
    complete = all(row[column] is not None for row in used for column in columns)
    return used if used and complete else None


def _extreme(column: str, choose: Callable[[list[float]], float]) -> Callable[..., float | None]:
    def merge(shards: Sequence[Row]) -> float | None:
        used = _known(shards, column)
        return choose([row[column] for row in used]) if used else None

    return merge


def _mean(shards: Sequence[Row]) -> float | None:
    used = _known(shards, "mean")
    if not used:
        return None
    total = sum(map(_finite, used))
    return math.fsum(row["mean"] * (_finite(row) / total) for row in used)


def _std(shards: Sequence[Row]) -> float | None:
    """The spread within the shards and that between their means; `hypot` overflows nowhere."""
    used, mean = _known(shards, "mean", "std"), _mean(shards)
    if not used or mean is None:
        return None
    total = sum(map(_finite, used))
    parts = []
    for row in used:
        weight = math.sqrt(_finite(row) / total)
        parts += [weight * row["std"], weight * (row["mean"] - mean)]
    return _or_none(math.hypot(*parts))


def _l2(shards: Sequence[Row]) -> float | None:
    used = _known(shards, "l2")
    return _or_none(math.hypot(*(row["l2"] for row in used))) if used else None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _histogram(shards: Sequence[Row]) -> str | None:
    texts = [row["histogram"] for row in shards if row["histogram"] is not None]
    lacking = any(_finite(row) and row["histogram"] is None for row in shards)
    if lacking or not texts:
        return None
    return histograms.to_text(histograms.merge(map(histograms.from_text, texts)))


_MERGES: dict[str, Callable[[Sequence[Row]], float | str | None]] = {
    "mean": _mean,
    "std": _std,
    "min": _extreme("min", min),
    "max": _extreme("max", max),
    "l2": _l2,
    "histogram": _histogram,
}
