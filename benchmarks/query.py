"""How long a reader waits: the list of ten thousand runs, one series of a long run."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from common import Figures, Options, Result, at_most, for_information, fresh, in_turn, scratch

from tachograph.batches import complete_row
from tachograph.records import Batch, MetricBlock, Row, Series, now_us, uuid7

RUNS, WRITERS = 10_000, 100
POINTS, SERIES = 100_000, 20
LIST_MS = {"sqlite": 50.0, "parquet": 300.0}
SERIES_MS = {"sqlite": 100.0, "parquet": 50.0}
_READS = 9
T = TypeVar("T")


def list_runs(scheme: str, runs: int) -> Figures:
    """List that many runs, of a hundred processes; Parquet after merging the keyed tables."""
    import tachograph
    from tachograph.backends.base import SupportsCompact
    from tachograph.registry import open_backend

    url = _url(scheme)
    backend = open_backend(url, create=True)
    for number in range(WRITERS):
        backend.write(_process(number, runs // WRITERS))
    if isinstance(backend, SupportsCompact):
        backend.compact(grace_seconds=0.0)
        backend.compact(grace_seconds=0.0)
    backend.close()
    opened, store = _timed(lambda: tachograph.open(url))
    figures = {"open": opened} | _reads(store.runs)
    figures |= {
        f"best_{k}": v
        for k, v in _reads(
            lambda: store.runs(
                "metrics.loss < 0.1 and params.lr > 0.05", sort="metrics.loss", limit=50
            )
        ).items()
    }
    if len(store.runs()) != runs:
        raise RuntimeError("the list is not whole")
    return figures


def read_series(scheme: str, points: int) -> Figures:
    """Read one of twenty series that one batch brought."""
    import tachograph
    from tachograph.registry import open_backend

    url = _url(scheme)
    backend = open_backend(url, create=True)
    backend.write(_long_run(points))
    backend.close()
    opened, store = _timed(lambda: tachograph.open(url))
    if len(store.series("long", "metric7")) != points:
        raise RuntimeError("the series is not whole")
    return {"open": opened} | _reads(lambda: store.series("long", "metric7"))


def results(options: Options) -> Iterator[Result]:
    """Both stores: the list, a filter with a metric and a parameter, a series."""
    part = 10 if options.quick else 1
    repeats = min(3, options.repeats)
    for what, measure, limits in (
        (f"{RUNS // part} runs", partial(fresh, list_runs, runs=RUNS // part), LIST_MS),
        (
            f"series of {POINTS // part} points",
            partial(fresh, read_series, points=POINTS // part),
            SERIES_MS,
        ),
    ):
        found = in_turn({scheme: partial(measure, scheme=scheme) for scheme in limits}, repeats)
        for scheme, figures in found.items():
            note = f"CPU {figures['cpu']:.3g}, first {figures['first']:.3g}"
            yield at_most(f"{scheme}: {what}", figures["median"], limits[scheme], "ms", note)
            if "best_median" in figures:
                line = f"{scheme}: the 50 best of them by a metric and a parameter"
                yield for_information(line, figures["best_median"], "ms")


def _process(number: int, runs: int) -> Batch:
    """What one process records that makes so many short runs."""
    draw, writer, now = random.Random(number), uuid7(), now_us()
    rows: dict[str, list[Row]] = {}
    blocks: list[MetricBlock] = []

    def add(table: str, **columns: object) -> None:
        row = columns if table in ("events",) else columns | {"changed_at": now}
        rows.setdefault(table, []).append(complete_row(table, row, writer, len(blocks)))

    add("writers", host="here", pid=number, boot_id="b", rank=0, world_size=1, started_at=now)
    for _ in range(runs):
        run = {"run_id": uuid7()}
        about = {"status": "finished", "host": "here", "started_at": now, "ended_at": now}
        add(
            "runs",
            **run,
            root_id=run["run_id"],
            kind="run",
            project="p",
            name="run",
            attempt=1,
            user="someone",
            framework="none",
            **about,
        )
        add("attempts", **run, attempt=1, first_step=0, **about)
        for path, value in (("lr", draw.random()), ("batch", 64), ("depth", draw.randrange(9))):
            add("params", **run, path=path, value=str(value), source="user")
        add("tags", **run, key="team", value="x")
        series = Series(run["run_id"], ("loss", "accuracy"))
        first = len(blocks) * 5
        points = [(first + i, now, i, None, (draw.random(), draw.random())) for i in range(5)]
        blocks.append(MetricBlock.pack(series, points))
    return Batch(writer, 0, 5 * runs, tuple(blocks), rows)


def _long_run(points: int) -> Batch:
    draw, writer = random.Random(1), uuid7()
    series = Series("long", tuple(f"metric{i}" for i in range(SERIES)))
    rows = (
        (seq, seq * 50_000, seq, None, [draw.random() for _ in range(SERIES)])
        for seq in range(points)
    )
    run = {"run_id": "long", "root_id": "long", "kind": "run", "status": "finished"}
    started = complete_row("runs", run | {"changed_at": 1, "started_at": 1}, writer, 0)
    return Batch(writer, 0, points, (MetricBlock.pack(series, rows),), {"runs": [started]})


def _reads(read: Callable[[], object]) -> Figures:
    walls, cpus = [], []
    for _ in range(_READS):
        processor = time.process_time()
        walls.append(_timed(read)[0])
        cpus.append(1e3 * (time.process_time() - processor))
    return {
        "first": walls[0],
        "median": statistics.median(walls),
        "cpu": statistics.median(cpus),
    }


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    done = work()
    return 1e3 * (time.perf_counter() - began), done


def _url(scheme: str) -> str:
    return f"{scheme}:///{scratch()}/runs" + (".sqlite" if scheme == "sqlite" else "")
