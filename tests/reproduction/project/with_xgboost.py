"""Boosted trees, half of the rows a round."""

import data
import xgboost

from tachograph.callbacks import XGBoostCallback

(x, y), (x_val, y_val) = data.load()
train, val = xgboost.DMatrix(x, y), xgboost.DMatrix(x_val, y_val)
xgboost.train(
    {"max_depth": 3, "eta": data.RATE, "subsample": 0.5, "seed": data.SEED},
    train,
    num_boost_round=8,
    evals=[(val, "val")],
    verbose_eval=False,
    callbacks=[XGBoostCallback()],
)
