"""What statistics of gradients, trees and features add to XGBoost, beside the callback without.

Fits without a callback, with one that records no tensors, and with statistics at each round and as
the budget allows alternate in one process, after one of each. Shown is the median of the
differences between neighbours, as a share of the rounds' time without a callback. CPU is that of
all threads, also of those that store and compute beside the training. Other work on the machine
spoils differences first, so the time that the hooks themselves take of the training's thread is
shown too.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

from common import Figures, Options, Result, at_most, for_information, fresh, scratch

FEATURES = 50
SIZES = {100_000: 120, 5_000: 500}
"""Rows of the data, and rounds of a fit."""

VARIANTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "off": {"weights": "off", "gradients": "off"},
    "every=1": {"every": 1},
    "auto": {"every": "auto"},
}
LIMITS = {(100_000, "every=1"): 0.04, (100_000, "auto"): 0.02, (5_000, "auto"): 0.02}
METRICS_MICROSECONDS = 50.0


def results(options: Options) -> Iterator[Result]:
    """All sizes, at each round and as the budget allows."""
    for rows, rounds in SIZES.items():
        found = fresh(
            measure,
            rows=rows,
            rounds=rounds // 4 if options.quick else rounds,
            repeats=3 if options.quick else 2 * options.repeats + 1,
        )
        for variant in ("every=1", "auto"):
            for clock in ("hooks", "wall", "cpu"):
                yield from _lines(found, rows, variant, clock)


def _lines(found: Figures, rows: int, variant: str, clock: str) -> Iterator[Result]:
    base = found[f"none {clock}"]
    tensors = found[f"{variant} {clock}"]
    what = f"{rows} rows, {variant}: statistics, {clock}"
    note = f"{tensors:.4g} µs of {base:.4g} µs a round"
    limit = LIMITS.get((rows, variant))
    if limit is None or (variant, clock) == ("every=1", "cpu"):  # it asks for time, not for CPU
        yield for_information(what, 100 * tensors / base, "%", note)
        return
    yield at_most(what, 100 * tensors / base, 100 * limit, "%", note)
    if variant == "auto" and clock != "hooks":
        whole = tensors + found[f"off {clock}"]
        most = limit * base + METRICS_MICROSECONDS
        title = f"{rows} rows, {variant}: all that the callback adds, {clock}"
        yield at_most(title, whole, most, "µs", "a round, with start and end of the run")


def measure(rows: int, rounds: int, repeats: int) -> Figures:
    """Fit in turn with each variant; microseconds a round that each adds to the one before."""
    warnings.filterwarnings("ignore")
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    fit, hooks = _prepare(rows, rounds), _watch_hooks()
    taken: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in VARIANTS}
    names = list(VARIANTS)
    for repeat in range(repeats + 1):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            hooks.clear()
            began = time.perf_counter(), time.process_time(), time.thread_time()
            fit(VARIANTS[name])
            ended = time.perf_counter(), time.process_time(), time.thread_time()
            wall, processor, thread = (b - a for a, b in zip(began, ended, strict=True))
            one = wall, processor, thread - sum(hooks), sum(hooks)
            if repeat:  # the first fit of a process loads what it needs
                taken[name].append(one)
    figures: Figures = {}
    for place, clock in enumerate(("wall", "cpu")):
        spent = {name: [one[place] * 1e6 / rounds for one in many] for name, many in taken.items()}
        figures[f"none {clock}"] = statistics.median(spent["none"])
        for name, base in (("off", "none"), ("every=1", "off"), ("auto", "off")):
            pairs = zip(spent[name], spent[base], strict=True)
            figures[f"{name} {clock}"] = statistics.median(a - b for a, b in pairs)
    rest = statistics.median(one[2] * 1e6 / rounds for one in taken["off"])
    figures["none hooks"] = rest
    for name in ("every=1", "auto"):
        figures[f"{name} hooks"] = rest * statistics.median(one[3] / one[2] for one in taken[name])
    return figures


def _watch_hooks() -> list[float]:
    """Seconds of the training's thread in each hook that records tensors, from now on."""
    from tachograph.callbacks.xgboost_tensors import TensorRecord

    seconds: list[float] = []

    def watched(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*arguments)
            finally:
                seconds.append(time.thread_time() - began)

        return call

    for name in ("round_begins", "round_ended", "ended"):
        setattr(TensorRecord, name, watched(getattr(TensorRecord, name)))
    return seconds


def _prepare(rows: int, rounds: int) -> Any:
    import numpy
    import xgboost

    from tachograph.callbacks import XGBoostCallback

    draw = numpy.random.default_rng(7)
    features = draw.normal(size=(rows, FEATURES)).astype("float32")
    target = features[:, 0] + features[:, 1] * features[:, 2] + draw.normal(size=rows) > 0
    data = xgboost.DMatrix(features, target)
    parameters = {"objective": "binary:logistic", "nthread": 1, "max_depth": 6}
    store = {"backend": f"sqlite:///{scratch()}/runs.sqlite"}

    def fit(keywords: dict[str, Any] | None) -> None:
        callbacks = [] if keywords is None else [XGBoostCallback(config=store, **keywords)]
        evals = [(data, "train")]
        xgboost.train(
            parameters, data, rounds, evals=evals, verbose_eval=False, callbacks=callbacks
        )

    return fit
