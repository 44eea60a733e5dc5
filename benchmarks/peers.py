"""What one call costs in other trackers, beside ours; those that are not installed are left out.

``pip install --group peers`` installs them. What is stored when the call returns differs: here
the point survives a kill, elsewhere it waits in the process. Trackers that send to a server are
used without one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec

from common import Figures, Options, Result, for_information, fresh, in_turn, scratch
from log import Log, measure, time_calls

CALLS = {"tensorboard": 20_000, "mlflow": 500, "trackio": 20_000}


def _tensorboard() -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(scratch()))

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


def _mlflow() -> Log:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{scratch()}/mlflow.db")
    mlflow.set_experiment("bench")
    mlflow.start_run()
    return lambda metrics, step: mlflow.log_metrics(metrics, step=step)


def _trackio() -> Log:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(scratch())}
    import trackio

    trackio.init(project="bench", embed=False)
    return lambda metrics, step: trackio.log(metrics, step=step)


PEERS: Mapping[str, Callable[[], Log]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def peer(name: str, metrics: int) -> Figures:
    """Time the calls of one tracker."""
    log = PEERS[name]()
    time_calls(log, metrics, 20)  # what the first calls make is not what a call costs
    return time_calls(log, metrics, CALLS[name])


def results(options: Options) -> Iterator[Result]:
    """One metric a call, then ten."""
    for name in PEERS:
        if find_spec(name) is None:
            yield Result(f"{name} is not installed", "left out")
    installed = [name for name in PEERS if find_spec(name)]
    if not installed:
        return
    for metrics in (1, 10):
        ours = partial(fresh, measure, variant="sqlite", metrics=metrics, calls=20_000)
        variants = {"tachograph": ours}
        variants |= {name: partial(fresh, peer, name=name, metrics=metrics) for name in installed}
        found = in_turn(variants, min(3, options.repeats))
        for name, figures in found.items():
            times = figures["p50"] / found["tachograph"]["p50"]
            means = figures["mean"] / found["tachograph"]["mean"]
            note = f"{times:.1f} x ours, mean {figures['mean']:.3g}: {means:.1f} x ours"
            what = f"{metrics} metric{'s' * (metrics > 1)}: {name}"
            yield for_information(what, figures["p50"], "µs p50", note)
