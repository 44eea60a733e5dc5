"""Which arrays of a fitted estimator are coefficients that it has learned, and their names.

Reads attributes, imports no framework, and keeps nothing. What `sklearn_facts` describes in a few
words, in a document, is everything; here is what goes into the table `tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_COEFFICIENTS = """
coef_ intercept_ components_ cluster_centers_ dual_coef_ means_ covariances_ theta_ mean_ scale_
var_
"""

_HISTORIES = """
loss_curve_ validation_scores_ validation_score_ train_score_ train_scores_ oob_improvement_
oob_scores_ lower_bounds_ estimator_errors_ mse_path_ cv_values_ scores_ pvalues_ alphas_ Cs_
coef_path_ coefs_paths_
"""

_DATA = """
X_fit_ X_train_ y_train_ X_thresholds_ y_thresholds_ support_vectors_ L_ embedding_ dist_
dist_matrix_ affinity_matrix_ distances_ label_distributions_ oob_prediction_
oob_decision_function_ core_distances_ reachability_ classes_ class_weight_ class_count_
"""

COEFFICIENTS = frozenset(_COEFFICIENTS.split())
"""Taken also where they are as long as the training data."""

NOT_LEARNED = frozenset((_HISTORIES + _DATA).split())
"""Histories, scores, paths over settings; training data, and what there is for each of its rows."""

_MOST = 1_000
"""A list that is longer is no list of layers."""

_DENSE_PRODUCT = 20_000_000
"""Multiplications that may be spent on the coefficients of a linear support vector machine."""


def coefficients(estimator: Any, rows: int | None = None) -> dict[str, Any]:
    """Arrays of what an estimator has learned, by name; those in lists as ``coefs_.0``.

    Parameters
    ----------
    estimator : estimator
        Fitted.
    rows : int, optional
        Number of rows that it was fitted on: arrays of that length are taken for values of each
        row, unless their name is one of `COEFFICIENTS`.
    """
    found = dict(_own(estimator, rows))
    linear = _linear_support_vectors(estimator)
    if linear is not None:
        found["coef_"] = linear
    return found


def _own(estimator: Any, rows: int | None) -> Iterator[tuple[str, Any]]:
    for name, value in list(getattr(estimator, "__dict__", {}).items()):
        if name[:1] == "_" or name[-1:] != "_" or name in NOT_LEARNED:
            continue
        if isinstance(value, list | tuple):
            if 0 < len(value) <= _MOST and all(map(_is_measured, value)):
                yield from ((f"{name}.{place}", array) for place, array in enumerate(value))
        elif _is_measured(value) and (name in COEFFICIENTS or value.shape[0] != rows):
            yield name, value
        elif name in COEFFICIENTS and isinstance(value, float | np.floating):
            yield name, np.asarray(value)


def _is_measured(value: Any) -> bool:
    """Whether it is an array of floats."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0


def _linear_support_vectors(estimator: Any) -> Any:
    """``coef_`` of a linear support vector machine, which is computed when it is asked for."""
    if getattr(estimator, "kernel", None) != "linear":
        return None
    dual: Any = getattr(estimator, "dual_coef_", None)
    vectors: Any = vars(estimator).get("support_vectors_")
    if not (_is_measured(dual) and _is_measured(vectors)):
        return None
    if len(dual) * vectors.size > _DENSE_PRODUCT:
        return None
    coef = estimator.coef_
    return coef if _is_measured(coef) else None


def step_of_best(estimator: Any, last: int) -> int:
    """The iteration whose weights the estimator has: the best one after stopping early."""
    scores = getattr(estimator, "validation_scores_", None)
    if not getattr(estimator, "early_stopping", False) or not isinstance(scores, list):
        return last
    known = [(score, -place) for place, score in enumerate(scores) if score == score]
    return -max(known)[1] if known else last
