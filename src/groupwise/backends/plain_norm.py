"""Batch norm in `keras.ops`: itself, for float64, and derivatives of the core's, also by fixed statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Normalization:
    """The derivatives of a batch norm with a residual and an activation, as the core's passes compute them.

    Attributes:
        activation: one of `epilogues.ACTIVATIONS`.
        epsilon: added to the variance.
        training: whether the statistics are the batch's own, and what depends on them is part of the derivatives.
    """

    activation: str
    epsilon: float
    training: bool

    def gradient(
        self, inputs: Any, gradient: Any, gamma: Any, beta: Any, mean: Any, variance: Any, extra: Any = None
    ) -> tuple[Any, Any, Any]:
        """Return the gradients by inputs, by (beta, gamma) and by the residual.

        Args:
            inputs: (..., channels); gradient: of the outputs, of the same shape.
            gamma, beta, mean, variance: (channels,). Training takes the batch's own statistics instead of these.
            extra: where there was a residual, what the activation's gradient needs: the outputs, or that residual; None
                where the activation saw the normalised inputs alone.
        """
        axes, normalised, scale = self._normalised(inputs, mean, variance)
        gradient = passed(gradient, self._seen(normalised * gamma + beta, extra), self.activation)
        to_beta_and_gamma = ops.stack([ops.sum(gradient, axes), ops.sum(gradient * normalised, axes)])
        return gamma * scale * self._projected(gradient, normalised, axes), to_beta_and_gamma, gradient

    def tangent(self, known: Sequence[Any], moving: Sequence[Any]) -> Any:
        """Return the outputs' tangent, whose transpose is `gradient`.

        Args:
            known: inputs, gamma, beta, mean, variance and perhaps extra, as there.
            moving: the tangents of inputs, gamma, beta and perhaps the residual.
        """
        inputs, gamma, beta, mean, variance, *extra = known
        of_inputs, of_gamma, of_beta, *of_residual = moving
        axes, normalised, scale = self._normalised(inputs, mean, variance)
        total = gamma * scale * self._projected(of_inputs, normalised, axes)
        if of_residual:
            total = total + of_residual[0]
        seen = self._seen(normalised * gamma + beta, *extra)
        return passed(total + normalised * of_gamma + of_beta, seen, self.activation)

    def _normalised(self, inputs: Any, mean: Any, variance: Any) -> tuple[list[int], Any, Any]:
        """Return the axes of the statistics, the normalised inputs and their scale."""
        axes = list(range(len(inputs.shape) - 1))
        if self.training:
            mean = ops.mean(inputs, axes)
            variance = ops.mean(ops.square(inputs - mean), axes)
        scale = ops.rsqrt(variance + self.epsilon)
        return axes, (inputs - mean) * scale, scale

    def _seen(self, before: Any, extra: Any = None) -> Any:
        """Return what tells how much passes the activation: the outputs, or the sum that it saw."""
        if extra is None:
            return before
        return extra if ACTIVATIONS[self.activation].reads_outputs else before + extra

    def _projected(self, gradient: Any, normalised: Any, axes: list[int]) -> Any:
        """Return what of the gradient, or tangent, the batch's own statistics leave."""
        if not self.training:
            return gradient
        return gradient - ops.mean(gradient, axes) - normalised * ops.mean(gradient * normalised, axes)


def by_statistics(gamma: Any, variance: Any, epsilon: float) -> tuple[Any, Any]:
    """Return how constant statistics act: a mean as so many times beta, a variance as so many times gamma."""
    return -gamma * ops.rsqrt(variance + epsilon), -gamma / (2 * (variance + epsilon))
