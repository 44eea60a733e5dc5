"""What recording takes of memory over a long run, over the same loop that records nothing.

Both have imported scikit-learn, the smallest of the frameworks; what Parquet is compared with
has imported pyarrow too. Peaks are the largest resident set of the process; growth is from the
first quarter of the run to its end.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import Figures, Options, Result, at_most, for_information, fresh, in_turn, scratch

METRICS = 20
LIMIT_MB = 40.0
GROWTH_MB = 4.0
_PAUSES = 200


def measure(variant: str, calls: int) -> Figures:
    """A loop that logs into 'sqlite' or 'parquet', or into nothing ('none', 'pyarrow')."""
    names = [f"metric{i}" for i in range(METRICS)]
    numbers = [random.random() for _ in range(1000 + METRICS)]
    run = None
    import sklearn.linear_model  # noqa: F401

    if variant == "pyarrow":
        import pyarrow.parquet  # noqa: F401
    elif variant != "none":
        import tachograph

        url = f"{variant}:///{scratch()}/runs" + (".sqlite" if variant == "sqlite" else "")
        run = tachograph.start_run(config={"backend": url})
    quarter = 0.0
    for step in range(calls):
        start = step % 1000
        values = dict(zip(names, numbers[start : start + METRICS], strict=True))
        if run is not None:
            run.log(values, step)
            if step % max(1, calls // _PAUSES) == 0:
                time.sleep(0.1)  # a training computes something; meanwhile the thread drains
        if step == calls // 4:
            quarter = _resident()
    end = _resident()
    if run is not None:
        run.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {"end": end, "growth": end - quarter, "peak": peak / unit}


def _resident() -> float:
    """MB that the process has now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_maxrss / (1 << 20)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def results(options: Options) -> Iterator[Result]:
    """Both stores, over a run of five million points."""
    calls = (500_000 if options.quick else 5_000_000) // METRICS
    repeats = min(3, options.repeats)
    variants = ("none", "pyarrow", "sqlite", "parquet")
    found = in_turn({v: partial(fresh, measure, variant=v, calls=calls) for v in variants}, repeats)
    yield for_information("scikit-learn, not recorded", found["none"]["peak"], "MB")
    yield for_information("scikit-learn and pyarrow, not recorded", found["pyarrow"]["peak"], "MB")
    for store, base in (("sqlite", "none"), ("parquet", "pyarrow")):
        figures = found[store]
        over = figures["peak"] - found[base]["peak"]
        note = f"peak {figures['peak']:.3g}"
        yield at_most(f"{store}: over that, at its peak", over, LIMIT_MB, "MB", note)
        what = f"{store}: growth over three quarters of {calls * METRICS:,} points"
        yield at_most(what, figures["growth"], GROWTH_MB, "MB")
