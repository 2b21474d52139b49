"""Separable convolution, any two of which the second is 1x1, or three: in one pass where the C core computes them."""

import math
from typing import Any, NamedTuple

import keras

from groupwise import backends, routing
from groupwise.backends.conversions import cast, type_of
from groupwise.backends.steps import Step
from groupwise.core import separable
from groupwise.machine import usable_cores
from groupwise.ops.arguments import checked_data_format
from groupwise.ops.convolutions import (
    Geometry,
    check_shapes,
    checked_activation,
    grouped_conv2d,
    grouped_kernel,
    spec_of,
)
from groupwise.spec import ConvSpec, Pair, known_size

# Of fewer pixels two calls were as fast, or faster: 7x7 of 1,024 channels 1.12 times. Where it is not known how many
# there are, as TensorFlow traces batches of any size, it is one pass.
FEW_PIXELS = 512
# With an expansion before them, those of an EfficientNet-Lite0, batch 16, were 1.01 to 1.76 times as fast as by two
# calls, but 0.91 to 0.99 times in rows of 7 pixels, each of which reads the expansion's weights again. So were 49
# outputs of one image.
NARROW, FEW_OUTPUTS = 14, 128


class Convolution(NamedTuple):
    """What `grouped_conv2d` is told of a convolution.

    Attributes:
        kernel, bias, activation, scale, algorithm: as there.
        geometry: groups, strides, padding, dilation rate.
    """

    kernel: Any
    geometry: Geometry
    bias: Any = None
    activation: str | None = None
    scale: Any = None
    algorithm: str = "auto"


def pair_conv2d(
    inputs: Any,
    first: Convolution,
    second: Convolution,
    residual: Any = None,
    data_format: str | None = "channels_last",
    expansion: Convolution | None = None,
) -> Any:
    """Return what `second` makes of what `first` makes of the inputs, and of the residual.

    Where the core runs both, `first` of narrow groups and `second` a 1x1, what lies between them never leaves the
    caches. Nor does what an `expansion`, a 1x1, makes of the inputs before `first`, where that is the faster way.

    Examples:
        >>> import numpy as np
        >>> x, ones = np.ones((1, 4, 4, 2), "float32"), np.ones((1, 1, 2, 1), "float32")
        >>> depthwise = Convolution(np.ones((3, 3, 1, 2), "float32"), (2, 1, "valid", 1), activation="relu6")
        >>> np.asarray(pair_conv2d(x, depthwise, Convolution(ones, (1, 1, "valid", 1)))).ravel().tolist()
        [12.0, 12.0, 12.0, 12.0]
    """
    is_last = checked_data_format(data_format) == "channels_last"
    steps = _steps(inputs, first, second, residual, expansion) if is_last else None
    if steps is not None:
        return backends.active.core.separable(*steps)
    if expansion is not None:
        return pair_conv2d(_alone(inputs, expansion, None, data_format), first, second, residual, data_format)
    for one, extra in ((first, None), (second, residual)):
        inputs = _alone(inputs, one, extra, data_format)
    return inputs


def _alone(inputs: Any, one: Convolution, residual: Any, data_format: str | None) -> Any:
    options = data_format, one.algorithm, one.bias, residual, one.activation, one.scale
    return grouped_conv2d(inputs, one.kernel, *one.geometry, *options)


def separable_conv2d(
    inputs: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
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
    """Convolve every channel on its own, then mix the channels at every pixel.

    `out[b,i,j,k] = sum over di,dj,q,r of x[b, s*i+di, s*j+dj, q] * depthwise[di,dj,q,r] * pointwise[0,0,q*M+r,k]`:
    the sums of a dense convolution whose kernel has rank M for each pair of input and output channel.

    Args:
        inputs: as for `grouped_conv2d`.
        depthwise_kernel: (kernel height, kernel width, in_channels, M); any multiplier M >= 1.
        pointwise_kernel: (1, 1, in_channels * M, out_channels).
        strides, padding, dilation_rate: of the depthwise step.
        data_format: as for `grouped_conv2d`.
        algorithm: as for `grouped_conv2d`, of both steps: it must be able to compute both.
        bias, residual, activation, scale: as for `grouped_conv2d`, after the second step.

    Returns:
        (batch, out height, out width, out_channels) in the inputs' data format.

    Raises:
        ValueError: naming the argument, its value and the rule.

    Source: TensorFlow's `tf.nn.separable_conv2d`; Xception, arXiv 1610.02357, section 2.

    Examples:
        >>> import numpy as np
        >>> x, depthwise = np.ones((1, 5, 5, 2), "float32"), np.ones((3, 3, 2, 1), "float32")
        >>> separable_conv2d(x, depthwise, np.ones((1, 1, 2, 7), "float32"), padding="valid").shape[-1]
        7
    """
    kernel, channels = grouped_kernel(depthwise_kernel), tuple(depthwise_kernel.shape)[2]
    depthwise = Convolution(kernel, (channels, strides, padding, dilation_rate), algorithm=algorithm)
    pointwise = Convolution(pointwise_kernel, (1, 1, "same", 1), bias, activation, scale, algorithm)
    return pair_conv2d(inputs, depthwise, pointwise, residual, data_format)


def _steps(
    inputs: Any, first: Convolution, second: Convolution, residual: Any, expansion: Convolution | None
) -> tuple[Any, ...] | None:
    """Return the arguments with which the core takes all of them in one pass; None where it does not, or not faster."""
    convolutions = [*([] if expansion is None else [expansion]), first, second]
    arrays = [inputs, *(one.kernel for one in convolutions)]
    extras = [residual, *(extra for one in convolutions for extra in (one.bias, one.scale))]
    if any(isinstance(array, keras.KerasTensor) for array in (*arrays, *extras)):
        return None
    if not {one.algorithm for one in convolutions} <= {"auto", "core"} or set(map(type_of, arrays)) != {"float32"}:
        return None
    image, residual = (cast(array, "float32") for array in backends.active.tensors((inputs, residual)))
    specs = [spec_of(image, convolutions[0].kernel, convolutions[0].geometry)]
    for one in convolutions[1:]:
        specs.append(ConvSpec.of(specs[-1].output_shape, tuple(one.kernel.shape), *one.geometry))
    *before, grouped, pointwise = specs
    runtime = backends.active.runtime(image)
    by_core = [routing.explain(spec, runtime).algorithm == "core" for spec in specs]
    if not all(by_core) or not separable.computes(grouped, pointwise, *before) or not _pays(grouped, bool(before)):
        return None
    steps = [_step(*both) for both in zip(convolutions[:-1], specs[:-1], strict=True)]
    return image, steps[-1], _step(second, pointwise, residual), residual, *steps[:-1]


def _pays(grouped: ConvSpec, expands: bool) -> bool:
    """Return whether one pass is faster than one for the expansion and one for the two, or for each of the two."""
    outputs = grouped.output_shape[:3]
    if not expands:
        return math.prod(known_size(size) or FEW_PIXELS for size in outputs) >= FEW_PIXELS
    # Of unknown sizes it is faster at the least as well.
    batch, height, width = (known_size(size) for size in grouped.input_shape[:3])
    pixels = math.prod(known_size(size) or default for size, default in zip(outputs, (1, NARROW, NARROW), strict=True))
    # What two threads see is computed by both.
    shared = (grouped.kernel_shape[0] - 1) * grouped.dilation_rate[0]
    rows = (batch or 1) * (height or NARROW)
    is_shared_little = 2 * rows >= 3 * shared * usable_cores()
    return (width or NARROW) >= NARROW and pixels >= FEW_OUTPUTS and is_shared_little


def _step(one: Convolution, spec: ConvSpec, residual: Any = None) -> Step:
    arrays = backends.active.tensors((one.kernel, one.bias, one.scale))
    kernel, bias, scale = (cast(array, "float32") for array in arrays)
    check_shapes(spec, False, bias, residual, scale)
    return Step(kernel, spec, bias, scale, checked_activation(one.activation))
