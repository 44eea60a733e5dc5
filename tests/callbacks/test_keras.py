"""KerasCallback keeps the laws of all callbacks, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

from tachograph import start_run  # noqa: E402
from tachograph.callbacks import KerasCallback  # noqa: E402
from tachograph.testing import CallbackContract  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402

BACKEND = keras.config.backend()
TRAIN, VAL, TEST = '{"phase":"train"}', '{"phase":"val"}', '{"phase":"test"}'
Read = Callable[[], Record]


def make_data(rows: int = 32) -> tuple[Any, Any]:
    """The same samples each time, without touching the random numbers of the training."""
    x = np.random.RandomState(0).rand(rows, 4).astype("float32")
    return x, x.sum(1, keepdims=True)


def make_model(optimizer: Any = None, **settings: Any) -> Any:
    """A small model that draws random numbers."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.05), **({"loss": "mse"} | settings))
    return model


def fit(callbacks: Sequence[Any], model: Any = None, **settings: Any) -> Any:
    """Fit on 24 shuffled samples in batches of 8, and validate on 8; gives the model."""
    model = make_model() if model is None else model
    x, y = make_data()
    quiet = {"epochs": 2, "batch_size": 8, "verbose": 0, "validation_data": (x[24:], y[24:])}
    model.fit(x[:24], y[:24], callbacks=list(callbacks), **(quiet | settings))
    return model


class Raise(keras.callbacks.Callback):
    """Raises at the hook of this name."""

    def __init__(self, error: BaseException, at: str) -> None:
        super().__init__()
        setattr(self, at, self._raise)
        self._error = error

    def _raise(self, *_: Any, **__: Any) -> None:
        raise self._error


class TestContract(CallbackContract):
    """The laws of all callbacks."""

    tensor_kinds = frozenset({"gradient", "update", "weight"})

    def make_callback(self, **keywords: Any) -> Any:
        return KerasCallback(**keywords)

    def train(self, callbacks: Sequence[Any]) -> bytes:
        keras.utils.set_random_seed(7)
        model = fit(callbacks, make_model(keras.optimizers.Adam(0.01), metrics=["mae"]))
        predictions = model.predict(make_data()[0], verbose=0)
        drawn = keras.ops.convert_to_numpy(keras.random.uniform((3,)))
        parts = [*model.get_weights(), predictions, drawn]
        state = pickle.dumps((random.getstate(), np.random.get_state()))
        if BACKEND == "torch":
            import torch

            state += pickle.dumps(torch.get_rng_state().tolist())
        return b"".join([part.tobytes() for part in parts]) + state

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        fit([*callbacks, Raise(error, "on_train_batch_end")])

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        model, (x, y) = make_model(), make_data()
        model.fit(x, y, verbose=0, callbacks=list(callbacks))
        return [weakref.ref(model), weakref.ref(x), weakref.ref(y)]

    def resume(self, folder: Path, make_callback: Callable[[], Any]) -> None:
        def backup() -> Any:
            return keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)

        fit([make_callback(), backup()])
        fit([make_callback(), backup()], epochs=3)


# ---------------------------------------------------------------------------- metrics


def test_values_of_epochs(config: dict[str, Any], record: Read) -> None:
    """Each value of the epoch's logs is a point of its phase, at the optimizer's step."""
    callback = KerasCallback(config=config, gradients="off")
    model = fit([callback], make_model(metrics=["mae"]))
    read = record()
    assert read.metrics() == {
        *((name, TRAIN) for name in ("loss", "mae", "lr")),
        *((f"time/{name}_seconds", TRAIN) for name in ("step", "epoch")),
        *((name, VAL) for name in ("loss", "mae", "time/epoch_seconds")),
    }
    history = model.history.history
    assert read.series("loss", phase="train") == list(zip([3, 6], history["loss"], strict=True))
    assert read.series("mae", phase="val") == list(zip([3, 6], history["val_mae"], strict=True))
    assert [row["epoch"] for row in read.rows("metrics", name="lr")] == [0, 1]


def test_values_that_other_callbacks_add(config: dict[str, Any], record: Read) -> None:
    """What a callback behind ours puts into the epoch's logs is recorded, like History has it."""

    class Adds(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs |= {"f1": 0.5, "val_f1": 0.25, "text": "no number"}

    fit([KerasCallback(config=config), Adds()])
    read = record()
    assert read.series("f1", phase="train") == [(3, 0.5), (6, 0.5)]
    assert read.series("f1", phase="val") == [(3, 0.25), (6, 0.25)]


def test_initial_epoch_and_second_fit(config: dict[str, Any], record: Read) -> None:
    """Epochs have Keras's number, and steps are those of the optimizer over all fits."""
    callback = KerasCallback(config=config)
    model = fit([callback], epochs=1)
    fit([callback], model, initial_epoch=5, epochs=6)
    rows = record().rows("metrics", name="lr")
    assert [(row["step"], row["epoch"]) for row in rows] == [(3, 0), (6, 5)]


def test_running_means_on_request(config: dict[str, Any], record: Read) -> None:
    """Metrics of batches are running means, and a series of their own."""
    fit([KerasCallback(config=config, batches=2)], batch_size=4, epochs=1)
    read = record()
    running = read.series("loss", mean="running")
    assert [step for step, _ in running] == [2, 4, 6]
    (whole,) = read.rows("metrics", name="loss", context=TRAIN)
    assert running[-1] == (whole["step"], pytest.approx(whole["value"]))


def test_asynchronous_dispatch_stays(config: dict[str, Any]) -> None:
    """No hook of batches is overridden, so Keras need not wait for the device."""
    with_ours = keras.callbacks.CallbackList([KerasCallback(config=config, batches=1)])
    without = keras.callbacks.CallbackList([])
    for name in ("_async_train", "_async_test", "_async_predict"):
        assert getattr(with_ours, name) == getattr(without, name) == (BACKEND != "tensorflow")


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution there")
def test_steps_per_execution(config: dict[str, Any], record: Read) -> None:
    """Steps are counted, and not the executions of several."""
    fit([KerasCallback(config=config)], make_model(steps_per_execution=3))
    assert [step for step, _ in record().series("lr")] == [3, 6]


def test_accumulation(config: dict[str, Any], record: Read) -> None:
    """Batches that make one step together count as one."""
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=3)
    fit([KerasCallback(config=config)], make_model(optimizer))
    assert [step for step, _ in record().series("lr")] == [1, 2]


# ---------------------------------------------------------------------------- learning rates


def test_schedule(config: dict[str, Any], record: Read) -> None:
    """The rate is the one that the last step of the epoch used, not that of the next."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 2, 3], [0.4, 0.2, 0.1, 0.05])
    fit([KerasCallback(config=config)], make_model(keras.optimizers.SGD(schedule)))
    read = record()
    assert read.series("lr") == [(3, pytest.approx(0.2)), (6, pytest.approx(0.05))]
    params = read.params(read.run()["run_id"])
    assert params["optimizer.learning_rate.config.boundaries"] == [0, 2, 3]


@pytest.mark.parametrize("ours_first", [True, False])
def test_callbacks_that_set_the_rate(
    config: dict[str, Any], record: Read, ours_first: bool
) -> None:
    """In either order of callbacks the recorded rate is the one that the epoch used."""
    setter = keras.callbacks.LearningRateScheduler(lambda epoch: [0.5, 0.25][epoch])
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=0, min_delta=9)
    ours = KerasCallback(config=config)
    others = [setter, plateau]
    fit([ours, *others] if ours_first else [*others, ours])
    assert record().series("lr") == [(3, 0.5), (6, 0.25)]


# ---------------------------------------------------------------------------- evaluation


def test_evaluation_after_a_fit(config: dict[str, Any], record: Read) -> None:
    """It belongs to the fit's run, as its own phase and at its last step."""
    callback = KerasCallback(config=config)
    model = fit([callback])
    x, y = make_data()
    loss = model.evaluate(x, y, verbose=0, callbacks=[callback])
    model.predict(x, verbose=0, callbacks=[callback])
    read = record()
    assert [run["status"] for run in read.runs()] == ["finished"]
    assert read.series("loss", phase="test") == [(6, loss)]
    assert [step for step, _ in read.series("time/epoch_seconds", phase="predict")] == [6]


def test_evaluation_alone(config: dict[str, Any], record: Read) -> None:
    """An evaluation or prediction of a model that this callback has not fitted is a run."""
    callback = KerasCallback(config=config)
    fit([callback])
    model, (x, y) = make_model(), make_data()
    loss = model.evaluate(x, y, verbose=0, callbacks=[callback])
    model.predict(x, verbose=0, callbacks=[callback])
    read = record()
    assert [run["kind"] for run in read.runs()] == ["run", "test", "predict"]
    assert {run["status"] for run in read.runs()} == {"finished"}
    assert read.series("loss", phase="test") == [(0, loss)]


def test_evaluation_within_a_fit_by_another(config: dict[str, Any], record: Read) -> None:
    """An evaluation that a user's callback makes is not taken for the fit's validation."""
    ours = KerasCallback(config=config)

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            for callbacks in ([], [ours]):
                self.model.evaluate(*make_data(), verbose=0, callbacks=callbacks)

    fit([Evaluates(), ours])
    read = record()
    assert len(read.series("loss", phase="train")) == len(read.series("loss", phase="val")) == 2
    assert {run["status"] for run in read.runs()} == {"finished"}


def test_evaluation_that_fails(config: dict[str, Any], record: Read) -> None:
    """Alone it is a failed run; after a fit it is an event of that run, which has ended well."""
    callback, (x, y) = KerasCallback(config=config), make_data()
    callbacks = [callback, Raise(ZeroDivisionError("planted"), "on_test_batch_end")]
    for model in (make_model(), fit([callback])):
        with pytest.raises(ZeroDivisionError):
            model.evaluate(x, y, verbose=0, callbacks=callbacks)
    read = record()
    assert sorted(run["status"] for run in read.runs()) == ["failed", "finished"]
    assert len(read.rows("events", kind="error")) == 2


# ---------------------------------------------------------------------------- facts


def test_what_is_known_of_a_fit(config: dict[str, Any], record: Read) -> None:
    """Arguments, optimizer, compilation, backend, seed, model and data are there."""
    keras.utils.set_random_seed(11)
    fit([KerasCallback(config=config)], make_model(metrics=["mae"]))
    read = record()
    run = read.run()
    params = read.params(run["run_id"])
    assert run["framework"] == f"keras {keras.__version__}"
    assert (params["fit.epochs"], params["fit.batch_size"], params["fit.steps_per_epoch"]) == (
        2,
        8,
        3,
    )
    assert (params["optimizer.name"], params["optimizer.learning_rate"]) == (
        "SGD",
        pytest.approx(0.05),
    )
    assert (params["compile.loss"], params["compile.metrics"]) == ("mse", ["mae"])
    assert params["keras.backend"] == BACKEND
    assert (params["keras.dtype_policy"], params["keras.seed"]) == ("float32", 11)
    assert {row["source"] for row in read.rows("params")} == {"framework"}
    documents = {row["section"]: json.loads(row["document"]) for row in read.rows("provenance")}
    assert documents["model"]["parameters"] == documents["model"]["trainable"] == 49
    assert documents["model"]["layers"][0]["shapes"] == {"kernel": [4, 8], "bias": [8]}
    assert documents["data.train"]["parts"]["x"]["shape"] == [24, 4]
    assert documents["data.val"]["parts"]["y"]["rows"] == 8


def test_streams_are_not_consumed(config: dict[str, Any], record: Read) -> None:
    """Data that are made as the training goes on are named, and not one batch is asked for."""
    asked: list[int] = []

    def batches() -> Iterable[Any]:
        for number in range(100):
            asked.append(number)
            yield make_data(8)

    callbacks = [KerasCallback(config=config)]
    make_model().fit(batches(), steps_per_epoch=3, epochs=2, verbose=0, callbacks=callbacks)
    assert 6 <= len(asked) < 20  # Keras itself looks ahead by a few
    assert len(record().series("loss")) == 2


def test_checkpoints(config: dict[str, Any], record: Read, tmp_path: Path) -> None:
    """Files of ModelCheckpoint are references with hash and step; older ones are not ours."""
    (tmp_path / "old-09.keras").write_text("was here before")
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "old-{epoch:02d}.keras")
    fit([saver, KerasCallback(config=config)])
    rows = record().rows("artifacts", kind="checkpoint")
    assert {(row["path"], row["step"], row["kind"]) for row in rows} == {
        ("checkpoints/old-01.keras", 3, "checkpoint"),
        ("checkpoints/old-02.keras", 6, "checkpoint"),
    }
    assert all(row["sha256"] and row["uri"].startswith("file://") for row in rows)


def test_parent_trial(config: dict[str, Any], record: Read) -> None:
    """A fit inside a trial is a child of the trial."""
    with start_run(config=config, kind="trial") as trial:
        fit([KerasCallback()])
    (child,) = record().runs(kind="run")
    assert child["parent_id"] == trial.run_id


# ---------------------------------------------------------------------------- the end


def end_of(read: Record) -> Any:
    (event,) = read.rows("events", kind="status")
    return event["message"], json.loads(event["data"])


def test_early_stopping(config: dict[str, Any], record: Read) -> None:
    """The event says which callback stopped the training, where, and on what."""
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=9)
    fit([KerasCallback(config=config), stop], epochs=9)
    read = record()
    message, data = end_of(read)
    assert read.run()["status"] == "finished"
    assert message == "early stopping at epoch 1 on val_loss"
    assert (data["reason"], data["patience"], data["best_epoch"]) == ("early_stopping", 1, 0)


def test_terminated_on_nan(config: dict[str, Any], record: Read) -> None:
    """A training that was stopped with a NaN loss has ended, and a warning says so."""
    x, y = make_data()
    callbacks = [keras.callbacks.TerminateOnNaN(), KerasCallback(config=config)]
    make_model().fit(x, y * np.nan, verbose=0, callbacks=callbacks)
    read = record()
    assert end_of(read)[1]["reason"] == "nan"
    assert read.rows("events", kind="status")[0]["level"] == "warning"


def test_all_epochs(config: dict[str, Any], record: Read) -> None:
    """The usual end is said too."""
    fit([KerasCallback(config=config)])
    assert end_of(record())[1]["reason"] == "epochs"


HOOKS = ("on_train_begin", "on_epoch_begin", "on_test_batch_end", "on_epoch_end", "on_train_end")


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_other_callback_raises(
    config: dict[str, Any], record: Read, hook: str, ours_first: bool
) -> None:
    """Whichever hook of another callback raises, before ours or behind, the run has failed."""
    ours, bad = KerasCallback(config=config), Raise(ZeroDivisionError("planted"), hook)
    with pytest.raises(ZeroDivisionError, match="planted"):
        fit([ours, bad] if ours_first else [bad, ours])
    read = record()
    if hook == "on_train_begin" and not ours_first:
        assert read.runs() == []  # the training has not begun, for us neither
        return
    assert read.run()["status"] == "failed"
    assert "planted" in read.run()["error"]


class BadData(keras.utils.PyDataset):
    """Raises when the third batch is asked for."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise ZeroDivisionError("planted")
        return make_data(8)


def test_data_raise(config: dict[str, Any], record: Read) -> None:
    """An exception of the user's data, in training or validation, is the run's."""
    callback = KerasCallback(config=config)
    with pytest.raises(Exception, match="planted"):
        make_model().fit(BadData(), verbose=0, callbacks=[callback], shuffle=False)
    with pytest.raises(Exception, match="planted"):
        fit([callback], validation_data=BadData())
    read = record()
    assert [run["status"] for run in read.runs()] == ["failed", "failed"]
    assert all("planted" in run["error"] for run in read.runs())


class BadMetric(keras.metrics.Metric):
    """Raises when its result is asked for after the last batch of an epoch, outside of a step."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.is_armed = False

    def update_state(self, *_: Any, **__: Any) -> None:
        """Nothing to count."""

    def result(self) -> Any:
        if self.is_armed:
            raise self.error
        return keras.ops.zeros(())


def test_raises_where_nobody_looks(config: dict[str, Any], record: Read) -> None:
    """An exception between hooks and steps never leaves the run open, nor as finished."""
    metric = BadMetric(ZeroDivisionError("planted"))
    arm = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: setattr(metric, "is_armed", batch == 2)
    )
    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        fit([KerasCallback(config=config), arm], make_model(metrics=[metric]))
    del caught
    metric.error.__traceback__ = None  # else it keeps the fit alive
    run = record().run()
    assert run["status"] == "failed"
    assert run["error"]


def test_keras_raises_where_nobody_looks(config: dict[str, Any], record: Read) -> None:
    """The same of Keras's own exceptions; the next fit with the callback is a run like any."""
    callback, (x, y) = KerasCallback(config=config), make_data()
    with pytest.raises(ValueError, match="cardinality") as caught:
        fit([callback], validation_data=(x[:8], y[:5]))
    fit([callback])  # while `caught` keeps the other fit alive
    del caught
    assert [run["status"] for run in record().runs()] == ["failed", "finished"]


def test_process_leaves_in_mid_fit(config: dict[str, Any], record: Read) -> None:
    """A fit that `sys.exit` ends was interrupted, whatever the exit code."""
    with pytest.raises(SystemExit):
        fit([KerasCallback(config=config), Raise(SystemExit(0), "on_epoch_end")])
    assert record().run()["status"] == "interrupted"


EXIT = """
import sys
import test_keras as t
metric = t.BadMetric(KeyboardInterrupt("planted"))
arm = t.keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: setattr(metric, "is_armed", batch == 2)
)
config = {"backend": sys.argv[1], "record": {"system": False}}
t.fit([t.KerasCallback(config=config), arm], t.make_model(metrics=[metric]))
"""


@pytest.mark.slow
def test_process_ends_where_nobody_looks(record: Read, store_url: str) -> None:
    """Ctrl-C between hooks and steps ends the process, and the run as interrupted."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", EXIT, store_url],
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "KeyboardInterrupt: planted" in ended.stderr
    run = record().run()
    assert run["status"] == "interrupted"
    assert "planted" in run["error"]


def test_failed_fit_leaves_nothing_behind(config: dict[str, Any], record: Read) -> None:
    """After a failure the model has its own functions, and its next fit is a run of its own."""
    callback, model = KerasCallback(config=config), make_model()
    with pytest.raises(ZeroDivisionError):
        fit([callback, Raise(ZeroDivisionError("planted"), "on_train_batch_end")], model)
    assert not hasattr(model.train_function, "tachograph_inner")
    fit([callback], model)
    assert not hasattr(model.train_function, "tachograph_inner")
    assert [run["status"] for run in record().runs()] == ["failed", "finished"]


def test_list_of_callbacks_that_is_used_again(config: dict[str, Any], record: Read) -> None:
    """A CallbackList of the user's is watched in each fit, and its class still is one."""
    model = make_model()
    container = keras.callbacks.CallbackList([KerasCallback(config=config)], True, model=model)
    x, y = make_data()
    for _ in range(2):
        model.fit(x, y, verbose=0, callbacks=container)
    assert isinstance(container, keras.callbacks.CallbackList)
    assert [run["status"] for run in record().runs()] == ["finished", "finished"]


def test_loop_of_the_users_own(config: dict[str, Any], record: Read) -> None:
    """Hooks that are called by hand record too."""
    callback, model = KerasCallback(config=config), make_model()
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {"loss": 1.0, "val_loss": 2.0})
    callback.on_train_end()
    read = record()
    assert read.run()["status"] == "finished"
    assert [value for _, value in read.series("loss", phase="val")] == [2.0, 2.0]
