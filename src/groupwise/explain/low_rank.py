"""Dense kernels as separable ones: the best of every depth multiplier, and how far it is off."""

from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.ops import grouped_conv2d, separable_conv2d
from groupwise.rewrite.kernels import dense_of_separable, separable_of_dense


class Approximation(NamedTuple):
    """The best separable kernels of a depth multiplier, the depthwise filters of each input channel orthonormal.

    `error`: the dense kernel minus the product, in Frobenius norm, over the dense kernel's.
    """

    depthwise: NDArray[np.float64]
    pointwise: NDArray[np.float64]
    error: float

    @property
    def multiplier(self) -> int:
        """Depthwise filters for each input channel: the rank."""
        return self.depthwise.shape[-1]

    @property
    def product(self) -> NDArray[np.float64]:
        """The dense kernel that both amount to."""
        return dense_of_separable(self.depthwise, self.pointwise)


def approximate(kernel: NDArray[np.float64], multiplier: int) -> Approximation:
    """Return the separable kernels nearest to a dense one, (kernel height, kernel width, in, out)."""
    depthwise, pointwise, error = separable_of_dense(kernel, multiplier)
    norms = np.linalg.norm(depthwise, axis=(0, 1))
    unit = depthwise / np.where(norms == 0, 1, norms)
    return Approximation(unit, pointwise * norms.reshape(-1, 1), error)


def errors(kernel: NDArray[np.float64]) -> list[float]:
    """Return the error of every multiplier from 1 to kernel height * kernel width."""
    height, width, channels, _ = kernel.shape
    whole = approximate(kernel, height * width)
    # The filters being orthonormal, the norms of their factors are the singular values.
    squares = np.square(whole.pointwise).reshape(channels, height * width, -1).sum(axis=(0, 2))
    left = np.append(np.cumsum(squares[::-1])[::-1], 0)
    return [float(value) for value in np.sqrt(left[1:] / left[0])]


def output_difference(kernel: NDArray[np.float64], found: Approximation) -> float:
    """Return how far `separable_conv2d` is from the dense convolution on a random image, relative to its norm."""
    image = np.random.default_rng(0).normal(size=(1, 24, 24, kernel.shape[2])).astype("float32")
    dense, depthwise, pointwise = (part.astype("float32") for part in (kernel, found.depthwise, found.pointwise))
    options: dict[str, Any] = {"data_format": "channels_last"}
    expected, outputs = map(
        keras.ops.convert_to_numpy,
        (grouped_conv2d(image, dense, 1, **options), separable_conv2d(image, depthwise, pointwise, **options)),
    )
    return float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))
