"""TensorFlow: the core's batch norm with activation and residual as operations (`csrc/bindings/tensorflow_norm.cc`).

A gradient is an operation of the core too; its own gradient is that of the plain expression in `plain_norm`.
"""

from typing import Any

import tensorflow as tf

from groupwise.backends import plain_norm
from groupwise.backends.tensorflow.operations import float32_tensors, gradients_of, operations, set_shapes, unneeded
from groupwise.core import epilogues


def normalise(
    inputs: Any,
    gamma: Any,
    beta: Any,
    statistics: tuple[Any, Any] | None,
    epsilon: float,
    residual: Any = None,
    activation: str = "linear",
) -> tuple[Any, Any, Any]:
    """Return activation(normalised inputs + residual), and the mean and biased variance that normalised them.

    It differentiates in reverse mode, any number of times. All sizes but the channels may be unknown while tracing. XLA
    cannot compile it: `tf.function(jit_compile=True)` raises `InvalidArgumentError`.

    Arguments and results are those of `backends.CoreNorm.normalise`: float32.

    Raises:
        ValueError: where a type or the activation does not fit. tf.errors.InvalidArgumentError: where a shape does not.
    """
    number = epilogues.number(activation)
    mean, variance = statistics or (None, None)
    given = {"inputs": inputs, "gamma": gamma, "beta": beta, "mean": mean, "variance": variance, "residual": residual}
    tensors = float32_tensors(given)
    inputs, gamma = tensors["inputs"], tensors["gamma"]
    outputs, mean, variance = operations()["GroupwiseNormalize"](
        inputs,
        gamma,
        tensors["beta"],
        [tensors[name] for name in ("mean", "variance") if name in tensors],
        [tensors["residual"]] if residual is not None else [],
        activation=number,
        epsilon=epsilon,
    )
    set_shapes((outputs, inputs.shape), (mean, gamma.shape), (variance, gamma.shape))
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


@tf.RegisterGradient("GroupwiseNormalize")
def _gradient(operation: Any, upstream: Any, *_: Any) -> list[Any]:
    inputs, gamma, beta = operation.inputs[:3]
    activation, constants, residuals = (operation.get_attr(name) for name in ("activation", "constants", "residuals"))
    outputs, mean, variance = operation.outputs
    if constants:
        # Of these it has gradients of its own.
        mean, variance = operation.inputs[3:5]
    # Without a residual what the activation saw is computed anew from the inputs, which is faster.
    extra = []
    if residuals and epilogues.NAMES[activation] != "linear":
        reads_outputs = epilogues.ACTIVATIONS[epilogues.NAMES[activation]].reads_outputs
        extra = [outputs if reads_outputs else operation.inputs[-1]]
    to_inputs, sums, to_residual = operations()["GroupwiseNormalizeGradient"](
        inputs,
        upstream,
        gamma,
        beta,
        mean,
        variance,
        extra,
        activation=activation,
        epsilon=operation.get_attr("epsilon"),
        constants=constants,
    )
    set_shapes((to_inputs, inputs.shape), *((image, inputs.shape) for image in to_residual))
    to_beta, to_gamma = tf.unstack(sums, 2)
    set_shapes((to_beta, gamma.shape), (to_gamma, gamma.shape))
    to_statistics: list[Any] = [None] * constants
    if constants and not {3, 4} <= set(unneeded(operation)):
        factors = plain_norm.by_statistics(gamma, variance, operation.get_attr("epsilon"))
        to_statistics = [factors[0] * to_beta, factors[1] * to_gamma]
    return [to_inputs, to_gamma, to_beta, *to_statistics, *(to_residual or [upstream] * residuals)]


@tf.RegisterGradient("GroupwiseNormalizeGradient")
def _gradient_of_gradient(operation: Any, *upstream: Any) -> list[Any]:
    attribute = operation.get_attr
    activation, training = epilogues.NAMES[attribute("activation")], not attribute("constants")
    normalization = plain_norm.Normalization(activation, attribute("epsilon"), training)
    return gradients_of(lambda *tensors: normalization.gradient(*tensors)[: len(upstream)], operation, upstream)
