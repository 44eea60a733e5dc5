"""LightningCallback keeps the laws of all callbacks, and records what a Trainer computes."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import signal
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import lightning.pytorch as pl  # noqa: E402
import numpy as np  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from tachograph import start_run  # noqa: E402
from tachograph.callbacks import LightningCallback  # noqa: E402
from tachograph.testing import CallbackContract  # noqa: E402
from tachograph.testing.callback_contract import Record  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
TRAIN, VAL, TEST = '{"phase":"train"}', '{"phase":"val"}', '{"phase":"test"}'
Read = Callable[[], Record]


class Net(pl.LightningModule):
    """A small model that draws random numbers and logs in the usual ways."""

    def __init__(self, hidden: int = 8, lr: float = 0.05, api_key: str = "sk-planted123") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(hidden, 1),
        )
        self.error: BaseException | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.error is not None and self.global_step == 2:
            raise self.error
        loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", torch.nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def make_data() -> TensorDataset:
    """32 samples, the same each time, without touching the random numbers of the training."""
    x = torch.from_numpy(np.random.RandomState(0).rand(32, 4).astype("float32"))
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(shuffle: bool = False) -> DataLoader:
    return DataLoader(make_data(), batch_size=8, shuffle=shuffle)


def make_trainer(callbacks: Any, package: Any = pl, **settings: Any) -> Any:
    quiet = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return package.Trainer(callbacks=callbacks, **(quiet | settings))


def fit(callbacks: Any, model: Any = None, **settings: Any) -> Any:
    """Fit a model on shuffled data and validate it; gives the Trainer."""
    trainer = make_trainer(callbacks, **settings)
    trainer.fit(Net() if model is None else model, loader(shuffle=True), loader())
    return trainer


class TestContract(CallbackContract):
    """The laws of all callbacks."""

    interrupt_becomes = SystemExit  # Lightning ends the process itself
    tensor_kinds = frozenset({"gradient", "weight", "update"})

    def make_callback(self, **keywords: Any) -> Any:
        return LightningCallback(**keywords)

    def train(self, callbacks: Sequence[Any]) -> bytes:
        pl.seed_everything(7, verbose=False)
        model = Net()
        fit(list(callbacks), model)
        model.eval()
        with torch.no_grad():
            predictions = model.net(make_data().tensors[0])
        parts = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
        state = (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())
        return b"".join([*parts, predictions.numpy().tobytes(), pickle.dumps(state)])

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        model = Net()
        model.error = error
        fit(list(callbacks), model)

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        model, data = Net(), make_data()
        make_trainer(list(callbacks)).fit(model, DataLoader(data, batch_size=8))
        return [weakref.ref(model), weakref.ref(data), weakref.ref(model.net[0].weight)]

    def resume(self, folder: Path, make_callback: Callable[[], Any]) -> None:
        trainer = fit([make_callback()])
        trainer.save_checkpoint(folder / "last.ckpt")
        trainer = make_trainer([make_callback()], max_epochs=3)
        trainer.fit(Net(), loader(shuffle=True), loader(), ckpt_path=folder / "last.ckpt")


# ---------------------------------------------------------------------------- metrics


def test_step_epoch_and_validation_values(config: dict[str, Any], record: Read) -> None:
    """Values per step and per epoch are series of their own, each with its phase; no alias."""
    fit([LightningCallback(config=config)])
    read = record()
    assert read.metrics() == {
        *((name, TRAIN) for name in ("loss_step", "loss_epoch", "lr", "gradient_norm")),
        *((f"time/{name}_seconds", TRAIN) for name in ("step", "data", "epoch")),
        ("val_loss", VAL),
        ("time/epoch_seconds", VAL),
    }
    assert [step for step, _ in read.series("loss_step")] == list(range(1, 9))
    assert [step for step, _ in read.series("loss_epoch")] == [4, 8]
    assert [step for step, _ in read.series("val_loss")] == [4, 8]
    epochs = [row["epoch"] for row in read.rows("metrics", name="val_loss")]
    assert epochs == [0, 1]
    values = [value for _, value in read.series("loss_step")]
    assert read.series("loss_epoch")[0][1] == pytest.approx(sum(values[:4]) / 4)


def test_values_are_those_of_lightning(config: dict[str, Any], record: Read) -> None:
    """Each value is the one that the module logged, at the step where it did."""
    seen: list[float] = []

    class Spy(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            seen.append(float(loss))
            return loss

    fit([LightningCallback(config=config)], Spy())
    assert [value for _, value in record().series("loss_step")] == seen


def test_metric_logged_after_our_hooks(config: dict[str, Any], record: Read) -> None:
    """What the module logs in its own end hooks, which run after ours, has the right step."""

    class Late(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            self.log("late_step", float(self.global_step))

        def on_train_epoch_end(self) -> None:
            self.log("late_epoch", float(self.current_epoch))

    fit([LightningCallback(config=config)], Late())
    read = record()
    assert read.series("late_step", phase="train") == [(step, step) for step in range(1, 9)]
    assert not read.series("late_step", phase="val")
    assert read.series("late_epoch", phase="train") == [(4, 0.0), (8, 1.0)]
    assert [row["epoch"] for row in read.rows("metrics", name="late_epoch")] == [0, 1]


def test_stale_values_are_not_repeated(config: dict[str, Any], record: Read) -> None:
    """A metric logged now and then is recorded then; one name in two phases is two series."""

    class Seldom(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                self.log("seldom", 1.0)
            self.log("shared", 2.0)
            self.log("hidden", 3.0, logger=False)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("shared", 4.0)

    fit([LightningCallback(config=config)], Seldom())
    read = record()
    assert read.series("seldom") == [(2, 1.0), (6, 1.0)]
    assert {value for _, value in read.series("shared", phase="train")} == {2.0}
    assert read.series("shared", phase="val") == [(4, 4.0), (8, 4.0)]
    assert len(read.series("hidden")) == 8


def test_several_dataloaders(config: dict[str, Any], record: Read) -> None:
    """Each validation loader is a context of its own, and nothing is recorded twice."""

    class Two(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", float(dataloader_idx))
            self.log("both", float(batch_idx), on_step=True, on_epoch=True)
            self.log(f"own_{dataloader_idx}", 1.0, add_dataloader_idx=False)

    trainer = make_trainer([LightningCallback(config=config)])
    trainer.fit(Two(), loader(), [loader(), loader()])
    read = record()
    for index in (0, 1):
        assert read.series("val_loss", phase="val", dataloader=index) == [(4, index), (8, index)]
        assert read.series("both_epoch", dataloader=index) == [(4, 1.5), (8, 1.5)]
        assert [v for _, v in read.series("both_step", dataloader=index)] == [0, 1, 2, 3] * 2
        assert read.series(f"own_{index}") == [(4, 1.0), (8, 1.0)]
    assert not read.series("both")


def test_sanity_check_is_not_recorded(config: dict[str, Any], record: Read) -> None:
    """The batches that Lightning validates before training leave no point."""
    fit([LightningCallback(config=config)], num_sanity_val_steps=2, max_epochs=1)
    assert [step for step, _ in record().series("val_loss")] == [4]


def test_validation_within_an_epoch(config: dict[str, Any], record: Read) -> None:
    """Validations within an epoch are recorded at their steps, and not as training."""
    fit([LightningCallback(config=config)], val_check_interval=2)
    read = record()
    assert [step for step, _ in read.series("val_loss")] == [2, 4, 6, 8]
    assert [step for step, _ in read.series("loss_step")] == list(range(1, 9))


def test_torchmetrics_and_odd_values(config: dict[str, Any], record: Read) -> None:
    """Metric objects, NaN, infinities and values with a graph are recorded as they are."""
    from torchmetrics import MeanMetric

    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mean = MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.mean(float(batch_idx))
            self.log("mean", self.mean, on_step=False, on_epoch=True)
            self.log("nan", math.nan)
            self.log("graph", loss, enable_graph=True)
            return loss

    fit([LightningCallback(config=config)], Odd())
    read = record()
    assert read.series("mean") == [(4, 1.5), (8, 1.5)]
    assert {row["special"] for row in read.rows("metrics", name="nan")} == {"nan"}
    assert len(read.series("graph")) == 8


# ---------------------------------------------------------------------------- optimizers


def test_learning_rate_is_the_one_the_step_used(config: dict[str, Any], record: Read) -> None:
    """A schedule that has moved on before our hook runs does not change what is recorded."""

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.08)
            halve = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            return [optimizer], [{"scheduler": halve, "interval": "step"}]

    fit([LightningCallback(config=config)], Scheduled(), max_epochs=1)
    read = record()
    assert read.series("lr") == [(1, 0.08), (2, 0.04), (3, 0.02), (4, 0.01)]
    params = read.params(read.run()["run_id"])
    assert (params["scheduler.name"], params["scheduler.gamma"]) == ("StepLR", 0.5)


def test_accumulation(config: dict[str, Any], record: Read) -> None:
    """Batches that make one optimizer step together have its number, also the last few."""
    fit([LightningCallback(config=config)], accumulate_grad_batches=3, max_epochs=1)
    assert [step for step, _ in record().series("loss_step")] == [1, 1, 1, 2]


class Manual(Net):
    """Two optimizers, stepped by hand; of Lightning's wrappers, or of torch alone."""

    def __init__(self, wrapped: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.wrapped = wrapped

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers(use_pl_optimizer=self.wrapped):
            loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters()}, {"params": [], "lr": 0.2}]
        return [torch.optim.SGD(groups, lr=0.1), torch.optim.Adam(self.net[3].parameters())]


@pytest.mark.parametrize(("wrapped", "steps"), [(True, [2, 4, 6, 8]), (False, [1, 2, 3, 4])])
def test_manual_optimization(
    config: dict[str, Any], record: Read, wrapped: bool, steps: list[int]
) -> None:
    """Steps count optimizer steps as Lightning does, or batches where it sees no step."""
    fit([LightningCallback(config=config)], Manual(wrapped), max_epochs=1)
    read = record()
    assert [step for step, _ in read.series("loss")] == steps
    assert {v for _, v in read.series("lr/optimizer_0/group_1")} == {0.2}
    assert {v for _, v in read.series("lr/optimizer_1")} == {0.001}


# ---------------------------------------------------------------------------- facts


def test_what_is_known_of_a_fit(config: dict[str, Any], record: Read) -> None:
    """Hyper-parameters, settings, optimizer, model and data are there; secrets are not."""
    fit([LightningCallback(config=config)], max_epochs=1, gradient_clip_val=0.5)
    read = record()
    run_id = read.run()["run_id"]
    params = read.params(run_id)
    assert params["hidden"] == 8
    assert "planted" not in json.dumps(params)
    assert params["trainer.max_epochs"] == 1
    assert params["trainer.gradient_clip_val"] == 0.5
    assert params["trainer.world_size"] == 1
    assert params["optimizer.name"] == "SGD"
    assert params["data.train.batch_size"] == 8
    assert (params["data.train.samples"], params["data.train.sampler"]) == (32, "RandomSampler")
    assert {row["source"] for row in read.rows("params")} == {"framework"}
    documents = {
        row["section"]: json.loads(row["document"])
        for row in read.rows("provenance", run_id=run_id)
    }
    assert documents["model"]["parameters"] == documents["model"]["trainable"] == 49
    assert documents["model"]["layers"][1]["shapes"] == {"weight": [8, 4], "bias": [8]}
    assert "[32,4]" in json.dumps(documents["data.train"]).replace(" ", "")
    assert "data.val" in documents


def test_datamodule(config: dict[str, Any], record: Read) -> None:
    """Hyper-parameters of a data module stand beside the model's."""

    class Data(pl.LightningDataModule):
        def __init__(self, folds: int = 3, lr: float = 9.0) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return loader()

    make_trainer([LightningCallback(config=config)]).fit(Net(lr=0.5), datamodule=Data())
    read = record()
    params = read.params(read.run()["run_id"])
    assert (params["folds"], params["lr"], params["datamodule.lr"]) == (3, 0.5, 9.0)


def test_dataset_is_never_asked_for_samples(config: dict[str, Any], record: Read) -> None:
    """Making a sample may take random numbers; only arrays that lie ready are looked at."""
    asked: list[int] = []

    class Costly(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            asked.append(index)
            return torch.ones(4), torch.ones(1)

    trainer = make_trainer([LightningCallback(config=config)], max_epochs=1)
    trainer.fit(Net(), DataLoader(Costly(), batch_size=4))
    assert sorted(asked) == list(range(8))
    assert record().params(record().run()["run_id"])["data.train.samples"] == 8


# ---------------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_epochs": 2}, "max_epochs=2 reached"), ({"max_steps": 3}, "max_steps=3 reached")],
)
def test_limit_is_the_reason(
    config: dict[str, Any], record: Read, settings: dict[str, Any], message: str
) -> None:
    """A fit that runs into a limit says which."""
    fit([LightningCallback(config=config)], **settings)
    assert [row["message"] for row in record().rows("events", kind="status")] == [message]


def test_early_stopping_is_the_reason(config: dict[str, Any], record: Read) -> None:
    """A fit that was stopped early is finished, and says by what."""
    stopping = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    fit([LightningCallback(config=config), stopping], max_epochs=9)
    read = record()
    (event,) = read.rows("events", kind="status")
    data = json.loads(event["data"])
    assert (data["reason"], data["monitor"]) == ("early_stopping", "val_loss")
    assert read.run()["status"] == "finished"


def test_termination_is_an_interrupt(config: dict[str, Any], record: Read) -> None:
    """SIGTERM, of which Lightning makes an exit of the process, leaves an interrupted run."""

    class Killed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, batch_idx)

    with pytest.raises(SystemExit):
        fit([LightningCallback(config=config)], Killed())
    read = record()
    assert read.run()["status"] == "interrupted"
    assert [step for step, _ in read.series("loss_step")] == [1, 2, 3]


def test_error_before_our_run(config: dict[str, Any], record: Read) -> None:
    """What fails before the fit starts reaches the user, and leaves no run."""

    class Bad(Net):
        def configure_optimizers(self) -> Any:
            raise LookupError("planted")

    with pytest.raises(LookupError, match="planted"):
        fit([LightningCallback(config=config)], Bad())
    assert not record().runs()


def test_error_in_test_after_fit(config: dict[str, Any], record: Read) -> None:
    """A test that fails after the fit is an event of the finished run."""

    class Bad(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            raise LookupError("planted")

    model = Bad()
    trainer = fit([LightningCallback(config=config)], model)
    with pytest.raises(LookupError):
        trainer.test(model, loader(), verbose=False)
    read = record()
    assert read.run()["status"] == "finished"
    (event,) = read.rows("events", kind="error")
    assert "planted" in event["message"]


def test_checkpoints_are_referenced(config: dict[str, Any], record: Read, tmp_path: Path) -> None:
    """Checkpoints are recorded with their hash and the step that they are of, not copied."""
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True, every_n_train_steps=3, save_top_k=1)
    fit([LightningCallback(config=config), saver], enable_checkpointing=True)
    rows = record().rows("artifacts")
    found = {row["path"]: row for row in rows if row["kind"] != "source"}
    assert {row["kind"] for row in found.values()} == {"checkpoint"}
    steps = {path.rpartition("/")[2]: row["step"] for path, row in found.items()}
    assert steps["epoch=1-step=6.ckpt"] == 6
    assert steps["last.ckpt"] == 6
    kept = found["checkpoints/epoch=1-step=6.ckpt"]
    assert len(kept["sha256"]) == 64
    assert kept["uri"].startswith("file://")


# ---------------------------------------------------------------------------- evaluation


def test_evaluation_after_fit_joins_its_run(config: dict[str, Any], record: Read) -> None:
    """Validate, test and predict after a fit record into its run, each under its own phase."""
    model = Net()
    trainer = fit([LightningCallback(config=config)], model, max_epochs=1)
    trainer.test(model, loader(), verbose=False)
    trainer.validate(model, loader(), verbose=False)
    trainer.predict(model, loader())
    read = record()
    assert read.run()["status"] == "finished"
    assert [step for step, _ in read.series("test_loss", phase="test")] == [4]
    assert [step for step, _ in read.series("val_loss", phase="val")] == [4, 4]
    assert len(read.series("time/epoch_seconds", phase="predict")) == 1


@pytest.mark.parametrize("kind", ["validate", "test", "predict"])
def test_evaluation_alone_is_a_run_of_its_kind(
    config: dict[str, Any], record: Read, kind: str
) -> None:
    """Without a fit an evaluation is a run, twice two, with what is known of the model."""
    trainer = make_trainer([LightningCallback(config=config)])
    for _ in range(2):
        getattr(trainer, kind)(Net(), loader())
    read = record()
    runs = read.runs()
    assert [(run["kind"], run["status"]) for run in runs] == [(kind, "finished")] * 2
    assert read.params(runs[0]["run_id"])["hidden"] == 8


def test_evaluation_of_a_checkpoint_has_its_step(
    config: dict[str, Any], record: Read, tmp_path: Path
) -> None:
    """Lightning leaves step and epoch at 0 there; the checkpoint knows them."""
    fit([]).save_checkpoint(tmp_path / "a.ckpt")
    trainer = make_trainer([LightningCallback(config=config)])
    trainer.validate(Net(), loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    (point,) = record().rows("metrics", name="val_loss")
    assert (point["step"], point["epoch"]) == (8, 2)


def test_evaluation_inside_a_users_run_leaves_room_for_the_fit(
    config: dict[str, Any], record: Read
) -> None:
    """Validating first does not make the fit inside one run of the user a child of it."""
    model = Net()
    with start_run(config=config):
        trainer = make_trainer([LightningCallback()])
        trainer.validate(model, loader(), verbose=False)
        trainer.fit(model, loader(), loader())
    assert len(record().runs()) == 1


# ---------------------------------------------------------------------------- checkpoints, tuning


def test_checkpoint_holds_plain_values(config: dict[str, Any], tmp_path: Path) -> None:
    """The callback's state loads in safe mode, and has nothing but the run's id."""
    fit([LightningCallback(config=config)]).save_checkpoint(tmp_path / "a.ckpt")
    states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    ((key, state),) = states.items()
    assert key.startswith("LightningCallback[")
    assert list(state) == ["run_id"]


def test_weights_alone_do_not_resume(config: dict[str, Any], record: Read, tmp_path: Path) -> None:
    """Testing from a checkpoint, then fitting anew, does not go on with the checkpoint's run."""
    callback = LightningCallback(config=config)
    fit([callback]).save_checkpoint(tmp_path / "a.ckpt")
    second = LightningCallback(config=config)
    trainer = make_trainer([second])
    trainer.test(Net(), loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    trainer.fit(Net(), loader())
    assert [run["kind"] for run in record().runs()] == ["run", "test", "run"]


def test_resume_in_the_middle_of_an_epoch(
    config: dict[str, Any], record: Read, tmp_path: Path
) -> None:
    """The attempt that goes on hides exactly the steps of the first one that it does again."""
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1)
    model = Net()
    fit([LightningCallback(config=config), saver], model, enable_checkpointing=True, max_epochs=3)
    trainer = make_trainer([LightningCallback(config=config)], max_epochs=3)
    trainer.fit(Net(), loader(True), loader(), ckpt_path=tmp_path / "epoch=1-step=6.ckpt")
    read = record()
    assert [step for step, _ in read.series("loss_step")] == list(range(1, 13))
    attempts = {row["step"]: row["attempt"] for row in read.rows("metrics", name="loss_step")}
    assert (attempts[6], attempts[7]) == (1, 2)


def test_tuning_makes_no_run(config: dict[str, Any], record: Read, tmp_path: Path) -> None:
    """lr_find is no training of the user's; the fit after it is a run that resumes nothing."""
    from lightning.pytorch.tuner import Tuner

    callback = LightningCallback(config=config)
    model = Net()
    fit([callback], model)
    trainer = make_trainer([callback], default_root_dir=tmp_path)
    Tuner(trainer).lr_find(model, loader(), num_training=5)
    assert len(record().runs()) == 1
    trainer.fit(model, loader())
    assert [run["attempt"] for run in record().runs()] == [1, 1]


def test_tuning_within_a_fit_resumes_nothing(
    config: dict[str, Any], record: Read, tmp_path: Path
) -> None:
    """LearningRateFinder loads a checkpoint of its own as the fit starts; it is no resumption."""
    from lightning.pytorch.callbacks import LearningRateFinder

    callback = LightningCallback(config=config)
    fit([callback])
    finder = LearningRateFinder(num_training_steps=5)
    fit([finder, callback], default_root_dir=tmp_path)
    assert [run["attempt"] for run in record().runs()] == [1, 1]


def test_checkpoint_of_someone_else_resumes_nothing(
    config: dict[str, Any], record: Read, tmp_path: Path
) -> None:
    """What an earlier checkpoint said is forgotten when one without our state is loaded."""
    fit([LightningCallback(config=config)]).save_checkpoint(tmp_path / "ours.ckpt")
    fit([]).save_checkpoint(tmp_path / "plain.ckpt")
    trainer = make_trainer([LightningCallback(config=config)], max_epochs=3)
    trainer.test(Net(), loader(), ckpt_path=tmp_path / "ours.ckpt", verbose=False)
    trainer.fit(Net(), loader(True), loader(), ckpt_path=tmp_path / "plain.ckpt")
    runs = record().runs()
    assert [(run["kind"], run["attempt"]) for run in runs] == [("run", 1), ("test", 1), ("run", 1)]


def test_two_callbacks_in_one_trainer(config: dict[str, Any], tmp_path: Path) -> None:
    """Two callbacks with different stores stand side by side, and resume apart."""
    other = config | {"backend": f"sqlite:///{tmp_path}/other.sqlite"}
    fit([LightningCallback(config=config), LightningCallback(config=other)])
    for settings in (config, other):
        assert Record(settings["backend"]).run()["status"] == "finished"


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"barebones": True}])
def test_trainers_that_do_less(
    config: dict[str, Any], record: Read, settings: dict[str, Any]
) -> None:
    """fast_dev_run and barebones train as ever, and are runs."""
    bare = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None}
    fit([LightningCallback(config=config)], **(bare | {"enable_model_summary": None} | settings))
    assert record().run()["status"] == "finished"


# ---------------------------------------------------------------------------- shapes of use


def test_both_packages(config: dict[str, Any], record: Read) -> None:
    """One class serves `lightning` and `pytorch_lightning`, in a list and bare."""
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(batch[0]).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    make_trainer(LightningCallback(config=config), other).fit(Other(), loader())
    fit(LightningCallback(config=config))
    frameworks = [run["framework"].split()[0] for run in record().runs()]
    assert frameworks == ["pytorch_lightning", "lightning"]


class Extended(LightningCallback):
    """What a user may add."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.ended = 0

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self.ended += 1


def test_subclass(config: dict[str, Any], record: Read) -> None:
    """A user's subclass works, pickles, and calls ours."""
    callback = pickle.loads(pickle.dumps(Extended(config=config)))
    fit([callback])
    assert callback.ended == 1
    assert isinstance(callback, Extended)
    assert record().run()["status"] == "finished"


def test_names_that_lightning_takes() -> None:
    """Lightning overwrites `log` and `log_dict` of every callback: ours has no such method."""
    assert not {"log", "log_dict"} & set(dir(LightningCallback))


def test_automatic(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TACHOGRAPH_AUTO=1 records a Trainer without a change to the code, and never twice."""
    url = f"sqlite:///{tmp_path}/auto.sqlite"
    monkeypatch.setenv("TACHOGRAPH_BACKEND", url)
    fit([])
    assert not Record(url).runs(), "on without being asked"
    monkeypatch.setenv("TACHOGRAPH_AUTO", "1")
    fit([])
    assert len(Record(url).runs()) == 1
    fit([LightningCallback()])
    assert len(Record(url).runs()) == 2
