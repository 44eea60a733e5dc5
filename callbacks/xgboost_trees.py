"""How trees grew, and what linear models weigh, from what XGBoost saves of a model.

All trees of some rounds are taken together: numpy is asked once a level, not once a tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from tachograph.callbacks.xgboost_objective import outputs_of

Array = Any  # numpy.ndarray


@dataclass(frozen=True)
class Growth:
    """The trees of one round.

    Attributes
    ----------
    metrics : mapping
        'trees/depth': edges between the root and the deepest leaf of them all.
        'trees/leaves': number of leaves, of all trees together.
        'trees/gain': sum of the gains of all splits, as XGBoost counts the gain of a feature.
        'trees/cover': sum of the hessians of the rows that a tree grew from, mean of the trees.
        'trees/features': number of different features that splits use.
    leaves : list of array
        Values of the leaves as XGBoost adds them to margins, an array for each class or target.
    """

    metrics: Mapping[str, float]
    leaves: list[Array]


def growth(learner: Mapping[str, Any]) -> list[Growth]:
    """The trees of each round of a saved model of trees.

    Parameters
    ----------
    learner : mapping
        What `Booster.save_raw('ubj')` holds under 'learner'.

    Raises
    ------
    LookupError
        It is no model of trees.
    """
    booster = learner["gradient_booster"]
    return _Forest(booster.get("gbtree", booster)["model"]).growth()


def linear_weights(learner: Mapping[str, Any]) -> tuple[Array, Array]:
    """Weights (feature, class) and biases (class) of a saved linear model."""
    saved = numpy.asarray(learner["gradient_booster"]["model"]["weights"], numpy.float32)
    table = saved.reshape(-1, outputs_of(learner["learner_model_param"]))
    return table[:-1], table[-1]


class _Forest:
    """The nodes of all trees of a model in one row of arrays."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        trees = model["trees"]
        self._trees = trees
        self._ends = numpy.asarray(model["iteration_indptr"])
        self._rounds = len(self._ends) - 1
        self._round_of = numpy.repeat(numpy.arange(self._rounds), numpy.diff(self._ends))
        self._class_of = numpy.asarray(model["tree_info"], numpy.int64)
        self._roots = numpy.cumsum([0, *(len(tree["left_children"]) for tree in trees)])[:-1]
        self._left = self._together("left_children", numpy.int64)
        self._right = self._together("right_children", numpy.int64)

    def _together(self, name: str, type_: Any) -> Array:
        return numpy.concatenate([tree[name] for tree in self._trees]).astype(type_)

    def growth(self) -> list[Growth]:
        splits, split_tree, leaves, leaf_tree, depth = self._walk()
        rounds, round_of = self._rounds, self._round_of[split_tree]
        gain = self._together("loss_changes", numpy.float64)[splits]
        features = self._together("split_indices", numpy.int64)[splits]
        width = int(features.max(initial=0)) + 1
        used = numpy.unique(round_of * width + features) // width
        cover = self._together("sum_hessian", numpy.float64)[self._roots]
        columns = {
            "trees/depth": depth,
            "trees/leaves": numpy.bincount(self._round_of[leaf_tree], minlength=rounds),
            "trees/gain": numpy.bincount(round_of, gain, minlength=rounds),
            "trees/cover": numpy.bincount(self._round_of, cover, minlength=rounds)
            / numpy.diff(self._ends),
            "trees/features": numpy.bincount(used, minlength=rounds),
        }
        values = self._leaf_values(leaves, leaf_tree)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [
            Growth(dict(zip(columns, row, strict=True)), arrays)
            for row, arrays in zip(rows, values, strict=True)
        ]

    def _walk(self) -> tuple[Array, Array, Array, Array, Array]:
        """Nodes that split and leaves, each with its tree, and the depth of each round.

        From the roots on, level by level: pruned nodes are still there, but nobody's children.
        """
        nodes, tree = self._roots, numpy.arange(len(self._roots))
        depth = numpy.zeros(self._rounds, numpy.int64)
        splits, leaves = [], []
        while len(nodes):
            is_split = self._left[nodes] >= 0
            leaves.append((nodes[~is_split], tree[~is_split]))
            nodes, tree = nodes[is_split], tree[is_split]
            splits.append((nodes, tree))
            depth[self._round_of[tree]] = len(splits)
            first = self._roots[tree]
            nodes = numpy.concatenate([first + self._left[nodes], first + self._right[nodes]])
            tree = numpy.concatenate([tree, tree])
        split_nodes, split_trees = map(numpy.concatenate, zip(*splits, strict=True))
        leaf_nodes, leaf_trees = map(numpy.concatenate, zip(*leaves, strict=True))
        return split_nodes, split_trees, leaf_nodes, leaf_trees, depth

    def _leaf_values(self, leaves: Array, leaf_tree: Array) -> list[list[Array]]:
        """For each round the values of its leaves, by class or target."""
        targets = int(self._trees[0]["tree_param"]["size_leaf_vector"])
        order = numpy.argsort(leaf_tree, kind="stable")
        leaves, leaf_tree = leaves[order], leaf_tree[order]
        if targets > 1:
            table = self._vectors(leaves, leaf_tree, targets)
            rounds = self._split(table, self._round_of[leaf_tree], self._rounds)
            return [list(one.T) for one in rounds]
        values = self._together("split_conditions", numpy.float32)[leaves]
        classes = int(self._class_of.max()) + 1
        group = self._round_of[leaf_tree] * classes + self._class_of[leaf_tree]
        arrays = self._split(values, group, self._rounds * classes)
        return [arrays[first : first + classes] for first in range(0, len(arrays), classes)]

    def _vectors(self, leaves: Array, leaf_tree: Array, targets: int) -> Array:
        """The values of leaves that have one for each target."""
        if "leaf_weights" not in self._trees[0]:  # before XGBoost 3.2
            return self._together("base_weights", numpy.float32).reshape(-1, targets)[leaves]
        counts = [len(tree["leaf_weights"]) // targets for tree in self._trees]
        first = numpy.cumsum([0, *counts])[leaf_tree]
        table = self._together("leaf_weights", numpy.float32).reshape(-1, targets)
        return table[first + self._right[leaves]]  # where a leaf has the number of its values

    @staticmethod
    def _split(values: Array, group: Array, groups: int) -> list[Array]:
        """The values of each group; groups are in ascending order but for trees of a forest."""
        order = numpy.argsort(group, kind="stable")
        ends = numpy.cumsum(numpy.bincount(group, minlength=groups))[:-1]
        return numpy.split(values[order], ends)
