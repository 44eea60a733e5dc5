"""What `track` adds to trainings of scikit-learn that it sees at work.

Fits with and without it alternate in one process, after one of each; what is shown is the
difference between the quickest of each, in processor time of the thread that trains: the work is
the same each time, and whatever else the machine does only adds to it. All that is recorded is
part of it; the start of a run is part of it for the pipeline alone, the others record into one.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from common import Figures, Options, Result, at_most, for_information, fresh, scratch

Make = Callable[[], Any]
"""A new estimator."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training to measure, what a step of it is, and what one may cost beside its share.

    `prepare` gives what makes an estimator, data and target; `steps` counts those of a fit.
    """

    title: str
    step: str
    prepare: Callable[[], tuple[Make, Any, Any]]
    steps: Callable[[Any], int]
    microseconds: float = 50.0


def results(options: Options) -> Iterator[Result]:
    """All estimators that can be seen at work, and a pipeline."""
    for name, case in CASES.items():
        pairs = 2 if options.quick else 4 * options.repeats
        for every in ("auto", 1):
            found = fresh(measure, name=name, every=every, pairs=pairs)
            base, added = found["without"], found["added"]
            what = f"{case.title}, every={every}: a {case.step}"
            note = f"of {base:.4g} without; {added / base:+.1%}"
            if every == "auto":
                yield at_most(what, added, 0.02 * base + case.microseconds, "µs", note)
            else:
                yield for_information(what, added, "µs", note)


def measure(name: str, every: str | int, pairs: int) -> Figures:
    """Fit in turn with and without; microseconds a step, of the thread that trains."""
    warnings.filterwarnings("ignore")
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from tachograph import start_run
    from tachograph.callbacks import track

    make, features, target = CASES[name].prepare()
    config = {
        "backend": f"sqlite:///{scratch()}/runs.sqlite",
        "record": {"system": False, "every": every},
    }
    run = None if name == "pipeline" else start_run(config=config, make_current=False)
    found: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(pairs + 1):
        for recorded in (False, True) if pair % 2 else (True, False):
            estimator = make()
            started = time.thread_time()
            with track(estimator, run=run, config=config) if recorded else nullcontext():
                estimator.fit(features, target)
            taken = (time.thread_time() - started) * 1e6 / CASES[name].steps(estimator)
            if pair:  # the first fit of a process loads what it needs
                found[recorded].append(taken)
    without, together = min(found[False]), min(found[True])
    return {"without": without, "added": together - without}


# ---------------------------------------------------------------------------- the trainings


def _data(rows: int, columns: int) -> tuple[Any, Any]:
    from sklearn.datasets import make_classification

    return make_classification(  # type: ignore[no-any-return]
        rows, columns, n_informative=10, n_classes=3, random_state=0
    )


def _network(rows: int, width: int, epochs: int) -> tuple[Make, Any, Any]:
    from sklearn.neural_network import MLPClassifier

    def make() -> Any:
        layers = (width, width)
        return MLPClassifier(
            layers, max_iter=epochs, random_state=0, tol=0, n_iter_no_change=epochs
        )

    return make, *_data(rows, 20)


def _boosting(rows: int) -> tuple[Make, Any, Any]:
    from sklearn.ensemble import GradientBoostingClassifier

    return lambda: GradientBoostingClassifier(n_estimators=30, random_state=0), *_data(rows, 20)


def _histograms(rows: int) -> tuple[Make, Any, Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    def make() -> Any:
        return HistGradientBoostingClassifier(max_iter=30, random_state=0, early_stopping=False)

    return make, *_data(rows, 20)


def _logistic(rows: int) -> tuple[Make, Any, Any]:
    from sklearn.linear_model import LogisticRegression

    return lambda: LogisticRegression(max_iter=200, tol=1e-9), *_data(rows, 40)


def _pipeline() -> tuple[Make, Any, Any]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def make() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))

    return make, *load_breast_cancer(return_X_y=True)


def _iterations(estimator: Any) -> int:
    found = estimator.n_iter_
    return int(found.max() if hasattr(found, "max") else found)


CASES = {
    "small_network": Case(
        "Network, 20 x 32 x 32", "epoch", lambda: _network(1_000, 32, 60), _iterations
    ),
    "network": Case(
        "Network, 20 x 256 x 256", "epoch", lambda: _network(2_000, 256, 40), _iterations
    ),
    "boosting": Case(
        "GradientBoosting, 2,000 rows",
        "stage",
        lambda: _boosting(2_000),
        lambda one: one.n_estimators_,
    ),
    "histograms": Case(
        "HistGradientBoosting, 10,000 rows", "round", lambda: _histograms(10_000), _iterations
    ),
    "logistic_small": Case(
        "LogisticRegression, 2,000 rows", "iteration", lambda: _logistic(2_000), _iterations
    ),
    "logistic": Case(
        "LogisticRegression, 20,000 rows", "iteration", lambda: _logistic(20_000), _iterations
    ),
    "pipeline": Case("Pipeline of two steps", "fit", _pipeline, lambda _: 1, 10_000),
}
