"""Exact ways to compute a grouped convolution out of other operations, in `keras.ops`: every framework runs them.

Each takes NHWC inputs, an HWIO kernel of shape (kh, kw, in_channels // groups, out_channels) and the `ConvSpec`, and
returns the same sums as the framework's grouped convolution, in another order.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import ops

from groupwise import backends
from groupwise.backends.activations import FUNCTIONS
from groupwise.backends.sums import accumulator
from groupwise.routing import Runtime, explain
from groupwise.spec import ConvSpec

# Wider blocks multiply more zeros. Forward and gradients, of 32, 64, 128, 256 and all channels in a block, 32 was the
# fastest on JAX for ResNeXt-50's convolutions of stride 1; at stride 2, 64 was up to 1.3 times as fast in two of three.
BLOCK_CHANNELS = 32


def native(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return the framework's own grouped convolution."""
    return backends.active.convolve(inputs, kernel, spec)


def core(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return the C core's convolution (csrc). Raises ValueError as `check_core` does."""
    check_core(spec, backends.active.runtime(inputs))
    return backends.active.core.convolve(inputs, kernel, spec)


def check_core(spec: ConvSpec, runtime: Runtime) -> None:
    """Raise ValueError for float64, whose precision would be lost, on a GPU, and where the core is not available."""
    if spec.dtype == "float64":
        raise ValueError(
            'algorithm="core": it computes in float32, the inputs or the kernel are float64; cast them to float32, or '
            'choose another algorithm ("auto" and "native" compute in float64)'
        )
    if runtime.accelerator is not None:
        raise ValueError(
            f'algorithm="core": the C core computes on CPUs, and the inputs are on a {runtime.place}; choose "auto" or '
            '"native", or move them to the CPU'
        )
    if not backends.active.core.is_available():
        raise ValueError('algorithm="core": the C core is not built, does not load here, or GROUPWISE_CORE is 0')


def depthwise_sum(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return the grouped convolution as a depthwise one, a reshape and a sum.

    Every input channel is convolved with each filter of its group (a depthwise convolution with multiplier
    out_channels / groups); an output channel is then the sum over its group's input channels, the *middle* axis of
    (groups, in_channels / groups, out_channels / groups).
    """
    height, width, group_width, out_channels = spec.kernel_shape
    multiplier = out_channels // spec.groups
    depthwise_kernel = ops.reshape(kernel, (height, width, group_width, spec.groups, multiplier))
    depthwise_kernel = ops.transpose(depthwise_kernel, (0, 1, 3, 2, 4))
    depthwise_kernel = ops.reshape(depthwise_kernel, (height, width, 1, spec.in_channels * multiplier))
    depthwise = replace(spec, kernel_shape=(height, width, 1, spec.in_channels * multiplier), groups=spec.in_channels)
    outputs = native(inputs, depthwise_kernel, depthwise)
    size = ops.shape(outputs)[:3]
    outputs = ops.reshape(outputs, (*size, spec.groups, group_width, multiplier))
    total = ops.sum(ops.cast(outputs, accumulator(spec.dtype)), axis=4)
    return ops.cast(ops.reshape(total, (*size, out_channels)), spec.dtype)


def blocks(inputs: Any, kernel: Any, spec: ConvSpec, groups_per_block: int | None = None) -> Any:
    """Return the grouped convolution as dense ones over blocks of whole groups, their outputs concatenated.

    A block's dense kernel is block-diagonal: zero between channels of different groups. With one group in a block
    this is split-and-concatenate; with all of them it is one dense convolution.
    """
    count = groups_per_block or _groups_per_block(spec)
    height, width, group_width, out_channels = spec.kernel_shape
    number = spec.groups // count
    block_inputs, block_outputs = count * group_width, out_channels // number
    dense = replace(
        spec,
        input_shape=(*spec.input_shape[:3], block_inputs),
        kernel_shape=(height, width, block_inputs, block_outputs),
        groups=1,
    )
    run_dense = ALGORITHMS[explain(dense, backends.active.runtime(inputs)).algorithm]
    outputs = [
        run_dense(
            inputs[..., index * block_inputs : (index + 1) * block_inputs],
            _block_diagonal_kernel(kernel[..., index * block_outputs : (index + 1) * block_outputs], count),
            dense,
        )
        for index in range(number)
    ]
    return outputs[0] if number == 1 else ops.concatenate(outputs, axis=-1)


def split_concat(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return the grouped convolution as one dense convolution a group, concatenated."""
    return blocks(inputs, kernel, spec, groups_per_block=1)


def block_diagonal(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return the grouped convolution as one dense convolution whose kernel is zero between groups."""
    return blocks(inputs, kernel, spec, groups_per_block=spec.groups)


def matmul(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return a 1x1 convolution as the matrix product it is, one a block of groups.

    Raises:
        ValueError: for another kernel, or where the input is padded.
    """
    if not spec.is_pointwise:
        raise ValueError(f'algorithm="matmul": the kernel must be 1x1 without padding, not {spec.kernel_shape[:2]}')
    if spec.groups > 1:
        return blocks(inputs, kernel, spec)
    inputs = inputs[:, :: spec.strides[0], :: spec.strides[1], :]
    size = ops.shape(inputs)[:3]
    # Not ops.matmul, which on PyTorch makes float32 of float64.
    outputs = ops.reshape(inputs, (-1, spec.in_channels)) @ kernel[0, 0]
    return ops.reshape(outputs, (*size, spec.out_channels))


def shifted_sum(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return a depthwise convolution as a sum of shifted inputs, each times one tap of the kernel.

    Raises:
        ValueError: where a group has more than one input channel, or the image's size is not known.
    """
    _, height, width, out_channels = spec.output_shape
    padding = spec.explicit_padding
    if spec.group_width != 1 or padding is None or height is None or width is None:
        raise ValueError(
            f'algorithm="shifted_sum": needs one input channel a group and a known height and width, not '
            f"{spec.group_width} channels and an image of {spec.input_shape[1:3]}"
        )
    multiplier = out_channels // spec.groups
    # Cast before it is shifted, so that the shifts' gradients are added in the wider type too.
    wide = accumulator(spec.dtype)
    padded, kernel = ops.pad(ops.cast(inputs, wide), ((0, 0), *padding, (0, 0))), ops.cast(kernel, wide)
    if multiplier > 1:
        padded = ops.repeat(padded, multiplier, axis=-1)
    total: Any = 0
    for row in range(spec.kernel_shape[0]):
        for column in range(spec.kernel_shape[1]):
            top, left = row * spec.dilation_rate[0], column * spec.dilation_rate[1]
            bottom, right = top + (height - 1) * spec.strides[0] + 1, left + (width - 1) * spec.strides[1] + 1
            shifted = padded[:, top : bottom : spec.strides[0], left : right : spec.strides[1]]
            total += shifted * kernel[row, column, 0]
    return ops.cast(total, spec.dtype)


def _groups_per_block(spec: ConvSpec) -> int:
    """Return the largest divisor of the groups whose block is no wider than BLOCK_CHANNELS (at least one group)."""
    width = max(spec.group_width, spec.out_channels // spec.groups)
    fitting = [count for count in range(1, spec.groups + 1) if spec.groups % count == 0]
    return max([count for count in fitting if count * width <= BLOCK_CHANNELS], default=1)


def _block_diagonal_kernel(kernel: Any, groups: int) -> Any:
    """Return the dense kernel (kh, kw, groups * width, out) of a grouped one (kh, kw, width, out)."""
    if groups == 1:
        return kernel
    height, width, group_width, out_channels = kernel.shape
    same_group = ops.repeat(ops.eye(groups, dtype=kernel.dtype), out_channels // groups, axis=1)
    dense = ops.expand_dims(kernel, 2) * ops.reshape(same_group, (groups, 1, out_channels))
    return ops.reshape(dense, (height, width, groups * group_width, out_channels))


ALGORITHMS: dict[str, Callable[[Any, Any, ConvSpec], Any]] = {
    "native": native,
    "core": core,
    "depthwise_sum": depthwise_sum,
    "split_concat": split_concat,
    "block_diagonal": block_diagonal,
    "blocks": blocks,
    "matmul": matmul,
    "shifted_sum": shifted_sum,
}
"""Every algorithm by name. "matmul" runs 1x1 kernels only, "shifted_sum" depthwise ones only, the others all."""


def checked_algorithm(algorithm: str) -> str:
    """Return the name of an algorithm, or raise ValueError where there is none of that name."""
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r}: must be one of {', '.join(('auto', *ALGORITHMS))}")
    return algorithm


def training_step(algorithm: str, spec: ConvSpec) -> Callable[[], object]:
    """Return a function that runs an algorithm and both of its gradients once, as in training, on random arrays."""
    random = np.random.default_rng(0)
    shapes: tuple[Any, ...] = spec.input_shape, spec.kernel_shape, spec.output_shape
    arrays = [ops.convert_to_tensor(random.normal(size=shape).astype(spec.dtype)) for shape in shapes]
    run = ALGORITHMS[algorithm]
    return backends.active.training_step(lambda inputs, kernel: run(inputs, kernel, spec), *arrays)


def finish(outputs: Any, bias: Any, residual: Any, activation: str, scale: Any = None) -> Any:
    """Return activation(outputs * scale + bias + residual), of the outputs' type; None is none of it.

    Scale and bias are broadcast.
    """
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    if scale is not None:
        outputs = ops.multiply(outputs, ops.cast(scale, accumulator(dtype)))
    if bias is not None:
        # The bias's gradient is a sum over all pixels, in the type that it is added in.
        outputs = ops.add(outputs, ops.cast(bias, accumulator(dtype)))
    if residual is not None:
        outputs = ops.add(outputs, residual)
    return ops.cast(FUNCTIONS[activation](outputs), dtype)
