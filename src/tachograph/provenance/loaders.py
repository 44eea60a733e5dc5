"""Fingerprints of datasets, loaders and matrices that a framework wraps around data.

Reads what they hold, never iterates them: a loader's workers and generators stay untouched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from tachograph.provenance import Document, files, frames, sketches
from tachograph.provenance.arrays import numpy_array, sparse_matrix
from tachograph.provenance.digest import EXACT_BYTES
from tachograph.provenance.number_sketches import NumberSketch

_ELEMENT = 2_000  # characters
_MATRIX_FIELDS = ("label_lower_bound", "label_upper_bound", "feature_weights")  # of few DMatrix

Inside = Callable[[Any], Document]
"""Fingerprint of something that the data holds."""


def torch_loader(data: Any, inside: Inside) -> Document:
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


def torch_dataset(data: Any, inside: Inside) -> Document:
    """Rows, and whatever arrays, tensors, frames and lists of that length it holds.

    Files that it lists, with their classes or alone, are digested by names relative to its root.
    """
    rows = _length(data)
    held: dict[int, tuple[str, Any]] = {}
    for name, value in vars(data).items():
        is_rows = isinstance(value, list | tuple) and _length(value) == rows
        if hasattr(value, "shape") or is_rows:
            held.setdefault(id(value), (name, value))  # once, where it has two names
    root = getattr(data, "root", "")
    document = {
        "rows": rows,
        "parts": {
            name: inside(value) if (pairs := _files(value)) is None else files.labelled(pairs, root)
            for name, value in held.values()
        },
    }
    if held:
        return document
    why = "a stream" if rows is None else "it makes its samples when it is asked for them"
    return document | {"digest": None, "missing": why}


def _files(value: Any) -> list[tuple[Any, Any]] | None:
    """Pairs of path and class, where it looks like such or like paths alone."""
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    if _is_file(first):
        return [(file, "") for file in value]
    is_pair = isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], int)
    return value if is_pair and _is_file(first[0]) else None


def _is_file(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and os.path.isfile(value)


def torch_tensor_dataset(data: Any, inside: Inside) -> Document:
    """Each tensor."""
    return {"rows": _length(data), "parts": {str(i): inside(t) for i, t in enumerate(data.tensors)}}


def torch_subset(data: Any, inside: Inside) -> Document:
    """The dataset and which rows of it."""
    return {
        "rows": len(data.indices),
        "dataset": inside(data.dataset),
        "indices": inside(data.indices),
    }


def torch_concatenated(data: Any, inside: Inside) -> Document:
    """Each dataset in order."""
    parts = {str(index): inside(dataset) for index, dataset in enumerate(data.datasets)}
    return {"rows": _length(data), "parts": parts}


def tensorflow_dataset(data: Any, _: Inside) -> Document:
    """What an element looks like; the content is a stream."""
    return {"element": str(data.element_spec), "digest": None, "missing": "a stream"}


def xgboost_matrix(data: Any, _: Inside) -> Document:
    """Rows, columns, names, and digests of labels and, where small, of the content."""
    rows, width, stored = data.num_row(), data.num_col(), data.num_nonmissing()
    document = {
        "shape": [rows, width],
        "rows": rows,
        "stored": stored,
        "feature_names": data.feature_names,
        "feature_types": data.feature_types,
        "label": numpy_array(data.get_label()),
        "weight": _unless_empty(data.get_weight()),
        "base_margin": _unless_empty(data.get_base_margin()),
    }
    for name in _MATRIX_FIELDS:
        if len(values := data.get_float_info(name)):
            document[name] = numpy_array(values)
    ends = data.get_uint_info("group_ptr")
    document |= {"groups": max(0, len(ends) - 1), "group_ptr": _unless_empty(ends)}
    if type(data).__name__ != "DMatrix" or stored * 8 > EXACT_BYTES // 4:
        return document | {"digest": None, "missing": "reading it would copy it"}
    stored_values = data.get_data()
    content = sparse_matrix(stored_values)
    document |= {"digest": content["digest"], "digest_of": "content", "sketch_of": "content"}
    if width > sketches.WIDTH:
        return document | {"sketch": content["sketch"] | {"missing_values": rows * width - stored}}
    names = data.feature_names or [str(column) for column in range(width)]
    return document | sketches.by_column(names, list(_matrix_columns(stored_values.tocsc())), 0)


def _unless_empty(values: Any) -> Document | None:
    return numpy_array(values) if len(values) else None


def _matrix_columns(matrix: Any) -> Iterator[Document]:
    """A sketch of each column; what a DMatrix does not store is missing."""
    for start, stop in pairwise(matrix.indptr.tolist()):
        sketch = NumberSketch(stop - start, matrix.dtype)
        sketch.add(matrix.data[start:stop])
        (document,) = sketch.documents()
        yield document | {"missing_values": matrix.shape[0] - (stop - start)}


def huggingface_dataset(data: Any, inside: Inside) -> Document:
    """The table; where only some of its rows were chosen, the table and which rows."""
    if data._indices is None:
        return frames.arrow_table(data.data.table)
    return {
        "rows": len(data),
        "dataset": inside(data.data.table),
        "indices": inside(data._indices.table),
    }


def huggingface_stream(data: Any, _: Inside) -> Document:
    """What an element looks like; the content is a stream."""
    return {"element": str(data.features)[:_ELEMENT], "digest": None, "missing": "a stream"}


def bunch(data: Any, inside: Inside) -> Document:
    """The arrays, frames and lists of a data set of scikit-learn."""
    held = {
        str(name): value
        for name, value in data.items()
        if hasattr(value, "shape") or isinstance(value, list | tuple)
    }
    return {"parts": {name: inside(value) for name, value in held.items()}}


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # a stream, or a length of the user's that fails
        return None
