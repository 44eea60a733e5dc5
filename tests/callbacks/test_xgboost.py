"""XGBoostCallback obeys the laws of all callbacks."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tachograph.testing.callback_contract import CallbackContract, Record

xgboost = pytest.importorskip("xgboost")

from tachograph.callbacks import XGBoostCallback  # noqa: E402

QUIET = {"verbose_eval": False}


def small_data(rows: int = 300) -> tuple[Any, Any]:
    """Features, and two classes that are a noisy function of them."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((rows, 5)).astype(np.float32)
    noise = generator.standard_normal(rows)
    labels = features[:, 0] + features[:, 1] * features[:, 2] + noise > 0
    return features, labels.astype(np.float32)


def logistic(margins: Any, matrix: Any) -> tuple[Any, Any]:
    """A custom objective: gradients and hessians of the logistic loss."""
    probabilities = 1 / (1 + np.exp(-margins))
    return probabilities - matrix.get_label(), probabilities * (1 - probabilities)


RANK = """
import json, sys
import numpy as np, xgboost
from tachograph.callbacks import XGBoostCallback
with xgboost.collective.CommunicatorContext(**json.loads(sys.argv[1])):
    rank = xgboost.collective.get_rank()
    features = np.random.default_rng(rank).standard_normal((200, 4)).astype(np.float32)
    matrix = xgboost.DMatrix(features, (features[:, 0] > 0).astype(np.float32))
    callback = XGBoostCallback(config=json.loads(sys.argv[2]))
    xgboost.train({"objective": "binary:logistic"}, matrix, 4, evals=[(matrix, "train")],
                  verbose_eval=False, callbacks=[callback])
"""


class TestXGBoostCallback(CallbackContract):
    tensor_kinds = frozenset({"gradient", "hessian", "weight"})

    tensor_kinds = frozenset({"gradient", "hessian", "weight"})

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
        booster = xgboost.train(params, matrix, 5, evals=evals, callbacks=callbacks, **QUIET)
        states = pickle.dumps((np.random.get_state(), random.getstate()))
        return bytes(booster.save_raw("ubj")) + booster.predict(matrix).tobytes() + states

    def fail(self, callbacks: Sequence[Any], error: BaseException) -> None:
        features, labels = small_data()
        rounds = []

        def objective(margins: Any, matrix: Any) -> tuple[Any, Any]:
            rounds.append(margins)
            if len(rounds) == 3:
                raise error
            return logistic(margins, matrix)

        matrix = xgboost.DMatrix(features, labels)
        xgboost.train({"nthread": 1}, matrix, 6, obj=objective, callbacks=callbacks)

    def leave(self, callbacks: Sequence[Any]) -> Iterable[weakref.ref[Any]]:
        features, labels = small_data()
        matrix = xgboost.DMatrix(features, labels)
        evals = [(matrix, "train")]
        booster = xgboost.train({}, matrix, 2, evals=evals, callbacks=callbacks, **QUIET)
        estimator = xgboost.XGBClassifier(n_estimators=2, callbacks=callbacks)
        estimator.fit(features, labels)
        xgboost.cv({}, matrix, 2, callbacks=callbacks)
        return [weakref.ref(one) for one in (booster, matrix, estimator, features, labels)]

    def train_processes(self, folder: Path, config: dict[str, Any]) -> None:
        tracker = xgboost.RabitTracker(host_ip="127.0.0.1", n_workers=2)
        tracker.start()
        code = [sys.executable, "-c", RANK, json.dumps(tracker.worker_args()), json.dumps(config)]
        processes = [subprocess.Popen(code, cwd=folder) for _ in range(2)]
        assert [process.wait(120) for process in processes] == [0, 0]

    @pytest.mark.slow
    def test_processes_record_their_rows(
        self, config: dict[str, Any], store_url: str, tmp_path: Path
    ) -> None:
        """Gradients are those of the rows that the recording process holds, and say so."""
        self.train_processes(tmp_path, config)
        rows = Record(store_url).rows("tensors", kind="gradient")
        assert {(row["context"], row["shape"]) for row in rows} == {('{"scope":"rank"}', "[200]")}
