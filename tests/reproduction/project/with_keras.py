"""A small network on Keras's own seeds."""

import data
import keras

from tachograph.callbacks import KerasCallback

keras.utils.set_random_seed(data.SEED)
(x, y), (x_val, y_val) = data.load()
model = keras.Sequential(
    [
        keras.Input((4,)),
        keras.layers.Dense(8, "tanh"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(1),
    ]
)
model.compile(keras.optimizers.SGD(0.1 * data.RATE), "mse")
model.fit(
    x,
    y,
    epochs=3,
    batch_size=40,
    validation_data=(x_val, y_val),
    verbose=0,
    callbacks=[KerasCallback()],
)
