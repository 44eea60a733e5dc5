"""Weights and gradients of Lightning trainings that do something seldom."""

from __future__ import annotations

import copy
import io
import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from tachograph.callbacks import LightningCallback  # noqa: E402
from tachograph.errors import TachographWarning  # noqa: E402
from tachograph.testing.callback_contract import QUIET, Record  # noqa: E402
from tachograph.warning import forget_warnings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
nn = torch.nn


class Base(pl.LightningModule):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch: Any, index: int) -> Any:
        return self.net(batch[0]).float().square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(model: Any, *callbacks: Any, batches: int = 6, **settings: Any) -> Any:
    """Train for an epoch; gives the Trainer."""
    torch.manual_seed(0)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    settings = {"accelerator": "cpu", "max_epochs": 1} | quiet | settings
    trainer = pl.Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(model, DataLoader(TensorDataset(torch.rand(8 * batches, 4)), batch_size=8))
    return trainer


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    record = QUIET["record"] | {"every": 1, "histograms": "off"}
    return {"backend": f"sqlite:///{tmp_path}/runs.sqlite", "record": record}


def steps(config: dict[str, Any], **equal: Any) -> list[int]:
    """The steps of the rows of tensors."""
    return sorted(row["step"] for row in Record(config["backend"]).rows("tensors", **equal))


class Seldom(Base):
    """Steps by hand after each third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        self.manual_backward(super().training_step(batch, index))
        self.log("seen", 1.0)
        if index % 3 == 2:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


def test_batches_before_the_first_step_belong_to_it(config: dict[str, Any]) -> None:
    """Also where a training that optimizes by hand lets some batches go by."""
    fit(Seldom(), LightningCallback(config=config, activations="net.0"), batches=9)
    for kind in ("gradient", "weight", "update", "activation"):
        name = "net.0" if kind == "activation" else "net.0.weight"
        assert steps(config, kind=kind, name=name) == [1, 2, 3]
    seen = Record(config["backend"]).series("seen", phase="train")
    assert [step for step, _ in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_gradients_of_a_fused_optimizer_are_unscaled(config: dict[str, Any]) -> None:
    """A fused optimizer divides by the scale inside its step; the record says what it used."""

    class Fused(Base):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 0.01, fused=True)

    norms = []
    for number, scale in enumerate((1.0, 1024.0)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        own = config | {"backend": config["backend"] + str(number)}
        torch.manual_seed(4)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fit(Fused(), LightningCallback(config=own), plugins=[plugin])
        rows = Record(own["backend"]).rows("tensors", kind="gradient", name="net.0.weight")
        norms.append([row["l2"] for row in rows])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


class Copies(pl.Callback):
    """Copies and saves the whole model and its optimizer, as an average of weights might."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.copy = copy.deepcopy(pl_module.net)
        file = io.BytesIO()
        torch.save(pl_module.net, file)
        self.saved = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        self.text = file.getvalue()
        torch.save(trainer.optimizers[0], io.BytesIO())
        copy.deepcopy(trainer.optimizers[0])


def test_copies_made_during_the_fit_are_free_of_us(config: dict[str, Any]) -> None:
    """A model with hooks on it can be copied and pickled; what comes out records nothing."""
    copies = Copies()
    fit(Base(), LightningCallback(config=config, activations="net.*"), copies, batches=2)
    assert b"tachograph" not in copies.text
    for twin in (copies.copy, copies.saved):
        twin.train()(torch.rand(3, 4))
        hooks = [hook for module in twin for hook in module._forward_hooks.values()]
        assert [type(hook.__self__).__name__ for hook in hooks] == ["nullcontext"] * 3


def test_a_module_compiled_in_place_is_left_alone(config: dict[str, Any]) -> None:
    """It has no other name; a hook inside it would be part of its graph."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.layer(x) + 1

    class Compiled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(4, 4)
            self.net = Inner()
            self.net.compile(backend="eager", fullgraph=True)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(self.before(batch[0])).square().mean()

    forget_warnings()
    with pytest.warns(TachographWarning, match="layer is compiled"):
        fit(Compiled(), LightningCallback(config=config, activations=["net.*", "before"]))
    rows = Record(config["backend"]).rows("tensors", kind="activation")
    assert {row["name"] for row in rows} == {"before"}


def test_patterns_without_a_module_leave_nothing_behind(config: dict[str, Any]) -> None:
    """One that names nothing costs neither the others nor the hooks' removal."""
    forget_warnings()
    with pytest.warns(TachographWarning, match="'nett'"):
        model = Base()
        trainer = fit(model, LightningCallback(config=config, activations=["nett", "net.0"]))
    assert steps(config, kind="activation") == [1, 2, 3, 4, 5, 6]
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(module._forward_hooks for module in model.modules())
    for wrong in (5, [1], None):
        with pytest.raises(TypeError, match="names of modules"):
            LightningCallback(activations=wrong)  # type: ignore[arg-type]


def test_modules_have_hooks_only_while_a_batch_is_trained(config: dict[str, Any]) -> None:
    """A TransformerEncoderLayer, for one, is evaluated in another way where there are some."""
    found = []

    class Look(Base):
        def training_step(self, batch: Any, index: int) -> Any:
            found.append(len(self.net[0]._forward_hooks))
            return super().training_step(batch, index)

        def validation_step(self, batch: Any, index: int) -> None:
            found.append(-len(self.net[0]._forward_hooks))

        def val_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.rand(8, 4)), batch_size=8)

    callback = LightningCallback(config=config, activations="net.0")
    fit(Look(), callback, batches=4, val_check_interval=2, num_sanity_val_steps=0)
    assert found == [1, 1, 0, 1, 1, 0]


def test_the_step_after_one_that_was_left_out_is_whole(config: dict[str, Any]) -> None:
    """A scaler leaves the first steps out; outputs, gradients and weights of the next are there."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    fit(Base(), LightningCallback(config=config, activations="net.0"), plugins=[plugin], batches=30)
    done = steps(config, kind="weight", name="net.0.weight")
    assert 1 < done[0] < 30
    assert done[-1] == 30
    assert steps(config, kind="activation") == [*range(1, 31)]


class Exchange(pl.Callback):
    """Gives the training another optimizer at its second epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.more = nn.Linear(2, 2)
            trainer.optimizers = [torch.optim.Adam(pl_module.parameters())]


def test_another_optimizer_is_followed(config: dict[str, Any]) -> None:
    """With its parameters' names, and with the outputs of modules."""
    callback = LightningCallback(config=config, activations="net.0")
    trainer = fit(Base(), Exchange(), callback, max_epochs=3, batches=2)
    assert steps(config, kind="update", name="net.0.weight") == [1, 2, 3, 4, 5, 6]
    assert steps(config, kind="weight", name="more.weight") == [3, 4, 5, 6]
    assert steps(config, kind="activation") == [1, 2, 3, 4, 5, 6]
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
