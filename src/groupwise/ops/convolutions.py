"""Grouped and depthwise convolution: on arrays, traced or symbolic tensors."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import keras
from keras import ops

from groupwise import backends, routing
from groupwise.backends.conversions import cast, type_of
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.ops.algorithms import ALGORITHMS, check_core, checked_algorithm, finish
from groupwise.ops.arguments import checked_data_format
from groupwise.spec import DTYPES, ConvSpec, Pair, known_size

Geometry = tuple[int, int | Pair, object, int | Pair]
"""Groups, strides, padding, dilation rate."""


def grouped_conv2d(
    inputs: Any,
    kernel: Any,
    groups: int,
    strides: int | Pair = 1,
    padding: object = "same",
    dilation_rate: int | Pair = 1,
    data_format: str | None = None,
    algorithm: str = "auto",
    bias: Any = None,
    residual: Any = None,
    activation: str | None = None,
    scale: Any = None,
) -> Any:
    """Convolve each of `groups` equal slices of the channels with its own filters.

    Returns activation(sums * scale + bias + residual). Where the C core runs it, what follows the sums costs no further
    pass over memory.

    Args:
        inputs: (batch, height, width, in_channels), or (batch, in_channels, height, width) for channels_first.
        kernel: (kernel height, kernel width, in_channels // groups, out_channels) in both data formats.
        groups: a common divisor of in_channels and out_channels; output slice g sees input slice g alone.
        strides: one integer or (vertical, horizontal).
        padding: "same" (TensorFlow's), "valid" or ((top, bottom), (left, right)) zeros.
        dilation_rate: distance between the kernel's taps, one integer or two.
        data_format: "channels_last" or "channels_first"; None is Keras's setting.
        algorithm: "auto" (the routing list decides), "native", "core" (the C core), "depthwise_sum", "split_concat",
            "block_diagonal", "blocks", "matmul" (1x1 kernels) or "shifted_sum" (depthwise kernels): all give the same
            sums.
        bias: (out_channels,), or None.
        residual: of the outputs' shape, in the inputs' data format, or None.
        activation: "relu", "relu6", "silu", "hard_swish", or "linear" or None for none.
        scale: (out_channels,), or None: by which the sums are multiplied, as a batch norm by constants does it.

    Returns:
        (batch, out height, out width, out_channels) in the inputs' data format and the promoted type of inputs and
        kernel, which bias, residual and scale are cast to.

    Raises:
        ValueError: naming the argument, its value and the rule.

    Source: ResNeXt, arXiv 1611.05431, section 3 (figure 3c).

    Examples:
        >>> import numpy as np
        >>> x = np.arange(8, dtype="float32").reshape(1, 1, 1, 8)
        >>> y = grouped_conv2d(x, np.ones((1, 1, 4, 8), "float32"), groups=2)
        >>> np.asarray(y).ravel().tolist()
        [6.0, 6.0, 6.0, 6.0, 22.0, 22.0, 22.0, 22.0]
    """
    arrays = inputs, kernel, bias, residual, scale
    geometry = groups, strides, padding, dilation_rate
    if any(isinstance(array, keras.KerasTensor) for array in arrays):
        return _Convolution(*geometry, data_format, algorithm, activation)(*arrays)
    activation = checked_activation(activation)
    channels_first = checked_data_format(data_format) == "channels_first"
    checked_algorithm(algorithm)
    inputs, kernel, bias, residual, scale = backends.active.tensors(arrays)
    spec = spec_of(inputs, kernel, geometry, channels_first)
    check_shapes(spec, channels_first, bias, residual, scale)
    if channels_first:
        # On PyTorch a transposition is a view; XLA folds it into the convolution.
        inputs, residual = (
            None if image is None else ops.transpose(image, (0, 2, 3, 1)) for image in (inputs, residual)
        )
    arrays = inputs, kernel, bias, residual, scale
    inputs, kernel, bias, residual, scale = (cast(array, spec.dtype) for array in arrays)
    runtime = backends.active.runtime(inputs)
    if algorithm == "core":
        check_core(spec, runtime)
    elif algorithm == "auto":
        algorithm = routing.explain(spec, runtime).algorithm
    if algorithm == "core":
        outputs = backends.active.core.convolve(inputs, kernel, spec, bias, residual, activation, scale)
    else:
        outputs = finish(ALGORITHMS[algorithm](inputs, kernel, spec), bias, residual, activation, scale)
    return ops.transpose(outputs, (0, 3, 1, 2)) if channels_first else outputs


def depthwise_conv2d(
    inputs: Any,
    kernel: Any,
    strides: int | Pair = 1,
    padding: object = "same",
    dilation_rate: int | Pair = 1,
    data_format: str | None = None,
    algorithm: str = "auto",
    bias: Any = None,
    residual: Any = None,
    activation: str | None = None,
    scale: Any = None,
) -> Any:
    """Convolve every channel with its own `depth_multiplier` filters: a grouped convolution of groups of one.

    All other arguments are those of `grouped_conv2d`.

    Args:
        kernel: (kernel height, kernel width, in_channels, depth_multiplier).

    Returns:
        (batch, out height, out width, in_channels * depth_multiplier); filter r of channel q gives channel
        `q * depth_multiplier + r`.

    Raises:
        ValueError: naming the argument, its value and the rule.

    Examples:
        >>> import numpy as np
        >>> x = np.arange(2, dtype="float32").reshape(1, 1, 1, 2)
        >>> np.asarray(depthwise_conv2d(x, np.ones((1, 1, 2, 2), "float32"))).ravel().tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    channels = _kernel_shape(kernel)[2]
    options = (strides, padding, dilation_rate, data_format, algorithm)
    return grouped_conv2d(inputs, grouped_kernel(kernel), channels, *options, bias, residual, activation, scale)


def grouped_kernel(depthwise_kernel: Any) -> Any:
    """Return a depthwise kernel (height, width, channels, multiplier) as that of as many groups as channels."""
    height, width, channels, multiplier = _kernel_shape(depthwise_kernel)
    shape = height, width, 1, channels * multiplier
    if isinstance(depthwise_kernel, keras.KerasTensor):
        return ops.reshape(depthwise_kernel, shape)
    (tensor,) = backends.active.tensors([depthwise_kernel])
    return backends.active.reshape(tensor, shape)


def explain_routing(
    input_shape: Sequence[int | None],
    kernel_shape: Sequence[int],
    groups: int,
    strides: int | Pair = 1,
    padding: object = "same",
    dilation_rate: int | Pair = 1,
    dtype: str = "float32",
) -> routing.Routing:
    """Say which algorithm `"auto"` runs for a convolution on this framework and device, and why.

    Args:
        input_shape: (batch, height, width, in_channels); None where unknown.
        kernel_shape: (kernel height, kernel width, in_channels // groups, out_channels).
        groups, strides, padding, dilation_rate: as for `grouped_conv2d`.
        dtype: of inputs and kernel.

    Returns:
        A `Routing`: `.algorithm`, `.reason`, `.passed_over`; its text is a short table.

    Examples:
        >>> print(explain_routing((16, 56, 56, 128), (3, 3, 4, 128), groups=32))  # doctest: +SKIP
    """
    spec = ConvSpec.of(input_shape, kernel_shape, groups, strides, padding, dilation_rate, dtype)
    return routing.explain(spec, backends.active.runtime())


class _Convolution(keras.Operation):
    """`grouped_conv2d` in a graph of symbolic tensors."""

    def __init__(
        self,
        groups: int,
        strides: int | Pair,
        padding: object,
        dilation_rate: int | Pair,
        data_format: str | None,
        algorithm: str,
        activation: str | None,
    ) -> None:
        super().__init__()
        self.activation = checked_activation(activation)
        self.geometry = groups, strides, padding, dilation_rate
        self.data_format, self.algorithm = checked_data_format(data_format), checked_algorithm(algorithm)

    def call(self, inputs: Any, kernel: Any, bias: Any = None, residual: Any = None, scale: Any = None) -> Any:
        options = self.data_format, self.algorithm, bias, residual, self.activation, scale
        return grouped_conv2d(inputs, kernel, *self.geometry, *options)

    def compute_output_spec(
        self, inputs: Any, kernel: Any, bias: Any = None, residual: Any = None, scale: Any = None
    ) -> keras.KerasTensor:
        channels_first = self.data_format == "channels_first"
        spec = spec_of(inputs, kernel, self.geometry, channels_first)
        check_shapes(spec, channels_first, bias, residual, scale)
        return keras.KerasTensor(_output_shape(spec, channels_first), dtype=spec.dtype)


def checked_activation(activation: str | None) -> str:
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)} or None")
    return activation or "linear"


def spec_of(inputs: Any, kernel: Any, geometry: Geometry, channels_first: bool = False) -> ConvSpec:
    """Return what a convolution of these arrays computes."""
    shape = tuple(inputs.shape)
    if channels_first and len(shape) == 4:
        shape = (shape[0], *shape[2:], shape[1])
    if len(shape) == 4 and shape[3] is not None:
        # A traced size would stay that of the example; channels are the same in all.
        shape = (*map(known_size, shape[:3]), int(shape[3]))
    return ConvSpec.of(shape, _kernel_shape(kernel), *geometry, _promoted(type_of(inputs), type_of(kernel)))


def _output_shape(spec: ConvSpec, channels_first: bool) -> tuple[int | None, ...]:
    batch, height, width, channels = spec.output_shape
    return (batch, channels, height, width) if channels_first else (batch, height, width, channels)


def check_shapes(spec: ConvSpec, channels_first: bool, bias: Any, residual: Any, scale: Any) -> None:
    """Raise ValueError where what follows the sums, and would else be broadcast, is not of the outputs' sizes."""
    for name, array in (("bias", bias), ("scale", scale)):
        if array is not None:
            _check_shape(name, array, (spec.out_channels,))
    if residual is not None:
        _check_shape("residual", residual, _output_shape(spec, channels_first))


def _check_shape(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    found = tuple(array.shape)
    if len(found) != len(shape) or any(
        size is not None and wanted is not None and size != wanted for size, wanted in zip(found, shape, strict=True)
    ):
        raise ValueError(f"{name} of shape {found}: must be of shape {shape}")


@cache
def _promoted(*types: str) -> str:
    """Return the type to compute in, or raise ValueError where there is none."""
    # On PyTorch and JAX Keras makes float32 of float64.
    dtype = "float64" if "float64" in types else keras.backend.result_type(*types, float)
    if dtype not in DTYPES or any("complex" in name for name in types):
        raise ValueError(
            f"inputs of type {types[0]} and kernel of type {types[1]}: must be integers or one of {', '.join(DTYPES)}; "
            "cast them"
        )
    return str(dtype)


def _kernel_shape(kernel: Any) -> tuple[int, ...]:
    shape = tuple(kernel.shape)
    if len(shape) != 4 or None in shape:
        raise ValueError(f"kernel shape {shape}: must have four known axes, (height, width, in, out)")
    return tuple(map(int, shape))
