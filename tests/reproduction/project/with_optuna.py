"""A study over a linear model."""

import data
import numpy as np
import optuna

from tachograph.callbacks import OptunaCallback

optuna.logging.set_verbosity(optuna.logging.WARNING)
(x, y), (x_val, y_val) = data.load()


def objective(trial):
    """Ridge regression with the trial's penalty."""
    penalty = trial.suggest_float("penalty", 1e-3, 10.0, log=True)
    weights = np.linalg.solve(x.T @ x + data.RATE * penalty * np.eye(x.shape[1]), x.T @ y)
    return float(np.mean((x_val @ weights - y_val) ** 2))


callback = OptunaCallback(data={"train": x, "val": x_val})
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=data.SEED))
study.optimize(callback.objective(objective), n_trials=6, callbacks=[callback])
