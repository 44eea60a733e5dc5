"""What trees look like: single ones, forests, boosted ones.

Reads what is fitted, imports no framework, and computes nothing that takes long: never
``feature_importances_`` of a forest, which starts threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

MOST_TREES = 256
"""Of more trees than this, so many are recorded, at equal distances."""

MOST_IN_A_FOLD = 32
"""The same inside a fold, of which there are many."""

_MOST_FEATURES = 50
_MOST_SUMMED = 2_000

Stage = Sequence[Any]
"""The trees of one iteration: one, or one for each class."""


def tree_metrics(stage: Iterable[Any]) -> dict[str, float]:
    """Depth, leaves, nodes and features of the trees of one iteration, taken together."""
    shapes = [shape for tree in stage if (shape := _shape(tree)) is not None]
    if not shapes:
        return {}
    depths, leaves, nodes, features = zip(*shapes, strict=True)
    return {
        "trees/depth": max(depths),
        "trees/leaves": sum(leaves),
        "trees/nodes": sum(nodes),
        "trees/features": len(np.unique(np.concatenate(features))),
    }


def tree_series(estimator: Any, most: int) -> Iterator[tuple[int, dict[str, float]]]:
    """For each tree of a fitted estimator, or iteration, its number and `tree_metrics`."""
    stages = _stages(estimator)
    for number in range(0, len(stages), -(-len(stages) // most) or 1):
        if metrics := tree_metrics(stages[number]):
            yield number, metrics


def importances(estimator: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Each feature with its importance and its splits; of many features the most important ones.

    The importance is that of the attribute ``feature_importances_``; where scikit-learn has none,
    as for HistGradientBoosting, it is the share of the gain of all splits.
    """
    found = _importances(estimator)
    if found is None:
        return
    shares, splits = found
    names = getattr(estimator, "feature_names_in_", None)
    for place in np.argsort(-shares, kind="stable")[:_MOST_FEATURES].tolist():
        values = {"importance/gain": shares[place], "importance/weight": splits[place]}
        yield f"x{place}" if names is None else str(names[place]), values


# ---------------------------------------------------------------------------- inside


def _stages(estimator: Any) -> Sequence[Stage]:
    own = getattr(estimator, "__dict__", {})
    if _shape(estimator) is not None:
        return [[estimator]]
    found = own.get("estimators_")
    if found is None:
        found = own.get("_predictors")
    if not isinstance(found, list | np.ndarray):
        return []
    return [list(one) if isinstance(one, list | np.ndarray) else [one] for one in found]


def _shape(tree: Any) -> tuple[int, int, int, Any] | None:
    """Depth, leaves, nodes, and the feature of each split; None where it is no tree."""
    inner: Any = getattr(tree, "__dict__", {}).get("tree_")
    if hasattr(inner, "node_count"):
        features = inner.feature
        return inner.max_depth, inner.n_leaves, inner.node_count, features[features >= 0]
    nodes = getattr(tree, "nodes", None)
    if isinstance(nodes, np.ndarray) and nodes.dtype.names and "feature_idx" in nodes.dtype.names:
        is_leaf = nodes["is_leaf"].astype(bool)
        leaves = int(np.count_nonzero(is_leaf))
        return int(nodes["depth"].max()), leaves, len(nodes), nodes["feature_idx"][~is_leaf]
    return None


def _importances(estimator: Any) -> tuple[Any, Any] | None:
    """Importance and splits of all features; None where they mean nothing together."""
    count = getattr(estimator, "n_features_in_", 0)
    stages = _stages(estimator)
    trees = [tree for stage in stages for tree in stage]
    if not 0 < len(trees) <= _MOST_SUMMED or not count:
        return None
    shapes: list[Any] = [_shape(tree) for tree in trees]
    if any(shape is None for shape in shapes):
        return None
    if hasattr(trees[0], "nodes"):
        return _of_gains(estimator, trees, count)
    if not hasattr(type(estimator), "feature_importances_"):
        return None  # of a bagging, say, whose trees have features of their own
    is_boosted = isinstance(vars(estimator).get("estimators_"), np.ndarray)
    weights = getattr(estimator, "estimator_weights_", None)
    total, splits = _zeros(count)
    for place, (tree, shape) in enumerate(zip(trees, shapes, strict=True)):
        splits += np.bincount(shape[-1], minlength=count)
        weight = 1.0 if weights is None else weights[place]
        total += weight * tree.tree_.compute_feature_importances(normalize=not is_boosted)
    return total / (total.sum() or 1.0), splits


def _of_gains(estimator: Any, trees: Sequence[Any], count: int) -> tuple[Any, Any]:
    total, splits = _zeros(count)
    for tree in trees:
        inner = tree.nodes[tree.nodes["is_leaf"] == 0]
        splits += np.bincount(inner["feature_idx"], minlength=count)
        total += np.bincount(inner["feature_idx"], inner["gain"], minlength=count)
    categorical = getattr(estimator, "is_categorical_", None)
    if categorical is not None:  # inside, these come first
        order = np.argsort(~np.asarray(categorical, bool), kind="stable")
        total[order], splits[order] = total.copy(), splits.copy()
    return total / (total.sum() or 1.0), splits


def _zeros(count: int) -> tuple[Any, Any]:
    return np.zeros(count), np.zeros(count, np.int64)
