"""Models to rewrite, with weights and statistics that are not the initial ones, and how to compare them."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from groupwise.running.run import joined

TOLERANCE = 1e-5

GROUPS, WIDTH = 3, 4  # of the hand-made grouped convolutions
CHANNELS = GROUPS * WIDTH


def model_of(build: Callable[[Any], Any], shape: tuple[int | None, ...] = (8, 6, CHANNELS)) -> keras.Model:
    inputs = keras.Input(shape)
    return disturbed(keras.Model(inputs, build(inputs)))


def disturbed(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give a model's biases and batch norms values that a rewrite could not guess."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        kind = variable.path.rsplit("/", 1)[-1]
        if kind in ("moving_variance", "gamma"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif kind in ("beta", "moving_mean", "bias"):
            variable.assign(random.normal(0, 0.2, variable.shape))
    return model


def images_for(model: keras.Model, batch: int = 2, seed: int = 1) -> list[Any]:
    """Return random images, one array for each of a model's inputs."""
    random = np.random.default_rng(seed)
    shapes = [[size or any_size for size, any_size in zip(x.shape[1:], (9, 11, 4), strict=True)] for x in model.inputs]
    return [random.normal(size=(batch, *shape)).astype("float32") for shape in shapes]


def outputs_of(model: keras.Model, arrays: list[Any]) -> list[Any]:
    """Return a model's outputs in inference, in a flat list."""
    given = arrays[0] if len(arrays) == 1 else arrays
    if isinstance(getattr(model, "input", None), dict):
        given = dict(zip(model.input, arrays, strict=True))
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(given, training=False))]


def difference(first: keras.Model, second: keras.Model) -> float:
    """Return the largest difference of two models' outputs, over the first's largest value."""
    arrays = images_for(first)
    pairs = zip(outputs_of(first, arrays), outputs_of(second, arrays), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def assert_same(first: keras.Model, second: keras.Model) -> None:
    """Assert that outputs agree to 1e-5, and that they say something."""
    assert all(np.abs(y).max() > 1e-3 for y in outputs_of(first, images_for(first)))
    assert difference(first, second) <= TOLERANCE


def kinds(model: keras.Model) -> list[str]:
    """Return the classes of a model's layers, but for the inputs."""
    return [type(layer).__name__ for layer in model.layers if not isinstance(layer, layers.InputLayer)]


def one_calls(model: keras.Model) -> dict[str, str]:
    """Return what a model runs as one: the classes of the layers, by the name of the one that leads them."""
    return {join.head.operation.name: join.description for join in joined(model)}


def resnext_block(x: Any, filters: int, groups: int, name: str, strides: int = 1) -> Any:
    """Return a stock ResNeXt block with a shortcut."""
    y = layers.Conv2D(filters // 2, 1, use_bias=False, name=f"{name}_reduce")(x)
    y = layers.ReLU(name=f"{name}_relu1")(layers.BatchNormalization(name=f"{name}_bn1")(y))
    y = layers.Conv2D(filters // 2, 3, strides, "same", groups=groups, use_bias=False, name=f"{name}_spatial")(y)
    y = layers.ReLU(name=f"{name}_relu2")(layers.BatchNormalization(name=f"{name}_bn2")(y))
    y = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_expand")(y)
    y = layers.BatchNormalization(name=f"{name}_bn3")(y)
    if strides != 1 or x.shape[-1] != filters:
        x = layers.Conv2D(filters, 1, strides, use_bias=False, name=f"{name}_shortcut")(x)
        x = layers.BatchNormalization(name=f"{name}_bn4")(x)
    return layers.ReLU(name=f"{name}_relu3")(layers.Add(name=f"{name}_add")([y, x]))
