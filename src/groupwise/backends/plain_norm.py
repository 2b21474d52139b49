"""Batch norm in `keras.ops`: itself, for float64, and derivatives of the core's, also by fixed statistics."""

from typing import Any

from keras import ops

from groupwise.backends import sums
from groupwise.backends.activations import passed
from groupwise.core.epilogues import ACTIVATIONS


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
    extra: Any = None,
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
        extra: where there was a residual, what the activation's gradient needs: the outputs, or that residual; None
            where the activation saw the normalised inputs alone.
    """
    axes, normalised, scale = _normalised(inputs, mean, variance, epsilon, training)
    gradient = passed(gradient, _seen(normalised * gamma + beta, extra, activation), activation)
    sums = ops.stack([ops.sum(gradient, axes), ops.sum(gradient * normalised, axes)])
    return gamma * scale * _projected(gradient, normalised, axes, training), sums, gradient


def tangent(
    inputs: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    extra: Any,
    of_inputs: Any,
    of_gamma: Any,
    of_beta: Any,
    of_residual: Any = 0,
    *,
    activation: str,
    epsilon: float,
    training: bool,
) -> Any:
    """Return the outputs' tangent, whose transpose is `gradient`; all arguments are as there, and four tangents."""
    axes, normalised, scale = _normalised(inputs, mean, variance, epsilon, training)
    total = gamma * scale * _projected(of_inputs, normalised, axes, training) + of_residual
    seen = _seen(normalised * gamma + beta, extra, activation)
    return passed(total + normalised * of_gamma + of_beta, seen, activation)


def _normalised(inputs: Any, mean: Any, variance: Any, epsilon: float, training: bool) -> tuple[list[int], Any, Any]:
    """Return the axes of the statistics, the normalised inputs and their scale."""
    axes = list(range(len(inputs.shape) - 1))
    if training:
        mean = ops.mean(inputs, axes)
        variance = ops.mean(ops.square(inputs - mean), axes)
    scale = ops.rsqrt(variance + epsilon)
    return axes, (inputs - mean) * scale, scale


def _seen(before: Any, extra: Any, activation: str) -> Any:
    """Return what tells how much passes the activation: the outputs, or the sum that it saw."""
    if extra is None:
        return before
    return extra if ACTIVATIONS[activation].reads_outputs else before + extra


def _projected(gradient: Any, normalised: Any, axes: list[int], training: bool) -> Any:
    """Return what of the gradient, or tangent, the batch's own statistics leave."""
    if not training:
        return gradient
    return gradient - ops.mean(gradient, axes) - normalised * ops.mean(gradient * normalised, axes)


def by_statistics(gamma: Any, variance: Any, epsilon: float) -> tuple[Any, Any]:
    """Return how constant statistics act: a mean as so many times beta, a variance as so many times gamma."""
    return -gamma * ops.rsqrt(variance + epsilon), -gamma / (2 * (variance + epsilon))
