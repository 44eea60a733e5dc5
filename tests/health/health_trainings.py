"""Trainings of small torch models in plain loops, which record as the callbacks do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tachograph.callbacks import tensors_host
from tachograph.run import Run

Batches = Callable[[int], tuple[Tensor, Tensor]]


class Watch:
    """Records loss, gradients, weights and updates of a torch model at each step.

    Parameters
    ----------
    run : Run
    model : nn.Module
    """

    def __init__(self, run: Run, model: nn.Module) -> None:
        self._run = run
        self._model = model
        self._meter = tensors_host.Meter()
        self._keys: dict[tuple[str, ...], Any] = {}

    def gradients(self, step: int) -> None:
        """Record the gradients that are there."""
        found = {n: p.grad for n, p in self._model.named_parameters() if p.grad is not None}
        self._log("gradient", found, step)
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g.float()) for g in found.values()])
        )
        self._run.log({"gradient_norm": float(norm)}, step=step, context={"phase": "train"})

    def weights(self, before: dict[str, Tensor], step: int) -> None:
        """Record the weights and what has changed since `before`."""
        after = {n: p.detach() for n, p in self._model.named_parameters()}
        self._log("weight", after, step)
        self._log("update", {n: after[n] - old for n, old in before.items()}, step)

    def copy(self) -> dict[str, Tensor]:
        """The weights that are trained, as they are now."""
        named = self._model.named_parameters()
        return {n: p.detach().clone() for n, p in named if p.requires_grad}

    def _log(self, kind: str, tensors: dict[str, Tensor], step: int) -> None:
        arrays = [_array(tensor) for tensor in tensors.values()]
        mark = (kind, *tensors)
        if mark not in self._keys:
            pairs = zip(tensors, arrays, strict=True)
            self._keys[mark] = tuple(tensors_host.key(name, kind, a) for name, a in pairs)
        measured = [self._meter.measure(array) for array in arrays]
        self._run.log_statistics(self._keys[mark], tensors_host.pack(measured), step)


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("uint16")
    return tensor.numpy()


def train(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    steps: int = 100,
    loss_of: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    schedule: Any = None,
    every: int = 1,
) -> None:
    """Train, and record every step."""
    watch = Watch(run, model)
    for step in range(steps):
        inputs, targets = batches(step)
        optimizer.zero_grad()
        loss = loss_of(model(inputs), targets)
        loss.backward()
        run.log({"loss": loss.item()}, step=step, context={"phase": "train"})
        if step % every == 0:
            watch.gradients(step)
            before = watch.copy()
        optimizer.step()
        if step % every == 0:
            watch.weights(before, step)
        if schedule is not None:
            schedule.step()


# ---------------------------------------------------------------------------- models


def mlp(
    widths: Sequence[int] = (20, 32, 32, 32, 4), activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A perceptron of layers of these widths."""
    return nn.Sequential(*_layers(widths, activation))


def linear_from_zero() -> nn.Linear:
    """A logistic regression that begins at zero."""
    model = nn.Linear(20, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def cnn(norm: bool = True) -> nn.Sequential:
    """A small network of convolutions, with biases before the norms."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 10, 10)),
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 4),
    )


class Residual(nn.Module):
    """Residual blocks whose last layers begin at zero, so that their first ones get nothing."""

    def __init__(self, blocks: int = 6, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(20, width)
        self.blocks = nn.ModuleList(mlp((width, width, width)) for _ in range(blocks))
        self.last = nn.Linear(width, 4)
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)
            nn.init.zeros_(block[2].bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)


class Adapted(nn.Module):
    """A frozen layer with a trained correction of low rank, which begins at zero."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.base = nn.Linear(inside, outside).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, inside) / inside**0.5)
        self.up = nn.Parameter(torch.zeros(outside, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer and its correction."""
        return self.base(inputs) + inputs @ self.down.T @ self.up.T


class Language(nn.Module):
    """Predicts the next word with a transformer or an LSTM; most of its words never occur."""

    def __init__(self, kind: str, words: int = 400, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10 * words, width)
        nn.init.normal_(self.embedding.weight, 0.0, 0.02)
        if kind == "lstm":
            self.body: nn.Module = nn.LSTM(width, width, batch_first=True)
        else:
            layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, words)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, words second."""
        hidden = self.body(self.embedding(inputs))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.head(hidden).transpose(1, 2)


def _layers(widths: Sequence[int], activation: type[nn.Module]) -> Iterator[nn.Module]:
    for at, (inside, outside) in enumerate(pairwise(widths)):
        yield nn.Linear(inside, outside)
        if at < len(widths) - 2:
            yield activation()


# ---------------------------------------------------------------------------- data


def counting(step: int) -> tuple[Tensor, Tensor]:
    """A batch of words that follow one another, and each one's next."""
    own = torch.Generator().manual_seed(step)
    words = torch.randint(100, (16, 1), generator=own) + torch.arange(9)[None]
    return words[:, :-1], words[:, 1:]


def blobs(classes: int = 4, size: int = 64, noise: float = 1.0, width: int = 20) -> Batches:
    """Batches of points around some centres, and which centre each belongs to."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(classes, width, generator=generator)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        own = torch.Generator().manual_seed(step)
        targets = torch.randint(classes, (size,), generator=own)
        return centres[targets] + noise * torch.randn(size, width, generator=own), targets

    return batch
