"""How fast a journal is drained into a store, and what a point takes there.

The points are those of `mix`: twenty metrics, of them float32 noise, smooth, constant and
counted ones, twenty steps a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from common import (
    Figures,
    Options,
    Result,
    at_least,
    at_most,
    clean_folder,
    folder_bytes,
    for_information,
    fresh,
    in_turn,
    scratch,
)
from mix import NAMES, write_journal

from tachograph.records import Batch

FAST = {"sqlite": 0.5, "parquet": 3.0}  # millions of points a second
_LIVE_CALLS = {"sqlite": 20, "parquet": 6000}  # of a second, of five minutes


def drain(scheme: str, calls: int, each: bool) -> Figures:
    """Drain a journal as a recorder does; and its two halves alone."""
    from tachograph.delivery.sink import Sink
    from tachograph.journal_reader import JournalReader
    from tachograph.registry import open_backend

    folder = scratch() / "journal"
    url = _url(scheme, scratch())
    points = calls * len(NAMES)
    writer = write_journal(folder, url, calls, each)
    with clean_folder("warm") as warm:  # what is imported and opened is not what is measured
        open_backend(_url(scheme, warm), create=True).close()
    sink = Sink(url, folder, writer)
    drained = _timed(lambda: sink.step(seal=True))
    sink.close()
    if sink.confirmed == 0:
        raise RuntimeError(f"nothing was drained: {sink.problem}")
    reader = JournalReader(folder, writer)
    with clean_folder("alone") as alone:
        backend = open_backend(_url(scheme, alone), create=True)
        size = backend.batch_bytes
        batches: list[Batch] = []
        read = _timed(lambda: batches.extend(iter(lambda: reader.read(size), None)))
        written = _timed(lambda: [backend.write(batch) for batch in batches])
        backend.close()
    return {
        name: points / seconds / 1e6
        for part, (wall, cpu) in {"drain": drained, "read": read, "write": written}.items()
        for name, seconds in ((part, wall), (f"{part}_cpu", cpu))
    }


def size(scheme: str, calls: int, each: bool, batch_calls: int) -> Figures:
    """Bytes a point in a store that gets batches of so many calls; 0 is as large as it likes."""
    from tachograph.journal_reader import read_batches
    from tachograph.registry import open_backend

    folder = scratch() / "journal"
    url = _url(scheme, scratch())
    writer = write_journal(folder, url, calls, each)
    frame = 45 + 8 * (1 if each else len(NAMES))
    backend = open_backend(url, create=True)
    for batch in read_batches(folder, writer, 0, batch_calls * frame or backend.batch_bytes):
        backend.write(batch)
    backend.close()
    path = scratch() / ("runs.sqlite" if scheme == "sqlite" else "runs/metrics")
    return {"bytes": folder_bytes(path) / (calls * len(NAMES))}


def results(options: Options) -> Iterator[Result]:
    """Speed of both stores, then their sizes."""
    calls = 10_000 if options.quick else 50_000
    found = in_turn(
        {scheme: partial(fresh, drain, scheme=scheme, calls=calls, each=False) for scheme in FAST},
        options.repeats,
    )
    for scheme, figures in found.items():
        yield from _speed(scheme, figures)
    for scheme in FAST:
        figures = fresh(drain, scheme=scheme, calls=calls // 5, each=True)
        note = f"{figures['drain_cpu']:.3g} by CPU"
        what = f"{scheme}: journal to disk, one metric a call"
        yield for_information(what, figures["drain"], "M points/s", note)
    for limit, scheme, each, whole in (
        (32, "sqlite", False, True),
        (60, "sqlite", True, True),
        (4.5, "parquet", False, True),
        (None, "parquet", True, True),
        (32, "sqlite", False, False),
        (4.5, "parquet", False, False),
    ):
        yield _size(scheme, calls // (5 if each else 1), each, whole, limit)


def _speed(scheme: str, figures: Figures) -> Iterator[Result]:
    note = f"{figures['drain_cpu']:.3g} by CPU"
    what = f"{scheme}: journal to disk, 20 metrics a call"
    yield at_least(what, figures["drain"], FAST[scheme], "M points/s", note)
    for part, name in (("read", "reading the journal alone"), ("write", "the store alone")):
        note = f"{figures[part + '_cpu']:.3g} by CPU"
        yield for_information(f"{scheme}: {name}", figures[part], "M points/s", note)


def _size(scheme: str, calls: int, each: bool, whole: bool, limit: float | None) -> Result:
    batch = 0 if whole else _LIVE_CALLS[scheme] * (len(NAMES) if each else 1)
    found = fresh(size, scheme=scheme, calls=calls, each=each, batch_calls=batch)["bytes"]
    how = "one at a call" if each else "20 a call"
    pace = "at once" if whole else {"sqlite": "each second", "parquet": "5 min a segment"}[scheme]
    what = f"{scheme}: size of a point, {how}, written {pace}"
    if limit is None:
        return for_information(what, found, "bytes")
    return at_most(what, found, limit, "bytes")


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    began, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - processor


def _url(scheme: str, folder: Path) -> str:
    return f"{scheme}:///{folder}/runs" + (".sqlite" if scheme == "sqlite" else "")
