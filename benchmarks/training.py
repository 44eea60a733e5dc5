"""What each callback adds to a training, weights and gradients off.

Fits with and without the callback alternate in one process, after one of each; what is shown is
the median of the differences. It includes starting the run and waiting until all is stored.
CPU is that of all threads, also of the one that stores beside the training.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from common import Figures, Options, Result, at_most, fresh, scratch

Fit = Callable[[bool], Any]
"""Train once, with the callback or without."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training to measure: what a step of it is, how many a fit has, what a step may cost.

    `prepare` imports the framework and gives the fit for a number of steps.
    """

    title: str
    step: str
    steps: int
    prepare: Callable[[int], Fit]
    share: float = 0.01
    microseconds: float = 50.0


def results(options: Options) -> Iterator[Result]:
    """All callbacks."""
    for name, case in CASES.items():
        steps = max(1, case.steps // (5 if options.quick else 1))
        found = fresh(
            measure, name=name, steps=steps, pairs=(20 if steps == 1 else 2) * options.repeats + 1
        )
        for clock in ("wall", "cpu"):
            base, added = found[f"{clock}_without"], found[f"{clock}_added"]
            limit = case.share * base + case.microseconds
            note = f"of {base:.4g} without, {clock}; {added / base:+.1%}"
            yield at_most(f"{case.title}: added a {case.step}", added, limit, "µs", note)


def measure(name: str, steps: int, pairs: int) -> Figures:
    """Fit in turn with and without; microseconds a step."""
    warnings.filterwarnings("ignore")
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # their waiting is CPU too
    fit = CASES[name].prepare(steps)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for pair in range(pairs + 1):
        for recorded in (False, True) if pair % 2 else (True, False):
            wall, processor = time.perf_counter(), time.process_time()
            fit(recorded)
            taken = time.perf_counter() - wall, time.process_time() - processor
            if pair:  # the first fit of a process loads what it needs
                found[recorded].append(taken)
    figures: Figures = {}
    for place, clock in enumerate(("wall", "cpu")):
        without = [taken[place] * 1e6 / steps for taken in found[False]]
        together = [taken[place] * 1e6 / steps for taken in found[True]]
        differences = [b - a for a, b in zip(without, together, strict=True)]
        figures[f"{clock}_without"] = statistics.median(without)
        figures[f"{clock}_added"] = statistics.median(differences)
    return figures


@cache
def _keywords() -> dict[str, Any]:
    """One store for all fits, as a user has: it is made before the first that counts."""
    store = {"backend": f"sqlite:///{scratch()}/runs.sqlite"}
    return {"config": store, "weights": "off", "gradients": "off"}


# ---------------------------------------------------------------------------- the trainings


def _lightning(steps: int) -> Fit:
    import lightning
    import torch

    from tachograph.callbacks import LightningCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers: list[Any] = [torch.nn.Linear(64, 256)]
            for _ in range(3):
                layers += [torch.nn.ReLU(), torch.nn.Linear(256, 256)]
            self.network = torch.nn.Sequential(*layers, torch.nn.Linear(256, 10))

        def training_step(self, batch: Any, _: int) -> Any:
            features, target = batch
            found = self.network(features)
            loss = torch.nn.functional.cross_entropy(found, target)
            accuracy = (found.argmax(1) == target).float().mean()
            self.log_dict({"loss": loss, "accuracy": accuracy, "largest": found.max()})
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    features, target = torch.randn(64 * 50, 64), torch.randint(0, 10, (64 * 50,))
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(features, target), batch_size=64
    )

    def fit(recorded: bool) -> None:
        lightning.Trainer(
            max_steps=steps,
            log_every_n_steps=1,
            callbacks=[LightningCallback(**_keywords())] if recorded else [],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Model(), data)

    return fit


def _keras(steps: int) -> Fit:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy
    import torch

    from tachograph.callbacks import KerasCallback

    torch.set_num_threads(1)
    batches = 50
    draw = numpy.random.default_rng(7)
    features = draw.normal(size=(64 * batches, 64)).astype("float32")
    target = draw.integers(0, 10, 64 * batches)

    def fit(recorded: bool) -> None:
        layers = [keras.layers.Dense(256, "relu") for _ in range(4)]
        model = keras.Sequential([*layers, keras.layers.Dense(10, "softmax")])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        callbacks = [KerasCallback(**_keywords())] if recorded else []
        epochs = max(1, steps // batches)
        model.fit(features, target, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)

    return fit


def _xgboost(steps: int) -> Fit:
    import numpy
    import xgboost

    from tachograph.callbacks import XGBoostCallback

    draw = numpy.random.default_rng(7)
    features = draw.normal(size=(20_000, 20)).astype("float32")
    target = features[:, 0] + features[:, 1] * features[:, 2] + draw.normal(size=20_000) > 0
    data = xgboost.DMatrix(features, target)
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": ["logloss", "error"],
        "nthread": 1,
    }

    def fit(recorded: bool) -> None:
        callbacks = [XGBoostCallback(**_keywords())] if recorded else []
        evals = [(data, "train")]
        xgboost.train(parameters, data, steps, evals=evals, verbose_eval=False, callbacks=callbacks)

    return fit


def _optuna(steps: int, *, whole: bool) -> Fit:
    import optuna

    from tachograph.callbacks import OptunaCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", -5, 5)
        return float((x - 2) ** 2 + trial.suggest_int("k", 0, 9))

    def fit(recorded: bool) -> None:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        if not recorded:
            study.optimize(objective, n_trials=steps)
            return
        record = OptunaCallback(**_keywords())
        wrapped = record.objective(objective) if whole else objective
        study.optimize(wrapped, n_trials=steps, callbacks=[record])

    return fit


def _sklearn(_: int, *, observed: bool) -> Fit:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tachograph.callbacks import SklearnCallback, track

    features, target = load_breast_cancer(return_X_y=True)

    def fit(recorded: bool) -> None:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
        if recorded and not observed:
            pipeline.set_callbacks(SklearnCallback(**_keywords()))
        with track(pipeline, **_keywords()) if recorded and observed else nullcontext():
            pipeline.fit(features, target)

    return fit


CASES = {
    "lightning": Case("Lightning", "step", 1000, _lightning),
    "keras": Case("Keras on torch", "step", 1000, _keras),
    "xgboost": Case("XGBoost", "round", 1000, _xgboost),
    "optuna": Case("Optuna", "trial", 300, partial(_optuna, whole=False), 0, 500),
    "objective": Case(
        "Optuna with objective()", "trial", 300, partial(_optuna, whole=True), 0, 500
    ),
    "sklearn": Case(
        "scikit-learn pipeline", "fit", 1, partial(_sklearn, observed=False), 0, 10_000
    ),
    "track": Case(
        "scikit-learn pipeline, track", "fit", 1, partial(_sklearn, observed=True), 0, 10_000
    ),
}
