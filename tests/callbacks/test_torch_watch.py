"""`watch` records the steps of torch optimizers in loops of one's own, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tachograph import start_run  # noqa: E402
from tachograph.callbacks import watch  # noqa: E402
from tachograph.callbacks.tensors_host import Meter  # noqa: E402
from tachograph.errors import ConfigError  # noqa: E402
from tachograph.testing.callback_contract import QUIET, Record  # noqa: E402


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
    monkeypatch.setenv("TACHOGRAPH_DISABLED", "1")
    with watch(loop.model, *loop.optimizers, config=config) as run:
        run.log({"loss": 1.0})
        loop.run()
    assert Record(config["backend"]).rows("runs") == []
