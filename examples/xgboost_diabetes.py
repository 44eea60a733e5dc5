"""XGBoost on the progress of diabetes, stopped early.

The only line for the record is ``callbacks=[XGBoostCallback()]``.
"""

from __future__ import annotations

import xgboost
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from tachograph.callbacks import XGBoostCallback


def main() -> None:
    """Boost until the error on held-out patients no longer falls."""
    features, target = load_diabetes(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(features, target, random_state=7)
    training = xgboost.DMatrix(train_x, train_y)
    validation = xgboost.DMatrix(test_x, test_y)
    xgboost.train(
        {"objective": "reg:squarederror", "eta": 0.05, "max_depth": 3, "subsample": 0.8, "seed": 7},
        training,
        num_boost_round=400,
        evals=[(training, "train"), (validation, "validation")],
        early_stopping_rounds=20,
        verbose_eval=False,
        callbacks=[XGBoostCallback(name="diabetes, depth 3")],
    )


if __name__ == "__main__":
    main()
