"""A model, its outputs, and what is said of a file that is none."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from groupwise.errors import UserError
from groupwise.models.reading import load_model


def a_model() -> keras.Model:
    inputs = keras.Input((6, 6, 3))
    hidden = layers.DepthwiseConv2D(3, padding="same")(inputs)
    hidden = layers.BatchNormalization()(layers.SeparableConv2D(4, 3)(hidden))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(hidden))))


def outputs(model: keras.Model) -> np.ndarray[Any, Any]:
    shapes = [(2, *(size or 6 for size in tensor.shape[1:])) for tensor in model.inputs]
    values = [np.random.default_rng(0).normal(size=shape).astype("float32") for shape in shapes]
    found = model(values if len(values) > 1 else values[0], training=False)
    return np.asarray(keras.ops.convert_to_numpy(found))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_model(path)
    sentence = str(refused.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert len(sentence) < len(str(path)) + 600
    return sentence.removeprefix(str(path))
