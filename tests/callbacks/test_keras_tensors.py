"""Weights and gradients of Keras trainings, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

from tachograph import recorder  # noqa: E402
from tachograph.callbacks import KerasCallback, keras_statistics, keras_tap  # noqa: E402
from tachograph.callbacks.tensors_host import Meter, histogram  # noqa: E402
from tachograph.testing.callback_contract import QUIET, Record  # noqa: E402

BACKEND = keras.config.backend()
IN_GRAPH = BACKEND in ("jax", "tensorflow")
RATE = 0.1
Read = Callable[[], Record]


@pytest.fixture
def config(store_url: str) -> dict[str, Any]:
    """Record every step, with histograms at every second."""
    return QUIET | {
        "backend": store_url,
        "project": "tests",
        "record": {"system": False, "every": 1, "histograms": 2},
    }


def make_data(rows: int = 24) -> tuple[Any, Any]:
    draw = np.random.RandomState(0)
    x = draw.rand(rows, 4).astype("float32")
    return x, x.sum(1, keepdims=True) + 1


def linear(optimizer: Any = None, **settings: Any) -> Any:
    """A model whose gradients can be worked out by hand."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="line")], name="model")
    model.compile(optimizer or keras.optimizers.SGD(RATE), "mse", **settings)
    return model


def deep(optimizer: Any = None, **settings: Any) -> Any:
    """A model that draws random numbers and has weights that are not trained."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2),
            layers.Dense(1, name="last"),
        ],
        name="model",
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **settings)
    return model


def fit(model: Any, callbacks: Sequence[Any], **settings: Any) -> Any:
    x, y = make_data()
    quiet = {"batch_size": 8, "epochs": 1, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=list(callbacks), **(quiet | settings))
    return model


def gradients(weights: Sequence[Any], rows: slice) -> list[Any]:
    """Of the mean squared error of `linear`, in float64."""
    x, y = (part[rows].astype("float64") for part in make_data())
    kernel, bias = (np.asarray(weight, "float64") for weight in weights)
    off = 2 * (x @ kernel + bias - y) / len(x)
    return [x.T @ off, off.sum(0)]


def check(row: Any, expected: Any) -> None:
    """All statistics of a row are those of an array."""
    expected = np.asarray(expected, "float64")
    assert row["size"] == expected.size
    found = {
        "mean": expected.mean(),
        "std": expected.std(),
        "min": expected.min(),
        "max": expected.max(),
        "l2": np.sqrt((expected**2).sum()),
    }
    assert {name: row[name] for name in found} == pytest.approx(found, rel=1e-4, abs=1e-6)
    counts = (row["zeros"], row["nan"], row["inf"])
    assert counts == ((expected == 0).sum(), 0, 0)


def rows_of(read: Record, kind: str, context: str = "{}") -> dict[tuple[str, int], Any]:
    rows = [row for row in read.rows("tensors", kind=kind) if row["context"] == context]
    found = {(row["name"].split("/", 1)[1], row["step"]): row for row in rows}
    assert len(found) == len(rows)
    return found


# ---------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("where", ["host", "device"])
def test_every_number_is_the_trainings_own(
    config: dict[str, Any], record: Read, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, weights and updates of each step are those that numpy works out."""
    if where == "device":
        if not IN_GRAPH:
            pytest.skip("statistics in a graph are those of JAX and TensorFlow")
        monkeypatch.setattr(keras_tap, "is_on_host", lambda model: False)
    model = linear()
    weights = [np.asarray(one, "float64") for one in model.get_weights()]
    fit(model, [KerasCallback(config=config)], epochs=2)
    read = record()
    found = {kind: rows_of(read, kind) for kind in ("gradient", "update", "weight")}
    assert {len(rows) for rows in found.values()} == {12}
    norms = read.series("gradient_norm", phase="train")
    assert [step for step, _ in norms] == [1, 2, 3, 4, 5, 6]
    for step, norm in norms:
        batch = 8 * ((step - 1) % 3)
        given = gradients(weights, slice(batch, batch + 8))
        weights = [one - RATE * gradient for one, gradient in zip(weights, given, strict=True)]
        for place, name in enumerate(("line/kernel", "line/bias")):
            check(found["gradient"][name, step], given[place])
            check(found["update"][name, step], -RATE * given[place])
            check(found["weight"][name, step], weights[place])
        assert norm == pytest.approx(math.sqrt(sum((one**2).sum() for one in given)), rel=1e-4)
    row = found["weight"]["line/kernel", 4]
    assert (row["shape"], row["dtype"], row["epoch"]) == ("[4,1]", "float32", 1)
    with_histogram = {step for (_, step), row in found["weight"].items() if row["histogram"]}
    assert with_histogram == {2, 4, 6}
    bins = json.loads(row["histogram"])
    assert sum(sum(counts) for _, counts in bins) == 4


def test_clipped_gradients_are_a_second_set(config: dict[str, Any], record: Read) -> None:
    """Before clipping, and as the optimizer uses them; with the norm of both."""
    model = linear(keras.optimizers.SGD(RATE, clipvalue=0.5))
    weights = model.get_weights()
    fit(model, [KerasCallback(config=config)], batch_size=24)
    read = record()
    given = gradients(weights, slice(None))
    used = [np.clip(one, -0.5, 0.5) for one in given]
    for place, name in enumerate(("line/kernel", "line/bias")):
        check(rows_of(read, "gradient")[name, 1], given[place])
        check(rows_of(read, "gradient", '{"stage":"clipped"}')[name, 1], used[place])
        check(rows_of(read, "update")[name, 1], -RATE * used[place])
    ((_, norm),) = read.series("gradient_norm_clipped")
    assert norm == pytest.approx(math.sqrt(sum((one**2).sum() for one in used)), rel=1e-5)


@pytest.mark.parametrize("way", ["accumulated", "scaled", "factor"])
def test_gradients_as_the_optimizer_uses_them(
    config: dict[str, Any], record: Read, way: str
) -> None:
    """Summed over the batches of a step, and without the scale of the loss."""
    optimizers = keras.optimizers
    optimizer = {
        "accumulated": lambda: optimizers.SGD(RATE, gradient_accumulation_steps=3),
        "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(RATE), initial_scale=64.0),
        "factor": lambda: optimizers.SGD(RATE, loss_scale_factor=16.0),
    }[way]()
    model = linear(optimizer)
    weights = model.get_weights()
    fit(model, [KerasCallback(config=config)])
    found = rows_of(record(), "gradient")
    rows = slice(None) if way == "accumulated" else slice(0, 8)
    assert {step for _, step in found} == ({1} if way == "accumulated" else {1, 2, 3})
    for name, given in zip(("line/kernel", "line/bias"), gradients(weights, rows), strict=True):
        check(found[name, 1], given)


def test_weights_that_are_not_trained(config: dict[str, Any], record: Read) -> None:
    """Moving averages at each step, frozen weights once, states of random generators never."""
    model = deep()
    model.get_layer("first").trainable = False
    model.compile(keras.optimizers.Adam(0.01), "mse")
    fit(model, [KerasCallback(config=config)])
    steps: dict[str, list[int]] = {}
    for name, step in rows_of(record(), "weight"):
        steps.setdefault(name, []).append(step)
    assert steps.pop("first/kernel") == steps.pop("first/bias") == [3]
    names = ("norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance")
    assert steps == {name: [1, 2, 3] for name in (*names, "last/kernel", "last/bias")}


def test_embedding(config: dict[str, Any], record: Read) -> None:
    """The gradient of an embedding is that of all its rows."""
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), layers.Embedding(9, 3, name="table"), layers.Flatten()],
        name="model",
    )
    model.compile(keras.optimizers.SGD(RATE, global_clipnorm=0.01), "mse")
    x = np.array([[1, 1], [1, 4]], "int32")
    model.fit(x, np.ones((2, 6), "float32"), verbose=0, callbacks=[KerasCallback(config=config)])
    row = rows_of(record(), "gradient")["table/embeddings", 1]
    assert (row["shape"], row["zeros"]) == ("[9,3]", 7 * 3)
    clipped = rows_of(record(), "gradient", '{"stage":"clipped"}')["table/embeddings", 1]
    assert clipped["l2"] == pytest.approx(0.01, rel=1e-4)


def test_nan(config: dict[str, Any], record: Read) -> None:
    """NaN is counted, the finite values are measured, and the norm is NaN."""
    x, y = make_data()
    y[8:16] = math.nan
    callback = KerasCallback(config=config)
    linear().fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback])
    read = record()
    found = rows_of(read, "gradient")
    assert [found["line/kernel", step]["nan"] for step in (1, 2, 3)] == [0, 4, 4]
    assert found["line/kernel", 2]["mean"] is None
    assert [row["special"] for row in read.rows("metrics", name="gradient_norm")][1] == "nan"


NASTY = [
    np.zeros(0),
    np.zeros((3, 4)),
    np.ones(7),
    np.float64(2.5),
    np.array([math.nan, math.inf, -math.inf, 1.0, 0.0, -3.0]),
    np.full(5, math.nan),
    np.array([3e38, 3e38, -1e38]),
    np.array([1e-25, -3e-25, 2e-25, 0.0]),
    1000 + np.linspace(0, 0.01, 1000),
    np.random.RandomState(0).randn(70_001),
]


def test_statistics_in_a_graph() -> None:
    """They are those that are taken on the host, for tensors of every sort."""
    arrays = [np.asarray(array, "float32") for array in NASTY]
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    moments, counts = (keras.ops.convert_to_numpy(x) for x in keras_statistics.statistics(tensors))
    numbers = keras_statistics.read(moments, counts, [array.size for array in arrays])
    meter = Meter()
    for array, row in zip(arrays, numbers, strict=True):
        expected = meter.measure(array)
        np.testing.assert_allclose(row[:5], expected[:5], rtol=2e-4, atol=1e-7 * np.abs(row[3]))
        assert tuple(row[5:]) == expected[5:]
    bins = keras.ops.convert_to_numpy(keras_statistics.histograms(tensors[1:]))
    assert keras_statistics.read_histograms(bins) == [histogram(array) for array in arrays[1:]]


# ---------------------------------------------------------------------------- laws

MODES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (lambda: None, {}),
    "clipped": (lambda: keras.optimizers.AdamW(0.01, clipnorm=0.1, use_ema=True), {}),
    "accumulated": (lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2), {}),
    "scaled": (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)), {}),
    "eager": (lambda: None, {"run_eagerly": True}),
    "no_jit": (lambda: None, {"jit_compile": False}),
    "jit": (lambda: None, {"jit_compile": True}),
    "several": (lambda: None, {"steps_per_execution": 2}),
}


@pytest.mark.parametrize("mode", MODES)
def test_training_is_unchanged_in_every_mode(config: dict[str, Any], mode: str) -> None:
    """The same weights, states of the optimizer and random numbers, bit by bit."""
    make, settings = MODES[mode]
    if mode in ("several", "jit") and not IN_GRAPH:
        pytest.skip("there is no steps_per_execution, and compiling takes half a minute")

    def train(callbacks: Sequence[Any]) -> list[bytes]:
        keras.utils.set_random_seed(7)
        model = fit(deep(make(), **settings), callbacks, epochs=2, shuffle=True)
        values = [*model.variables, *model.optimizer.variables]
        return [keras.ops.convert_to_numpy(one.value).tobytes() for one in values]

    assert train([KerasCallback(config=config)]) == train([])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_training_is_unchanged_in_half_precision(config: dict[str, Any], policy: str) -> None:
    """The same in types of two bytes, also where the loss is scaled."""
    keras.config.set_dtype_policy(policy)
    try:
        test_training_is_unchanged_in_every_mode(config, "plain")
    finally:
        keras.config.set_dtype_policy("float32")


def test_model_is_left_as_it_was(config: dict[str, Any], tmp_path: Path) -> None:
    """A model saved in the middle of a fit is whole; after the fit nothing of ours is on it."""
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    model = fit(deep(), [saver, KerasCallback(config=config)])
    own = model.train_function
    assert "tachograph" not in type(own).__module__
    assert "train_step" not in vars(model)
    assert not {"apply", "stateless_apply"} & set(vars(model.optimizer))
    x, _ = make_data()
    saved = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(saved.predict(x, verbose=0), model.predict(x, verbose=0))
    fit(model, [KerasCallback(config=config)])
    assert model.train_function is own


def test_nothing_is_kept_of_recorded_steps(config: dict[str, Any]) -> None:
    """After a fit, and after one that failed, neither the callback nor a step holds the model."""

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise ZeroDivisionError("planted")

    callback = KerasCallback(config=config)
    references = []
    for others in ([], [Fails()]):
        model = deep()
        with contextlib.suppress(ZeroDivisionError):
            fit(model, [callback, *others])
        references.append(weakref.ref(model))
        del model, others
    recorder.close_all()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_fit_after_another_optimizer(config: dict[str, Any], record: Read) -> None:
    """A model that is compiled anew is tapped anew; steps are those of its optimizer."""
    model = fit(linear(), [KerasCallback(config=config)])
    model.compile(keras.optimizers.SGD(RATE, clipnorm=0.1), "mse")
    fit(model, [KerasCallback(config=config)])
    steps = [step for step, _ in record().series("gradient_norm")]
    assert sorted(steps) == [1, 1, 2, 2, 3, 3]
    assert len(record().series("gradient_norm_clipped")) == 3


# ---------------------------------------------------------------------------- when


@pytest.mark.skipif(not IN_GRAPH, reason="Keras has no steps_per_execution there")
def test_blocks_of_steps(config: dict[str, Any], record: Read) -> None:
    """Of steps that are executed together the last is recorded."""
    model = linear(steps_per_execution=2)
    weights = [np.asarray(one, "float64") for one in model.get_weights()]
    fit(model, [KerasCallback(config=config)])
    found = rows_of(record(), "gradient")
    first = gradients(weights, slice(0, 8))
    weights = [one - RATE * gradient for one, gradient in zip(weights, first, strict=True)]
    check(found["line/kernel", 2], gradients(weights, slice(8, 16))[0])
    assert {step for _, step in found} == {2, 3}


def test_interval(config: dict[str, Any], record: Read) -> None:
    """Steps that `every` divides, over all fits of the optimizer."""
    model = linear()
    for _ in range(2):
        fit(model, [KerasCallback(config=config, every=2, weights="off")], epochs=1)
    read = record()
    assert sorted(step for step, _ in read.series("gradient_norm")) == [2, 4, 6]
    assert {row["kind"] for row in read.rows("tensors")} == {"gradient"}


def test_short_fit_with_a_budget(config: dict[str, Any], record: Read) -> None:
    """No step is compiled once more where that is too dear; the weights are there at the end."""
    config = config | {"record": {"system": False, "every": "auto"}}
    fit(deep(), [KerasCallback(config=config)])
    read = record()
    weights = {step for _, step in rows_of(read, "weight")}
    if IN_GRAPH:
        assert weights == {3}
        assert read.series("gradient_norm") == []
    else:
        assert 1 in weights
    assert [row for row in rows_of(read, "weight").values() if row["histogram"]]


def test_snapshots(config: dict[str, Any], record: Read) -> None:
    """Whole tensors at chosen steps and at the end, as the model has them then."""
    load = pytest.importorskip("safetensors.numpy").load_file
    config = config | {"record": {"system": False, "every": 1, "snapshots": [2]}}
    callback = KerasCallback(config=config, weights="full", gradients="full")
    model = fit(deep(), [callback])
    files = {row["path"]: row for row in record().rows("artifacts", kind="snapshot")}
    assert set(files) == {
        f"{kind}.safetensors" for kind in ("weights/2", "weights/3", "gradients/2")
    }
    last = _content(files["weights/3.safetensors"], load, config)
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(
            last[variable.path], keras.ops.convert_to_numpy(variable.value)
        )
    assert "model/norm/moving_mean" in last
    middle = _content(files["gradients/2.safetensors"], load, config)
    row = rows_of(record(), "gradient")["first/kernel", 2]
    check(row, middle["model/first/kernel"])


def _content(row: Any, load: Any, config: dict[str, Any]) -> Any:
    folder = Path(config["backend"].removeprefix("sqlite:///")).parent
    (path,) = (one for one in folder.rglob(f"*{row['sha256']}*") if one.is_file())
    return load(path)


# ---------------------------------------------------------------------------- what cannot be


class OwnStep(keras.Model):  # type: ignore[misc]
    """Trains without the optimizer that it was compiled with."""

    def __init__(self) -> None:
        super().__init__(name="model")
        self.line = keras.layers.Dense(1, name="line")

    def call(self, x: Any) -> Any:
        return self.line(x)

    def train_step(self, *arguments: Any) -> Any:
        if BACKEND == "jax":
            (trained, *rest), _ = arguments
            return {"loss": 0.0}, ([one * 0.5 for one in trained], *rest)
        for one in self.trainable_variables:
            one.assign(one * 0.5)
        return {"loss": 0.0}


def reasons(read: Record) -> list[str]:
    return [row["message"] for row in read.rows("events", kind="warning")]


def test_step_without_the_models_optimizer(config: dict[str, Any], record: Read) -> None:
    """Weights and updates are recorded, no gradient is, and an event says why."""
    model = OwnStep()
    model(make_data()[0])
    model.compile(keras.optimizers.SGD(RATE), "mse")
    fit(model, [KerasCallback(config=config)])
    read = record()
    assert rows_of(read, "gradient") == {}
    assert reasons(read) == ["gradients are not recorded: the model's optimizer was not given any"]
    weights, updates = rows_of(read, "weight"), rows_of(read, "update")
    for step in (2, 3):
        halved = weights["line/kernel", step - 1]["l2"] / 2
        assert weights["line/kernel", step]["l2"] == pytest.approx(halved)
        assert updates["line/kernel", step]["l2"] == pytest.approx(halved)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is about TensorFlow's XLA")
def test_gradients_that_would_change_the_step(config: dict[str, Any], record: Read) -> None:
    """Where XLA compiles for TensorFlow, steps are recorded without gradients, and it is said."""
    fit(linear(jit_compile=True), [KerasCallback(config=config)])
    read = record()
    assert len(rows_of(read, "weight")) == len(rows_of(read, "update")) == 6
    assert rows_of(read, "gradient") == {}
    assert "XLA" in reasons(read)[0]


def test_two_callbacks(config: dict[str, Any], record: Read) -> None:
    """The second records the weights of each epoch, and says so."""
    fit(linear(), [KerasCallback(config=config), KerasCallback(config=config)], epochs=2)
    read = record()
    assert len(read.series("gradient_norm")) == 6
    (message,) = reasons(read)
    assert "at the ends of epochs" in message
    counts = {run["run_id"]: 0 for run in read.runs()}
    for row in read.rows("tensors", kind="weight"):
        counts[row["run_id"]] += row["name"] == "model/line/kernel"
    assert sorted(counts.values()) == [2, 6]


@pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
@pytest.mark.parametrize("fault", ["keras_gradients.used", "keras_tensors.log", "keras_record.key"])
def test_broken_recording_of_steps(
    config: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails while a step is looked at, the training is the same."""

    def train(callbacks: Sequence[Any]) -> list[bytes]:
        keras.utils.set_random_seed(7)
        return [one.tobytes() for one in fit(deep(), callbacks).get_weights()]

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("planted")

    without = train([])
    monkeypatch.setattr(f"tachograph.callbacks.{fault}", broken)
    assert train([KerasCallback(config=config)]) == without


@pytest.mark.skipif(not IN_GRAPH, reason="torch has no graph")
def test_graph_that_cannot_be_made(
    config: dict[str, Any], record: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is done by the model's own function, with the same batch."""
    without = fit(linear_from(0), []).get_weights()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr("tachograph.callbacks.keras_graph.GraphTap._with_seen", broken)
    found = fit(linear_from(0), [KerasCallback(config=config)]).get_weights()
    for one, other in zip(found, without, strict=True):
        np.testing.assert_array_equal(one, other)
    read = record()
    assert "planted" in reasons(read)[0]
    assert {step for _, step in rows_of(read, "weight")} == {3}


def linear_from(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    return linear()
