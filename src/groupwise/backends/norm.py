"""Batch norm in `keras.ops`: itself, for float64, and its gradient with activation, which differentiates the core's."""

from typing import Any

from keras import ops

from groupwise import sums


def normalise(
    inputs: Any, gamma: Any, beta: Any, statistics: tuple[Any, Any] | None, epsilon: float
) -> tuple[Any, Any, Any]:
    """Return (..., channels) inputs normalised, and the mean and biased variance: constants, or the batch's."""
    axes = list(range(len(inputs.shape) - 1))
    average = sums.mean(inputs, axes) if statistics is None else statistics[0]
    variance = sums.mean(ops.square(inputs - average), axes) if statistics is None else statistics[1]
    return (inputs - average) * (gamma * ops.rsqrt(variance + epsilon)) + beta, average, variance


def gradient(
    inputs: Any,
    gradient: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    outputs: Any = None,
    *,
    activation: str,
    epsilon: float,
    training: bool,
) -> tuple[Any, Any, Any]:
    """Return the gradients by inputs, by (beta, gamma) and by the residual, as the core's passes do.

    Args:
        inputs: (..., channels); gradient: of the outputs, of the same shape.
        gamma, beta, mean, variance: (channels,). Training takes the batch's own statistics instead of these, so that
            all that they depend on is in the expression.
        outputs: where there was a residual; None computes anew what the activation saw.
    """
    axes = list(range(len(inputs.shape) - 1))
    if training:
        mean = ops.mean(inputs, axes)
        variance = ops.mean(ops.square(inputs - mean), axes)
    scale = ops.rsqrt(variance + epsilon)
    normalised = (inputs - mean) * scale
    if activation != "linear":
        seen = normalised * gamma + beta if outputs is None else outputs
        passes = ops.logical_not(ops.logical_or(seen <= 0, seen >= 6) if activation == "relu6" else seen <= 0)
        gradient = ops.where(passes, gradient, ops.zeros_like(gradient))
    sums = ops.stack([ops.sum(gradient, axes), ops.sum(gradient * normalised, axes)])
    shared = gradient
    if training:
        shared = gradient - ops.mean(gradient, axes) - normalised * ops.mean(gradient * normalised, axes)
    return gamma * scale * shared, sums, gradient
