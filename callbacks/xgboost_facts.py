"""What XGBoost knows about a training, as plain documents: params, data, model.

Reads, and never changes, what it is given; keeps no reference to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import xgboost
from xgboost.callback import EarlyStopping, TrainingCallback

from tachograph.values import qualified_name

FRAMEWORK = f"xgboost {xgboost.__version__}"

SAMPLE_ROWS = 512
"""So many rows of a matrix, evenly spread, are in the digest of its features."""

MAX_STORED = 2 << 20
"""Up to so many values a matrix is fingerprinted as a whole, beside the training."""

MAX_HASHED = 16 << 20
"""Of more values than these, as labels, evenly spread ones are in the digest."""

MAX_IMPORTANCES = 200
"""Features beyond which their importance is not part of the model's document."""

_TWINS = (
    ("eta", "learning_rate"),
    ("gamma", "min_split_loss"),
    ("lambda", "reg_lambda"),
    ("alpha", "reg_alpha"),
    ("nthread", "n_jobs"),
    ("seed", "random_state"),
)
"""Two names of one param, of which XGBoost's configuration has both."""

_ETA = re.compile(r'"(?:eta|learning_rate)":"([^"]+)"')

# ---------------------------------------------------------------------------- params


def given_params(arguments: Mapping[str, Any], estimator: Mapping[str, Any]) -> dict[str, Any]:
    """What the user asked for: the params, and the other arguments of the call."""
    params: dict[str, Any] = {}
    fitted = estimator.get("self")
    if fitted is not None:
        params = {"estimator": qualified_name(type(fitted)), **fitted.get_params(deep=False)}
        params.pop("callbacks", None)
    params |= _known(_pairs(arguments.get("params")))
    params |= {name: arguments.get(name) for name in ("num_boost_round", "obj", "maximize")}
    params["custom_metric"] = arguments.get("custom_metric")
    cv = ("nfold", "stratified", "shuffle", "seed", "folds")
    params |= {f"cv.{name}": arguments[name] for name in cv if name in arguments}
    params = _known(params)
    for pair in _TWINS:
        for name, twin in (pair, pair[::-1]):
            if name in params:
                params.setdefault(twin, params[name])
    return params


def _known(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _pairs(params: Any) -> dict[str, Any]:
    """Params as a mapping; XGBoost also takes pairs, of which `eval_metric` may be several."""
    if params is None or isinstance(params, Mapping):
        return dict(params or {})
    metrics = [value for name, value in params if name == "eval_metric"]
    return dict(params) | ({"eval_metric": metrics} if len(metrics) > 1 else {})


def callback_params(callbacks: list[TrainingCallback]) -> dict[str, Any]:
    """Names of the callbacks, and the settings of early stopping."""
    params: dict[str, Any] = {}
    if callbacks:
        params["callbacks"] = [qualified_name(type(callback)) for callback in callbacks]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            attributes = ("rounds", "metric_name", "data", "maximize", "save_best", "_min_delta")
            for name in attributes:
                value = getattr(callback, name, None)
                if value is not None:
                    params[f"early_stopping.{name.lstrip('_')}"] = value
    return params


def effective_params(config: str) -> dict[str, Any]:
    """What XGBoost made of the params, from `Booster.save_config()` after the first round."""
    learner = json.loads(config)["learner"]
    params: dict[str, Any] = {}
    for section in ("generic_param", "learner_train_param", "learner_model_param"):
        params |= learner.get(section, {})
    params |= _leaves(learner.get("gradient_booster", {})) | _leaves(learner.get("objective", {}))
    params["eval_metric"] = [metric["name"] for metric in learner.get("metrics", [])]
    for name in ("name", "num_trees", "debug_synchronize", "max_cached_hist_node"):
        params.pop(name, None)
    return {name: _parse(value) for name, value in params.items()}


def _leaves(section: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of nested sections under their own names, which are unique in XGBoost."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            found |= _leaves(value)
        elif not isinstance(value, list):
            found[name] = value
    return found


def _parse(value: Any) -> Any:
    """A text of the configuration as the number that it says; floats there are of 32 bits."""
    if not isinstance(value, str):
        return value
    text = value[1:-1] if re.fullmatch(r"\[[^,\[\]]+\]", value) else value
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return short_float(text)
    return value


def short_float(text: str) -> float:
    """The shortest number that is the same float32: 0.300000012 is 0.3."""
    return float(str(numpy.float32(text)))


def read_eta(model: Any) -> float | None:
    """The learning rate that the next round will use; None where the booster has none."""
    found = _ETA.search(first_booster(model).save_config())
    return short_float(found[1]) if found else None


def rounds_done(model: Any) -> int:
    """Rounds that the model has been trained for before; 0 where its params are not valid."""
    try:
        return int(model.num_boosted_rounds())
    except xgboost.core.XGBoostError:  # the training is about to fail with it
        return 0


def first_booster(model: Any) -> xgboost.Booster:
    """The model itself, or that of the first fold."""
    return model if isinstance(model, xgboost.Booster) else model.cvfolds[0].bst


def pairs(model: Any, matrix: Any = None) -> list[tuple[xgboost.Booster, Any]]:
    """The model with its data, or each fold's; data that is not known is None."""
    if isinstance(model, xgboost.Booster):
        return [(model, matrix)]
    return [(fold.bst, fold.dtrain) for fold in model.cvfolds]


def library_document() -> dict[str, Any]:
    """How the library was built, and its global settings."""
    return {
        "version": xgboost.__version__,
        "world_size": xgboost.collective.get_world_size(),
        "build": xgboost.build_info(),
        "config": xgboost.get_config(),
    }


# ---------------------------------------------------------------------------- data


def matrices(arguments: Mapping[str, Any]) -> Iterator[tuple[str, xgboost.DMatrix]]:
    """Each matrix of the call once, with its name; that of the training is 'train'."""
    train = arguments.get("dtrain")
    if train is not None:
        yield "train", train
    for matrix, name in arguments.get("evals") or ():
        if matrix is not train:
            yield ("evals.train" if name == "train" else name), matrix


def estimator_data(estimator: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What was given to the `fit` of an estimator, as it was given."""
    given = [("train", estimator.get("X"), estimator.get("y"))]
    given += [(f"validation_{i}", *pair) for i, pair in enumerate(estimator.get("eval_set") or ())]
    for name, features, labels in given:
        for letter, data in (("X", features), ("y", labels)):
            if data is not None:
                yield f"{name}.{letter}", data


def role(name: str) -> str | None:
    """What a split is for: XGBoost is often asked to evaluate the training data too.

    None for labels.
    """
    if name.endswith(".y"):
        return None
    return "training" if name.partition(".")[0] == "train" or name == "evals.train" else "watched"


def is_readable(matrix: xgboost.DMatrix, document: Mapping[str, Any]) -> bool:
    """Whether another thread may ask for the rows; those in files only XGBoost may read."""
    return type(matrix) is not xgboost.DMatrix or "digest" in document


def is_small(document: Mapping[str, Any]) -> bool:
    """Whether all of it may be read, which copies it."""
    return bool(document["stored"] <= MAX_STORED)


def matrix_document(matrix: xgboost.DMatrix) -> dict[str, Any]:
    """What a DMatrix holds: shape, features, which fields it has, and digests.

    Takes about 1 ms, whatever the size: of the features, `SAMPLE_ROWS` rows are digested, where
    the kind of matrix can give rows.
    """
    rows, columns = matrix.num_row(), matrix.num_col()
    document: dict[str, Any] = {
        "kind": qualified_name(type(matrix)),
        "shape": [rows, columns],
        "rows": rows,
        "stored": matrix.num_nonmissing(),
        "feature_names": matrix.feature_names,
        "feature_types": matrix.feature_types,
    }
    ends = matrix.get_uint_info("group_ptr")
    document["groups"] = max(0, ends.size - 1)
    document["group_ptr"] = _values_document(ends) if ends.size else None
    for name in ("label", "weight", "base_margin"):
        values = matrix.get_float_info(name)
        document[name] = _values_document(values) if values.size else None
    for name in ("label_lower_bound", "label_upper_bound", "feature_weights"):
        if (values := matrix.get_float_info(name)).size:
            document[name] = _values_document(values)
    if type(matrix) is xgboost.DMatrix and rows:
        with contextlib.suppress(Exception):  # kinds of data that cannot be sliced
            document |= _features_document(matrix, rows)
    return document


def _values_document(values: Any) -> dict[str, Any]:
    step = max(1, -(-values.size // MAX_HASHED))
    return {
        "shape": list(values.shape),
        "digest": _digest(values.ravel()[::step]),
        "digest_of": "content" if step == 1 else "sample",
    }


def _features_document(matrix: xgboost.DMatrix, rows: int) -> dict[str, Any]:
    picked = numpy.unique(numpy.linspace(0, rows - 1, SAMPLE_ROWS).astype(numpy.int32))
    sparse = matrix.slice(picked, allow_groups=True).get_data()
    return {
        "digest": _digest(sparse.indptr, sparse.indices, sparse.data),
        "digest_of": "content" if len(picked) == rows else "sample",
    }


def _digest(*arrays: Any) -> str:
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(numpy.ascontiguousarray(array).tobytes())
    return f"sha256:{hasher.hexdigest()}"


# ---------------------------------------------------------------------------- model


def model_document(model: xgboost.Booster) -> dict[str, Any]:
    """Size, digest and best round of a model, and how important its features are."""
    learner = json.loads(model.save_config())["learner"]
    content = model.save_raw("ubj")
    booster = learner["gradient_booster"]["name"]
    document: dict[str, Any] = {
        "kind": qualified_name(type(model)),
        "booster": booster,
        "objective": learner["objective"]["name"],
        "rounds": model.num_boosted_rounds(),
        "trees": _parse(_leaves(learner["gradient_booster"]).get("num_trees")),
        "features": model.num_features(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "attributes": model.attributes(),
    }
    if model.num_features() <= MAX_IMPORTANCES:
        kind = "weight" if booster == "gblinear" else "gain"
        with contextlib.suppress(xgboost.core.XGBoostError):
            document["importance"] = {kind: model.get_score(importance_type=kind)}
    return document


def weights_document(model: Mapping[str, Any]) -> dict[str, Any]:
    """What tells whether another training made the same model, from the model's document."""
    digest = {"digest": f"sha256:{model['sha256']}", "digest_of": "content"}
    return {"kind": model["kind"], "bytes": model["bytes"], **digest}


def best_round(model: Any) -> tuple[int, float] | None:
    """Round and score that early stopping found best."""
    round_, score = model.attr("best_iteration"), model.attr("best_score")
    return None if round_ is None or score is None else (int(round_), float(score))


# ---------------------------------------------------------------------------- scores


def values_at(index: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one round; of folds, the mean, and the standard deviation as ``name/std``."""
    values: dict[str, float] = {}
    for name, scores in metrics.items():
        if index < len(scores):
            score = scores[index]
            if isinstance(score, tuple):
                values[name], values[f"{name}/std"] = score
            else:
                values[name] = score
    return values


def scored_rounds(history: Mapping[str, Any]) -> int:
    """How many rounds have scores."""
    return max((len(scores) for one in history.values() for scores in one.values()), default=0)


def parse_scores(text: str) -> dict[str, dict[str, float]]:
    """Dataset to metric to value, from ``[0]\\ttrain-logloss:0.5\\ttest-logloss:0.6``."""
    found: dict[str, dict[str, float]] = {}
    for part in text.split()[1:]:
        name, _, value = part.rpartition(":")
        dataset, _, metric = name.partition("-")
        found.setdefault(dataset, {})[metric] = float(value)
    return found
