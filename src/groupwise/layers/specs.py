"""What a convolution layer computes, as `ConvSpec`s: of ours, or Keras's of the same arguments, built or not."""

from collections.abc import Sequence
from typing import Any

from groupwise.spec import ConvSpec

Shape = Sequence[int | None]


def specs_of(layer: Any, input_shape: Shape) -> tuple[ConvSpec, ...]:
    """Return the convolutions that a layer computes: one, or a separable layer's two.

    Args:
        layer: a `Conv2D`, `DepthwiseConv2D` or `SeparableConv2D`.
        input_shape: in the layer's own data format, channels known.

    Examples:
        >>> import keras
        >>> [spec.kernel_shape for spec in specs_of(keras.layers.SeparableConv2D(8, 3), (None, 16, 16, 4))]
        [(3, 3, 1, 4), (1, 1, 4, 8)]
    """
    batch, *sizes = input_shape
    height, width, channels = (*sizes[1:], sizes[0]) if layer.data_format == "channels_first" else sizes
    assert channels is not None  # Keras's layers refuse unknown channels before this
    shape, dtype = (batch, height, width, channels), layer.compute_dtype
    options = (layer.strides, layer.padding, layer.dilation_rate, dtype)
    multiplier = getattr(layer, "depth_multiplier", None)
    if multiplier is None:
        kernel_shape = (*layer.kernel_size, channels // layer.groups, layer.filters)
        return (ConvSpec.of(shape, kernel_shape, layer.groups, *options),)
    depthwise = ConvSpec.of(shape, (*layer.kernel_size, 1, channels * multiplier), channels, *options)
    if not hasattr(layer, "filters"):
        return (depthwise,)
    pointwise_shape = (1, 1, channels * multiplier, layer.filters)
    return depthwise, ConvSpec.of(depthwise.output_shape, pointwise_shape, groups=1, dtype=dtype)
