"""keras.applications' ResNeXt in stock Keras layers (a depthwise convolution, a reshape, a sum), and its weight file.

Written after the structure of the published networks, whose code Keras itself no longer has: the layers' names, padding
and epsilon are theirs.
"""

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

DEPTHS = {"resnext50": (3, 4, 6, 3), "resnext101": (3, 4, 23, 3)}
EPSILON = 1.001e-5


def resnext(name: str, groups: int) -> keras.Model:
    """Return the network for images of any size, which gives logits, with fresh weights."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.ZeroPadding2D(3)(inputs)
    x = keras.layers.Conv2D(64, 7, strides=2, use_bias=False, name="conv1_conv")(x)
    x = keras.layers.ReLU(name="conv1_relu")(_norm("conv1")(x))
    x = keras.layers.MaxPooling2D(3, strides=2)(keras.layers.ZeroPadding2D(1)(x))
    for stage, depth in enumerate(DEPTHS[name], start=2):
        for block in range(1, depth + 1):
            strides = 2 if block == 1 and stage > 2 else 1
            x = _block(x, groups * 2**stage, strides, groups, block == 1, f"conv{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(1000, name="probs")(x))


def _norm(name: str) -> keras.layers.BatchNormalization:
    return keras.layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")


def _block(x: Any, filters: int, strides: int, groups: int, projects: bool, name: str) -> Any:
    out = 64 // groups * filters
    shortcut = x
    if projects:
        shortcut = keras.layers.Conv2D(out, 1, strides=strides, use_bias=False, name=f"{name}_0_conv")(x)
        shortcut = _norm(f"{name}_0")(shortcut)
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_1_conv")(x)
    x = keras.layers.ReLU()(_norm(f"{name}_1")(x))
    width = filters // groups
    x = keras.layers.ZeroPadding2D(1)(x)
    x = keras.layers.DepthwiseConv2D(3, strides, depth_multiplier=width, use_bias=False, name=f"{name}_2_conv")(x)
    x = keras.layers.Lambda(lambda y: _summed(y, groups, width), output_shape=(None, None, filters))(x)
    x = keras.layers.ReLU()(_norm(f"{name}_2")(x))
    x = keras.layers.Conv2D(out, 1, use_bias=False, name=f"{name}_3_conv")(x)
    x = keras.layers.Add()([shortcut, _norm(f"{name}_3")(x)])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def _summed(x: Any, groups: int, width: int) -> Any:
    """Sum what each channel of a group adds to each output of it."""
    batch, height, columns, _ = keras.ops.shape(x)
    split = keras.ops.reshape(x, (batch, height, columns, groups, width, width))
    return keras.ops.reshape(keras.ops.sum(split, axis=4), (batch, height, columns, groups * width))


def randomise(model: keras.Model) -> None:
    """Give the network random weights and batch norm statistics."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        values = [generator.normal(size=value.shape, scale=0.1) for value in layer.get_weights()]
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma = 0.3 if layer.name.endswith("_3_bn") else 1.0
            values = [gamma * (1 + values[0]), values[1], values[2], 1 + np.abs(values[3])]
        elif values:
            # Of a depthwise kernel, the filters of one channel are summed with those of its group.
            shape = values[0].shape
            fan_in = shape[0] * shape[1] * shape[3] if layer.name.endswith("_2_conv") else np.prod(shape[:-1])
            values[0] *= 10 * (2 / fan_in) ** 0.5
        layer.set_weights(values)


def write(model: keras.Model, path: Path) -> Path:
    """Write the weights as Keras 2 did: /layer/layer/variable:0."""
    with h5py.File(path, "w") as file:
        for layer in model.layers:
            for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
                file[f"{layer.name}/{layer.name}/{variable.name}:0"] = value
    return path
