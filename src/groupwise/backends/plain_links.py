"""A link of a chain, in `keras.ops`: the normalisation that a convolution reads through, and what it counts.

A chain is convolution, batch norm, activation, convolution and so on. Between two convolutions nothing but the raw
outputs of the first one lies in memory: it counts their mean and variance as it writes them, and the second one
normalises as it reads. Source: Jung et al., Restructuring Batch Normalization to Accelerate CNN Training, arXiv
1807.01702.
"""

from typing import Any, NamedTuple

from keras import ops

from groupwise.backends import sums
from groupwise.backends.activations import FUNCTIONS, passed


class Reading(NamedTuple):
    """How an image is read: activation((image - mean) * scale + shift).

    Attributes:
        mean, scale, shift: (channels,).
        activation: one of `epilogues.ACTIVATIONS`.
    """

    mean: Any
    scale: Any
    shift: Any
    activation: str = "linear"


def read(image: Any, reading: Reading) -> Any:
    """Return an image as it is read."""
    return FUNCTIONS[reading.activation](before_activation(image, reading))


def before_activation(image: Any, reading: Reading) -> Any:
    """Return what the activation of a reading sees."""
    return (image - reading.mean) * reading.scale + reading.shift


def through_reading(gradient: Any, image: Any, reading: Reading) -> tuple[Any, Any, Any]:
    """Return the gradients to the image, to shift and to scale, of the gradient to the image as it is read."""
    gradient = passed(gradient, before_activation(image, reading), reading.activation)
    axes = list(range(len(image.shape) - 1))
    to_scale = ops.sum(gradient * (image - reading.mean), axes)
    return gradient * reading.scale, ops.sum(gradient, axes), to_scale


def statistics(outputs: Any) -> tuple[Any, Any]:
    """Return the mean and the biased variance of each channel."""
    axes = list(range(len(outputs.shape) - 1))
    mean = sums.mean(outputs, axes)
    return mean, sums.mean(ops.square(outputs - mean), axes)
