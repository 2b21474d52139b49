"""Separable convolution, and any two, the second one 1x1: in one pass where the C core computes both."""

import math
from typing import Any, NamedTuple

import keras

from groupwise import backends, routing
from groupwise.backends.conversions import cast, type_of
from groupwise.backends.steps import Step
from groupwise.core import separable
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
) -> Any:
    """Return what `second` makes of what `first` makes of the inputs, and of the residual.

    Where the core runs both, `first` of narrow groups and `second` a 1x1, what lies between them never leaves the
    caches.

    Examples:
        >>> import numpy as np
        >>> x, ones = np.ones((1, 4, 4, 2), "float32"), np.ones((1, 1, 2, 1), "float32")
        >>> depthwise = Convolution(np.ones((3, 3, 1, 2), "float32"), (2, 1, "valid", 1), activation="relu6")
        >>> np.asarray(pair_conv2d(x, depthwise, Convolution(ones, (1, 1, "valid", 1)))).ravel().tolist()
        [12.0, 12.0, 12.0, 12.0]
    """
    is_last = checked_data_format(data_format) == "channels_last"
    steps = _steps(inputs, first, second, residual) if is_last else None
    if steps is not None:
        return backends.active.core.separable(*steps)
    for one, extra in ((first, None), (second, residual)):
        options = data_format, one.algorithm, one.bias, extra, one.activation, one.scale
        inputs = grouped_conv2d(inputs, one.kernel, *one.geometry, *options)
    return inputs


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


def _steps(inputs: Any, first: Convolution, second: Convolution, residual: Any) -> tuple[Any, Step, Step, Any] | None:
    """Return inputs, both convolutions and residual as the core takes them in one pass; None where it does not."""
    arrays = inputs, first.kernel, second.kernel
    extras = residual, first.bias, first.scale, second.bias, second.scale
    if any(isinstance(array, keras.KerasTensor) for array in (*arrays, *extras)):
        return None
    if not {first.algorithm, second.algorithm} <= {"auto", "core"} or set(map(type_of, arrays)) != {"float32"}:
        return None
    image, residual = (cast(array, "float32") for array in backends.active.tensors((inputs, residual)))
    grouped = spec_of(image, first.kernel, first.geometry)
    pointwise = ConvSpec.of(grouped.output_shape, tuple(second.kernel.shape), *second.geometry)
    runtime = backends.active.runtime(image)
    by_core = [routing.explain(spec, runtime).algorithm == "core" for spec in (grouped, pointwise)]
    pixels = math.prod(known_size(size) or FEW_PIXELS for size in grouped.output_shape[:3])
    if not all(by_core) or pixels < FEW_PIXELS or not separable.computes(grouped, pointwise):
        return None
    return image, _step(first, grouped), _step(second, pointwise, residual), residual


def _step(one: Convolution, spec: ConvSpec, residual: Any = None) -> Step:
    arrays = backends.active.tensors((one.kernel, one.bias, one.scale))
    kernel, bias, scale = (cast(array, "float32") for array in arrays)
    check_shapes(spec, False, bias, residual, scale)
    return Step(kernel, spec, bias, scale, checked_activation(one.activation))
