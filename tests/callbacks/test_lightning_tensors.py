"""Weights, gradients and updates of Lightning trainings: the true ones, and nothing changes.

Each way to train is fitted twice: once with clones taken by plain hooks of torch, which say what
is true, and once with the callback.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import lightning.pytorch as pl  # noqa: E402
import numpy as np  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import tachograph  # noqa: E402
from tachograph.callbacks import LightningCallback  # noqa: E402
from tachograph.errors import TachographWarning  # noqa: E402
from tachograph.tensors import histograms  # noqa: E402
from tachograph.testing.callback_contract import QUIET, Record  # noqa: E402
from tachograph.warning import forget_warnings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
EACH_STEP = {"every": 1, "histograms": 1}
nn, functional = torch.nn, torch.nn.functional


class Base(pl.LightningModule):
    """A network with dropout, so that random numbers count."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def loss(self, batch: Any) -> Any:
        return functional.mse_loss(self.net(batch[0]).float(), batch[1])

    def training_step(self, batch: Any, index: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)


class Quasi(Base):
    """LBFGS, which evaluates the closure several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class Manual(Base):
    """Two optimizers in turn, stepped by hand."""

    raw = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 2)

    def configure_optimizers(self) -> Any:
        own = torch.optim.SGD(self.net.parameters(), 0.1), torch.optim.Adam(self.other.parameters())
        return list(own)

    def training_step(self, batch: Any, index: int) -> None:
        losses = (lambda: self.loss(batch)), (lambda: self.other(batch[0]).square().mean())
        for optimizer, loss in zip(
            self.optimizers(use_pl_optimizer=not self.raw), losses, strict=True
        ):
            optimizer.zero_grad()
            loss().backward() if self.raw else self.manual_backward(loss())
            optimizer.step()


class Raw(Manual):
    """The same with the optimizers of torch, which Lightning does not see."""

    raw = True


class Odd(Base):
    """Sparse, shared, frozen, unused and scalar parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4, sparse=True)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shared = self.net[0]

    def loss(self, batch: Any) -> Any:
        found = self.table((batch[0] * 19).long()).mean(1)
        return functional.mse_loss(self.net(self.frozen(found)) * self.scale, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05)


class Halting(Base):
    """Leaves a step out now and then."""

    def training_step(self, batch: Any, index: int) -> Any:
        return None if index == 1 else self.loss(batch)


class Compiled(Base):
    """A compiled network; the backend is the one that needs no compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="aot_eager")


def scaler() -> Any:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


WAYS: dict[str, tuple[type[Base], Callable[[], dict[str, Any]]]] = {
    "plain": (Base, dict),
    "clipped": (Base, lambda: {"gradient_clip_val": 0.05}),
    "accumulated": (Base, lambda: {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05}),
    "scaled": (Base, lambda: {"plugins": [scaler()], "gradient_clip_val": 0.05}),
    "bf16-mixed": (Base, lambda: {"precision": "bf16-mixed"}),
    "bf16": (Base, lambda: {"precision": "bf16-true"}),
    "float64": (Base, lambda: {"precision": "64-true"}),
    "LBFGS": (Quasi, dict),
    "manual": (Manual, dict),
    "raw": (Raw, dict),
    "odd": (Odd, dict),
    "halting": (Halting, dict),
    "compiled": (Compiled, dict),
}


def fit(
    way: str, callbacks: list[Any], epochs: int = 2, **settings: Any
) -> tuple[dict[str, Any], Any]:
    """Train a model; gives its weights and the state of the random numbers."""
    pl.seed_everything(3, verbose=False)
    draw = np.random.RandomState(0)
    x = torch.from_numpy(draw.rand(48, 4).astype("float32"))
    data = TensorDataset(x, torch.stack([x.sum(1), x.prod(1)], 1))
    kind, more = WAYS[way]
    model = kind()
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=callbacks, **quiet, **more(), **settings
    )
    trainer.fit(model, DataLoader(data, batch_size=8, shuffle=True))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return state, torch.get_rng_state()


class Clones(pl.Callback):
    """What plain hooks see: gradients, weights before and after each step, by optimizer."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._early: dict[int, dict[str, Any]] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        names = {id(p): n.replace("_orig_mod.", "") for n, p in pl_module.named_parameters()}
        for number, optimizer in enumerate(trainer.optimizers):
            own = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}

            def before(*_: Any, own: dict[str, Any] = own) -> None:
                self._weights = {name: p.detach().clone() for name, p in own.items()}

            def after(*_: Any, own: dict[str, Any] = own, number: int = number) -> None:
                clipped = {n: p.grad.clone() for n, p in own.items() if p.grad is not None}
                new = {name: p.detach().clone() for name, p in own.items()}
                self.steps.append(
                    {
                        "optimizer": number,
                        "gradient": self._early.pop(number, clipped),
                        "clipped": clipped,
                        "weight": new,
                        "update": {n: new[n] - self._weights[n] for n in new},
                    }
                )

            optimizer.register_step_pre_hook(before)
            optimizer.register_step_post_hook(after)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        number = trainer.optimizers.index(getattr(optimizer, "optimizer", optimizer))
        names = {id(p): n.replace("_orig_mod.", "") for n, p in pl_module.named_parameters()}
        self._early.setdefault(  # LBFGS evaluates again within the step
            number,
            {
                names[id(p)]: p.grad.clone()
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            },
        )


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Everything is recorded at each step."""
    record = QUIET["record"] | EACH_STEP
    return {"backend": f"sqlite:///{tmp_path}/runs.sqlite", "record": record}


def rows_by_step(record: Record) -> Iterator[dict[tuple[str, str, str], Any]]:
    """Rows of each recorded step of each optimizer: by kind, stage and name."""
    found: dict[tuple[int, int], dict[tuple[str, str, str], Any]] = {}
    for row in record.rows("tensors"):
        context = json.loads(row["context"])
        where = row["step"], context.get("optimizer", 0)
        found.setdefault(where, {})[row["kind"], context.get("stage", ""), row["name"]] = row
    return (found[where] for where in sorted(found))


def check(row: dict[str, Any], tensor: Any) -> None:
    """The row says of the tensor what numpy says in float64."""
    dense = tensor.coalesce().values() if tensor.is_sparse else tensor
    values = dense.double().numpy()
    assert json.loads(row["shape"]) == list(dense.shape)
    assert row["dtype"] == str(dense.dtype).removeprefix("torch.")
    counts = (values.size, (values == 0).sum(), np.isnan(values).sum(), np.isinf(values).sum())
    assert (row["size"], row["zeros"], row["nan"], row["inf"]) == counts
    finite = values[np.isfinite(values)]
    assert (row["min"], row["max"]) == (finite.min(), finite.max())
    assert row["l2"] == pytest.approx(np.linalg.norm(finite), rel=1e-5, abs=1e-44)
    assert row["std"] == pytest.approx(finite.std(), rel=1e-4, abs=1e-7 * abs(finite).max())
    assert row["mean"] == pytest.approx(finite.mean(), rel=1e-5, abs=1e-5 * finite.std() + 1e-44)
    if row["histogram"] is not None:
        counted = histograms.from_text(row["histogram"])
        assert sum(counted.values()) == finite.size
        slow = [histograms.bin_of(float(value)) for value in finite.ravel()]
        assert counted == {bin_: slow.count(bin_) for bin_ in set(slow)}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_recorded_is_true_and_changes_nothing(
    way: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """In each way to train: the numbers of each step, and the same bits at the end."""
    clones = Clones()
    without, random_without = fit(way, [clones])
    callback = LightningCallback(config=config, weights="full", gradients="full")
    together, random_together = fit(way, [callback])
    assert list(without) == list(together)
    assert all(torch.equal(without[name], together[name]) for name in without)
    assert torch.equal(random_without, random_together)

    recorded = [*rows_by_step(Record(config["backend"]))]
    assert len(recorded) == len(clones.steps)
    clips = way in ("clipped", "accumulated", "scaled")
    for rows, step in zip(recorded, clones.steps, strict=True):
        for kind, stage, clone in (
            ("gradient", "", "gradient"),
            ("gradient", "clipped", "clipped"),
            ("weight", "", "weight"),
            ("update", "", "update"),
        ):
            names = {name for k, s, name in rows if (k, s) == (kind, stage)}
            wanted = step[clone] if clips or stage == "" else {}
            frozen = {"frozen.weight", "frozen.bias"} if kind == "weight" else set()
            assert names - frozen == set(wanted)
            for name in wanted:
                check(rows[kind, stage, name], wanted[name])


def test_norms_of_all_gradients_are_metrics(config: dict[str, Any]) -> None:
    """`gradient_norm` is that before clipping, `gradient_norm_clipped` the one the step used."""
    clones = Clones()
    fit("clipped", [clones])
    fit("clipped", [LightningCallback(config=config)])
    record = Record(config["backend"])
    for name, clone in (("gradient_norm", "gradient"), ("gradient_norm_clipped", "clipped")):
        norms = [
            float(torch.cat([t.flatten() for t in step[clone].values()]).norm())
            for step in clones.steps
        ]
        series = record.series(name, phase="train")
        assert [step for step, _ in series] == list(range(1, len(norms) + 1))
        assert [value for _, value in series] == pytest.approx(norms, rel=1e-5)


def test_a_skipped_step_leaves_its_gradients(config: dict[str, Any]) -> None:
    """Where a scaler leaves a step out, its infinite gradients are there, and the step counts."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    WAYS["skipped"] = (Base, lambda: {"plugins": [plugin]})
    try:
        fit("skipped", [LightningCallback(config=config)])
    finally:
        del WAYS["skipped"]
    record = Record(config["backend"])
    skipped = record.series("optimizer_steps_skipped", phase="train")
    assert [value for _, value in skipped] == list(range(1, len(skipped) + 1))
    assert skipped
    rows = {(row["step"], row["kind"], row["name"]): row for row in record.rows("tensors")}
    for step, _ in skipped:
        gradients = [row for at, row in rows.items() if at[:2] == (step, "gradient")]
        assert sum(row["inf"] + row["nan"] for row in gradients)
        assert (step, "weight", "net.0.weight") not in rows
    steps = {step for step, kind, _ in rows if kind == "gradient"}
    assert steps == set(range(1, 13))


def test_optimizers_are_left_as_they_were(config: dict[str, Any]) -> None:
    """After the fit, and after one that failed, no hook of ours is on an optimizer or a module."""

    class Failing(Base):
        def training_step(self, batch: Any, index: int) -> Any:
            if self.fails and index == 3:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    for fails in (False, True):
        model = Failing()
        model.fails = fails
        callback = LightningCallback(config=config, activations="net.*")
        seen: list[Any] = []

        class Look(pl.Callback):
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                seen.append(trainer.optimizers[0])  # noqa: B023

        WAYS["look"] = (lambda model=model: model, dict)
        try:
            fit("look", [callback, Look()])
        except ZeroDivisionError:
            assert fails
        finally:
            del WAYS["look"]
        assert not seen[0]._optimizer_step_pre_hooks
        assert not seen[0]._optimizer_step_post_hooks
        assert all(not module._forward_hooks for module in model.modules())


def test_activations_of_chosen_modules(config: dict[str, Any]) -> None:
    """Outputs of the modules that were asked for; a ReLU's zeros are counted."""
    without = fit("plain", [])[0]
    together = fit("plain", [LightningCallback(config=config, activations=["net.1", "*.3"])])[0]
    assert all(torch.equal(without[name], together[name]) for name in without)
    rows = Record(config["backend"]).rows("tensors", kind="activation")
    assert {(row["name"], row["shape"]) for row in rows} == {("net.1", "[8,8]"), ("net.3", "[8,2]")}
    assert len(rows) == 2 * 12
    relu = [row for row in rows if row["name"] == "net.1"]
    assert all(row["min"] == 0.0 and 0 < row["zeros"] < 64 for row in relu)


@pytest.mark.parametrize(
    ("way", "activations", "said"),
    [("plain", "nett.*", "no module has a name like"), ("compiled", "net", "is compiled")],
)
def test_activations_that_cannot_be_had(
    config: dict[str, Any], way: str, activations: str, said: str
) -> None:
    """One warning says so; the training and the rest of the record are as ever."""
    forget_warnings()
    with pytest.warns(TachographWarning, match=said):
        fit(way, [LightningCallback(config=config, activations=activations)])
    assert len(Record(config["backend"]).rows("tensors")) == 12 * 3 * 4


def test_switched_off(config: dict[str, Any]) -> None:
    """Each of weights, gradients, updates and histograms can be left out."""
    record = config["record"]
    for keywords, kinds in (
        ({"weights": "off"}, {"gradient"}),
        ({"gradients": "off"}, {"weight", "update"}),
        ({"weights": "off", "gradients": "off"}, set()),
        ({"config": config | {"record": record | {"updates": False}}}, {"weight", "gradient"}),
        ({"config": config | {"record": record | {"histograms": "off"}}}, None),
    ):
        fit("plain", [LightningCallback(**({"config": config} | keywords))])
        found = Record(config["backend"])
        last = found.runs()[-1]["run_id"]
        rows = found.rows("tensors", run_id=last)
        if kinds is None:
            assert {row["histogram"] for row in rows} == {None}
        else:
            assert {row["kind"] for row in rows} == kinds


def test_without_settings_small_models_are_recorded_at_once(tmp_path: Path) -> None:
    """Every='auto' records the first step of a small model, and steps that powers of two divide."""
    config = QUIET | {"backend": f"sqlite:///{tmp_path}/runs.sqlite"}
    fit("plain", [LightningCallback(config=config)], epochs=30)
    record = Record(config["backend"])
    steps = sorted({row["step"] for row in record.rows("tensors", kind="weight")})
    assert steps[0] == 1
    assert len(steps) < 180 / 2
    assert sum(step % 2 == 0 for step in steps) >= len(steps) - 3


def test_large_models_are_recorded_at_the_end_at_least(tmp_path: Path) -> None:
    """A fit that is over before its budget allows a record leaves its weights."""
    config = QUIET | {"backend": f"sqlite:///{tmp_path}/runs.sqlite"}

    class Large(Base):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(3000, 2000)

    WAYS["large"] = (Large, lambda: {"max_steps": 2})
    try:
        fit("large", [LightningCallback(config=config)])
    finally:
        del WAYS["large"]
    rows = Record(config["backend"]).rows("tensors")
    assert {(row["kind"], row["step"]) for row in rows} == {("weight", 2)}
    assert all(row["histogram"] for row in rows)


def test_snapshots(config: dict[str, Any]) -> None:
    """Whole weights and gradients at chosen steps and at the end, as others read them."""
    from safetensors.numpy import load

    record = config["record"] | {"snapshots": [3]}
    clones = Clones()
    fit("plain", [clones])
    callback = LightningCallback(
        config=config | {"record": record}, weights="full", gradients="full"
    )
    fit("plain", [callback])
    Record(config["backend"])
    store = tachograph.open(config["backend"])
    run_id = store.runs().to_pylist()[0]["run_id"]
    kept = {row["path"]: row for row in store.artifacts(run_id) if row["kind"] == "snapshot"}
    assert set(kept) == {
        f"{kind}/{step}.safetensors" for kind in ("weights", "gradients") for step in (3, 12)
    }
    for kind, clone in (("weights", "weight"), ("gradients", "gradient")):
        for step in (3, 12):
            with store.open_artifact(kept[f"{kind}/{step}.safetensors"]["sha256"]) as file:
                arrays = load(file.read())
            wanted = clones.steps[step - 1][clone]
            assert set(arrays) == set(wanted)
            assert all(np.array_equal(arrays[name], wanted[name].numpy()) for name in wanted)


def test_snapshots_do_not_fill_the_memory(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written as fast as it is asked for is left out, with one warning."""
    monkeypatch.setattr("tachograph.callbacks.tensors_snapshot.MOST_WAITING", 300)
    forget_warnings()
    record = config["record"] | {"snapshots": 1, "gradients": "off"}
    with pytest.warns(TachographWarning, match="left out"):
        fit("plain", [LightningCallback(config=config | {"record": record}, weights="full")])
    assert len(Record(config["backend"]).rows("tensors", kind="weight")) == 12 * 4
