"""Our layers and Keras's own that they stand for."""

from typing import Any

import keras

from groupwise.layers.batch_norm import BatchNormalization
from groupwise.layers.convolutions import DepthwiseConv2D, GroupedConv2D, SeparableConv2D
from groupwise.layers.pooling import AveragePooling2D, MaxPooling2D

STOCK: dict[type, type] = {
    GroupedConv2D: keras.layers.Conv2D,
    DepthwiseConv2D: keras.layers.DepthwiseConv2D,
    SeparableConv2D: keras.layers.SeparableConv2D,
    MaxPooling2D: keras.layers.MaxPooling2D,
    AveragePooling2D: keras.layers.AveragePooling2D,
}
"""Each drop-in and the Keras layer that it stands for."""

CONVOLUTIONS = (GroupedConv2D, DepthwiseConv2D, SeparableConv2D)
"""Ours."""

STOCK_CONVOLUTIONS = tuple(STOCK[ours] for ours in CONVOLUTIONS)
"""Keras's."""


def stock_twin(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a fresh layer of Keras's own in place of one of ours: a `clone_function` for `clone_model`.

    Its weights have the same shapes; explicit padding, which Keras does not have, becomes "same". A batch norm keeps
    its residual and activation, but runs Keras's own operations; a convolution's twin takes no residual.
    """
    stock: Any = STOCK.get(type(layer))
    config = layer.get_config()
    if isinstance(layer, BatchNormalization):
        return BatchNormalization.from_config({**config, "fused": False})
    if stock is None:
        return layer.__class__.from_config(config)
    config.pop("algorithm", None)
    if "padding" in config:
        # Keras knows no explicit padding; without any, a small image could become empty.
        config["padding"] = "same"
    return stock.from_config(config)
