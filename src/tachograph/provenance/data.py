"""Fingerprints of data: kind, source, shape, types, sketches and a digest of the content.

Recognises the types of other libraries by their names and imports none of them. Never iterates
what may be a stream, never moves data off a device, and keeps no reference to the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from tachograph.provenance import Document, arrays, files, frames, loaders, missing
from tachograph.provenance.dataset_names import named
from tachograph.provenance.digest import Column, object_bytes, plain_bytes, read_columns
from tachograph.provenance.value_sketches import ValueSketch
from tachograph.values import qualified_name

_DEPTH = 5
_PARTS = 50


def fingerprint(data: Any, *, name: str | None = None) -> Document:
    """Describe data so that the same content can be recognised.

    Parameters
    ----------
    data : any
        Arrays (numpy, torch, jax, tensorflow, scipy.sparse), frames (pandas, Polars, Arrow),
        data sets and loaders of torch, Hugging Face and scikit-learn, `tf.data`,
        `xgboost.DMatrix`, lists, files and folders, and mappings or short tuples of these, such
        as splits. Anything else is named only.
    name : str, optional
        What to call it, for example 'train'.

    Returns
    -------
    dict
        `kind` and, as far as they are known, source, shape, rows, dtype, bytes, digest, and
        sketches of how the values are spread. `digest_of` says what the digest covers: 'content',
        or 'sample' above 64 MB. Never raises: where something fails, `missing` says why.
    """
    document = _describe(data, 0)
    return document if name is None else {"name": name, **document}


def _describe(data: Any, depth: int) -> Document:
    document: Document = {"kind": qualified_name(type(data))}
    document |= named(data, kinds(type(data)))
    try:
        document |= _read(data, depth)
    except Exception as error:
        document |= {"digest": None, **missing(error)}
    return document


def _read(data: Any, depth: int) -> Document:
    if depth > _DEPTH:
        return {"digest": None, "missing": "nested too deeply"}

    def inside(part: Any) -> Document:
        return _describe(part, depth + 1)

    for kind in kinds(type(data)):
        if kind in _HOLDERS:
            return _HOLDERS[kind](data, inside)
        if kind in _CONTENTS:
            return _CONTENTS[kind](data)
    if isinstance(data, os.PathLike) or (isinstance(data, str) and os.path.exists(data)):
        return files.path(data)
    if isinstance(data, Mapping):
        return _parts({str(key): value for key, value in data.items()}, inside)
    if isinstance(data, list | tuple | range):
        return _sequence(data, inside)
    return {"rows": None, "digest": None, "missing": "content of this kind is not read"}


def kinds(data_type: type) -> list[str]:
    """``package.Class`` and the full name of the class and its bases, the most derived first."""
    return [
        f"{module}.{cls.__name__}"
        for cls in data_type.__mro__
        for module in (cls.__module__, cls.__module__.partition(".")[0])
    ]


def _sequence(data: Any, inside: loaders.Inside) -> Document:
    """A short sequence of arrays or frames by its parts, any other as a column of plain values."""
    if 0 < len(data) <= _PARTS and any(map(_is_data, data)):
        return _parts({str(index): item for index, item in enumerate(data)}, inside)

    def read(start: int, stop: int) -> Any:
        return data[start:stop]

    row_bytes = object_bytes(len(data), read)
    column = Column("", "object", row_bytes, read, plain_bytes, ValueSketch)
    reading = read_columns(len(data), [column])
    return {"rows": len(data), **reading.digest, **arrays.array_sketches(reading)}


def _is_data(item: Any) -> bool:
    names = kinds(type(item))
    is_known = any(name in _HOLDERS for name in names)
    return hasattr(item, "shape") or is_known or bool(named(item, names))


def _parts(parts: Mapping[str, Any], inside: loaders.Inside) -> Document:
    described = {name: inside(part) for name, part in list(parts.items())[:_PARTS]}
    return {"parts": described, "more_parts": max(0, len(parts) - _PARTS)}


_CONTENTS: dict[str, Callable[[Any], Document]] = {
    "numpy.ndarray": arrays.numpy_array,
    "torch.Tensor": arrays.torch_tensor,
    "jaxlib.Array": arrays.jax_array,
    "jaxlib.ArrayImpl": arrays.jax_array,
    "jax.Array": arrays.jax_array,
    "tensorflow.Tensor": arrays.tensorflow_tensor,
    "scipy._spbase": arrays.sparse_matrix,
    "scipy.spmatrix": arrays.sparse_matrix,
    "pandas.DataFrame": frames.pandas_frame,
    "pandas.Series": frames.pandas_series,
    "polars.DataFrame": frames.polars_frame,
    "polars.Series": frames.polars_series,
    "pyarrow.Table": frames.arrow_table,
}
_HOLDERS: dict[str, Callable[[Any, loaders.Inside], Document]] = {
    "torch.DataLoader": loaders.torch_loader,
    "torch.TensorDataset": loaders.torch_tensor_dataset,
    "torch.Subset": loaders.torch_subset,
    "torch.ConcatDataset": loaders.torch_concatenated,
    "torch.Dataset": loaders.torch_dataset,
    "tensorflow.DatasetV2": loaders.tensorflow_dataset,
    "xgboost.DMatrix": loaders.xgboost_matrix,
    "datasets.arrow_dataset.Dataset": loaders.huggingface_dataset,
    "datasets.iterable_dataset.IterableDataset": loaders.huggingface_stream,
    "sklearn.Bunch": loaders.bunch,
}
