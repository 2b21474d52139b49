"""TensorFlow: the binding's operations (`csrc/bindings/tensorflow*.cc`), loaded once, and what all of them share."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf

from groupwise.backends.tensorflow.devices import check_on_cpu
from groupwise.core import library
from groupwise.spec import ConvSpec

PASSES = ("GroupwiseConv2D", "GroupwiseConv2DInputGradient", "GroupwiseConv2DKernelGradient")
"""A convolution's, by `convolution.PASSES`."""
_ATTRIBUTES = ("groups", "strides", "dilations", "padding")


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
            "GroupwiseSeparable": binding.groupwise_separable,
            "GroupwiseLink": binding.groupwise_link,
            "GroupwiseLinkInputGradient": binding.groupwise_link_input_gradient,
            "GroupwiseLinkKernelGradient": binding.groupwise_link_kernel_gradient,
            "GroupwiseNormalize": binding.groupwise_normalize,
            "GroupwiseNormalizeGradient": binding.groupwise_normalize_gradient,
            "GroupwiseShuffle": binding.groupwise_shuffle,
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


def float32_tensors(given: dict[str, Any]) -> dict[str, Any]:
    """Return as tensors the arrays that are given; others are None.

    Raises:
        ValueError: where a type is another.
    """
    tensors = {name: tf.convert_to_tensor(array) for name, array in given.items() if array is not None}
    for name, tensor in tensors.items():
        if tensor.dtype != tf.float32:
            raise ValueError(f"{name} of type {tensor.dtype.name}: must be float32")
    return tensors


def set_shapes(*arrays: tuple[Any, Any]) -> None:
    """Give each of the operations' results its static shape; their own shape functions see too little for it."""
    # An eager array has its shape.
    if not tf.executing_eagerly():
        for array, shape in arrays:
            array.set_shape(shape)


def run(name: str, arguments: list[Any], shape: Any, **attributes: Any) -> Any:
    """Return the one result of an operation, of this static shape."""
    outputs = operations()[name](*arguments, **attributes)
    set_shapes((outputs, shape))
    return outputs


def unneeded(operation: Any) -> Any:
    """Return which arguments need no gradient; known in eager mode alone: a graph is pruned of what nothing needs."""
    return getattr(operation, "skip_input_indices", None) or ()


def attributes_of(spec: ConvSpec) -> dict[str, Any]:
    """Return a convolution's attributes."""
    return {
        "groups": spec.groups,
        "strides": spec.strides,
        "dilations": spec.dilation_rate,
        # "same" depends on the image's size, which only the operation knows.
        "padding": () if spec.padding == "same" else [side for pair in spec.explicit_padding or () for side in pair],
    }


def same_attributes(operation: Any) -> dict[str, Any]:
    """Return the convolution's attributes of an operation."""
    return {name: operation.get_attr(name) for name in _ATTRIBUTES}


def gradients_of(expression: Callable[..., Any], operation: Any, upstream: Any) -> list[Any]:
    """Return the gradients to an operation's inputs, as far as they are needed, of an expression that it is."""
    # One tensor may be several of its inputs: a tape would give each of these the gradient of all.
    tensors = [tf.identity(tensor) for tensor in operation.inputs]
    needed = [i for i, tensor in enumerate(tensors) if tensor.dtype.is_floating and i not in unneeded(operation)]
    sources = [tensors[i] for i in needed]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        results = expression(*tensors)
    found = dict(zip(needed, tape.gradient(results, sources, output_gradients=upstream), strict=True))
    return [found.get(i) for i in range(len(tensors))]
