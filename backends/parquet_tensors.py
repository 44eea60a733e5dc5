"""Statistics of tensors as row groups in which each tensor's steps lie together; vectorised.

Knows no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tachograph.backends.parquet_arrays import Numbers, from_list, from_numpy
from tachograph.backends.parquet_files import GROUP_ROWS, SCHEMAS, rows_table
from tachograph.records import TABLES, Row
from tachograph.tensors.records import STATISTICS, TensorFrame, TensorRows

STATISTICS_SCHEMA = pa.schema(
    [
        (name, pa.dictionary(pa.int32(), pa.string()))
        if kind == pa.string() and name != "histogram"
        else (name, kind)
        for name, kind in zip(SCHEMAS["tensors"].names, SCHEMAS["tensors"].types, strict=True)
    ]
)
"""How rows are handed to the Parquet writer; in the file, texts are plain strings."""

_SPEC = TABLES["tensors"]
_OF_CALL = ("step", "epoch", "time", "writer", "seq")
_OF_TENSOR = tuple(
    name for name in _SPEC.columns if name not in (*_OF_CALL, *STATISTICS, "histogram")
)
_APART = ("kind", "context", "rank", "attempt")


def row_groups(rows: TensorRows) -> Iterator[pa.Table]:
    """Row groups of what is packed, then of what is not."""
    frames: list[TensorFrame] = []
    count = 0
    for frame in rows.frames:
        if frames and count + len(frame.series.tensors) > GROUP_ROWS:
            yield _group(frames)
            frames, count = [], 0
        frames.append(frame)
        count += len(frame.series.tensors)
    if count:
        yield _group(frames)
    if loose := rows.loose:
        yield rows_table(_SPEC, tensor_by_tensor(loose)).cast(STATISTICS_SCHEMA)


def _group(frames: Sequence[TensorFrame]) -> pa.Table:
    tensors, tensor_of = _tensors(frames)
    lengths = [len(frame.series.tensors) for frame in frames]
    call_of = np.repeat(np.arange(len(frames)), lengths)
    order = np.lexsort((call_of, tensor_of))
    tensor_of, call_of = tensor_of[order], call_of[order]
    columns: dict[str, pa.Array] = {}
    for name in _OF_TENSOR:
        columns[name] = _shared(name, [row[name] for row in tensors], tensor_of)
    for name in _OF_CALL:
        columns[name] = _shared(name, [getattr(frame, name) for frame in frames], call_of)
    packed = b"".join(frame.statistics for frame in frames)
    numbers = np.frombuffer(packed, "<f8").reshape(-1, len(STATISTICS))[order]
    for name, column in zip(STATISTICS, numbers.T, strict=True):
        columns[name] = _moments(column) if _SPEC.columns[name] == "float" else _counts(column)
    columns["histogram"] = _histograms(frames, order)
    arrays = [columns[name] for name in _SPEC.columns]
    return pa.Table.from_arrays(arrays, schema=STATISTICS_SCHEMA)


def _tensors(frames: Sequence[TensorFrame]) -> tuple[list[Row], Numbers]:
    """What is the same for each tensor; and, in order, of which of these each row is."""
    shared = {id(frame.series): frame.series for frame in frames}
    known = [row for series in shared.values() for row in series.rows]
    order = _by_tensor(known)
    place = np.empty(len(known), np.int64)
    place[order] = np.arange(len(known))
    ends = np.cumsum([len(series.tensors) for series in shared.values()])
    places = dict(zip(shared, np.split(place, ends[:-1]), strict=True))
    return [known[n] for n in order], np.concatenate([places[id(frame.series)] for frame in frames])


def tensor_by_tensor(rows: Sequence[Row]) -> list[Row]:
    """Rows of a tensor beside each other, which packs well; tensors in the order of the model."""
    return [rows[at] for at in _by_tensor(rows)]


def _by_tensor(rows: Sequence[Row]) -> list[int]:
    places: dict[tuple[Any, ...], int] = {}
    keys = [
        (
            places.setdefault((row["run_id"], row["name"]), len(places)),
            *(str(row[name]) for name in _APART),
        )
        for row in rows
    ]
    return sorted(range(len(rows)), key=keys.__getitem__)


def _shared(name: str, values: Sequence[object], index: Numbers) -> pa.Array:
    """A column in which each of some values stands in many rows."""
    kind = _SPEC.columns[name]
    valid = np.array([value is not None for value in values], np.bool_)[index]
    if kind in ("text", "json"):
        codes: dict[object, int] = {}
        places = np.array(
            [0 if value is None else codes.setdefault(value, len(codes)) for value in values],
            np.int32,
        )
        texts = from_list([*codes], kind)
        return pa.DictionaryArray.from_arrays(from_numpy(places[index], valid), texts)
    number = np.float64 if kind == "float" else np.int64
    return from_numpy(np.array([value or 0 for value in values], number)[index], valid)


def _moments(values: Numbers) -> pa.Array:
    return from_numpy(values, np.isfinite(values))


def _counts(values: Numbers) -> pa.Array:
    valid = (values >= 0.0) & (values < 2.0**63)  # not NaN either
    return from_numpy(np.where(valid, values, 0.0).astype(np.int64), valid)


def _histograms(frames: Sequence[TensorFrame], order: Numbers) -> pa.Array:
    texts = [text for frame in frames for text in frame.histograms()]
    return from_list([texts[n] for n in order.tolist()], "json")
