"""Fingerprints of arrays: numpy, torch, jax and tensorflow on the processor, scipy's sparse ones.

What lies on another device stays there: it is described without a digest.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from tachograph.provenance.digest import Column, combine, digest_columns, plain_bytes

OBJECT_BYTES = 64
"""What one Python object is taken for when the size of content is estimated."""


def numpy_array(data: Any) -> dict[str, Any]:
    """Shape, dtype and digest of a `numpy.ndarray`; the same for any memory layout."""
    rows = data.reshape(1) if data.ndim == 0 else data
    width = rows.size // max(1, len(rows))
    item_bytes = OBJECT_BYTES if data.dtype.hasobject else data.dtype.itemsize

    def read(start: int, stop: int) -> bytes:
        chunk = rows[start:stop]
        return plain_bytes(chunk.ravel().tolist()) if data.dtype.hasobject else chunk.tobytes()

    column = Column(_row_shape(data), str(data.dtype), width * item_bytes, read)
    return _shape_of(data, data.dtype.itemsize) | digest_columns(len(rows), [column])


def torch_tensor(data: Any) -> dict[str, Any]:
    """Shape, dtype, device and digest of a `torch.Tensor`."""
    document = _shape_of(data, data.element_size()) | {"device": str(data.device)}
    if data.device.type != "cpu" or str(data.layout) != "torch.strided" or data.is_quantized:
        return document | _not_read(f"lies on {data.device} as {data.layout}")
    tensor = data.detach()
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    width = rows.numel() // max(1, len(rows))

    def read(start: int, stop: int) -> bytes:
        chunk = rows[start:stop].resolve_conj().resolve_neg().contiguous().flatten()
        return bytes(chunk.view(sys.modules["torch"].uint8).numpy().tobytes())

    dtype = str(data.dtype).removeprefix("torch.")  # the same content has the same digest in numpy
    column = Column(_row_shape(data), dtype, width * data.element_size(), read)
    return document | digest_columns(len(rows), [column])


def jax_array(data: Any) -> dict[str, Any]:
    """Shape, dtype and digest of a `jax.Array` that lies ready on the processor."""
    document = _shape_of(data, data.dtype.itemsize)
    platforms = sorted({device.platform for device in data.devices()})
    if platforms != ["cpu"] or not data.is_fully_addressable or not data.is_ready():
        return document | _not_read(f"lies on {', '.join(platforms)}, or is not computed yet")
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
    sampled = any(part.get("digest_of") == "sample" for part in described)
    return {
        "shape": [int(size) for size in data.shape],
        "rows": int(data.shape[0]),
        "dtype": str(data.dtype),
        "format": data.format,
        "stored": int(data.nnz),
        "digest": combine(part["digest"] for part in described) if described else None,
        "digest_of": "sample" if sampled else "content",
    }


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
