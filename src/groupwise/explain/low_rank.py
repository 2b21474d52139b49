"""Dense kernels as separable ones: the best of every depth multiplier, and how far it is off."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError
from groupwise.explain.texts import literal
from groupwise.models import create, find
from groupwise.models.network import without_values
from groupwise.models.reading import ENDINGS, load_model
from groupwise.ops import grouped_conv2d, separable_conv2d

SIDE, CHANNELS, FILTERS = 5, 3, 32  # of the default kernel


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense kernel (kernel height, kernel width, in, out), and what it is."""

    kernel: NDArray[np.float64]
    origin: str
    is_random: bool

    @property
    def full_rank(self) -> int:
        """The multiplier with which a separable convolution can be any dense one."""
        height, width, _, _ = self.kernel.shape
        return height * width


@dataclass(frozen=True, eq=False)
class Approximation:
    """The best separable kernels of a depth multiplier.

    Attributes:
        depthwise: (kernel height, kernel width, in, multiplier), orthonormal filters for every input channel.
        pointwise: (1, 1, in * multiplier, out).
        error: the dense kernel minus the product, in Frobenius norm, over the dense kernel's.
    """

    depthwise: NDArray[np.float64]
    pointwise: NDArray[np.float64]
    error: float

    @property
    def multiplier(self) -> int:
        """Depthwise filters for each input channel: the rank."""
        return self.depthwise.shape[-1]

    @property
    def parameters(self) -> int:
        """Weights of both kernels."""
        return self.depthwise.size + self.pointwise.size

    @property
    def product(self) -> NDArray[np.float64]:
        """The dense kernel that both amount to."""
        _, _, channels, multiplier = self.depthwise.shape
        mixing = self.pointwise.reshape(channels, multiplier, -1)
        result: NDArray[np.float64] = np.einsum("ijqr,qrk->ijqk", self.depthwise, mixing)
        return result


def approximate(kernel: NDArray[Any], multiplier: int) -> Approximation:
    """Return the separable kernels nearest to a dense one: a truncated SVD for each input channel.

    Args:
        kernel: (kernel height, kernel width, in, out).
        multiplier: at least 1; above kernel height * kernel width it adds zeros only.

    Source: the Eckart-Young theorem, for each channel's matrix of kh * kw rows and `out` columns.

    Examples:
        >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 20))
        >>> approximate(kernel, 9).error < 1e-12
        True
    """
    height, width, channels, filters = kernel.shape
    left, values, right = np.linalg.svd(_by_channel(kernel), full_matrices=False)
    rank = min(multiplier, values.shape[1])
    depthwise = np.zeros((height * width, channels, multiplier))
    depthwise[..., :rank] = np.moveaxis(left[..., :rank], 0, 1)
    pointwise = np.zeros((channels, multiplier, filters))
    pointwise[:, :rank] = values[:, :rank, None] * right[:, :rank]
    error = float(np.sqrt((values[:, rank:] ** 2).sum() / (values**2).sum()))
    return Approximation(
        depthwise.reshape(height, width, channels, multiplier),
        pointwise.reshape(1, 1, channels * multiplier, filters),
        error,
    )


def errors(kernel: NDArray[Any]) -> list[float]:
    """Return the error of every multiplier from 1 to kernel height * kernel width."""
    squares = (np.linalg.svd(_by_channel(kernel), compute_uv=False) ** 2).sum(axis=0)
    squares = np.concatenate([squares, np.zeros(kernel.shape[0] * kernel.shape[1] - len(squares))])
    left = squares.sum() - np.cumsum(squares)
    return [float(value) for value in np.sqrt(np.maximum(left, 0) / squares.sum())]


def _by_channel(kernel: NDArray[Any]) -> NDArray[np.float64]:
    """Return a kernel as (in, kernel height * kernel width, out): a matrix for each input channel."""
    height, width, channels, filters = kernel.shape
    return np.moveaxis(np.asarray(kernel, np.float64).reshape(height * width, channels, filters), 1, 0)


def output_difference(kernel: NDArray[Any], found: Approximation) -> float:
    """Return how far `separable_conv2d` is from the dense convolution on a random image, relative to its norm."""
    channels = kernel.shape[2]
    image = np.random.default_rng(0).normal(size=(1, 24, 24, channels)).astype("float32")
    options: dict[str, Any] = {"data_format": "channels_last"}
    dense = grouped_conv2d(image, kernel.astype("float32"), 1, **options)
    separable = separable_conv2d(image, found.depthwise.astype("float32"), found.pointwise.astype("float32"), **options)
    expected, outputs = keras.ops.convert_to_numpy(dense), keras.ops.convert_to_numpy(separable)
    return float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))


def edge_filters(side: int = SIDE, channels: int = CHANNELS, filters: int = FILTERS) -> NDArray[np.float64]:
    """Return a smooth kernel, like a trained first layer's: edges and stripes of many directions (Gabor functions).

    Shapes: (side, side, channels, filters).
    """
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    kernel = np.empty((side, side, channels, filters))
    for place in range(filters):
        angle, length = np.pi * place / 8, generator.uniform(0.8, 1.6) * side
        along = x * np.cos(angle) + y * np.sin(angle)
        for channel in range(channels):
            phase = generator.uniform(0, 2 * np.pi)
            wave = np.cos(2 * np.pi * along / length + phase)
            kernel[:, :, channel, place] = wave * np.exp(-(x**2 + y**2) / (2 * (side / 4) ** 2))
    return kernel


def find_kernel(name: str | None) -> Dense:
    """Return the default kernel, a network's first dense k x k one with fresh weights, or a model file's.

    Raises:
        UserError: there is no such network or file, or it has no dense convolution larger than 1x1.
    """
    if name is None:
        return Dense(edge_filters(), f"{FILTERS} filters of edges and stripes", is_random=False)
    if Path(name).suffix in ENDINGS:
        layer = _first_dense(load_model(Path(name)), name)
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        return Dense(
            kernel.astype(np.float64), f"the trained layer {literal(layer.name)} of {literal(name)}", is_random=False
        )
    find(name)
    with without_values():
        layer = _first_dense(create(name), name)
        shape, initializer = tuple(layer.kernel.shape), layer.kernel_initializer
    # Only this layer's weights are needed, not the whole network's.
    kernel = keras.ops.convert_to_numpy(initializer(shape, dtype="float32"))
    return Dense(kernel.astype(np.float64), f"the layer {layer.name} of {name}, fresh weights", is_random=True)


def _first_dense(model: keras.Model, name: str) -> keras.layers.Conv2D:
    for layer in _layers(model):
        is_dense = isinstance(layer, keras.layers.Conv2D) and layer.groups == 1
        if is_dense and max(layer.kernel_size) > 1:
            return layer
    raise UserError(f"{name}: has no dense convolution larger than 1x1; take another, such as resnet18")


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    layers: list[keras.layers.Layer] = []
    for layer in model.layers:
        layers += _layers(layer) if isinstance(layer, keras.Model) else [layer]
    return layers
