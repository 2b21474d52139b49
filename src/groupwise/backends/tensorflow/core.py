"""TensorFlow: the C core as operations of its own (`csrc/bindings/tensorflow.cc`), with gradients of any order.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the gradient of one operation is the two others.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf

from groupwise.backends import activations
from groupwise.backends.tensorflow.devices import check_on_cpu
from groupwise.core import convolution, epilogues, library
from groupwise.spec import ConvSpec

_PASSES = ("GroupwiseConv2D", "GroupwiseConv2DInputGradient", "GroupwiseConv2DKernelGradient")
_ATTRIBUTES = ("groups", "strides", "dilations", "padding")
_MASKS = {"relu": tf.raw_ops.ReluGrad, "relu6": tf.raw_ops.Relu6Grad}


@cache
def _load() -> dict[str, Callable[..., Any]] | None:
    """Load the binding; return the function of each operation, or None and, the first time, a warning."""
    try:
        binding = tf.load_op_library(str(library.path("groupwise_tensorflow")))
        return {
            "GroupwiseConv2D": binding.groupwise_conv2d,
            "GroupwiseFusedConv2D": binding.groupwise_fused_conv2d,
            "GroupwiseConv2DInputGradient": binding.groupwise_conv2d_input_gradient,
            "GroupwiseConv2DKernelGradient": binding.groupwise_conv2d_kernel_gradient,
            "GroupwiseNormalize": binding.groupwise_normalize,
            "GroupwiseNormalizeGradient": binding.groupwise_normalize_gradient,
        }
    # TensorFlow calls its C interface alpha: a version may lack a function that the binding needs. A binding of another
    # version of ours lacks an operation: AttributeError.
    except (tf.errors.OpError, OSError, AttributeError) as error:
        warnings.warn(
            f"groupwise runs on TensorFlow's own convolutions, without the C core, because its binding does not load "
            f"in TensorFlow {tf.__version__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def is_available() -> bool:
    """Return whether the core is wanted and there, and load it: a SavedModel made with it needs this before loading."""
    return library.is_available() and _load() is not None


def operations() -> dict[str, Callable[..., Any]]:
    """Return the function of each of the binding's operations, by its name in TensorFlow.

    Raises:
        ValueError: where TensorFlow computes on an accelerator. RuntimeError: where the binding does not load.
    """
    check_on_cpu()
    functions = _load()
    if functions is None:
        raise RuntimeError("the C core is not available: ask is_available() before using it")
    return functions


def set_shapes(*arrays: tuple[Any, Any]) -> None:
    """Give each of the operations' results its static shape; their own shape functions see too little for it."""
    # An eager array has its shape.
    if not tf.executing_eagerly():
        for array, shape in arrays:
            array.set_shape(shape)


def convolve(
    inputs: Any,
    kernel: Any,
    spec: ConvSpec,
    bias: Any = None,
    residual: Any = None,
    activation: str = "linear",
) -> Any:
    """Return activation(convolution + bias + residual), computed in float32 by the core in one call.

    Batch, height and width may be unknown while tracing. XLA cannot compile it: `tf.function(jit_compile=True)` raises
    `InvalidArgumentError`.

    Arguments and result are those of `backends.Core.convolve`; they may be of any floating-point type.

    Raises:
        ValueError: where there is no such activation, or TensorFlow computes on an accelerator.
        tf.errors.InvalidArgumentError: where the arrays' shapes are not those of one convolution.
    """
    name, arguments = _PASSES[convolution.FORWARD], [tf.cast(inputs, tf.float32), tf.cast(kernel, tf.float32)]
    attributes: dict[str, Any] = {
        "groups": spec.groups,
        "strides": spec.strides,
        "dilations": spec.dilation_rate,
        # "same" depends on the image's size, which only the operation knows.
        "padding": () if spec.padding == "same" else [side for pair in spec.explicit_padding or () for side in pair],
    }
    if bias is not None or residual is not None or activation != "linear":
        name = "GroupwiseFusedConv2D"
        arguments += [[] if extra is None else [tf.cast(extra, tf.float32)] for extra in (bias, residual)]
        attributes["activation"] = epilogues.number(activation)
    return tf.cast(_run(name, arguments, spec.output_shape, **attributes), spec.dtype)


def _run(name: str, arguments: list[Any], shape: Any, **attributes: Any) -> Any:
    outputs = operations()[name](*arguments, **attributes)
    set_shapes((outputs, shape))
    return outputs


def _gradients(pass_: int, operation: Any, upstream: Any) -> list[Any]:
    """Return the gradients to both arguments of `pass_`: for each, the pass that makes it, of the two others."""
    attributes = {name: operation.get_attr(name) for name in _ATTRIBUTES}
    tensors = dict(zip(convolution.ROLES[pass_], (*operation.inputs[:2], upstream), strict=True))
    gradients: list[Any] = []
    for position, wanted in enumerate(convolution.ROLES[pass_][:2]):
        if position in unneeded(operation):
            gradients.append(None)
            continue
        other = next(number for number, roles in enumerate(convolution.ROLES) if roles[2] == wanted)
        arguments = [tensors[role] for role in convolution.ROLES[other][:2]]
        if other != convolution.FORWARD:
            arguments.append(tf.shape(tensors[wanted]))
        gradients.append(_run(_PASSES[other], arguments, tensors[wanted].shape, **attributes))
    return gradients


def unneeded(operation: Any) -> Any:
    """Return which arguments need no gradient; known in eager mode alone: a graph is pruned of what nothing needs."""
    return getattr(operation, "skip_input_indices", None) or ()


def _gradient_of(pass_: int) -> Callable[..., list[Any]]:
    """Return the gradient of the operation that computes `pass_`."""

    def gradient(operation: Any, upstream: Any) -> list[Any]:
        gradients = _gradients(pass_, operation, upstream)
        return gradients if pass_ == convolution.FORWARD else [*gradients, None]

    return gradient


@tf.RegisterGradient("GroupwiseFusedConv2D")
def _fused_gradient(operation: Any, upstream: Any) -> list[Any]:
    activation = epilogues.NAMES[operation.get_attr("activation")]
    biases, residuals = operation.get_attr("biases"), operation.get_attr("residuals")
    (seen,) = operation.outputs
    if not epilogues.ACTIVATIONS[activation].reads_outputs:
        # Computed again: TensorFlow does not say, forward, whether a derivative will be wanted, and then an operation
        # of its own for the activation would cost those who only predict.
        seen = _before_activation(operation)
    upstream = passed(upstream, seen, activation)
    gradients = _gradients(convolution.FORWARD, operation, upstream)
    if biases:
        gradients.append(None if 2 in unneeded(operation) else tf.reduce_sum(upstream, (0, 1, 2)))
    return [*gradients, *[upstream] * residuals]


def _before_activation(operation: Any) -> Any:
    """Return what the activation of a fused operation sees."""
    inputs, kernel, *extras = operation.inputs
    biases = operation.get_attr("biases")
    attributes = {name: operation.get_attr(name) for name in _ATTRIBUTES}
    arguments = [inputs, kernel, extras[:biases], extras[biases:]]
    return _run("GroupwiseFusedConv2D", arguments, operation.outputs[0].shape, **attributes, activation=0)


def passed(gradient: Any, seen: Any, activation: str) -> Any:
    """Return `activations.passed`, in one operation of TensorFlow's own where it has one."""
    if activation in _MASKS:
        return _MASKS[activation](gradients=gradient, features=seen)
    return activations.passed(gradient, seen, activation)


for _pass, _name in zip(convolution.PASSES, _PASSES, strict=True):
    tf.RegisterGradient(_name)(_gradient_of(_pass))
