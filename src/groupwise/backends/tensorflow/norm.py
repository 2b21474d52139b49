"""TensorFlow: the core's batch norm with activation and residual as operations (`csrc/tensorflow_norm.cc`).

A gradient is an operation of the core too; its own gradient is that of the plain expression in `norm`.
"""

from typing import Any

import tensorflow as tf

from groupwise.backends import plain_norm
from groupwise.backends.tensorflow import core
from groupwise.core import convolution


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

    Args:
        inputs: (..., channels), float32.
        gamma, beta: (channels,). statistics: constant mean and variance, (channels,); None are the batch's, through
            which the gradient goes.
        epsilon: added to the variance.
        residual: of the inputs' shape, or None. activation: one of `convolution.ACTIVATIONS`.

    Raises:
        ValueError: where a type or the activation does not fit. tf.errors.InvalidArgumentError: where a shape does not.
    """
    number = convolution.activation_number(activation)
    mean, variance = statistics or (None, None)
    given = {"inputs": inputs, "gamma": gamma, "beta": beta, "mean": mean, "variance": variance, "residual": residual}
    tensors = {name: tf.convert_to_tensor(array) for name, array in given.items() if array is not None}
    for name, tensor in tensors.items():
        if tensor.dtype != tf.float32:
            raise ValueError(f"{name} of type {tensor.dtype.name}: must be float32")
    inputs, gamma = tensors["inputs"], tensors["gamma"]
    outputs, mean, variance = core.operations()["GroupwiseNormalize"](
        inputs,
        gamma,
        tensors["beta"],
        [tensors[name] for name in ("mean", "variance") if name in tensors],
        [tensors["residual"]] if residual is not None else [],
        activation=number,
        epsilon=epsilon,
    )
    core.set_shapes((outputs, inputs.shape), (mean, gamma.shape), (variance, gamma.shape))
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


@tf.RegisterGradient("GroupwiseNormalize")
def _gradient(operation: Any, upstream: Any, *_: Any) -> list[Any]:
    inputs, gamma, beta = operation.inputs[:3]
    activation, constants, residuals = (operation.get_attr(name) for name in ("activation", "constants", "residuals"))
    outputs, mean, variance = operation.outputs
    if constants:
        # Of these it has gradients of its own.
        mean, variance = operation.inputs[3:5]
    # Without a residual the activation's mask is computed anew, which is faster than reading the outputs.
    read = [outputs] if residuals and convolution.ACTIVATIONS[activation] != "linear" else []
    to_inputs, sums, to_residual = core.operations()["GroupwiseNormalizeGradient"](
        inputs,
        upstream,
        gamma,
        beta,
        mean,
        variance,
        read,
        activation=activation,
        epsilon=operation.get_attr("epsilon"),
        constants=constants,
    )
    core.set_shapes((to_inputs, inputs.shape), *((image, inputs.shape) for image in to_residual))
    to_beta, to_gamma = tf.unstack(sums, 2)
    core.set_shapes((to_beta, gamma.shape), (to_gamma, gamma.shape))
    to_statistics: list[Any] = [None] * constants
    if constants and not {3, 4} <= set(core.unneeded(operation)):
        factors = plain_norm.by_statistics(gamma, variance, operation.get_attr("epsilon"))
        to_statistics = [factors[0] * to_beta, factors[1] * to_gamma]
    return [to_inputs, to_gamma, to_beta, *to_statistics, *(to_residual or [upstream] * residuals)]


@tf.RegisterGradient("GroupwiseNormalizeGradient")
def _gradient_of_gradient(operation: Any, *upstream: Any) -> list[Any]:
    tensors, outputs = operation.inputs[:6], operation.inputs[6:]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        results = plain_norm.gradient(
            *tensors,
            *outputs,
            activation=convolution.ACTIVATIONS[operation.get_attr("activation")],
            epsilon=operation.get_attr("epsilon"),
            training=not operation.get_attr("constants"),
        )
    gradients = tape.gradient(results[: len(upstream)], list(tensors), output_gradients=upstream)
    return [*gradients, *[None] * len(outputs)]
