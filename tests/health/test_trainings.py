"""Real trainings: healthy ones are left in peace, and each fault is told by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from health_trainings import (
    Adapted,
    Batches,
    Language,
    Residual,
    Watch,
    blobs,
    cnn,
    counting,
    linear_from_zero,
    mlp,
    train,
)
from torch import Tensor, nn

import tachograph
from tachograph.run import Run

Told = Callable[..., list[str]]
Events = Callable[[], list[dict[str, Any]]]

adam, sgd = torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)
# Where the loss goes to zero and stays there, it must not be told of a plateau either.
SOON = {"plateau": 100}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models take longer in several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------- healthy ones


def _train(model: nn.Module, optimizer: Any, batches: Batches, rate: float, **more: Any) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return partial(train, model=model, optimizer=optimizer(trained, rate), batches=batches, **more)


def _perceptron() -> Any:
    return _train(mlp(), adam, blobs(), 1e-3)


def _converged() -> Any:
    return _train(mlp(), adam, blobs(), 1e-2, steps=250)


def _noisy_plateau() -> Any:
    return _train(mlp((20, 16, 4)), sgd, blobs(noise=6.0), 3e-2, steps=250)


def _convolutions() -> Any:
    return _train(cnn(), sgd, blobs(width=100), 0.1, steps=80)


def _convolutions_in_bfloat16() -> Any:
    return _in_bfloat16(cnn(), blobs(width=100))


def _transformer() -> Any:
    model = Language("transformer")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 50))
    more = {"schedule": warmup, "steps": 70}
    return partial(train, model=model, optimizer=optimizer, batches=counting, **more)


def _lstm() -> Any:
    return _train(Language("lstm"), adam, counting, 3e-3)


def _bfloat16() -> Any:
    return _in_bfloat16(mlp(), blobs())


def _in_bfloat16(model: nn.Module, batches: Batches) -> Any:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batches(step)
        return inputs.bfloat16(), targets

    return _train(model.bfloat16(), adam, batch, 1e-3, steps=100)


def _frozen_backbone() -> Any:
    model = mlp((20, 64, 64, 64, 4))
    model[:-1].requires_grad_(False)
    return _train(model, adam, blobs(), 1e-2)


def _frozen_first_layer() -> Any:
    model = mlp()
    model[0].requires_grad_(False)
    return _train(model, adam, blobs(), 1e-3)


def _adapters() -> Any:
    model = nn.Sequential(Adapted(20, 32), nn.ReLU(), Adapted(32, 32), nn.ReLU(), Adapted(32, 4))
    return _train(model, adam, blobs(), 1e-3)


def _from_zero() -> Any:
    return _train(linear_from_zero(), sgd, blobs(), 0.1)


def _residual() -> Any:
    return _train(Residual(), adam, blobs(), 1e-3, steps=80)


def _decayed() -> Any:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    batches = blobs(noise=4.0)
    return partial(
        train, model=model, optimizer=optimizer, batches=batches, steps=200, schedule=schedule
    )


def _one_sample() -> Any:
    return _train(mlp(), adam, blobs(size=1), 1e-3)


def _now_and_then() -> Any:
    return _train(mlp(), adam, blobs(), 1e-3, every=16, steps=320)


def _game(run: Run) -> None:
    """A generator and a discriminator, whose losses go up and down."""
    generator, discriminator = mlp((8, 32, 20)), mlp((20, 32, 1))
    players = [(model, adam(model.parameters(), 1e-3)) for model in (generator, discriminator)]
    batches, loss_of = blobs(), nn.functional.binary_cross_entropy_with_logits
    watches = [Watch(run, model) for model, _ in players]
    for step in range(150):
        real, made = batches(step)[0], generator(torch.randn(64, 8))
        for at, name in enumerate(("g_loss", "d_loss")):
            judged = discriminator(made if at == 0 else made.detach())
            loss = loss_of(judged, torch.full_like(judged, 1.0 - at))
            if at == 1:
                judged = discriminator(real)
                loss = loss + loss_of(judged, torch.ones_like(judged))
            players[at][1].zero_grad()
            loss.backward()
            run.log({name: loss.item()}, step=step)
            watches[at].gradients(step)
            before = watches[at].copy()
            players[at][1].step()
            watches[at].weights(before, step)
            made = generator(torch.randn(64, 8))


def _mixed_precision(run: Run) -> None:
    """A scaler of gradients finds its scale: some steps overflow and are left out."""
    model, batches = mlp(), blobs()
    optimizer, watch = adam(model.parameters(), 1e-3), Watch(run, model)
    scale, left_out = 2.0**132, 0
    for step in range(60):
        optimizer.zero_grad()
        inputs, targets = batches(step)
        (nn.functional.cross_entropy(model(inputs), targets) * scale).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / scale)
        watch.gradients(step)
        before = watch.copy()
        if all(torch.isfinite(gradient).all() for gradient in gradients):
            optimizer.step()
        else:
            scale, left_out = scale / 2, left_out + 1
        watch.weights(before, step)
    assert 3 < left_out < 10


HEALTHY = [
    *(_perceptron, _converged, _noisy_plateau, _convolutions, _convolutions_in_bfloat16),
    *(_transformer, _lstm, _bfloat16, _frozen_backbone, _frozen_first_layer, _adapters),
    *(_from_zero, _residual, _decayed, _one_sample, _now_and_then),
]


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__.strip("_"))
def test_a_healthy_training_is_left_in_peace(make: Callable[[], Any], told: Told) -> None:
    """No rule speaks, whatever the model, the optimizer and the data type."""
    assert told(make(), **SOON) == []


@pytest.mark.parametrize("training", [_game, _mixed_precision], ids=["game", "mixed_precision"])
def test_an_unusual_training_is_left_in_peace(training: Callable[[Run], None], told: Told) -> None:
    """Neither losses that fight one another nor steps that are left out are faults."""
    assert told(training) == []


def test_boosting_is_left_in_peace(told: Told) -> None:
    """Rounds until long after the training has converged, and the test loss rises."""
    import xgboost

    from tachograph.callbacks import XGBoostCallback

    random = np.random.default_rng(0)
    inputs = random.normal(size=(400, 5))
    targets = (inputs[:, 0] + 0.5 * random.normal(size=400) > 0).astype(float)
    data = [xgboost.DMatrix(inputs[half], targets[half]) for half in (slice(200), slice(200, 400))]

    def training(run: Run) -> None:
        params = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.5, "nthread": 1}
        evals = [(data[0], "train"), (data[1], "test")]
        callbacks = [XGBoostCallback(run=run, every=1)]
        xgboost.train(params, data[0], 150, evals=evals, callbacks=callbacks, verbose_eval=False)

    assert told(training, **SOON) == []


# ---------------------------------------------------------------------------- planted faults


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [(adam, 0.1), (adam, 1.0), (sgd, 1.0)],
    ids=["adam 0.1", "adam 1", "sgd 1"],
)
def test_a_learning_rate_100_times_too_high(
    optimizer: Any, rate: float, told: Told, events: Events
) -> None:
    """The updates are told of, with the tensor that moves most."""
    rules = told(_train(mlp(), optimizer, blobs(), rate))
    assert rules == ["update_ratio_high"] + (["nan"] * 2 if optimizer is sgd else [])
    found = next(e["data"] for e in events() if e["data"]["rule"] == "update_ratio_high")
    assert found["value"] > found["threshold"] == 0.25
    assert found["step"] <= 5
    assert found["tensor"].endswith("weight")


def test_a_learning_rate_far_too_low(told: Told) -> None:
    """Updates of a hundred-millionth of the weights, and such that round to nothing."""
    assert told(_train(mlp(), adam, blobs(), 1e-11)) == ["update_ratio_low"]


def test_a_dead_layer(told: Told, events: Events) -> None:
    """Rectifiers that never open: no gradient in them, and none before them."""
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    assert told(_train(model, adam, blobs(), 1e-3)) == ["dead_units"]
    (event,) = events()
    assert event["level"] == "warning"
    assert event["data"]["names"] == ["0.weight", "2.weight", "4.weight"]
    assert "no gradient reaches '0.weight' and 2 more" in event["message"]


def test_dead_units(told: Told, events: Events) -> None:
    """All but one of the units of a layer are dead."""
    model = mlp()
    with torch.no_grad():
        model[2].bias[1:] = -100.0
    assert told(_train(model, adam, blobs(), 1e-3)) == ["dead_units"]
    (event,) = events()
    assert event["data"]["tensor"] == "2.weight"
    assert event["message"].startswith("97% of the units are dead in '2.weight'")


def test_a_layer_that_the_optimizer_does_not_have(told: Told, events: Events) -> None:
    """It has gradients and never changes."""
    model = mlp()
    others = [p for name, p in model.named_parameters() if not name.startswith("4.")]
    training = partial(train, model=model, optimizer=adam(others, 1e-3), batches=blobs())
    assert told(training) == ["frozen_weights"]
    assert events()[0]["data"]["names"] == ["4.weight"]
    assert "is it in the optimizer?" in events()[0]["message"]


def test_a_layer_that_is_frozen_by_mistake(told: Told, events: Events) -> None:
    """It has no gradients, while the layers before and behind it are trained."""
    model = mlp()
    model[2].requires_grad_(False)
    assert told(_train(model, adam, blobs(), 1e-3)) == ["frozen_weights"]
    assert events()[0]["data"]["names"] == ["2.weight"]


def test_a_batch_with_a_nan(told: Told, events: Events) -> None:
    """The loss and the first tensor are told of, with the step, and nothing that follows."""
    batches = blobs()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batches(step)
        if step == 40:
            inputs[3, 3] = torch.nan
        return inputs, targets

    assert told(_train(mlp(), adam, batch, 1e-3)) == ["nan", "nan"]
    loss, tensors = events()
    assert (loss["level"], loss["message"]) == ("error", "'loss' is NaN at step 40")
    assert loss["data"] | {"metric": "loss", "step": 40} == loss["data"]
    assert tensors["data"]["first_tensor"] == "0.weight"
    assert (tensors["data"]["first_step"], tensors["data"]["first_kind"]) == (40, "gradient")
    assert tensors["message"] == (
        "NaN in 8 of 8 weights at step 40, first seen in the gradient of '0.weight' at step 40"
    )


@pytest.mark.parametrize("optimizer", [adam, sgd], ids=["adam", "sgd"])
def test_vanishing_gradients(optimizer: Any, told: Told, events: Events) -> None:
    """A deep network of sigmoids, and nothing of what follows from that."""
    model = mlp((20, *[32] * 9, 4), nn.Sigmoid)
    assert told(_train(model, optimizer, blobs(), 1e-3), **SOON) == ["vanishing_gradient"]
    found = events()[0]["data"]
    assert (found["tensor"], found["last_tensor"]) == ("0.weight", "18.weight")
    assert found["value"] == pytest.approx(found["first_rms"] / found["last_rms"])
    assert found["value"] < found["threshold"] == 1e-5


def test_a_training_that_diverges(told: Told, events: Events) -> None:
    """Gradient descent on a regression beyond its largest stable step."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 20, generator=random)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return inputs, inputs.sum(1, keepdim=True)

    model = nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.47)
    more = {"loss_of": nn.functional.mse_loss, "steps": 100}
    training = partial(train, model=model, optimizer=optimizer, batches=batch, **more)
    assert "divergence" in told(training)
    found = next(e["data"] for e in events() if e["data"]["rule"] == "divergence")
    assert found["metric"] == "loss"
    assert found["value"] > 3 * found["beginning"]


def test_a_training_that_never_learns(told: Told, events: Events) -> None:
    """The targets have nothing to do with the inputs."""
    batches = blobs()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batches(step)
        return inputs, targets[torch.randperm(len(targets))]

    rules = told(_train(nn.Linear(20, 4), sgd, batch, 1e-5, steps=200), plateau=200)
    assert rules == ["plateau"]
    assert "has not improved over its first 200 values" in events()[0]["message"]


def test_a_finished_run_can_be_looked_at_again(told: Told, store_url: str) -> None:
    """The store has all that the rules need, also for other thresholds than the run had."""
    from tachograph.health.review import review
    from tachograph.settings import HealthConfig

    model = mlp((20, *[32] * 9, 4), nn.Sigmoid)
    assert told(_train(model, adam, blobs(), 1e-3), enabled=False) == []
    with tachograph.open(store_url) as store:
        (finding,) = review(store, "latest")
        assert (finding.rule, finding.step) == ("vanishing_gradient", 9)
        assert review(store, "latest", HealthConfig(vanishing_gradient=1e-15)) == []
