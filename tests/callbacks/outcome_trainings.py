"""Trainings with each framework, for `test_outcomes.py`.

As a program, does each once and prints what was recorded of outcomes as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import lightning
import numpy as np
import optuna
import torch
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import tachograph
from tachograph.callbacks import (
    KerasCallback,
    LightningCallback,
    OptunaCallback,
    SklearnCallback,
    XGBoostCallback,
)
from tachograph.callbacks.torch import watch
from tachograph.provenance.outcomes import outcome

Config = dict[str, Any]
Expected = dict[str, Any]


class LastWord(lightning.Callback):  # type: ignore[misc]
    """Changes the weights when the training has ended, as averaging of weights does."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            pl_module.token.weight.mul_(0.5)


class Shrink(keras.callbacks.Callback):  # type: ignore[misc]
    """The same for Keras."""

    def on_train_end(self, logs: Any = None) -> None:
        self.model.set_weights([weight * 0.5 for weight in self.model.get_weights()])


class Module(lightning.LightningModule):  # type: ignore[misc]
    """Two layers, one of them used twice, with moving averages."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Linear(4, 4)
        self.same = self.token
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("passing", torch.rand(3), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.norm(self.same(self.token(x))).sum(1)

    def training_step(self, batch: Any, _: int) -> Any:
        return ((self(batch[0]) - batch[1]) ** 2).mean()

    def predict_step(self, batch: Any, _: int) -> Any:
        return {"value": self(batch[0])}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def train_lightning(config: Config, seed: int, x: Any, y: Any) -> Expected:
    torch.manual_seed(seed)
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    module, loader = Module(), torch.utils.data.DataLoader(data, 20)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback(config=config), LastWord()],
    )
    trainer.fit(module, loader)
    values = torch.cat([batch["value"] for batch in trainer.predict(module, loader)])
    state = {name: one for name, one in module.state_dict().items() if "same" not in name}
    return {"outcome.weights": outcome(state), "outcome.predictions": outcome({"value": values})}


def train_keras(config: Config, seed: int, x: Any, y: Any) -> Expected:
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
    model = keras.Model(inputs, [keras.layers.Dense(1)(hidden), hidden])
    model.compile("sgd", ["mse", None])
    callback = KerasCallback(config=config)
    model.fit(x, [y, x[:, :3]], epochs=2, verbose=0, callbacks=[callback, Shrink()])
    predictions = model.predict(x, batch_size=30, verbose=0, callbacks=[callback])
    weights = {str(number): one for number, one in enumerate(model.get_weights())}
    return {"outcome.weights": outcome(weights), "outcome.predictions": outcome(predictions)}


def train_xgboost(config: Config, seed: int, x: Any, y: Any) -> Expected:
    params = {"max_depth": 2, "subsample": 0.5, "seed": seed, "nthread": 1}
    data = xgboost.DMatrix(x, y)
    model = xgboost.train(params, data, 4, callbacks=[XGBoostCallback(config=config)])
    return {"outcome.weights": outcome(bytes(model.save_raw("ubj")))}


def train_sklearn(config: Config, seed: int, x: Any, y: Any) -> Expected:
    columns = ColumnTransformer(
        [("number", StandardScaler(), [0, 1, 2]), ("kind", OneHotEncoder(), [3])]
    )
    x = np.column_stack([x[:, :3], (x[:, 3] > 0.5).astype("float32")])
    models = [
        ("forest", RandomForestClassifier(4, random_state=seed)),
        ("line", LogisticRegression()),
    ]
    pipeline = Pipeline([("columns", columns), ("model", StackingClassifier(models, cv=2))])
    pipeline.set_callbacks(SklearnCallback(config=config))
    pipeline.fit(x, y > 2)
    return {}


def train_optuna(config: Config, seed: int, x: Any, y: Any) -> Expected:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))

    def objective(trial: Any) -> float:
        slope = trial.suggest_float("slope", 0, 1)
        return float(((slope * x.sum(1) - y) ** 2).mean())

    callback = OptunaCallback(config=config)
    study.optimize(callback.objective(objective), n_trials=3, callbacks=[callback])
    return {}


def train_torch(config: Config, seed: int, x: Any, y: Any) -> Expected:
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, config=config):
        for _ in range(3):
            optimizer.zero_grad()
            ((model(torch.tensor(x))[:, 0] - torch.tensor(y)) ** 2).mean().backward()
            optimizer.step()
    return {"outcome.weights": outcome(dict(model.state_dict()))}


TRAININGS: dict[str, Callable[[Config, int, Any, Any], Expected]] = {
    "lightning": train_lightning,
    "keras": train_keras,
    "xgboost": train_xgboost,
    "sklearn": train_sklearn,
    "optuna": train_optuna,
    "torch": train_torch,
}


VARIANTS = ("same", "seed", "row")


def train_all(folder: str, variants: tuple[str, ...] = VARIANTS) -> dict[str, Any]:
    """Train as it is, with another seed, with another row of data.

    Returns
    -------
    dict
        By framework and variant, what was `found` in the record, and what is `expected` there.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    x = np.random.default_rng(0).random((60, 4)).astype("float32")
    y = x.sum(1)
    rows = {"same": (1, x, y), "seed": (2, x, y), "row": (1, *_with_another_row(x, y))}
    found: dict[str, Any] = {}
    for framework, train in TRAININGS.items():
        for variant in variants:
            url = f"sqlite:///{folder}/{framework}-{variant}.sqlite"
            config = {"backend": url, "record": {"system": False}}
            expected = train(config, *rows[variant])
            with tachograph.open(url) as store:
                documents = store.run(next(iter(store.runs()))["run_id"]).provenance
            outcomes = {k: v for k, v in documents.items() if k.startswith(("outcome", "pipe"))}
            found[f"{framework} {variant}"] = {"found": outcomes, "expected": expected}
    return found


def _with_another_row(x: Any, y: Any) -> tuple[Any, Any]:
    """Of which two features and the target have changed."""
    x, y = x.copy(), y.copy()
    x[7, :2] += 3
    y[7] += 3
    return x, y


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps(train_all(sys.argv[1], ("same",))))
