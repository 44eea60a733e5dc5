"""What can be read off an estimator: its parameters, what it has learned, its iterations.

Reads public attributes only, imports no framework, and keeps nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tachograph.values import plain

LARGEST = 200_000
"""Arrays with more values than this are described by shape and type alone."""

SERIES = (
    "loss_curve_",
    "validation_scores_",
    "validation_score_",
    "train_score_",
    "train_scores_",
    "oob_improvement_",
    "oob_scores_",
    "lower_bounds_",
    "estimator_errors_",
)
"""Attributes in which estimators keep a value per iteration."""

NUMBERS = (
    "n_iter_",
    "best_loss_",
    "inertia_",
    "lower_bound_",
    "oob_score_",
    "reconstruction_err_",
)
"""Attributes that say in one number how a fit went."""


def is_estimator(value: Any) -> bool:
    """Whether it is an instance of something that can be fitted."""
    if isinstance(value, type):
        return False
    return hasattr(type(value), "fit") and (
        hasattr(value, "get_params") or hasattr(value, "transform") or hasattr(value, "predict")
    )


def is_search(estimator: Any) -> bool:
    """Whether it evaluates candidates: it has scikit-learn's extension point for searches."""
    return hasattr(estimator, "_run_search") and hasattr(estimator, "estimator")


def class_name(estimator: Any) -> str:
    """``sklearn.linear_model.LogisticRegression``: without the private parts of the module."""
    kind = type(estimator)
    parts = [part for part in kind.__module__.split(".") if not part.startswith("_")]
    return ".".join([*parts, kind.__qualname__])


def parameters(estimator: Any, *, deep: bool = False) -> dict[str, Any]:
    """The estimator's class and parameters; estimators in them by the name of their class."""
    if not is_estimator(estimator):
        return {"class": "passthrough"}
    found = estimator.get_params(deep=deep) if hasattr(estimator, "get_params") else {}
    return {"class": class_name(estimator)} | {key: named(value) for key, value in found.items()}


def named(value: Any) -> Any:
    """The value with every estimator in it replaced by the name of its class."""
    if is_estimator(value):
        return class_name(value)
    if isinstance(value, list | tuple):
        return [named(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): named(item) for key, item in value.items()}
    return value


def shape(data: Any) -> tuple[int | None, int | None]:
    """Rows and columns, None where there is no such thing."""
    found = getattr(data, "shape", None)
    if isinstance(found, tuple) and all(isinstance(size, int) for size in found):
        return (found[0] if found else None), (found[1] if len(found) > 1 else None)
    if isinstance(data, Sequence) and not isinstance(data, str):
        inner = data[0] if data else None
        columns = len(inner) if isinstance(inner, list | tuple) else None
        return len(data), columns
    return None, None


def learned(estimator: Any) -> dict[str, Any]:
    """What the fit has set: public attributes whose name ends in one underscore.

    Arrays as shape, type, norm, smallest and largest value, with the values where they are
    few; sequences and mappings by their length; trees by their number, nodes and depth.
    """
    found: dict[str, Any] = {}
    for name, value in list(vars(estimator).items()) if hasattr(estimator, "__dict__") else ():
        if name.endswith("_") and not name.startswith("_") and not name.endswith("__"):
            summary = _summary(value)
            if summary is not None:
                found[name] = summary
    return found | _trees(estimator)


def _summary(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping):
        return {"type": type(value).__name__, "length": len(value)}
    if isinstance(value, list | tuple):
        if value and len(value) <= 16 and all(hasattr(item, "dtype") for item in value):
            return [_array(item) for item in value]
        if all(isinstance(item, bool | int | float | str) for item in value[:17]):
            return plain(value) if len(value) <= 16 else {"type": "list", "length": len(value)}
        return {"type": type(value).__name__, "length": len(value)}
    return class_name(value)


def _array(array: Any) -> Any:
    if not array.shape and hasattr(array, "item"):
        return plain(array.item())
    size = math.prod(array.shape)
    described: dict[str, Any] = {"shape": [int(n) for n in array.shape], "dtype": str(array.dtype)}
    if hasattr(array, "toarray"):  # sparse: its stored values
        return described | {"stored": int(array.nnz)}
    if getattr(array.dtype, "kind", "") in "biuf" and 0 < size <= LARGEST:
        flat = array.reshape(-1).astype("float64")
        described |= {
            "norm": math.sqrt(float(flat @ flat)),
            "min": float(flat.min()),
            "max": float(flat.max()),
        }
    if size <= 16 and hasattr(array, "tolist"):
        described["values"] = plain(array.tolist())
    return described


def _trees(estimator: Any) -> dict[str, Any]:
    single = getattr(estimator, "tree_", None)
    if single is not None and hasattr(single, "node_count"):
        return {"tree_": {"nodes": int(single.node_count), "depth": int(single.max_depth)}}
    trees = [tree.tree_ for tree in _flat(vars(estimator).get("estimators_")) if _is_tree(tree)]
    if not trees:
        return {}
    return {
        "trees": {
            "count": len(trees),
            "nodes": sum(int(tree.node_count) for tree in trees),
            "depth": max(int(tree.max_depth) for tree in trees),
        }
    }


def _is_tree(value: Any) -> bool:
    return hasattr(getattr(value, "tree_", None), "node_count")


def _flat(value: Any) -> list[Any]:
    if hasattr(value, "ravel"):
        return list(value.ravel())
    return list(value) if isinstance(value, list | tuple) else []


def numbers(estimator: Any) -> dict[str, float]:
    """How the fit went, in numbers; the largest where there is one per class or output."""
    found = {}
    for name in NUMBERS:
        value: Any = getattr(estimator, "__dict__", {}).get(name)
        if hasattr(value, "max") and getattr(value, "shape", None):
            value = value.max()
        if value is not None and not isinstance(value, list | tuple | str):
            found[name.rstrip("_")] = float(value)
    return found


def series(estimator: Any) -> Iterator[tuple[str, list[float]]]:
    """Values per iteration, by the attribute's name without its underscore."""
    for name in SERIES:
        values: Any = getattr(estimator, "__dict__", {}).get(name)
        if hasattr(values, "tolist"):
            values = values.tolist()
        if isinstance(values, list) and values and isinstance(values[0], int | float):
            yield name.rstrip("_"), values
