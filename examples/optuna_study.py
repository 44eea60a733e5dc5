"""An Optuna study whose trials train XGBoost models, each linked to its trial.

The record takes ``callbacks=[record]`` and, for what an Optuna callback cannot see,
``record.objective(objective)``. Inside, the model's own callback finds its trial by itself.
"""

from __future__ import annotations

import optuna
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from tachograph.callbacks import OptunaCallback, XGBoostCallback


def objective(trial: optuna.Trial) -> float:
    """The error of one model on held-out data."""
    features, target = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(features, target, random_state=7)
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "eta": trial.suggest_float("eta", 0.01, 0.5, log=True),
        "max_depth": trial.suggest_int("max_depth", 1, 6),
        "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        "seed": 7,
    }
    scores: dict[str, dict[str, list[float]]] = {}
    validation = xgboost.DMatrix(test_x, test_y)
    xgboost.train(
        parameters,
        xgboost.DMatrix(train_x, train_y),
        num_boost_round=40,
        evals=[(validation, "validation")],
        evals_result=scores,
        verbose_eval=False,
        callbacks=[XGBoostCallback()],
    )
    for round_, value in enumerate(scores["validation"]["logloss"]):
        if round_ % 10 == 9:
            trial.report(value, round_)
            if trial.should_prune():
                raise optuna.TrialPruned
    return scores["validation"]["logloss"][-1]


def main() -> None:
    """Search for twelve trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="breast cancer",
        sampler=optuna.samplers.TPESampler(seed=7),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    record = OptunaCallback()
    study.optimize(record.objective(objective), n_trials=12, callbacks=[record])


if __name__ == "__main__":
    main()
