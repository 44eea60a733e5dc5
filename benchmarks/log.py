"""What one call of `Run.log` costs, beside the least that survives a kill.

The reference packs the values and hands them to the kernel in one `os.write`, and does nothing
else: no identity, no time, no checksum, nobody reads it.
"""

from __future__ import annotations

import array
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from common import (
    Figures,
    Options,
    Result,
    at_least,
    at_most,
    for_information,
    fresh,
    in_turn,
    scratch,
)

Log = Callable[[Mapping[str, float], int], None]
CONTEXT = {"phase": "train"}


class BinaryLog:
    """The reference: ``struct.pack`` and one ``os.write`` a call."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.ids: dict[str, int] = {}
        self.names = open(f"{path}.names", "a", buffering=1)  # noqa: SIM115

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the values of some metrics."""
        ids = self.ids
        if len(ids) < len(metrics) or not metrics.keys() <= ids.keys():
            for k in metrics:
                if k not in ids:
                    ids[k] = len(ids)
                    self.names.write(k + "\n")
        n = len(metrics)
        os.write(
            self.fd,
            struct.pack(f"<qI{n}I{n}d", step, n, *map(ids.__getitem__, metrics), *metrics.values()),
        )


def time_calls(log: Log, metrics: int, calls: int) -> Figures:
    """Time each of `calls` calls with so many metrics; microseconds, and points a second."""
    names = ["loss"] if metrics == 1 else [f"layer{i // 10}/stat{i % 10}" for i in range(metrics)]
    numbers = [random.random() for _ in range(100_003)]
    durations = array.array("q")
    now, processor = time.perf_counter_ns, time.thread_time()
    for step in range(calls):
        start = step * metrics % 99_000
        values = dict(zip(names, numbers[start : start + metrics], strict=True))
        began = now()
        log(values, step)
        durations.append(now() - began)
    processor = time.thread_time() - processor
    ordered = sorted(durations)
    total = sum(ordered)
    return {
        "p50": ordered[calls // 2] / 1e3,
        "p99": ordered[int(calls * 0.99)] / 1e3,
        "mean": total / calls / 1e3,
        "cpu": processor / calls * 1e6,  # with the dict and the two looks at the clock
        "rate": metrics * calls / total * 1e3,  # millions
    }


def measure(variant: str, metrics: int, calls: int) -> Figures:
    """One variant: 'reference', 'context', or the scheme of a store."""
    if variant == "reference":
        return time_calls(BinaryLog(str(scratch() / "reference")).log, metrics, calls)
    import tachograph

    url = "memory://bench" if variant == "memory" else f"sqlite:///{scratch()}/runs.sqlite"
    run = tachograph.start_run(config={"backend": url})
    run.log({"warm": 0.0})
    time.sleep(2.0)  # what is gathered once about the process is behind us

    def log(values: Mapping[str, float], step: int) -> None:
        run.log(values, step, context=CONTEXT)

    figures = time_calls(log if variant == "context" else run.log, metrics, calls)
    run.finish()
    return figures


def results(options: Options) -> Iterator[Result]:
    """Calls with one, ten and a thousand metrics, while a thread drains them into a store."""
    part = 10 if options.quick else 1
    variants = ("reference", "sqlite", "memory", "context")
    for metrics, calls in ((1, 100_000), (10, 20_000), (1000, 500)):
        found = in_turn(
            {
                v: partial(fresh, measure, variant=v, metrics=metrics, calls=calls // part)
                for v in variants
            },
            options.repeats,
        )
        yield from _lines(metrics, found)
    # So many that the thread drains all the while, and takes turns with the caller.
    calls = 1_500_000 // part
    found = in_turn(
        {
            v: partial(fresh, measure, variant=v, metrics=1, calls=calls)
            for v in ("reference", "sqlite")
        },
        min(options.repeats, 3),
    )
    limit = 1.3 * found["reference"]["p50"] + 0.5
    what = f"{calls} calls in a row, SQLite written meanwhile"
    yield at_most(what, found["sqlite"]["p50"], limit, "µs p50", _more(found["sqlite"]))


def _lines(metrics: int, found: Mapping[str, Figures]) -> Iterator[Result]:
    reference = found["reference"]
    name = f"{metrics} metric{'s' * (metrics > 1)}"
    yield for_information(f"{name}: reference", reference["p50"], "µs p50", _more(reference))
    for variant in ("sqlite", "memory", "context"):
        what = f"{name}: log, {'SQLite, context=' if variant == 'context' else variant}"
        figures = found[variant]
        ratio = f"{figures['p50'] / reference['p50']:.2f} x reference, {_more(figures)}"
        if metrics == 1 and variant != "context":
            yield at_most(what, figures["p50"], 1.3 * reference["p50"] + 0.5, "µs p50", ratio)
        else:
            yield for_information(what, figures["p50"], "µs p50", ratio)
        if metrics > 1 and variant != "memory":  # that store keeps Python rows, for tests
            limit = 2 if metrics == 10 else 5
            yield at_least(f"{name}: all calls, {variant}", figures["rate"], limit, "M points/s")


def _more(figures: Figures) -> str:
    return f"p99 {figures['p99']:.3g}, mean {figures['mean']:.3g}, loop's CPU {figures['cpu']:.3g}"
