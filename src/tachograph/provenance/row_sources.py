"""What the rows of data are: its features, without targets and weights, and how to read them.

Recognises the types of other libraries by their names, imports none of them, and never asks a data
set for its samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tachograph.provenance.arrays import jax_elsewhere, torch_elsewhere
from tachograph.provenance.data import kinds
from tachograph.provenance.frames import is_number_of_polars, is_numeric
from tachograph.provenance.row_parts import (
    Beside,
    Part,
    Picked,
    Sparse,
    Stacked,
    Values,
    array,
    number_column,
    object_column,
    samples,
)
from tachograph.provenance.row_values import NotHashed, bfloat16_words, numpy

_DEPTH = 6
_MOST_STORED = 8 << 20  # values of a matrix of XGBoost, which gives them as a copy
_COLUMNS = 500  # of a frame; so many one after the other take longer than row by row
_INPUTS = 50  # of a model; more arrays in a list are samples
_FEATURES = ("data", "samples", "x", "X", "features", "inputs", "images")
_TARGETS = frozenset(
    [
        "y",
        "label",
        "labels",
        "target",
        "targets",
        "class",
        "classes",
        "weight",
        "weights",
        "sample_weight",
        "class_to_idx",
    ]
)


def part_of(data: Any, depth: int = 0) -> Part:
    """The rows of data, features alone.

    Parameters
    ----------
    data : any
        What `data.fingerprint` reads, but files and folders.

    Raises
    ------
    NotHashed
        It has no rows that can be read; the text says why.
    """
    if depth > _DEPTH:
        raise NotHashed("nested too deeply")
    for kind in kinds(type(data)):
        if kind in _READERS:
            return _READERS[kind](data)
        if kind in _HOLDERS:
            return _HOLDERS[kind](data, depth + 1)
    if isinstance(data, Mapping):
        return _mapping(data, depth + 1)
    if isinstance(data, list | tuple | range):
        return _sequence(data, depth + 1)
    raise NotHashed(f"rows of {type(data).__qualname__} are not read")


def is_target(name: str) -> bool:
    """Whether a name says that it is no feature: a target, a label, a weight."""
    return name.lower() in _TARGETS


# ---------------------------------------------------------------------------- plain containers


def _mapping(data: Mapping[Any, Any], depth: int) -> Part:
    """Of `x` and `y` the first; else all inputs side by side, in the order of their names."""
    named = {str(name): value for name, value in data.items()}
    for name in ("x", "X"):
        if name in named:
            return part_of(named[name], depth)
    inputs = [named[name] for name in sorted(named) if not is_target(name)]
    return Beside([part_of(one, depth) for one in inputs])


def _sequence(data: Sequence[Any], depth: int) -> Part:
    """Of a tuple of arrays the first; a few arrays in a list side by side; else a list of rows."""
    arrays = all(_is_array(item) or item is None for item in data)
    if len(data) and isinstance(data, tuple) and (arrays or _is_inputs(data[0])):
        return part_of(data[0], depth)
    if _is_inputs(data):
        return Beside([part_of(item, depth) for item in data])
    return samples(data, lambda item: _first(item) if _is_array(_first(item)) else item)


def _is_inputs(data: Any) -> bool:
    """Whether it is several inputs of a model, by their names or in order."""
    if isinstance(data, Mapping):
        return True
    few = isinstance(data, list) and 0 < len(data) <= _INPUTS
    return few and all(_is_array(item) for item in data)


def _is_array(item: Any) -> bool:
    return bool(getattr(item, "shape", ()))


# ---------------------------------------------------------------------------- arrays


def _torch_tensor(data: Any) -> Part:
    if (why := torch_elsewhere(data)) is not None:
        raise NotHashed(why)
    tensor = data.detach().resolve_conj().resolve_neg()
    if str(tensor.dtype) == "torch.bfloat16":
        return Values(tensor.view(sys.modules["torch"].int16).numpy().view("u2"), bfloat16_words)
    return array(tensor.numpy())


def _jax_array(data: Any) -> Part:
    if (why := jax_elsewhere(data)) is not None:
        raise NotHashed(why)
    return array(data.__array__())


def _tensorflow_tensor(data: Any) -> Part:
    if not hasattr(data, "numpy") or "CPU" not in data.device:
        raise NotHashed("does not lie on the processor")
    return array(data.numpy())


def _sparse_matrix(data: Any) -> Part:
    matrix = data if data.format == "csr" else data.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return Sparse(matrix)


def _xgboost_matrix(data: Any) -> Part:
    """What is not stored in it is missing, which is NaN."""
    if type(data).__name__ != "DMatrix":
        raise NotHashed(f"a {type(data).__name__} has no rows to read")
    if data.num_nonmissing() > _MOST_STORED:
        raise NotHashed(f"reading more than {_MOST_STORED >> 20} million values would copy them")
    return Sparse(data.get_data(), absent=float("nan"))


# ---------------------------------------------------------------------------- frames


class _Rows:
    """A frame of pandas whose columns have one type, as an array of which rows are asked for."""

    def __init__(self, data: Any, dtype: Any) -> None:
        self._data, self.shape, self.dtype = data, data.shape, dtype

    def __getitem__(self, rows: Any) -> Any:
        return self._data.iloc[rows].to_numpy()


def _pandas_frame(data: Any) -> Part:
    dtypes = set(data.dtypes)
    if len(data.columns) > _COLUMNS and len(dtypes) == 1 and is_numeric(dtype := dtypes.pop()):
        return Values(_Rows(data, dtype))
    columns = [data.iloc[:, position] for position in range(len(data.columns))]
    return Beside([_pandas_column(column) for column in columns])


def _pandas_column(series: Any) -> Part:
    dtype = series.dtype
    if is_numeric(dtype):
        return array(series.to_numpy())
    if getattr(dtype, "kind", "O") == "M":  # with a time zone
        return array(series.to_numpy("M8[ns]"))

    def read(rows: Any) -> list[Any]:
        chosen: list[Any] = series.iloc[rows].to_numpy(dtype=object, na_value=None).tolist()
        return chosen

    return object_column(len(series), read)


def _polars_frame(data: Any) -> Part:
    return Beside([_polars_column(series) for series in data.get_columns()])


def _polars_column(series: Any) -> Part:
    def chosen(rows: Any) -> Any:
        return series[rows] if isinstance(rows, slice) else series.gather(rows)

    dtype = str(series.dtype)
    if is_number_of_polars(dtype) or dtype.startswith(("Date", "Duration")):
        return number_column(len(series), lambda rows: chosen(rows).to_numpy())
    return object_column(len(series), lambda rows: chosen(rows).to_list())


def _arrow_table(data: Any) -> Part:
    return Beside([_arrow_column(column) for column in data.columns])


def _arrow_column(column: Any) -> Part:
    def chosen(rows: Any) -> Any:
        if isinstance(rows, slice):
            return column.slice(rows.start, rows.stop - rows.start)
        return column.take(sys.modules["pyarrow"].array(rows))

    if str(column.type).startswith(("int", "uint", "float", "double", "halffloat", "timestamp")):
        return number_column(len(column), lambda rows: chosen(rows).to_numpy())
    return object_column(len(column), lambda rows: chosen(rows).to_pylist())


# ---------------------------------------------------------------------------- data sets of torch


def _torch_loader(data: Any, depth: int) -> Part:
    return part_of(data.dataset, depth)


def _torch_tensor_dataset(data: Any, depth: int) -> Part:
    """All tensors but the last, which is the target."""
    tensors = data.tensors[:-1] or data.tensors
    return Beside([part_of(tensor, depth) for tensor in tensors])


def _torch_subset(data: Any, depth: int) -> Part:
    np = numpy()
    return Picked(part_of(data.dataset, depth), np.asarray(data.indices, dtype="i8"))


def _torch_concatenated(data: Any, depth: int) -> Part:
    return Stacked([part_of(one, depth) for one in data.datasets])


def _torch_dataset(data: Any, depth: int) -> Part:
    """What it holds that is as long as it is: its `data`, or all but targets and weights."""
    try:
        rows = len(data)
    except Exception as error:  # a stream, or a length of the user's that fails
        raise NotHashed("a stream, or of unknown length") from error
    held = {
        name: value
        for name, value in vars(data).items()
        if not is_target(name.strip("_")) and _length(value) == rows
    }
    if not held:
        raise NotHashed("it makes its samples when it is asked for them")
    named = [held[name] for name in _FEATURES if name in held]
    parts: list[Part] = []
    for value in named[:1] or held.values():
        if isinstance(value, list | tuple):
            parts.append(samples(value, _first))
        else:
            parts.append(part_of(value, depth))
    return Beside(parts)


def _first(sample: Any) -> Any:
    """The features of a sample that has a target too."""
    return sample[0] if isinstance(sample, tuple) and sample else sample


def _length(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return len(value)
    if hasattr(value, "shape") and len(value.shape):
        return int(value.shape[0])
    return None


def _stream(_: Any) -> Part:
    raise NotHashed("a stream")


_READERS: dict[str, Callable[[Any], Part]] = {
    "numpy.ndarray": array,
    "torch.Tensor": _torch_tensor,
    "jaxlib.Array": _jax_array,
    "jaxlib.ArrayImpl": _jax_array,
    "jax.Array": _jax_array,
    "tensorflow.Tensor": _tensorflow_tensor,
    "tensorflow.DatasetV2": _stream,
    "scipy._spbase": _sparse_matrix,
    "scipy.spmatrix": _sparse_matrix,
    "pandas.DataFrame": _pandas_frame,
    "pandas.Series": _pandas_column,
    "polars.DataFrame": _polars_frame,
    "polars.Series": _polars_column,
    "pyarrow.Table": _arrow_table,
    "sklearn.Bunch": lambda data: part_of(data["data"]),
    "xgboost.DMatrix": _xgboost_matrix,
}
_HOLDERS: dict[str, Callable[[Any, int], Part]] = {
    "torch.DataLoader": _torch_loader,
    "torch.TensorDataset": _torch_tensor_dataset,
    "torch.Subset": _torch_subset,
    "torch.ConcatDataset": _torch_concatenated,
    "torch.IterableDataset": lambda data, _: _stream(data),
    "torch.Dataset": _torch_dataset,
}
