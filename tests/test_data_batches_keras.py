"""Keras's fit, evaluate and predict on batches of images."""

import keras
import numpy as np
import pytest

from groupwise.data import TooManyBroken
from tests.test_data_batches import batches_of, numbered_split


def test_keras_trains_evaluates_and_predicts_on_them():
    training = batches_of(numbered_split(32), 8, shuffle=True)
    test = batches_of(numbered_split(10))
    model = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    epochs = []
    notes = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(training.epoch))
    model.fit(training, epochs=3, validation_data=test, shuffle=False, verbose=0, callbacks=[notes])
    assert epochs == [0, 1, 2]
    assert training.epoch == 3
    assert model.predict(test, verbose=0).shape == (10, 2)
    logits = model.predict(test, verbose=0)
    accuracy = np.mean(logits.argmax(axis=1) == np.arange(10) % 2)
    np.testing.assert_allclose(model.evaluate(test, verbose=0, return_dict=True)["accuracy"], accuracy, rtol=1e-6)


def test_a_failure_within_fit_is_kept():
    batches = batches_of(numbered_split(64, broken=range(20, 40)), 8, shuffle=True, cache=False)
    model = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(Exception, match="images are broken"):
        model.fit(batches, shuffle=False, verbose=0)
    assert isinstance(batches.failure, TooManyBroken)
