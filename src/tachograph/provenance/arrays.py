"""Fingerprints of arrays: numpy, torch, jax and tensorflow on the processor, scipy's sparse ones.

What lies on another device stays there: it is described without a digest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tachograph.provenance import Document, sketches
from tachograph.provenance.digest import (
    Column,
    Reading,
    combine,
    object_bytes,
    plain_bytes,
    read_columns,
)
from tachograph.provenance.number_sketches import DateSketch, NumberSketch
from tachograph.provenance.value_sketches import ValueSketch


def numpy_array(data: Any) -> dict[str, Any]:
    """Shape, dtype and digest of a `numpy.ndarray`; the same for any memory layout."""
    rows = data.reshape(1) if data.ndim == 0 else data
    width = rows.size // max(1, len(rows))
    by_values = data.dtype.hasobject or _has_padding(data.dtype)
    item_bytes = data.dtype.itemsize
    if by_values:
        item_bytes = object_bytes(len(rows), lambda start, stop: _values(rows[start:stop]))

    is_masked = hasattr(data, "filled")

    def encode(piece: Any) -> bytes:
        if by_values:
            return plain_bytes(_values(piece))
        if is_masked:  # what lies below a mask does not count
            mask = sys.modules["numpy"].ma.getmaskarray(piece)
            return bytes(piece.filled(piece.dtype.type()).tobytes() + mask.tobytes())
        return bytes(piece.tobytes())

    column = Column(
        _row_shape(data),
        str(data.dtype),
        width * item_bytes,
        lambda start, stop: rows[start:stop],
        encode,
        None if is_masked else array_sketch(data.dtype, rows.shape),
    )
    reading = read_columns(len(rows), [column])
    return _shape_of(data, data.dtype.itemsize) | reading.digest | array_sketches(reading)


def torch_tensor(data: Any) -> dict[str, Any]:
    """Shape, dtype, device and digest of a `torch.Tensor`."""
    document = _shape_of(data, data.element_size()) | {"device": str(data.device)}
    if (why := torch_elsewhere(data)) is not None:
        return document | _not_read(why)
    tensor = data.detach()
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    width = rows.numel() // max(1, len(rows))

    def read(start: int, stop: int) -> Any:
        return rows[start:stop].resolve_conj().resolve_neg().contiguous()

    def encode(piece: Any) -> bytes:
        return bytes(piece.flatten().view(sys.modules["torch"].uint8).numpy().tobytes())

    dtype = str(data.dtype).removeprefix("torch.")  # the same content has the same digest in numpy
    column = Column(
        _row_shape(data),
        dtype,
        width * data.element_size(),
        read,
        encode,
        _tensor_sketch(data.dtype, rows.shape),
    )
    reading = read_columns(len(rows), [column])
    return document | reading.digest | array_sketches(reading)


def jax_array(data: Any) -> dict[str, Any]:
    """Shape, dtype and digest of a `jax.Array` that lies ready on the processor."""
    document = _shape_of(data, data.dtype.itemsize)
    if (why := jax_elsewhere(data)) is not None:
        return document | _not_read(why)
    return document | numpy_array(data.__array__())


def tensorflow_tensor(data: Any) -> dict[str, Any]:
    """Shape, dtype and digest of an eager tensor on the processor."""
    document = {"shape": [int(size) for size in data.shape], "dtype": data.dtype.name}
    if not hasattr(data, "numpy") or "CPU" not in data.device:
        return document | _not_read(f"lies on {data.device}")
    return document | numpy_array(data.numpy())


def sparse_matrix(data: Any) -> dict[str, Any]:
    """Shape, format, dtype, stored values and digest of a scipy sparse array or matrix."""
    names = ("data", "indices", "indptr", "offsets", "row", "col", "rows")
    parts = [getattr(data, name, None) for name in names]
    described = [numpy_array(part) for part in parts if hasattr(part, "dtype")]
    if not described:
        return _shape_of(data, data.dtype.itemsize) | _not_read(f"the format {data.format}")
    sampled = any(part.get("digest_of") == "sample" for part in described)
    stored = described[0] if hasattr(getattr(data, "data", None), "dtype") else {}
    sketch = {name: stored[name] for name in ("sketch", "sketch_of") if "sketch" in stored}
    return {
        "shape": [int(size) for size in data.shape],
        "rows": int(data.shape[0]),
        "dtype": str(data.dtype),
        "format": data.format,
        "stored": int(data.nnz),
        "digest": combine([f"{data.format}{data.shape}", *(part["digest"] for part in described)]),
        "digest_of": "sample" if sampled else "content",
        **sketch,
    }


# ---------------------------------------------------------------------------- where they lie


def torch_elsewhere(data: Any) -> str | None:
    """Why a tensor of torch is not read as it lies; None where it may be."""
    if data.device.type != "cpu" or str(data.layout) != "torch.strided" or data.is_quantized:
        return f"lies on {data.device} as {data.layout}"
    return None


def jax_elsewhere(data: Any) -> str | None:
    """Why an array of jax is not read as it lies, and not waited for; None where it may be."""
    platforms = sorted({device.platform for device in data.devices()})
    if platforms != ["cpu"] or not data.is_fully_addressable or not data.is_ready():
        return f"lies on {', '.join(platforms)}, or is not computed yet"
    return None


# ---------------------------------------------------------------------------- sketches


def array_sketches(reading: Reading) -> Document:
    """The sketches of an array that is read as one column: per column of it, or over all."""
    documents = reading.sketches[0] if reading.sketches else None
    if documents is None:
        return {}
    if len(documents) == 1:
        return {"sketch": documents[0], "sketch_of": reading.covers}
    columns = sketches.by_column(map(str, range(len(documents))), documents, 0)
    return columns | {"sketch_of": reading.covers}


def array_sketch(
    dtype: Any, shape: Sequence[int], convert: sketches.Convert | None = None
) -> Callable[[int], sketches.Sketch] | None:
    """What makes the sketch of an array; None for types that have none, such as complex ones."""
    each = math.prod(shape[1:])  # values of a row
    width = each if len(shape) == 2 and each <= sketches.WIDTH else 1
    distinct = each == width
    if not each:
        return None
    if dtype.kind in "biuf":
        return lambda rows: NumberSketch(
            rows * each // width, dtype, width, convert, distinct=distinct
        )
    if dtype.kind in "mM":
        return lambda _: DateSketch()
    if dtype.kind in "OUST":
        return lambda rows: ValueSketch(rows * each, _values)
    if dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")):  # of ml_dtypes
        return array_sketch(_single(), shape, lambda piece: piece.astype(_single()))
    return None


def _tensor_sketch(dtype: Any, shape: Sequence[int]) -> Callable[[int], sketches.Sketch] | None:
    torch = sys.modules["torch"]
    if dtype.is_complex:
        return None
    try:
        of_numpy = torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:  # numpy has no such type
        return array_sketch(_single(), shape, lambda piece: piece.float().numpy())
    return array_sketch(of_numpy, shape, lambda piece: piece.numpy())


def _single() -> Any:
    return sys.modules["numpy"].dtype("f4")


def _has_padding(dtype: Any) -> bool:
    """Whether there are bytes that may be anything: between fields, or of a long double."""
    fields = [field[0] for field in (dtype.fields or {}).values()]
    between = bool(fields) and sum(field.itemsize for field in fields) != dtype.itemsize
    return between or dtype.char in "gG"


def _values(piece: Any) -> list[Any]:
    values: list[Any] = piece.ravel().tolist()
    return values


# ---------------------------------------------------------------------------- shapes


def _shape_of(data: Any, item_bytes: int) -> dict[str, Any]:
    shape = [int(size) for size in data.shape]
    return {
        "shape": shape,
        "rows": shape[0] if shape else 1,
        "dtype": str(data.dtype),
        "bytes": math.prod(shape) * item_bytes,
    }


def _row_shape(data: Any) -> str:
    return str([int(size) for size in data.shape[1:]])


def _not_read(reason: str) -> dict[str, Any]:
    return {"digest": None, "missing": reason}
