"""A Keras model that tells malignant from benign tumours; on torch, jax or tensorflow.

The only line for the record is ``callbacks=[..., KerasCallback()]``.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from tachograph.callbacks import KerasCallback


def main() -> None:
    """Train until the validation loss no longer falls, then evaluate."""
    keras.utils.set_random_seed(7)
    features, target = load_breast_cancer(return_X_y=True)
    features = StandardScaler().fit_transform(features).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(features, target, random_state=7)
    model = keras.Sequential(
        [
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy"])
    record = KerasCallback(name="breast cancer, dense", data={"train": train_x, "test": test_x})
    model.fit(
        train_x,
        train_y,
        validation_split=0.2,
        epochs=30,
        batch_size=32,
        verbose=0,
        callbacks=[keras.callbacks.EarlyStopping(patience=5), record],
    )
    model.evaluate(test_x, test_y, verbose=0, callbacks=[record])


if __name__ == "__main__":
    main()
