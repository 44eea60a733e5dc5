"""What XGBoostCallback records of trees, features and linear weights is what the model has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tachograph.start import start_run
from tachograph.testing.callback_contract import Record
from tachograph.values import canonical_json

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback, xgboost_growth, xgboost_tensors  # noqa: E402
from tachograph.callbacks.xgboost_growth import GrowthRecord  # noqa: E402
from tachograph.callbacks.xgboost_ubjson import read  # noqa: E402

ROUNDS = 5
_DRAW = np.random.default_rng(0)
FEATURES = _DRAW.standard_normal((400, 4)).astype(np.float32)
SIGNAL = FEATURES[:, 0] + FEATURES[:, 1] * FEATURES[:, 2] + 0.3 * _DRAW.standard_normal(400)
TARGETS = np.stack([SIGNAL, -SIGNAL, FEATURES[:, 3]], axis=1)
CLASSES = np.digitize(SIGNAL, [-1, 1])

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "regression": (SIGNAL, {}),
    "classes": (CLASSES, {"objective": "multi:softprob", "num_class": 3}),
    "forest of classes": (
        CLASSES,
        {"objective": "multi:softprob", "num_class": 3, "num_parallel_tree": 2, "subsample": 0.5},
    ),
    "targets": (TARGETS, {}),
    "dart": (SIGNAL, {"booster": "dart", "rate_drop": 0.3}),
    "adaptive leaves": (SIGNAL, {"objective": "reg:absoluteerror"}),
    "pruned": (SIGNAL, {"tree_method": "exact", "gamma": 2.0, "max_depth": 5}),
    "never split": (SIGNAL, {"gamma": 1e9}),
    "deep": (SIGNAL, {"grow_policy": "lossguide", "max_depth": 0, "max_leaves": 40}),
}


@pytest.fixture(autouse=True)
def _each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees are read after each round, not once a second."""
    monkeypatch.setattr(xgboost_tensors, "BATCH_SECONDS", 0.0)


def matrix_of(labels: Any) -> Any:
    """The features, with names, and these labels."""
    return xgboost.DMatrix(FEATURES, labels, feature_names=["a", "b", "c", "d"])


def train(
    config: dict[str, Any], params: dict[str, Any], labels: Any, rounds: int = ROUNDS, **more: Any
) -> Any:
    """Train with statistics of each round."""
    params = {"nthread": 1, "max_depth": 3} | params
    more = {"callbacks": [XGBoostCallback(config=config, every=1)], "verbose_eval": False} | more
    return xgboost.train(params, matrix_of(labels), rounds, **more)


def values(record: Record, name: str) -> list[float]:
    """A metric of all rounds."""
    series = record.series(name)
    assert [step for step, _ in series] == list(range(len(series)))
    return [value for _, value in series]


def leaves(record: Record, step: int, **context: Any) -> Any:
    """The statistics of the leaves of a round."""
    (row,) = record.rows(
        "tensors", name="leaves", kind="weight", step=step, context=canonical_json(context)
    )
    return row


def assert_statistics(row: Any, expected: Any) -> None:
    """A recorded row has the statistics of these values."""
    expected = np.asarray(expected, np.float64)
    assert (row["size"], row["zeros"]) == (expected.size, np.count_nonzero(expected == 0))
    for name, value in {
        "mean": expected.mean(),
        "std": expected.std(),
        "min": expected.min(),
        "max": expected.max(),
        "l2": np.linalg.norm(expected),
    }.items():
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_trees(kind: str, config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Leaves, gain, features, depth and cover are those of XGBoost's own table of nodes."""
    labels, params = KINDS[kind]
    table = train(config, params, labels).trees_to_dataframe()
    held = record()
    trees = table["Tree"].nunique()
    table["Round"] = table["Tree"] // (trees // ROUNDS)
    classes = {"targets": 3, "classes": 3, "forest of classes": 3}.get(kind, 1)
    is_leaf = table["Feature"] == "Leaf"
    for number, (_, nodes) in enumerate(table.groupby("Round")):
        at, splits = nodes[is_leaf[nodes.index]], nodes[~is_leaf[nodes.index]]
        assert values(held, "trees/leaves")[number] == len(at)
        assert values(held, "trees/features")[number] == splits["Feature"].nunique()
        assert values(held, "trees/gain")[number] == pytest.approx(splits["Gain"].sum(), rel=1e-4)
        roots = nodes[nodes["Node"] == 0]
        assert values(held, "trees/cover")[number] == pytest.approx(roots["Cover"].mean(), rel=1e-4)
        assert values(held, "trees/depth")[number] == max(map(depth, dump_of(nodes)))
        for class_ in range(classes):
            own = at[at["Tree"] // (trees // ROUNDS // classes) % classes == class_]
            context = {"class": class_} if classes > 1 else {}
            assert_statistics(leaves(held, number, **context), own["Gain"])


def dump_of(nodes: Any) -> list[dict[str, Any]]:
    """Each tree of a table of nodes as node to children."""
    return [
        {row.ID: [] if row.Feature == "Leaf" else [row.Yes, row.No] for row in tree.itertuples()}
        for _, tree in nodes.groupby("Tree")
    ]


def depth(tree: dict[str, Any]) -> int:
    """Edges from the root, which comes first, to the deepest leaf."""

    def below(node: str) -> int:
        return max((1 + below(child) for child in tree[node]), default=0)

    return below(next(iter(tree)))


def test_vector_leaves(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """A leaf that has a value for each target counts in each of them."""
    booster = train(config, {"multi_strategy": "multi_output_tree"}, TARGETS)
    held = record()
    matrix = matrix_of(TARGETS)
    margins = booster.predict(matrix, output_margin=True, iteration_range=(0, 2))
    step = margins - booster.predict(matrix, output_margin=True, iteration_range=(0, 1))
    for target in range(3):
        row = leaves(held, 1, **{"class": target})
        assert row["size"] == len(np.unique(booster.predict(matrix, pred_leaf=True)[:, 1]))
        assert row["min"] == pytest.approx(step[:, target].min(), abs=1e-6)
        assert row["max"] == pytest.approx(step[:, target].max(), abs=1e-6)


def test_importance(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """The importance of features is XGBoost's own, of the model as it was at that round."""
    booster = train(config, {}, SIGNAL)
    held = record()
    for kind in ("gain", "weight", "cover"):
        for rounds in (1, ROUNDS):
            scores = booster[:rounds].get_score(importance_type=kind)
            found = {
                json.loads(row["context"])["feature"]: row["value"]
                for row in held.rows("metrics", name=f"importance/{kind}", step=rounds - 1)
            }
            assert found == pytest.approx(scores)


def test_importance_is_not_recorded_for_ever(
    config: dict[str, Any], record: Callable[[], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the model has grown by a share, and of the features with the largest gain."""
    monkeypatch.setattr(xgboost_growth, "MAX_FEATURES", 2)
    booster = train(config, {"max_depth": 2}, SIGNAL, 100)
    held = record()
    rows = held.rows("metrics", name="importance/gain")
    steps = sorted({row["step"] for row in rows})
    assert steps[:3] == [0, 1, 2]
    assert steps[-1] == 99
    assert len(steps) < 40
    gains = booster.get_score(importance_type="gain")
    best = sorted(gains, key=gains.__getitem__)[-2:]
    last = {json.loads(row["context"])["feature"] for row in rows if row["step"] == 99}
    assert last == set(best)


# ---------------------------------------------------------------------------- which rounds


@pytest.mark.parametrize("seconds", [0.0, 60.0])
@pytest.mark.parametrize("every", [1, 2, 7])
def test_rounds_in_batches(
    every: int,
    seconds: float,
    config: dict[str, Any],
    record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each n-th round is there, whether trees are read at once or all in the end."""
    monkeypatch.setattr(xgboost_tensors, "BATCH_SECONDS", seconds)
    callback = XGBoostCallback(config=config, every=every)
    booster = train(config, {}, SIGNAL, 10, callbacks=[callback])
    held = record()
    expected = list(range(0, 10, every))
    rows = sorted(held.rows("tensors", name="leaves"), key=lambda row: row["step"])
    assert [row["step"] for row in rows] == expected
    table = booster.trees_to_dataframe()
    for row in rows:
        own = table[(table["Tree"] == row["step"]) & (table["Feature"] == "Leaf")]
        assert_statistics(row, own["Gain"])
    assert [step for step, _ in held.series("trees/depth")] == expected


def test_continued(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Of a training that goes on with a model only the new rounds are recorded."""
    before = xgboost.train({"max_depth": 3}, matrix_of(SIGNAL), 3)
    booster = train(config, {}, SIGNAL, xgb_model=before)
    held = record()
    steps = [row["step"] for row in held.rows("tensors", name="leaves")]
    assert sorted(steps) == [3, 4, 5, 6, 7]
    table = booster.trees_to_dataframe()
    own = table[(table["Tree"] == 3) & (table["Feature"] == "Leaf")]
    assert_statistics(leaves(held, 3), own["Gain"])


def test_continued_between_records(
    config: dict[str, Any], record: Callable[[], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is recorded also where no round before it was."""
    monkeypatch.setattr(xgboost_tensors, "BATCH_SECONDS", 60.0)
    before = xgboost.train({"max_depth": 3}, matrix_of(SIGNAL), 3)
    callback = XGBoostCallback(config=config, every=50)
    train(config, {}, SIGNAL, 2, xgb_model=before, callbacks=[callback])
    held = record()
    assert not held.rows("tensors")
    assert {step for step, _ in held.series("importance/gain")} == {4}


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_early_stopping(
    seconds: float,
    config: dict[str, Any],
    record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rounds after the best one are recorded, also where the model loses them."""
    monkeypatch.setattr(xgboost_tensors, "BATCH_SECONDS", seconds)
    stopping = xgboost.callback.EarlyStopping(rounds=2, save_best=True)
    callbacks = [XGBoostCallback(config=config, every=1), stopping]
    other = xgboost.DMatrix(FEATURES[::-1], SIGNAL, feature_names=["a", "b", "c", "d"])
    booster = train(config, {}, SIGNAL, 60, callbacks=callbacks, evals=[(other, "other")])
    steps = [step for step, _ in record().series("trees/leaves")]
    assert len(steps) == booster.num_boosted_rounds() + 2
    assert steps == list(range(len(steps)))


def test_failure(
    config: dict[str, Any], record: Callable[[], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that fails leaves the trees of all rounds until then."""
    monkeypatch.setattr(xgboost_tensors, "BATCH_SECONDS", 60.0)

    class Fail(xgboost.callback.TrainingCallback):  # type: ignore[misc, name-defined]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            if epoch == 3:
                raise ZeroDivisionError
            return False

    with pytest.raises(ZeroDivisionError):
        train(config, {}, SIGNAL, callbacks=[XGBoostCallback(config=config, every=1), Fail()])
    assert [step for step, _ in record().series("trees/depth")] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:.*manually specified the `updater`:UserWarning")
def test_updated_trees(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """While old trees are updated nobody may look at them; in the end they are recorded."""
    before = xgboost.train({"max_depth": 3}, matrix_of(SIGNAL), 3)
    params = {"process_type": "update", "updater": "refresh", "refresh_leaf": True}
    booster = train(config, params, 2 * SIGNAL, 3, xgb_model=before)
    held, table = record(), booster.trees_to_dataframe()
    for step in range(3):
        own = table[(table["Tree"] == step) & (table["Feature"] == "Leaf")]
        assert_statistics(leaves(held, step), own["Gain"])


def test_folds(config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Each fold of a cross-validation has its own trees."""
    params = {"max_depth": 3, "nthread": 1}
    callback = XGBoostCallback(config=config, every=1)
    xgboost.cv(params, matrix_of(SIGNAL), 3, nfold=2, callbacks=[callback])
    held = record()
    gains = [
        [row["value"] for row in held.rows("metrics", run_id=fold["run_id"], name="trees/gain")]
        for fold in held.runs(kind="fold")
    ]
    assert [len(one) for one in gains] == [3, 3]
    assert gains[0] != gains[1]
    assert not held.rows("metrics", run_id=held.run()["run_id"], name="trees/gain")


class Clock:
    """Seconds that pass when told to, and a little with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


@pytest.mark.parametrize("round_seconds", [0.001, 0.5])
def test_budget(
    round_seconds: float,
    config: dict[str, Any],
    record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With fast rounds steps are left out, all by the same distance; with slow ones none are."""
    clock, rounds = Clock(), 256
    booster = xgboost.train({"max_depth": 2}, matrix_of(SIGNAL), rounds)
    run = start_run(config=config)
    growth = GrowthRecord(run, 0, "auto", 0.02, clock)

    def spend(first: int, end: int, stride: int) -> int:
        clock.now += 0.002 * len(range(first, end, stride))  # of each tree
        return log_rounds(booster, first, end, stride)

    log_rounds = growth._log_rounds
    monkeypatch.setattr(growth, "_log_rounds", lambda _, *where: spend(*where))
    batch = max(1, int(0.1 / round_seconds))
    for end in range(batch, rounds + 1, batch):
        clock.now += batch * round_seconds
        growth.read(booster, end)
    growth.read(booster, rounds, final=True)
    run.finish()
    steps = [step for step, _ in record().series("trees/depth")]
    if round_seconds == 0.5:
        assert steps == list(range(rounds))
        return
    assert 2 <= len(steps) < rounds / 4
    assert all(step % 8 == 0 for step in steps)


# ---------------------------------------------------------------------------- linear models


@pytest.mark.parametrize("labels", [SIGNAL, TARGETS], ids=["one", "targets"])
def test_linear_weights(labels: Any, config: dict[str, Any], record: Callable[[], Record]) -> None:
    """Weights and biases of a linear model, and their updates, are recorded as tensors."""
    seen: list[Any] = [np.zeros((5, labels.ndim * 2 - 1))]

    class Look(xgboost.callback.TrainingCallback):  # type: ignore[misc, name-defined]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            model = read(model.save_raw("ubj"))["learner"]["gradient_booster"]["model"]
            seen.append(np.array(model["weights"]).reshape(seen[0].shape))
            return False

    callbacks = [XGBoostCallback(config=config, every=1, weights="full"), Look()]
    train(config, {"booster": "gblinear", "max_depth": None}, labels, callbacks=callbacks)
    held = record()
    assert not held.series("trees/depth")
    for class_ in range(seen[0].shape[1]):
        context = canonical_json({"class": class_} if labels is TARGETS else {})
        for name, part in (("weight", slice(0, 4)), ("bias", 4)):
            for step in range(ROUNDS):
                new, old = seen[step + 1][part, class_], seen[step][part, class_]
                for kind, expected in (("weight", new), ("update", new - old)):
                    (row,) = held.rows("tensors", name=name, kind=kind, step=step, context=context)
                    assert_statistics(row, expected)
                    assert row["shape"] == ("[4]" if name == "weight" else "[]")
    assert held.rows("artifacts", kind="snapshot")


# ---------------------------------------------------------------------------- the file format


@pytest.mark.parametrize("kind", ["regression", "targets", "dart"])
def test_ubjson_is_what_json_is(kind: str) -> None:
    """Both formats of a model hold the same."""
    labels, params = KINDS[kind]
    booster = xgboost.train({"max_depth": 3} | params, matrix_of(labels), 3)
    booster.set_attr(note="grün")
    found = read(booster.save_raw("ubj"))
    assert_alike(found, json.loads(bytes(booster.save_raw("json"))))


def assert_alike(found: Any, expected: Any) -> None:
    """Numbers are equal as float32, all else exactly; typed arrays count as lists."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert np.float32(found) == np.float32(expected)
    else:
        assert found == expected


@pytest.mark.parametrize("raw", [b"", b"{L", b"?", b"[$d#L\x00\x00\x00\x00\x00\x00\x00\x09abc"])
def test_other_bytes(raw: bytes) -> None:
    """What is not of this format is refused."""
    with pytest.raises(ValueError, match=r"UBJSON|buffer"):
        read(raw)
