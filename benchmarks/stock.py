"""Models of Keras's own layers alone, as people have them: what `groupwise.accelerate` is measured on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import layers


def resnext50(size: int) -> keras.Model:
    """Return ResNeXt-50 32x4d of stock layers, with logits of 1000 classes: its grouped ones are `Conv2D(groups=32)`.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, table 1.
    """
    inputs = keras.Input((size, size, 3))
    x = _conv_bn_relu(inputs, 64, 7, 2)
    x = layers.MaxPooling2D(3, 2, "same")(x)
    for stage, depth in enumerate((3, 4, 6, 3)):
        for unit in range(depth):
            x = _block(x, 256 * 2**stage, 2 if stage and not unit else 1)
    return keras.Model(inputs, layers.Dense(1000)(layers.GlobalAveragePooling2D()(x)), name="resnext50")


def _block(x: Any, filters: int, strides: int) -> Any:
    y = _conv_bn_relu(x, filters // 2, 1)
    y = _conv_bn_relu(y, filters // 2, 3, strides, groups=32)
    y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
    if strides != 1 or x.shape[-1] != filters:
        x = layers.BatchNormalization()(layers.Conv2D(filters, 1, strides, use_bias=False)(x))
    return layers.ReLU()(layers.Add()([y, x]))


def _conv_bn_relu(x: Any, filters: int, kernel: int, strides: int = 1, groups: int = 1) -> Any:
    x = layers.Conv2D(filters, kernel, strides, "same", groups=groups, use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _application(name: str, size: int) -> keras.Model:
    """Return one of Keras Applications, with random weights and logits of 1000 classes."""
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(size, size, 3), classifier_activation=None)


def _subject(build: Callable[[int], keras.Model], own: int = 224) -> Callable[[int | None], keras.Model]:
    return lambda size: build(size or own)


SUBJECTS = {
    "ResNeXt50": _subject(resnext50),
    **{
        name: _subject(partial(_application, name))
        for name in ("MobileNet", "MobileNetV2", "EfficientNetB0", "ResNet50")
    },
    "Xception": _subject(partial(_application, "Xception"), 299),
}
"""Name -> the function of an image's height, or None for the model's own, that returns it."""
