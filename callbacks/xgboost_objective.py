"""Gradients and hessians of XGBoost's own objectives, from the margins of the rows.

The formulae are those of XGBoost 2.1 to 3.4 in the same float32, so that what comes out is what
trees grow from, but for the rounding of exp and log. Objectives that look at several rows at once
(rank:…, survival:…) have none here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import xgboost

Array = Any  # numpy.ndarray of float32
Pair = tuple[Array, Array]
"""Gradients and hessians, each (class or target, row)."""

_SMALLEST = numpy.float32(1e-16)


@dataclass(frozen=True)
class Settings:
    """What of XGBoost's configuration decides on gradients.

    Attributes
    ----------
    objective : str
        Its name, such as 'binary:logistic'.
    params : mapping
        Settings of the objective, as texts.
    base_score : tuple of float
        What all margins begin with, in the units of predictions; one for all or one for each.
    outputs : int
        Classes or targets.
    booster : str
        'gbtree', 'dart' or 'gblinear'.
    drops_trees : bool
        Whether the booster leaves out trees when it computes gradients, as DART does.
    """

    objective: str
    params: Mapping[str, str]
    base_score: tuple[float, ...]
    outputs: int
    booster: str
    drops_trees: bool

    @classmethod
    def read(cls, config: str) -> Settings:
        """Those in `Booster.save_config()`; `base_score` is right only after a first round."""
        learner = json.loads(config)["learner"]
        booster, objective = learner["gradient_booster"], learner["objective"]
        sections = (one for one in objective.values() if isinstance(one, Mapping))
        model = learner["learner_model_param"]
        dropout = booster.get("dart_train_param", {})
        return cls(
            objective=objective["name"],
            params={name: text for section in sections for name, text in section.items()},
            base_score=tuple(map(float, model["base_score"].strip("[]").split(","))),
            outputs=outputs_of(model),
            booster=booster["name"],
            drops_trees=any(float(dropout.get(name, 0)) for name in ("rate_drop", "one_drop")),
        )

    @property
    def is_known(self) -> bool:
        """Whether gradients follow from margins and labels, row by row."""
        return self.objective in _FORMULAE and not self.drops_trees

    def first_margin(self, rows: int, base_margin: Array) -> Array:
        """The margins (class, row) before any tree."""
        if base_margin.size:
            return numpy.asarray(base_margin, numpy.float32).reshape(rows, -1).T
        link = _LINKS.get(self.objective)
        scores = [link(score) if link else score for score in self.base_score]
        margin = numpy.empty((self.outputs, rows), numpy.float32)
        margin[:] = numpy.asarray(scores, numpy.float32)[:, numpy.newaxis]
        return margin

    def gradients(self, margin: Array, label: Array, weight: Array) -> Pair:
        """Gradients and hessians of all rows.

        Parameters
        ----------
        margin : array (class, row) of float32
        label : array (row,) or (row, target)
        weight : array (row,)
            Empty where all rows weigh the same.

        Raises
        ------
        KeyError
            `is_known` is false.
        """
        label = label.reshape(margin.shape[1], -1).T
        with numpy.errstate(all="ignore"):  # what overflows is recorded, not warned of
            gradient, hessian = _FORMULAE[self.objective](margin, label, self.params)
            weight = self._scaled(weight, label)
            if weight is None:
                return gradient, hessian
            if self.objective.startswith("multi:"):  # where the smallest hessian is a weighted one
                return gradient * weight, _at_least(_SMALLEST, hessian * weight)
            if self.objective == "binary:hinge":
                return gradient * weight, numpy.where(hessian == 1, weight, hessian)
            return gradient * weight, hessian * weight

    def _scaled(self, weight: Array, label: Array) -> Array | None:
        """Weights of rows and of positive ones together; None where all weigh the same."""
        scale = numpy.float32(self.params.get("scale_pos_weight", 1))
        if self.objective not in _SCALES_POSITIVE or scale == 1:
            return weight if weight.size else None
        positive = numpy.where(label == 1, scale, numpy.float32(1))
        return positive * weight if weight.size else positive


def outputs_of(model: Mapping[str, str]) -> int:
    """Classes or targets, from 'learner_model_param' of a configuration."""
    return max(1, int(model["num_class"]), int(model.get("num_target", 1)))


# ---------------------------------------------------------------------------- formulae

Formula = Callable[[Array, Array, Mapping[str, str]], Pair]


def _at_least(bound: Any, hessian: Array) -> Array:
    """Hessians with a bound, also for what is not a number; to look first takes less time."""
    return hessian if hessian.min(initial=bound) >= bound else numpy.fmax(hessian, bound)


def _squared_error(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    return margin - label, numpy.ones_like(margin)


def _logistic(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    probability = numpy.negative(margin)
    numpy.exp(probability, out=probability)  # where it is infinite, the probability is 0
    probability += 1
    numpy.divide(numpy.float32(1), probability, out=probability)
    hessian = 1 - probability
    hessian *= probability
    probability -= label
    return probability, _at_least(_SMALLEST, hessian)


def _softmax(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    probability = numpy.exp(margin - numpy.maximum(margin.max(axis=0), 0))
    probability /= probability.sum(axis=0)
    hessian = _at_least(_SMALLEST, 2 * probability * (1 - probability))
    rows = numpy.arange(margin.shape[1])
    probability[label[0].astype(numpy.int64), rows] -= 1
    return probability, hessian


def _squared_log_error(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    above = numpy.fmax(margin, numpy.float32(-1 + 1e-6))
    difference = numpy.log1p(above) - numpy.log1p(label)
    hessian = (1 - difference) / numpy.square(above + 1)
    return difference / (above + 1), _at_least(numpy.float32(1e-6), hessian)


def _pseudo_huber(margin: Array, label: Array, params: Mapping[str, str]) -> Pair:
    difference = margin - label
    slope = numpy.square(numpy.float32(params.get("huber_slope", 1)))
    square = numpy.square(difference)
    root = numpy.sqrt(1 + square / slope)
    return difference / root, slope / ((slope + square) * root)


def _gamma(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    share = label / numpy.exp(margin)
    return 1 - share, share


def _poisson(margin: Array, label: Array, params: Mapping[str, str]) -> Pair:
    step = numpy.float32(params.get("max_delta_step", 0.7))
    return numpy.exp(margin) - label, numpy.exp(margin + step)


def _tweedie(margin: Array, label: Array, params: Mapping[str, str]) -> Pair:
    power = numpy.float32(params.get("tweedie_variance_power", 1.5))
    first, second = 1 - power, 2 - power
    low, high = label * numpy.exp(first * margin), numpy.exp(second * margin)
    return high - low, second * high - first * low


def _absolute_error(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    return numpy.sign(margin - label), numpy.ones_like(margin)


def _hinge(margin: Array, label: Array, _: Mapping[str, str]) -> Pair:
    side = 2 * label - 1
    is_inside = margin * side < 1
    smallest = numpy.finfo(numpy.float32).tiny
    return (
        numpy.where(is_inside, -side, numpy.float32(0)),
        numpy.where(is_inside, numpy.float32(1), smallest),
    )


def _quantile(margin: Array, label: Array, params: Mapping[str, str]) -> Pair:
    text = params["quantile_alpha"].strip("[]()")
    alphas = numpy.asarray([[float(one)] for one in text.split(",")], numpy.float32)
    return numpy.where(margin >= label, 1 - alphas, -alphas), numpy.ones_like(margin)


_FORMULAE: dict[str, Formula] = {
    "reg:squarederror": _squared_error,
    "reg:linear": _squared_error,
    "reg:squaredlogerror": _squared_log_error,
    "reg:logistic": _logistic,
    "reg:pseudohubererror": _pseudo_huber,
    "reg:absoluteerror": _absolute_error,
    "reg:quantileerror": _quantile,
    "reg:gamma": _gamma,
    "reg:tweedie": _tweedie,
    "count:poisson": _poisson,
    "binary:logistic": _logistic,
    "binary:logitraw": _logistic,
    "binary:hinge": _hinge,
    "multi:softmax": _softmax,
    "multi:softprob": _softmax,
}

if tuple(map(int, xgboost.__version__.split(".")[:2])) >= (3, 4):  # they are smoothed since
    for _name in ("reg:absoluteerror", "reg:quantileerror"):
        del _FORMULAE[_name]

_SCALES_POSITIVE = {
    "reg:squarederror",
    "reg:linear",
    "reg:logistic",
    "reg:gamma",
    "binary:logistic",
    "binary:logitraw",
}
"""Objectives that know `scale_pos_weight`."""


def _logit(probability: float) -> float:
    bounded = min(max(probability, 1e-6), 1 - 1e-6)
    return -math.log(1 / bounded - 1)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


_LINKS: dict[str, Callable[[float], float]] = {
    "reg:logistic": _logit,
    "binary:logistic": _logit,
    "reg:gamma": _log,
    "reg:tweedie": _log,
    "count:poisson": _log,
    "survival:cox": _log,
    "survival:aft": _log,
}
"""From a prediction to a margin; where nothing is said they are the same."""
