"""What statistics of weights and gradients add to a Lightning step, and beside other trackers.

Recorded and unrecorded steps alternate in one fit; what is shown is the median of the differences
of neighbours. The model is a transformer of 13.6 million parameters in 124 tensors, on one thread.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from common import Figures, Options, Result, at_most, for_information, fresh, scratch

Hook = Callable[[int], None]
"""Called with the number of a step, where it ends."""


def results(options: Options) -> Iterator[Result]:
    """Shares of a step, the budget on fast and slow steps, and peers."""
    pairs = 8 if options.quick else 10 * options.repeats
    parts = {
        "gradients and weights": ({"updates": False, "histograms": "off"}, 0.05),
        "gradients, weights and updates": ({"histograms": "off"}, 0.08),
        "the same with histograms": ({"histograms": 2}, None),
    }
    ours: dict[str, float] = {}
    for title, (record, share) in parts.items():
        found = fresh(alternate, record=record, pairs=pairs)
        step, added = found["cpu_without"], found["cpu_added"]
        ours[title] = added
        note = f"of a step of {step:.4g} ms, CPU; wall {found['wall_added']:.4g} ms"
        shown = 100 * added / step
        if share is None:
            yield for_information(f"{title}, recorded step", shown, "%", note)
        else:
            yield at_most(f"{title}, recorded step", shown, 100 * share, "%", note)
    yield from _budgets(options)
    yield from _peers(pairs, ours)


def _budgets(options: Options) -> Iterator[Result]:
    """Every='auto' on steps of about 1, 10, 100 and 1,000 ms."""
    for width, batch, most in ((64, 16, 3000), (256, 64, 1000), (768, 256, 150), (1536, 512, 30)):
        steps = max(12, most // (4 if options.quick else 1))
        fits = 1 if options.quick else 3
        found = fresh(budget, width=width, batch=batch, steps=steps, fits=fits)
        step, added = found["without"], found["added"]
        note = f"of {step:.4g} µs; {added / step:+.1%}; {found['records']:.0f} records a fit"
        yield at_most(
            f"auto: added a step of {step / 1e3:.3g} ms", added, 0.02 * step + 50, "µs", note
        )


def _peers(pairs: int, ours: dict[str, float]) -> Iterator[Result]:
    moments, both = ours["gradients, weights and updates"], ours["the same with histograms"]
    for name in ("wandb", "tensorboard"):
        if find_spec(name) is None:
            continue
        theirs = fresh(beside, name=name, pairs=max(4, pairs // 3))["cpu_added"]
        note = f"{theirs:.4g} ms a recorded step, CPU"
        yield at_most(f"moments beside {name}", moments / theirs, 1 / 8, "x", note)
        yield at_most(f"moments with histograms beside {name}", both / theirs, 2 / 3, "x", note)


# ---------------------------------------------------------------------------- the model


def _prepare() -> Any:
    """Torch on one thread, without the words of a Trainer."""
    warnings.filterwarnings("ignore")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch


def _transformer(torch: Any) -> Any:
    """13.6 million parameters in 124 tensors."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(1000, 320)
            layer = torch.nn.TransformerEncoderLayer(320, 4, 1280, 0.0, batch_first=True)
            self.layers = torch.nn.TransformerEncoder(layer, 10, enable_nested_tensor=False)
            self.norm = torch.nn.LayerNorm(320)
            self.head = torch.nn.Linear(320, 1000, bias=False)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.norm(self.layers(self.table(tokens))))

    return Model()


def _loss(torch: Any, model: Any, tokens: Any) -> Any:
    found = model(tokens[:, :-1])
    return torch.nn.functional.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten())


def _clocks() -> tuple[float, float]:
    return time.perf_counter() * 1e3, time.process_time() * 1e3


def _differences(marks: Sequence[tuple[float, ...]], first: int) -> Figures:
    """Medians of what every second step, from step `first`, takes more than its neighbour."""
    figures: Figures = {}
    for place, clock in enumerate(("wall", "cpu")):
        taken = [b[place] - a[place] for a, b in itertools.pairwise(marks)]
        recorded, plain = taken[first::2], taken[first + 1 :: 2]
        figures[f"{clock}_without"] = statistics.median(plain)
        figures[f"{clock}_added"] = statistics.median(
            [a - b for a, b in zip(recorded, plain, strict=False)]
        )
    return figures


# ---------------------------------------------------------------------------- measurements


def alternate(record: dict[str, Any], pairs: int) -> Figures:
    """Fit with every=2; milliseconds of a step, and what a recorded one takes more."""
    torch = _prepare()
    tokens = torch.randint(0, 1000, (8 * (2 * pairs + 5), 65))
    loss = partial(_loss, torch)
    marks = _fit(
        torch, _transformer(torch), loss, (tokens,), 8, 2 * pairs + 5, record | {"every": 2}
    )
    return _differences(marks[2:], 1)  # the second of these is the fourth step


def budget(width: int, batch: int, steps: int, fits: int) -> Figures:
    """Fit with every='auto'; microseconds of a step, and of our hooks, from the first to the last.

    The hooks are timed themselves: what memory does to a step differs by more between two fits.
    """
    torch = _prepare()
    features, target = torch.randn(batch * steps, 64), torch.randint(0, 10, (batch * steps,))

    def loss(model: Any, features: Any, target: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(features), target)

    def fit() -> tuple[float, float]:
        inner = [torch.nn.Linear(width, width) for _ in range(6)]
        layers = [torch.nn.Linear(64, width), *inner, torch.nn.Linear(width, 10)]
        model = torch.nn.Sequential(
            *(part for layer in layers for part in (layer, torch.nn.ReLU()))
        )
        marks = _fit(torch, model, loss, (features, target), batch, steps, {})
        (begun, _, before), (ended, _, after) = marks[0], marks[-1]
        return (ended - begun) * 1e3 / (steps - 1), (after - before) * 1e6 / (steps - 1)

    taken = [fit() for _ in range(fits)]
    added = statistics.median(added for _, added in taken)
    return {
        "without": statistics.median(step for step, _ in taken) - added,
        "added": added,
        "records": _records(),
    }


def _fit(
    torch: Any,
    model: Any,
    loss: Callable[..., Any],
    data: tuple[Any, ...],
    batch: int,
    steps: int,
    record: dict[str, Any],
) -> list[tuple[float, float, float]]:
    """Fit with Lightning; the clocks where each step begins, and seconds of our hooks so far."""
    import lightning

    from tachograph.callbacks import LightningCallback

    marks: list[tuple[float, float, float]] = []
    store = {"backend": f"sqlite:///{scratch()}/runs.sqlite"}
    callback = LightningCallback(config=store | {"record": record})

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def on_train_batch_start(self, *_: Any) -> None:
            marks.append((*_clocks(), callback._recording.hook_seconds))

        def training_step(self, batch: Any, index: int) -> Any:
            return loss(self.model, *batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-4)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=batch)
    lightning.Trainer(
        max_steps=steps,
        max_epochs=1,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), loader)
    return marks


def _records() -> float:
    """Steps whose weights were recorded in the last fit."""
    import tachograph

    store = tachograph.open(f"sqlite:///{scratch()}/runs.sqlite")
    last = "(select run_id from runs order by started_at desc limit 1)"
    found = store.sql(f"select count(distinct step) as steps from tensors where run_id = {last}")
    return float(found.to_pylist()[0]["steps"])


def beside(name: str, pairs: int) -> Figures:
    """A plain loop in which a tracker records every second step."""
    torch = _prepare()
    model = _transformer(torch)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    record = {"wandb": _wandb, "tensorboard": _tensorboard}[name](model)
    marks: list[tuple[float, float]] = []
    for step in range(2 * pairs + 6):
        marks.append(_clocks())
        optimizer.zero_grad()
        _loss(torch, model, torch.randint(0, 1000, (8, 65))).backward()
        optimizer.step()
        record(step)
    taken = _differences(marks[3:], 0), _differences(marks[3:], 1)
    return max(taken, key=lambda found: found["cpu_added"])


def _wandb(model: Any) -> Hook:
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(scratch()))
    import wandb

    wandb.init(project="bench", settings=wandb.Settings(console="off", x_disable_stats=True))
    wandb.watch(model, log="all", log_freq=2)
    return lambda step: wandb.log({"step": step})


def _tensorboard(model: Any) -> Hook:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(scratch()))

    def record(step: int) -> None:
        if step % 2:
            return
        for name, parameter in model.named_parameters():
            writer.add_histogram(f"weights/{name}", parameter, step)
            writer.add_histogram(f"gradients/{name}", parameter.grad, step)

    return record
