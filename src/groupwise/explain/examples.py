"""What stands as a page's example: a layer of a network, or a kernel of one, of a file or made here."""

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError
from groupwise.explain.page import literal
from groupwise.keras_private import layers_within
from groupwise.layers import ChannelShuffle, DepthwiseConv2D, GroupedConv2D
from groupwise.layers.specs import specs_of
from groupwise.models import create
from groupwise.models.network import without_values
from groupwise.models.reading import ENDINGS, load_model
from groupwise.spec import ConvSpec

SIDE, CHANNELS, FILTERS = 5, 3, 32  # of the kernel that is made here


class Dense(NamedTuple):
    """A dense kernel (kernel height, kernel width, in, out), and what it is."""

    kernel: NDArray[np.float64]
    origin: str
    is_random: bool

    @property
    def full_rank(self) -> int:
        """The multiplier with which a separable convolution can be any dense one."""
        height, width, _, _ = self.kernel.shape
        return height * width


def grouped_layer(name: str) -> tuple[str, ConvSpec]:
    """Return the name and the spec of a network's first convolution with groups, depthwise only where there is none.

    Raises:
        UserError: there is no such network, or it has dense convolutions alone.
    """
    layers = _layers_of(name)
    grouped = [layer for layer in layers if isinstance(layer, GroupedConv2D) and layer.groups > 1]
    depthwise = [layer for layer in layers if isinstance(layer, DepthwiseConv2D)]
    if not grouped and not depthwise:
        raise UserError(f"model {name!r}: has no grouped convolution; take another, such as resnext50_32x4d")
    layer = (grouped or depthwise)[0]
    (spec,) = specs_of(layer, layer.input.shape)
    return layer.name, spec


def shuffled_channels(name: str) -> tuple[int, int]:
    """Return how many channels the first shuffle of a ShuffleNet has, and its groups.

    Raises:
        UserError: there is no such network, or it shuffles nothing between grouped convolutions.
    """
    layers = _layers_of(name)
    shuffles = [layer for layer in layers if isinstance(layer, ChannelShuffle) and layer.groups > 1]
    if not shuffles or not any(isinstance(layer, GroupedConv2D) and layer.groups > 1 for layer in layers):
        raise UserError(
            f"model {name!r}: has no channel shuffle between grouped convolutions; take a ShuffleNet v1 such as "
            "shufflenet_g3_w1"
        )
    return int(shuffles[0].input.shape[-1]), int(shuffles[0].groups)


def find_kernel(name: str | None) -> Dense:
    """Return the default kernel, a network's first dense k x k one with fresh weights, or a model file's.

    Raises:
        UserError: there is no such network or file, or it has no dense convolution larger than 1x1.
    """
    if name is None:
        return Dense(_edge_filters(), f"{FILTERS} filters of edges and stripes", is_random=False)
    is_file = Path(name).suffix in ENDINGS
    layers = layers_within(load_model(Path(name))) if is_file else _layers_of(name)
    dense = (layer for layer in layers if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1)
    layer = next((layer for layer in dense if max(layer.kernel_size) > 1), None)
    if layer is None:
        raise UserError(f"{name}: has no dense convolution larger than 1x1; take another, such as resnet18")
    if is_file:
        kernel, origin = layer.kernel, f"the trained layer {literal(layer.name)} of {literal(name)}"
    else:  # only this layer's weights are needed, not the whole network's
        kernel = layer.kernel_initializer(tuple(layer.kernel.shape), dtype="float32")
        origin = f"the layer {layer.name} of {name}, fresh weights"
    return Dense(keras.ops.convert_to_numpy(kernel).astype(np.float64), origin, is_random=not is_file)


def _layers_of(name: str) -> list[keras.layers.Layer]:
    with without_values():
        return list(create(name).layers)


def _edge_filters() -> NDArray[np.float64]:
    """Return a smooth kernel, like a trained first layer's: edges and stripes of many directions (Gabor functions)."""
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    kernel = np.empty((SIDE, SIDE, CHANNELS, FILTERS))
    for place in range(FILTERS):
        angle, length = np.pi * place / 8, generator.uniform(0.8, 1.6) * SIDE
        along = x * np.cos(angle) + y * np.sin(angle)
        for channel in range(CHANNELS):
            wave = np.cos(2 * np.pi * along / length + generator.uniform(0, 2 * np.pi))
            kernel[:, :, channel, place] = wave * np.exp(-(x**2 + y**2) / (2 * (SIDE / 4) ** 2))
    return kernel
