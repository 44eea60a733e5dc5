"""XGBoostCallback obeys the laws of all callbacks."""

from __future__ import annotations

import pickle
import random
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from tachograph.testing.callback_contract import CallbackContract

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback  # noqa: E402


def small_data(rows: int = 300) -> tuple[Any, Any]:
    """Features and two classes that are a noisy sum of them."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((rows, 5)).astype(np.float32)
    labels = features[:, 0] + features[:, 1] * features[:, 2] + generator.standard_normal(rows) > 0
    return features, labels.astype(np.float32)


class TestXGBoostCallback(CallbackContract):
    def make_callback(self, **keywords: Any) -> Any:
        return XGBoostCallback(**keywords)

    def train(self, callbacks: Sequence[Any]) -> bytes:
        np.random.seed(7)
        random.seed(7)
        features, labels = small_data()
        order = np.random.permutation(len(labels))
        matrix = xgboost.DMatrix(features[order], labels[order])
        params = {"objective": "binary:logistic", "subsample": 0.8, "seed": 3, "nthread": 1}
        evals = [(matrix, "train"), (xgboost.DMatrix(features, labels), "valid")]
        booster = xgboost.train(
            params, matrix, 5, evals=evals, verbose_eval=False, callbacks=callbacks
        )
        states = pickle.dumps((np.random.get_state(), random.getstate()))
        return bytes(booster.save_raw("ubj")) + booster.predict(matrix).tobytes() + states

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        features, labels = small_data()
        rounds = []

        def objective(margins: Any, matrix: Any) -> Any:
            rounds.append(margins)
            if len(rounds) == 3:
                raise error
            probabilities = 1 / (1 + np.exp(-margins))
            return probabilities - matrix.get_label(), probabilities * (1 - probabilities)

        matrix = xgboost.DMatrix(features, labels)
        xgboost.train({"nthread": 1}, matrix, 6, obj=objective, callbacks=callbacks)

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        features, labels = small_data()
        matrix = xgboost.DMatrix(features, labels)
        booster = xgboost.train(
            {"nthread": 1},
            matrix,
            2,
            evals=[(matrix, "a")],
            verbose_eval=False,
            callbacks=callbacks,
        )
        return [weakref.ref(one) for one in (booster, matrix, features)]
