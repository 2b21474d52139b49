"""TensorFlow: the C core as operations of its own (`csrc/bindings/tensorflow.cc`), with gradients of any order.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the gradient of one operation is the two others.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from groupwise.backends import activations
from groupwise.backends.tensorflow.links import link as link
from groupwise.backends.tensorflow.operations import PASSES, attributes_of, run, same_attributes, unneeded
from groupwise.backends.tensorflow.operations import is_available as is_available
from groupwise.backends.tensorflow.separable import separable as separable
from groupwise.core import convolution, epilogues
from groupwise.spec import ConvSpec

_MASKS = {"relu": tf.raw_ops.ReluGrad, "relu6": tf.raw_ops.Relu6Grad}


def convolve(
    inputs: Any,
    kernel: Any,
    spec: ConvSpec,
    bias: Any = None,
    residual: Any = None,
    activation: str = "linear",
    scale: Any = None,
) -> Any:
    """Return activation(convolution * scale + bias + residual), computed in float32 by the core in one call.

    Batch, height and width may be unknown while tracing. XLA cannot compile it: `tf.function(jit_compile=True)` raises
    `InvalidArgumentError`.

    Arguments and result are those of `backends.Core.convolve`; they may be of any floating-point type.

    Raises:
        ValueError: where there is no such activation, or TensorFlow computes on an accelerator.
        tf.errors.InvalidArgumentError: where the arrays' shapes are not those of one convolution.
    """
    name, arguments = PASSES[convolution.FORWARD], [tf.cast(inputs, tf.float32), tf.cast(kernel, tf.float32)]
    attributes = attributes_of(spec)
    extras = bias, residual, scale
    if any(extra is not None for extra in extras) or activation != "linear":
        name = "GroupwiseFusedConv2D"
        arguments += [[] if extra is None else [tf.cast(extra, tf.float32)] for extra in extras]
        attributes["activation"] = epilogues.number(activation)
    return tf.cast(run(name, arguments, spec.output_shape, **attributes), spec.dtype)


def _gradients(pass_: int, operation: Any, upstream: Any, kernel: Any = None) -> list[Any]:
    """Return the gradients to both arguments of `pass_`: for each, the pass that makes it, of the two others.

    Args:
        kernel: stands for the operation's own.
    """
    attributes = same_attributes(operation)
    tensors = dict(zip(convolution.ROLES[pass_], (*operation.inputs[:2], upstream), strict=True))
    if kernel is not None:
        tensors[convolution.KERNEL] = kernel
    gradients: list[Any] = []
    for position, wanted in enumerate(convolution.ROLES[pass_][:2]):
        if position in unneeded(operation):
            gradients.append(None)
            continue
        other = next(number for number, roles in enumerate(convolution.ROLES) if roles[2] == wanted)
        arguments = [tensors[role] for role in convolution.ROLES[other][:2]]
        if other != convolution.FORWARD:
            arguments.append(tf.shape(tensors[wanted]))
        gradients.append(run(PASSES[other], arguments, tensors[wanted].shape, **attributes))
    return gradients


def _gradient_of(pass_: int) -> Callable[..., list[Any]]:
    """Return the gradient of the operation that computes `pass_`."""

    def gradient(operation: Any, upstream: Any) -> list[Any]:
        gradients = _gradients(pass_, operation, upstream)
        return gradients if pass_ == convolution.FORWARD else [*gradients, None]

    return gradient


@tf.RegisterGradient("GroupwiseFusedConv2D")
def _fused_gradient(operation: Any, upstream: Any) -> list[Any]:
    activation = epilogues.NAMES[operation.get_attr("activation")]
    (inputs, kernel), (bias, residual, scale) = operation.inputs[:2], _extras(operation)
    (seen,) = operation.outputs
    if not epilogues.ACTIVATIONS[activation].reads_outputs:
        # Computed again: TensorFlow does not say, forward, whether a derivative will be wanted, and then an operation
        # of its own for the activation would cost those who only predict.
        seen = _before_activation(operation)
    upstream = passed(upstream, seen, activation)
    scaled = [kernel * scale[0]] if scale else []
    gradients = _gradients(convolution.FORWARD, operation, upstream, *scaled)
    if bias:
        gradients.append(None if 2 in unneeded(operation) else tf.reduce_sum(upstream, (0, 1, 2)))
    gradients += [upstream] * len(residual)
    if scale:
        to_scaled = gradients[1]
        if to_scaled is None:
            shape = tf.shape(kernel)
            name = PASSES[convolution.KERNEL_GRADIENT]
            to_scaled = run(name, [inputs, upstream, shape], kernel.shape, **same_attributes(operation))
        else:
            gradients[1] = to_scaled * scale[0]
        gradients.append(tf.reduce_sum(to_scaled * kernel, (0, 1, 2)))
    return gradients


def _extras(operation: Any) -> list[list[Any]]:
    """Return bias, residual and scale of a fused operation, each in a list that is empty without one."""
    extras = list(operation.inputs[2:])
    return [[extras.pop(0) for _ in range(operation.get_attr(name))] for name in ("biases", "residuals", "scales")]


def _before_activation(operation: Any) -> Any:
    """Return what the activation of a fused operation sees."""
    attributes = same_attributes(operation)
    arguments = [*operation.inputs[:2], *_extras(operation)]
    return run("GroupwiseFusedConv2D", arguments, operation.outputs[0].shape, **attributes, activation=0)


def passed(gradient: Any, seen: Any, activation: str) -> Any:
    """Return `activations.passed`, in one operation of TensorFlow's own where it has one."""
    if activation in _MASKS:
        return _MASKS[activation](gradients=gradient, features=seen)
    return activations.passed(gradient, seen, activation)


for _pass, _name in zip(convolution.PASSES, PASSES, strict=True):
    tf.RegisterGradient(_name)(_gradient_of(_pass))
