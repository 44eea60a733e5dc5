"""What looking at the health of a training takes beside it, and of what the stores take.

Points are those of `mix`, twenty a step, four of them losses; tensors are weights, gradients and
updates of a hundred layers. All of it happens on the recorder's thread, by processor time.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial

from common import (
    Figures,
    Options,
    Result,
    at_most,
    clean_folder,
    for_information,
    fresh,
    in_turn,
    scratch,
)
from mix import NAMES, Training

from tachograph.delivery.sink import Sink
from tachograph.health.monitor import Monitor
from tachograph.journal import JournalWriter
from tachograph.journal_reader import JournalReader
from tachograph.records import Series, uuid7
from tachograph.registry import open_backend
from tachograph.settings import HealthConfig
from tachograph.tensors.records import STATISTICS, TensorKey, TensorSeries

_LAYERS = 100
_KINDS = ("gradient", "weight", "update")
_POINTS_TICK, _TENSORS_TICK = 500, 20  # steps that the monitor finds each time


def points(steps: int) -> Figures:
    """Microseconds of a point: monitored, read alone, drained into SQLite."""
    journal, training = _journal(), Training()
    handle = journal.series(Series("run", NAMES, '{"phase":"train"}'))

    def record() -> None:
        journal.append_points(handle, 0, None, training.values(), clock=training.clock)

    return _measured(journal, record, steps, len(NAMES), _POINTS_TICK)


def tensors(steps: int) -> Figures:
    """Microseconds of a row of the table `tensors`: monitored, read alone, drained into SQLite."""
    journal, draw = _journal(), random.Random(7)
    handles = [
        journal.tensors(TensorSeries("run", tuple(_keys(kind)), attempt=1)) for kind in _KINDS
    ]
    size = {"gradient": 1e-3, "weight": 1.0, "update": 1e-3}
    numbers = len(STATISTICS) * _LAYERS
    packed = {
        kind: [struct.pack(f"<{numbers}d", *_numbers(draw, size[kind])) for _ in range(17)]
        for kind in _KINDS
    }
    step = 0

    def record() -> None:
        nonlocal step
        for handle, kind in zip(handles, _KINDS, strict=True):
            journal.append_tensors(handle, step, None, packed[kind][step % 17])
        step += 1

    return _measured(journal, record, steps, _LAYERS * len(_KINDS), _TENSORS_TICK)


def results(options: Options) -> Iterator[Result]:
    """Points, then rows of tensors."""
    steps = 5_000 if options.quick else 50_000
    found = in_turn(
        {
            "a million points": partial(fresh, points, steps=steps),
            "a thousand rows of tensors": partial(fresh, tensors, steps=steps // 50),
        },
        options.repeats,
    )
    # Microseconds of one are seconds of a million, and milliseconds of a thousand.
    for (what, figures), (unit, limit) in zip(
        found.items(), (("s", 0.4), ("ms", 1.5)), strict=True
    ):
        note = f"{figures['monitor'] / figures['store']:.0%} of what SQLite takes"
        yield at_most(f"{what}: looking at them", figures["monitor"], limit, unit, note)
        yield for_information(f"{what}: reading the journal alone", figures["read"], unit)
        yield for_information(f"{what}: into SQLite", figures["store"], unit, "with reading")


def _measured(
    journal: JournalWriter, record: Callable[[], None], steps: int, rows: int, tick: int
) -> Figures:
    monitor = Monitor(journal, HealthConfig())
    record()
    monitor.step()  # what is imported and made once is not what is measured
    looking = 0.0
    for _ in range(0, steps, tick):
        for _ in range(tick):
            record()
        looking += _processor(monitor.step)
    if monitor.seen < journal.next_seq:
        raise RuntimeError("not all was looked at")
    reader = JournalReader(journal.folder, journal.writer)
    reading = _processor(lambda: [*iter(lambda: reader.read(4 << 20), None)])
    with clean_folder("store") as folder:
        url = f"sqlite:///{folder}/runs.sqlite"
        open_backend(url, create=True).close()
        sink = Sink(url, journal.folder, journal.writer)
        draining = _processor(lambda: sink.step(seal=True))
        sink.close()
    journal.close()
    count = steps * rows
    times = {"monitor": looking, "read": reading, "store": draining}
    return {name: seconds / count * 1e6 for name, seconds in times.items()}


def _journal() -> JournalWriter:
    return JournalWriter(scratch() / "journal", uuid7(), {"sinks": []})


def _keys(kind: str) -> Iterator[TensorKey]:
    for layer in range(_LAYERS // 2):
        yield TensorKey(f"layers.{layer}.weight", kind, (64, 64), "float32", 4096)
        yield TensorKey(f"layers.{layer}.bias", kind, (64,), "float32", 64)


def _numbers(draw: random.Random, size: float) -> Iterator[float]:
    for _ in range(_LAYERS):
        l2 = size * draw.lognormvariate(0, 0.1)
        yield from (draw.gauss(0, size), size, -3 * size, 3 * size, l2, 0.0, 0.0, 0.0)


def _processor(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before
