"""Gradients and hessians that XGBoostCallback records are those that XGBoost's trees grow from."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tachograph.testing.callback_contract import Record
from tachograph.values import canonical_json

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback, xgboost_tensors  # noqa: E402

ROWS, ROUNDS = 400, 4
COMMON = {"nthread": 1, "max_depth": 3, "eta": 0.5, "reg_lambda": 0, "base_score": None}
RELATIVE = 2e-5
"""Of a sum of float32 in another order."""

_DRAW = np.random.default_rng(0)
FEATURES = _DRAW.standard_normal((ROWS, 4)).astype(np.float32)
SIGNAL = FEATURES[:, 0] + FEATURES[:, 1] * FEATURES[:, 2] + 0.3 * _DRAW.standard_normal(ROWS)
WEIGHTS = _DRAW.uniform(0.5, 1.5, ROWS).astype(np.float32)
POSITIVE = np.exp(SIGNAL / 2)
BINARY = (SIGNAL > 0.3).astype(int)

OBJECTIVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "reg:squarederror": (SIGNAL, {"scale_pos_weight": 3.0}),
    "reg:squaredlogerror": (POSITIVE, {}),
    "reg:logistic": (1 / (1 + np.exp(-SIGNAL)), {}),
    "reg:pseudohubererror": (3 * SIGNAL, {"huber_slope": 0.5}),
    "reg:absoluteerror": (SIGNAL, {}),
    "reg:quantileerror": (SIGNAL, {"quantile_alpha": [0.1, 0.5, 0.9]}),
    "reg:gamma": (POSITIVE, {}),
    "reg:tweedie": (np.maximum(SIGNAL, 0), {"tweedie_variance_power": 1.3}),
    "count:poisson": (np.floor(2 * POSITIVE), {"max_delta_step": 0.3}),
    "binary:logistic": (BINARY, {"scale_pos_weight": 2.5}),
    "binary:logitraw": (BINARY, {}),
    "binary:hinge": (BINARY, {}),
    "multi:softprob": (np.digitize(SIGNAL, [-1, 1]), {"num_class": 3}),
    "multi:softmax": (np.digitize(SIGNAL, [-1, 1]), {"num_class": 3}),
}


def matrix_of(labels: Any, weights: Any = None, **fields: Any) -> Any:
    """The features with these labels."""
    return xgboost.DMatrix(FEATURES, labels, weight=weights, **fields)


def train(
    config: dict[str, Any], params: dict[str, Any], matrix: Any, rounds: int = ROUNDS, **more: Any
) -> Any:
    """Train with statistics of each round."""
    params = {name: value for name, value in (COMMON | params).items() if value is not None}
    callback = XGBoostCallback(config=config, every=1)
    more = {"callbacks": [callback], "verbose_eval": False} | more
    return xgboost.train(params, matrix, rounds, **more)


def recorded(record: Record, kind: str, statistic: str, **context: Any) -> list[float]:
    """A statistic of each step, of one class."""
    rows = record.rows("tensors", kind=kind, name="objective", context=canonical_json(context))
    rows.sort(key=lambda row: row["step"])
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], rows[-1]["step"] + 1))
    return [row[statistic] for row in rows]


def roots(booster: Any) -> list[tuple[float, float]]:
    """Of each tree the sums of gradients and of hessians that XGBoost itself found."""
    saved = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    found = []
    for tree in saved.get("gbtree", saved)["model"]["trees"]:
        hessians = tree["sum_hessian"][0]
        found.append((-tree["base_weights"][0] * hessians, hessians))
    return found


ALIKE = ("reg:quantileerror", "binary:logistic", "multi:softprob")
"""Objectives for which it is looked at rows that weigh the same, too."""


@pytest.mark.parametrize(
    ("objective", "weighted"),
    [(objective, True) for objective in OBJECTIVES] + [(objective, False) for objective in ALIKE],
)
def test_sums_are_those_of_the_roots(
    objective: str,
    weighted: bool,
    config: dict[str, Any],
    record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All rows together are what the root of each tree was grown from, from round 0 on."""
    if weighted:  # and as if there were many rows
        monkeypatch.setattr(xgboost_tensors, "BESIDE_VALUES", 0)
    labels, params = OBJECTIVES[objective]
    matrix = matrix_of(labels, WEIGHTS if weighted else None)
    booster = train(config, {"objective": objective, **params}, matrix)
    held, found = record(), roots(booster)
    classes = len(found) // ROUNDS
    for number in range(classes):
        context = {"class": number} if classes > 1 else {}
        gradients = np.multiply(recorded(held, "gradient", "mean", **context), ROWS)
        hessians = np.multiply(recorded(held, "hessian", "mean", **context), ROWS)
        norms = recorded(held, "gradient", "l2", **context)
        for step in range(ROUNDS):
            gradient, hessian = found[step * classes + number]
            assert hessians[step] == pytest.approx(hessian, rel=RELATIVE)
            # gradients cancel each other, so their sum is as exact as the largest of them
            assert gradients[step] == pytest.approx(gradient, abs=1e-4 * norms[step])


def derivatives(objective: str, margins: Any, labels: Any) -> tuple[Any, Any]:
    """First and second derivative of a loss in float64, by a step into the complex plane."""
    losses: dict[str, Callable[[Any], Any]] = {
        "reg:squarederror": lambda m: (m - labels) ** 2 / 2,
        "reg:squaredlogerror": lambda m: (np.log1p(m) - np.log1p(labels)) ** 2 / 2,
        "reg:pseudohubererror": lambda m: 0.25 * np.sqrt(1 + ((m - labels) / 0.5) ** 2),
        "reg:gamma": lambda m: m + labels * np.exp(-m),
        "reg:tweedie": lambda m: -labels * np.exp(-0.3 * m) / -0.3 + np.exp(0.7 * m) / 0.7,
        "count:poisson": lambda m: np.exp(m) - labels * m,
        "binary:logistic": lambda m: np.log1p(np.exp(m)) - labels * m,
    }
    loss = losses[objective]

    def first(values: Any) -> Any:
        return loss(values + 1e-20j).imag / 1e-20

    return first(margins), (first(margins + 1e-5) - first(margins - 1e-5)) / 2e-5


@pytest.mark.parametrize(
    "objective",
    [
        "reg:squarederror",
        "reg:squaredlogerror",
        "reg:pseudohubererror",
        "reg:gamma",
        "reg:tweedie",
        "count:poisson",
        "binary:logistic",
    ],
)
def test_rows_are_derivatives_of_the_loss(
    objective: str, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """Row by row, gradients and hessians are the derivatives of the loss."""
    labels, params = OBJECTIVES[objective]
    matrix = matrix_of(labels, WEIGHTS)
    params = params | {"objective": objective, "scale_pos_weight": None, "base_score": 0.5}
    booster = train(config, params, matrix)
    held = record()
    for step in range(1, ROUNDS):
        margins = booster.predict(matrix, output_margin=True, iteration_range=(0, step))
        gradient, hessian = derivatives(objective, margins.astype(np.float64), labels)
        if objective == "count:poisson":
            hessian *= np.exp(0.3)  # as XGBoost has it, with max_delta_step
        if objective == "reg:squaredlogerror":
            hessian = np.maximum(hessian, 1e-6)
        for kind, values in (("gradient", gradient * WEIGHTS), ("hessian", hessian * WEIGHTS)):
            expected = {
                "mean": values.mean(),
                "std": values.std(),
                "min": values.min(),
                "max": values.max(),
                "l2": np.linalg.norm(values),
            }
            for name, value in expected.items():
                found = recorded(held, kind, name)[step]
                assert found == pytest.approx(value, rel=1e-3, abs=1e-4), (kind, name)
    norms = dict(held.series("gradient_norm"))
    assert list(norms.values()) == pytest.approx(recorded(held, "gradient", "l2"))


def softmax(margins: Any, labels: Any) -> tuple[Any, Any]:
    """Gradients and hessians of the log loss of three classes, as XGBoost has them."""
    exponentials = np.exp(margins - margins.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities - np.eye(3)[labels], 2 * probabilities * (1 - probabilities)


def test_classes(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Each class has gradients of its own, and the norm is that of all together."""
    labels, params = OBJECTIVES["multi:softprob"]
    matrix = matrix_of(labels)
    booster = train(config, {"objective": "multi:softprob", **params}, matrix)
    held = record()
    margins = booster.predict(matrix, output_margin=True, iteration_range=(0, 2))
    gradient, hessian = softmax(margins.astype(np.float64), labels)
    for number in range(3):
        for kind, values in (("gradient", gradient), ("hessian", hessian)):
            column = values[:, number]
            for name, value in (("mean", column.mean()), ("max", column.max())):
                found = recorded(held, kind, name, **{"class": number})[2]
                assert found == pytest.approx(value, abs=1e-6)
    assert held.series("gradient_norm")[2][1] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    shapes = {row["shape"] for row in held.rows("tensors", kind="gradient")}
    assert shapes == {f"[{ROWS}]"}


@pytest.mark.parametrize("given", ["base_score", "base_margin", "targets"])
def test_first_round(given: str, config: dict[str, Any], record: Callable[[], Record]) -> None:
    """What the first round begins with may be given: a score, or a margin for each row."""
    labels: Any = BINARY
    params: dict[str, Any] = {"objective": "binary:logistic"}
    margins, fields = np.zeros(ROWS), {}
    if given == "base_score":
        params["base_score"] = 0.2
        margins += np.log(0.2 / 0.8)
    elif given == "base_margin":
        margins = SIGNAL
        fields = {"base_margin": SIGNAL}
    else:
        labels = np.stack([BINARY, 1 - BINARY], axis=1)
        params |= {"base_score": 0.2}
        margins += np.log(0.2 / 0.8)
    train(config, params, matrix_of(labels, **fields), 1)
    held = record()
    columns = np.atleast_2d(labels.T)
    for number, column in enumerate(columns):
        context = {"class": number} if len(columns) > 1 else {}
        (found,) = recorded(held, "gradient", "l2", **context)
        expected = np.linalg.norm(1 / (1 + np.exp(-margins)) - column)
        assert found == pytest.approx(expected, rel=1e-5)


def test_continued(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A training that goes on with a model begins with that model's margins, at its step."""
    matrix = matrix_of(BINARY)
    params = {"objective": "binary:logistic"}
    before = xgboost.train(params, matrix, 3)
    booster = train(config, params, matrix, xgb_model=before)
    held, found = record(), roots(booster)
    steps = {row["step"] for row in held.rows("tensors", kind="hessian")}
    assert steps == {3, 4, 5, 6}
    hessians = np.multiply(recorded(held, "hessian", "mean"), ROWS)
    assert hessians == pytest.approx([hessian for _, hessian in found[3:]], rel=RELATIVE)


# ---------------------------------------------------------------------------- objectives of users


class Seen:
    """An objective that keeps what it returned."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def __call__(self, margins: Any, matrix: Any) -> tuple[Any, Any]:
        probabilities = 1 / (1 + np.exp(-margins))
        pair = probabilities - matrix.get_label(), probabilities * (1 - probabilities)
        self.pairs.append(pair)
        return pair

    def for_labels(self, labels: Any, margins: Any) -> tuple[Any, Any]:
        """The same, as the scikit-learn interface asks for it."""
        return self(margins, xgboost.DMatrix(FEATURES, labels))


def assert_seen(record: Record, pairs: list[tuple[Any, Any]]) -> None:
    """The recorded statistics are those of these arrays."""
    for kind, place in (("gradient", 0), ("hessian", 1)):
        arrays = [pair[place].astype(np.float64) for pair in pairs]
        found = recorded(record, kind, "std")
        assert found == pytest.approx([array.std() for array in arrays], rel=1e-4)
        assert recorded(record, kind, "min") == pytest.approx([a.min() for a in arrays], rel=1e-6)


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_objective_of_user(
    booster: str, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """What a user's function returns is recorded, and it is called as often as without us."""
    seen = Seen()
    params = {"booster": booster, "rate_drop": 0.5 if booster == "dart" else None}
    train(config, params, matrix_of(BINARY), obj=seen)
    assert len(seen.pairs) == ROUNDS
    assert_seen(record(), seen.pairs)


def test_objective_of_estimator(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """The scikit-learn interface takes functions too."""
    seen = Seen()
    callback = XGBoostCallback(config=config, every=1)
    model = xgboost.XGBRegressor(
        n_estimators=ROUNDS, objective=seen.for_labels, n_jobs=1, callbacks=[callback]
    )
    model.fit(FEATURES, BINARY)
    assert len(seen.pairs) == ROUNDS
    assert_seen(record(), seen.pairs)


def test_objective_object(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """An objective that XGBoost asks for its class stays of that class."""
    module = pytest.importorskip("xgboost.objective")
    seen = Seen()

    class Reduced(module.TreeObjective):  # type: ignore[misc, name-defined]
        def __call__(self, iteration: int, margins: Any, matrix: Any) -> Any:
            gradient, hessian = seen(margins, matrix)
            return gradient.reshape(-1, 1), hessian.reshape(-1, 1)

    train(config, {}, matrix_of(BINARY), obj=Reduced())
    assert len(seen.pairs) == ROUNDS
    assert_seen(record(), seen.pairs)


def test_folds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Each fold records its own gradients, of a built-in objective and of a user's."""
    seen = Seen()
    params = {"objective": "binary:logistic", "nthread": 1}
    for objective in (None, seen):
        xgboost.cv(
            params,
            matrix_of(BINARY),
            3,
            nfold=2,
            obj=objective,
            callbacks=[XGBoostCallback(config=config, every=1)],
        )
    held = record()
    folds = held.runs(kind="fold")
    assert len(folds) == 4
    norms = [
        [row["l2"] for row in held.rows("tensors", run_id=fold["run_id"], kind="gradient")]
        for fold in folds
    ]
    assert [len(one) for one in norms] == [3] * 4
    assert norms[2:] == pytest.approx(
        np.array([np.linalg.norm(gradient) for gradient, _ in seen.pairs]).reshape(3, 2).T, rel=1e-5
    )
    assert norms[0] != norms[1]


# ---------------------------------------------------------------------------- what has none


@pytest.mark.parametrize("kind", ["rank:ndcg", "survival:cox", "dart"])
def test_margins_where_gradients_are_unknown(
    kind: str, config: dict[str, Any], record: Callable[[], Record]
) -> None:
    """Rows that depend on each other, and dropped trees: margins are recorded, nothing wrong."""
    matrix = matrix_of(POSITIVE if kind == "survival:cox" else BINARY)
    params: dict[str, Any] = {"objective": kind}
    if kind == "rank:ndcg":
        matrix.set_group([200, 200])
    if kind == "dart":
        params = {"booster": "dart", "rate_drop": 0.5, "objective": "binary:logistic"}
    booster = train(config, params, matrix)
    held = record()
    assert not held.rows("tensors", kind="gradient")
    rows = held.rows("tensors", kind="activation", name="margin")
    rows.sort(key=lambda row: row["step"])
    assert [row["step"] for row in rows] == list(range(ROUNDS))
    if kind != "dart":  # whose trees weigh less when more of them are dropped
        margins = booster.predict(matrix, output_margin=True, iteration_range=(0, 2))
        assert rows[2]["mean"] == pytest.approx(margins.mean(), abs=1e-6)
        assert rows[2]["max"] == pytest.approx(margins.max(), rel=1e-6)


def test_switches(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Weights and gradients are switched off apart; `every` chooses the steps."""
    matrix = matrix_of(BINARY)
    kinds = []
    for keywords in (
        {"weights": "off"},
        {"gradients": "off"},
        {"weights": "off", "gradients": "off"},
    ):
        callback = XGBoostCallback(config=config, every=3, **keywords)
        train(config, {"objective": "binary:logistic"}, matrix, 8, callbacks=[callback])
        held = record()
        run_id = held.runs()[-1]["run_id"]
        rows = held.rows("tensors", run_id=run_id)
        assert {row["step"] for row in rows} <= {0, 3, 6}
        kinds.append({(row["kind"], row["step"]) for row in rows})
    gradients = {(kind, step) for kind in ("gradient", "hessian") for step in (0, 3, 6)}
    assert kinds == [gradients, {("weight", step) for step in (0, 3, 6)}, set()]


def test_snapshots(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """With 'full' the arrays themselves are kept at chosen steps."""
    config = config | {"record": config["record"] | {"snapshots": [2]}}
    callback = XGBoostCallback(config=config, every=1, gradients="full")
    matrix = matrix_of(BINARY)
    train(config, {"objective": "binary:logistic"}, matrix, callbacks=[callback])
    artifacts = record().rows("artifacts", kind="snapshot")
    assert [(row["path"], row["step"]) for row in artifacts] == [("gradients/2.safetensors", 2)]
