"""What weights and gradients of Keras cost: of every step, of steps between, and with a budget.

An MLP with 3.9 M parameters at batch 64 is about the worst there is: many weights, little work on
them. Epochs with and without the callback alternate in one process; CPU time of all threads, in
medians.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from common import Figures, Options, Result, at_most, fresh, scratch

BACKENDS = {"torch": 0.59, "tensorflow": 0.53, "jax": 0.73}
"""Share that a prototype added to each step; ours may add 1.2 times that."""

_BATCHES = 40
_LAYERS = (690, 1024, 1024, 1024, 1024, 10)
_SETTINGS: dict[str, dict[str, Any]] = {
    "every": {"every": 1, "histograms": "off"},
    "never": {"every": 1_000_000},
    "auto": {"every": "auto"},
}


def results(options: Options) -> Iterator[Result]:
    """All backends."""
    repeats = 1 if options.quick else options.repeats
    for backend, share in BACKENDS.items():
        found = fresh(measure, backend=backend, repeats=repeats)
        base = found["off"]
        note = f"of {base / 1000:.4g} ms"
        for name, limit in (("every", 1.2 * share * base), ("never", 0.01 * base + 50)):
            added = found[name] - base
            what = {"every": "all of each step", "never": "steps between"}[name]
            yield at_most(
                f"{backend}: {what}, added", added, limit, "µs", f"{note}; {added / base:+.1%}"
            )
        added, limit = found["auto"] - base, 0.02 * base + 50
        yield at_most(
            f"{backend}: auto, added a step", added, limit, "µs", f"{note}; {added / base:+.1%}"
        )


def measure(backend: str, repeats: int) -> Figures:
    """CPU time of a step in µs, by setting."""
    warnings.filterwarnings("ignore")
    os.environ.update(
        KERAS_BACKEND=backend,
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        TF_NUM_INTRAOP_THREADS="1",
        TF_NUM_INTEROP_THREADS="1",
        XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    )
    fits: dict[str, Callable[[], float]] = {"off": _fit_of(None)}
    fits |= {name: _fit_of(settings) for name, settings in _SETTINGS.items()}
    found: dict[str, list[float]] = {name: [] for name in fits}
    for repeat in range(repeats + 1):
        for name, fit in fits.items():
            taken = fit()
            if repeat:  # the first of each loads and compiles
                found[name].append(taken)
    return {name: statistics.median(many) for name, many in found.items()}


def _fit_of(settings: dict[str, Any] | None) -> Callable[[], float]:
    """A fit with a model of its own, whose step is compiled once; gives µs a step."""
    import keras
    import numpy

    from tachograph.callbacks import KerasCallback

    draw = numpy.random.default_rng(7)
    x = draw.normal(size=(64 * _BATCHES, _LAYERS[0])).astype("float32")
    y = draw.integers(0, 10, 64 * _BATCHES)
    dense = [keras.layers.Dense(width, "relu") for width in _LAYERS[1:-1]]
    model = keras.Sequential([keras.Input(_LAYERS[:1]), *dense, keras.layers.Dense(_LAYERS[-1])])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    store = {"backend": f"sqlite:///{scratch()}/runs.sqlite"}

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        """Times epochs but the first, in which a tapped step is compiled."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._began = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch:
                taken.append((time.process_time() - self._began) * 1e6 / _BATCHES)

    taken: list[float] = []

    def fit() -> float:
        taken.clear()
        callbacks: list[Any] = [Clock()]
        if settings is not None:
            callbacks.append(KerasCallback(config=store | {"record": settings}))
        model.fit(x, y, batch_size=64, epochs=4, verbose=0, callbacks=callbacks)
        return statistics.median(taken)

    return fit
