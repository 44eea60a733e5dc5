"""Fingerprints of datasets, loaders and matrices that a framework wraps around data.

Reads what they hold, never iterates them: a loader's workers and generators stay untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from tachograph.provenance import Document, sketches
from tachograph.provenance.arrays import numpy_array, sparse_matrix
from tachograph.provenance.digest import EXACT_BYTES
from tachograph.provenance.number_sketches import NumberSketch

Inside = Callable[[Any], dict[str, Any]]
"""Fingerprint of something that the data holds."""


def torch_loader(data: Any, inside: Inside) -> dict[str, Any]:
    """The dataset and how it is drawn from."""
    generator = data.generator
    return {
        "dataset": inside(data.dataset),
        "batch_size": data.batch_size,
        "drop_last": data.drop_last,
        "sampler": type(data.sampler).__qualname__,
        "workers": data.num_workers,
        "generator_seed": None if generator is None else int(generator.initial_seed()),
        "worker_seeding": data.worker_init_fn is not None,
    }


def torch_dataset(data: Any, inside: Inside) -> dict[str, Any]:
    """Rows, and whatever arrays, tensors, frames and lists of that length it holds."""
    rows = _length(data)
    held = {
        name: value
        for name, value in vars(data).items()
        if hasattr(value, "shape") or (isinstance(value, list | tuple) and _length(value) == rows)
    }
    return {"rows": rows, "parts": {name: inside(value) for name, value in held.items()}}


def torch_tensor_dataset(data: Any, inside: Inside) -> dict[str, Any]:
    """Each tensor."""
    return {"rows": _length(data), "parts": {str(i): inside(t) for i, t in enumerate(data.tensors)}}


def torch_subset(data: Any, inside: Inside) -> dict[str, Any]:
    """The dataset and which rows of it."""
    return {
        "rows": len(data.indices),
        "dataset": inside(data.dataset),
        "indices": inside(data.indices),
    }


def torch_concatenated(data: Any, inside: Inside) -> dict[str, Any]:
    """Each dataset in order."""
    parts = {str(index): inside(dataset) for index, dataset in enumerate(data.datasets)}
    return {"rows": _length(data), "parts": parts}


def tensorflow_dataset(data: Any, _: Inside) -> dict[str, Any]:
    """What an element looks like; the content is a stream."""
    return {"element": str(data.element_spec), "digest": None, "missing": "a stream"}


def xgboost_matrix(data: Any, _: Inside) -> dict[str, Any]:
    """Rows, columns, names, and digests of labels and, where small, of the content."""
    rows, width, stored = data.num_row(), data.num_col(), data.num_nonmissing()
    document = {
        "shape": [rows, width],
        "rows": rows,
        "stored": stored,
        "feature_names": data.feature_names,
        "feature_types": data.feature_types,
        "label": numpy_array(data.get_label()),
        "weight": numpy_array(data.get_weight()),
    }
    if type(data).__name__ != "DMatrix" or stored * 8 > EXACT_BYTES // 4:
        return document | {"digest": None, "missing": "reading it would copy it"}
    stored_values = data.get_data()
    content = sparse_matrix(stored_values)
    document |= {"digest": content["digest"], "digest_of": "content", "sketch_of": "content"}
    if width > sketches.WIDTH:
        return document | {"sketch": content["sketch"] | {"missing_values": rows * width - stored}}
    names = data.feature_names or [str(column) for column in range(width)]
    return document | sketches.by_column(names, list(_matrix_columns(stored_values.tocsc())), 0)


def _matrix_columns(matrix: Any) -> Iterator[Document]:
    """A sketch of each column; what a DMatrix does not store is missing."""
    for start, stop in pairwise(matrix.indptr.tolist()):
        sketch = NumberSketch(stop - start, matrix.dtype)
        sketch.add(matrix.data[start:stop])
        (document,) = sketch.documents()
        yield document | {"missing_values": matrix.shape[0] - (stop - start)}


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # a stream, or a length of the user's that fails
        return None
