"""Points of a made-up training: twenty metrics of the kinds that trainings have."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

from tachograph.journal import JournalWriter
from tachograph.records import Series, uuid7

NAMES = (
    *(f"loss/{part}" for part in ("total", "class", "box", "mask")),
    *(f"gradient/norm/{layer}" for layer in range(4)),
    "learning_rate",
    "momentum",
    *(f"accuracy/top{k}" for k in (1, 3, 5)),
    "batch_size",
    "weight_decay",
    "time/step",
    "time/data",
    *(f"layer/{layer}/std" for layer in range(3)),
)
STEP_NS = 50_000_000
"""Twenty steps a second."""


class Training:
    """Gives the values of one step after the other, and a clock that goes as a training does."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._step = 0
        self._now = 1_000_000_000
        self._stds = [1.0, 0.5, 0.1]

    def clock(self) -> int:
        """Nanoseconds; moves only with `values`."""
        return self._now

    def values(self) -> list[float]:
        """The metrics of the next step, in the order of `NAMES`."""
        draw, step = self._random, self._step
        self._step += 1
        duration = draw.lognormvariate(math.log(STEP_NS), 0.05)
        self._now += int(duration)
        loss = 2.0 * math.exp(-step / 5000) + 0.1
        self._stds = [std * (1 + draw.gauss(0, 1e-4)) for std in self._stds]
        return [
            *(_single(loss * draw.lognormvariate(0, 0.1)) for _ in range(4)),
            *(_single(draw.lognormvariate(0, 0.5)) for _ in range(4)),
            0.001 * (1 + math.cos(step / 20_000)) / 2,
            0.9,
            *(min(256, int(draw.gauss(200, 12))) / 256 for _ in range(3)),
            256.0,
            0.01,
            duration / 1e9,
            draw.lognormvariate(-6, 0.3),
            *map(_single, self._stds),
        ]


def _single(value: float) -> float:
    """As 32 bits hold it: what a framework's loss is."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def write_journal(folder: Path, url: str, calls: int, each: bool = False) -> str:
    """Write a journal of so many steps, all metrics in one call or `each` in its own."""
    writer = uuid7()
    journal = JournalWriter(folder, writer, {"sinks": [url]})
    training = Training()
    groups = [(name,) for name in NAMES] if each else [NAMES]
    handles = [journal.series(Series("run", names)) for names in groups]
    for step in range(calls):
        values = training.values()
        parts = [[value] for value in values] if each else [values]
        for handle, part in zip(handles, parts, strict=True):
            journal.append_points(handle, step, None, part, clock=training.clock)
    journal.close()
    return writer
