"""`watch` records the steps of torch optimizers in loops of one's own, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tachograph  # noqa: E402
from tachograph import start_run  # noqa: E402
from tachograph.callbacks import watch  # noqa: E402
from tachograph.callbacks.tensors_host import Meter  # noqa: E402
from tachograph.errors import ConfigError, TachographWarning  # noqa: E402
from tachograph.testing.callback_contract import QUIET, Record  # noqa: E402
from tachograph.warning import forget_warnings  # noqa: E402


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    record = QUIET["record"] | {"every": 1, "histograms": 1}
    return {"backend": f"sqlite:///{tmp_path}/runs.sqlite", "record": record}


class Loop:
    """A training with two optimizers; keeps each gradient, weight and update."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.Dropout(0.3), torch.nn.Linear(5, 1)
        )
        self.optimizers = [
            torch.optim.Adam(self.model[0].parameters()),
            torch.optim.SGD(self.model[2].parameters(), 0.1, momentum=0.9),
        ]
        self.steps: list[dict[str, Any]] = []

    def run(self, steps: int = 4, error: BaseException | None = None) -> bytes:
        """Train; gives the weights and the state of the random numbers."""
        features = torch.rand(16, 6)
        for step in range(steps):
            if error is not None and step == 2:
                raise error
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.model(features).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            own = dict(self.model.named_parameters())
            gradient = {name: p.grad.numpy().copy() for name, p in own.items()}
            before = {name: p.detach().numpy().copy() for name, p in own.items()}
            for optimizer in self.optimizers:
                optimizer.step()
            weight = {name: p.detach().numpy().copy() for name, p in own.items()}
            update = {name: weight[name] - before[name] for name in weight}
            self.steps.append({"gradient": gradient, "weight": weight, "update": update})
        weights = b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())
        return weights + torch.get_rng_state().numpy().tobytes()


def test_steps_are_recorded_and_unchanged(config: dict[str, Any]) -> None:
    """Gradients as the optimizer uses them, weights, updates; by optimizer; the same bits."""
    without = Loop().run()
    loop = Loop()
    with watch(loop.model, *loop.optimizers, config=config, name="mine") as run:
        assert loop.run() == without
    assert not run.is_open
    record = Record(config["backend"])
    assert (record.run()["name"], record.run()["status"]) == ("mine", "finished")
    rows = record.rows("tensors")
    assert len(rows) == 4 * 3 * 4
    for row in rows:
        assert json.loads(row["context"]) == {"optimizer": int(row["name"].startswith("2"))}
        array = loop.steps[row["step"]][row["kind"]][row["name"]]
        found = [row[name] for name in ("mean", "std", "min", "max", "l2", "zeros", "nan", "inf")]
        assert found == pytest.approx(Meter().measure(array), rel=1e-6)
    norms = record.series("gradient_norm", optimizer=0)
    assert [step for step, _ in norms] == [0, 1, 2, 3]


def test_inside_a_run_of_the_user(config: dict[str, Any]) -> None:
    """It records into the run around it and leaves it open; steps begin where the user says."""
    loop = Loop()
    with start_run(config=config) as run:
        with watch(loop.model, *loop.optimizers, first_step=100) as same:
            loop.run()
        assert same is run
        assert run.is_open
    steps = {row["step"] for row in Record(config["backend"]).rows("tensors", run_id=run.run_id)}
    assert steps == {100, 101, 102, 103}


def test_every_counts_as_the_steps_do(config: dict[str, Any]) -> None:
    """`every=3` records the steps that 3 divides; a loop too short for any leaves its weights."""
    loop = Loop()
    with watch(loop.model, *loop.optimizers, config=config, every=3) as run:
        loop.run(steps=6)
    rows = Record(config["backend"]).rows("tensors", run_id=run.run_id)
    assert {row["step"] for row in rows} == {0, 3}

    loop, monkeypatch = Loop(), pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr("tachograph.callbacks.torch.estimate", lambda _: 60.0)  # of a large model
        with watch(loop.model, *loop.optimizers, config=config, every="auto") as run:
            loop.run(steps=1)
    rows = Record(config["backend"]).rows("tensors", run_id=run.run_id)
    assert {(row["kind"], row["step"]) for row in rows} == {("weight", 0)}


def train(
    model: Any,
    optimizer: Any,
    steps: int = 3,
    step: Callable[..., Any] | None = None,
    **keywords: Any,
) -> list[float]:
    """A plain loop under `watch`; gives the norms of the first gradient that each step used."""
    torch.manual_seed(1)
    norms = []
    with watch(model, optimizer, **keywords):
        for _ in range(steps):
            features = torch.rand(5, 3)

            def closure(features: Any = features) -> Any:
                optimizer.zero_grad()
                loss = model(features).float().square().mean()
                loss.backward()
                return loss

            if step is None:
                closure()
                optimizer.step()
            else:
                step(closure)
            norms.append(float(next(iter(model.parameters())).grad.norm()))
    return norms


def recorded(config: dict[str, Any], column: str, **equal: Any) -> list[tuple[Any, Any]]:
    """Step and one column of the rows of tensors, in order."""
    rows = Record(config["backend"]).rows("tensors", **equal)
    return sorted((row["step"], row[column]) for row in rows)


def test_gradients_that_come_about_inside_the_step(config: dict[str, Any]) -> None:
    """Those of a closure are its own, those of a fused optimizer and a scaler are unscaled."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    norms = train(model, optimizer, step=optimizer.step, config=config)
    found = recorded(config, "l2", kind="gradient", name="weight")
    assert found == [(step, pytest.approx(norm, rel=1e-5)) for step, norm in enumerate(norms)]

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fused = torch.optim.AdamW(model.parameters(), 0.1, fused=True)

    def scaled(closure: Callable[[], Any]) -> None:
        scale = scaler.scale(torch.ones(()))
        closure()
        for parameter in model.parameters():
            parameter.grad *= scale
        scaler.step(fused)
        scaler.update()

    other = config | {"backend": config["backend"] + "2"}
    norms = train(model, fused, step=scaled, config=other)
    found = recorded(other, "l2", kind="gradient", name="weight")
    assert found == [(step, pytest.approx(norm, rel=1e-5)) for step, norm in enumerate(norms)]


def test_a_step_that_calls_that_of_its_base_class_counts_once(config: dict[str, Any]) -> None:
    """Torch calls the hooks of such an optimizer twice a step."""

    class Mine(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # from now on its step has hooks
    model = torch.nn.Linear(3, 1)
    train(model, Mine(model.parameters()), config=config)
    assert [step for step, _ in recorded(config, "l2", kind="update", name="bias")] == [0, 1, 2]


def test_a_step_that_failed_and_is_tried_again(config: dict[str, Any]) -> None:
    """What is recorded is what the step that was done has used."""

    class Failing(torch.optim.SGD):
        fails = True

        def step(self, closure: Any = None) -> None:
            self.fails = not self.fails
            if not self.fails:
                raise MemoryError
            super().step()

    model = torch.nn.Linear(3, 1)
    optimizer = Failing(model.parameters(), 0.1)
    with watch(model, optimizer, config=config):
        for factor in (1.0, 2.0, 3.0, 4.0):
            optimizer.zero_grad()
            (factor * model(torch.rand(1, 3))).sum().backward()
            with contextlib.suppress(MemoryError):
                optimizer.step()
    assert recorded(config, "mean", kind="gradient", name="bias") == [(0, 2.0), (1, 4.0)]


def test_names_are_those_of_the_model_without_wrappers(config: dict[str, Any]) -> None:
    """What the model does not name has its number in the optimizer; each has a name of its own."""
    other = torch.nn.Linear(3, 1)
    model = torch.compile(torch.nn.Linear(3, 1), backend="eager")
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)
    with watch(model, optimizer, config=config):
        (model._orig_mod(torch.rand(5, 3)) * other(torch.rand(5, 3))).mean().backward()
        optimizer.step()
    names = ["bias", "parameter_2", "parameter_3", "weight"]
    assert [name for _, name in recorded(config, "name", kind="gradient")] == names


def test_a_type_that_changes_is_told(config: dict[str, Any]) -> None:
    """A model that gets another type between two steps."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, config=config):
        for dtype in (torch.float32, torch.float64):
            model.to(dtype)
            optimizer.zero_grad()
            model(torch.rand(5, 3, dtype=dtype)).mean().backward()
            optimizer.step()
    for kind in ("gradient", "weight", "update"):
        found = recorded(config, "dtype", kind=kind, name="bias")
        assert found == [(0, "float32"), (1, "float64")]


def test_snapshots_of_several_optimizers(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has files of its own; where none can be written, statistics are recorded."""
    config["record"]["snapshots"] = 2
    loop = Loop()
    with watch(loop.model, *loop.optimizers, config=config, weights="full"):
        loop.run()
    rows = Record(config["backend"]).rows("artifacts", kind="snapshot")
    paths = {row["path"] for row in rows}
    assert paths == {
        f"weights/optimizer-{number}/{step}.safetensors" for number in (0, 1) for step in (0, 2, 3)
    }

    forget_warnings()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    other = config | {"backend": config["backend"] + "2"}
    loop = Loop()
    with (
        pytest.warns(TachographWarning, match="need safetensors") as warned,
        watch(loop.model, *loop.optimizers, config=other, weights="full"),
    ):
        loop.run()
    assert len([one for one in warned if one.category is TachographWarning]) == 1
    assert len(recorded(other, "l2")) == 4 * 3 * 4


def test_a_snapshot_of_sparse_gradients_has_their_indices(config: dict[str, Any]) -> None:
    """The values alone would not say where they belong."""
    from safetensors.torch import load

    table = torch.nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    with watch(table, optimizer, config=config, gradients="full") as run:
        table(torch.tensor([7, 2, 7])).sum().backward()
        optimizer.step()
    Record(config["backend"])
    store = tachograph.open(config["backend"])
    (kept,) = (row for row in store.artifacts(run.run_id) if row["kind"] == "snapshot")
    with store.open_artifact(kept["sha256"]) as file:
        tensors = load(file.read())
    assert tensors["weight"].tolist() == [[1.0] * 3, [2.0] * 3]
    assert tensors["weight.indices"].tolist() == [[2, 7]]


@pytest.mark.filterwarnings("error::tachograph.errors.TachographWarning")
def test_a_compiled_step_is_left_alone(config: dict[str, Any]) -> None:
    """Nothing of ours gets into a graph that torch compiles; nothing of the step is recorded."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compiled = torch.compile(optimizer.step, backend="eager")

    def step(closure: Callable[[], Any]) -> None:
        closure()
        compiled()

    train(model, optimizer, step=step, config=config)
    assert recorded(config, "kind") == []


def test_what_is_raised_is_the_users(config: dict[str, Any]) -> None:
    """An exception passes, the run says so, and the optimizers are as they were."""
    loop = Loop()
    with (
        pytest.raises(ZeroDivisionError, match="planted"),
        watch(loop.model, *loop.optimizers, config=config),
    ):
        loop.run(error=ZeroDivisionError("planted"))
    assert Record(config["backend"]).run()["status"] == "failed"
    for optimizer in loop.optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


@pytest.mark.filterwarnings("ignore::tachograph.errors.TachographWarning")
def test_broken_recording_changes_nothing(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises inside recording, the training is the same."""
    without = Loop().run()
    for fault in ("run.Run.log_statistics", "callbacks.base.start_run", "run.Run.log"):
        loop = Loop()
        with monkeypatch.context() as patch:
            patch.setattr(f"tachograph.{fault}", lambda *_, **__: 1 / 0)
            with watch(loop.model, *loop.optimizers, config=config):
                assert loop.run() == without


def test_disabled_and_wrong(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """A wrong keyword is an error at once; switched off it does nothing."""
    loop = Loop()
    with pytest.raises(ConfigError), watch(loop.model, *loop.optimizers, every=0):
        raise AssertionError("the loop has begun")
    for given in ((loop.model,), (loop.model, loop.model.parameters()), (5, *loop.optimizers)):
        with pytest.raises(TypeError, match="watch needs"), watch(*given, config=config):
            raise AssertionError("the loop has begun")
    monkeypatch.setenv("TACHOGRAPH_DISABLED", "1")
    with watch(loop.model, *loop.optimizers, config=config) as run:
        run.log({"loss": 1.0})
        loop.run()
    assert Record(config["backend"]).rows("runs") == []
