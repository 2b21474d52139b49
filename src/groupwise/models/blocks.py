"""The pieces that several families share: functions from one symbolic tensor to another, every layer named."""

from typing import Any

from groupwise.layers import (
    BatchNormalization,
    DepthwiseConv2D,
    DepthwiseHeNormal,
    GroupedConv2D,
    SeparableConv2D,
)
from groupwise.layers.initializers import HeNormal
from groupwise.spec import Pair, symmetric_padding

# PyTorch's momentum of 0.1 is the share that is new; Keras's is the share that stays.
MOMENTUM = 0.9


def conv(
    x: Any,
    filters: int,
    kernel_size: int,
    strides: int | Pair = 1,
    *,
    name: str,
    groups: int = 1,
    padding: object = None,
) -> Any:
    """Return convolution without bias, the layer `name_conv`; the arguments are `conv_bn`'s."""
    convolution = GroupedConv2D(
        filters,
        kernel_size,
        strides,
        symmetric_padding(kernel_size) if padding is None else padding,
        groups=groups,
        use_bias=False,
        kernel_initializer=HeNormal(),
        name=f"{name}_conv",
    )
    return convolution(x)


def conv_bn(
    x: Any,
    filters: int,
    kernel_size: int,
    strides: int | Pair = 1,
    *,
    name: str,
    groups: int = 1,
    padding: object = None,
    **norm: Any,
) -> Any:
    """Return convolution (no bias), batch norm and activation: layers `name_conv` and `name_bn`.

    Args:
        x: symbolic (batch, height, width, channels).
        padding: as for `GroupedConv2D`; None is PyTorch's symmetric half of the kernel.
        norm: `bn_activation`'s.
    """
    x = conv(x, filters, kernel_size, strides, name=name, groups=groups, padding=padding)
    return bn_activation(x, name=name, **norm)


def depthwise_bn(
    x: Any,
    kernel_size: int,
    strides: int | Pair = 1,
    *,
    name: str,
    depth_multiplier: int = 1,
    padding: object = None,
    **norm: Any,
) -> Any:
    """Return depthwise convolution (no bias), batch norm and activation; the arguments are `conv_bn`'s."""
    convolution = DepthwiseConv2D(
        kernel_size,
        strides,
        symmetric_padding(kernel_size) if padding is None else padding,
        depth_multiplier=depth_multiplier,
        use_bias=False,
        depthwise_initializer=DepthwiseHeNormal(),
        name=f"{name}_conv",
    )
    return bn_activation(convolution(x), name=name, **norm)


def separable(
    x: Any,
    filters: int,
    kernel_size: int,
    strides: int | Pair = 1,
    *,
    name: str,
    depth_multiplier: int = 1,
) -> Any:
    """Return separable convolution without bias, nothing between its steps: the layer `name_conv`.

    The arguments are `conv_bn`'s; depth_multiplier is the number of depthwise filters for each channel.
    """
    convolution = SeparableConv2D(
        filters,
        kernel_size,
        strides,
        symmetric_padding(kernel_size),
        depth_multiplier=depth_multiplier,
        use_bias=False,
        depthwise_initializer=DepthwiseHeNormal(),
        pointwise_initializer=HeNormal(),
        name=f"{name}_conv",
    )
    return convolution(x)


def separable_bn(
    x: Any,
    filters: int,
    kernel_size: int,
    strides: int | Pair = 1,
    *,
    name: str,
    depth_multiplier: int = 1,
    **norm: Any,
) -> Any:
    """Return separable convolution, batch norm and activation; the arguments are `separable`'s and `conv_bn`'s."""
    x = separable(x, filters, kernel_size, strides, name=name, depth_multiplier=depth_multiplier)
    return bn_activation(x, name=name, **norm)


def bn_activation(
    x: Any, *, name: str, activation: str | None = "relu", epsilon: float = 1e-5, residual: Any = None
) -> Any:
    """Return activation(batch norm + residual), the layer `name_bn`.

    Args:
        x: symbolic (batch, height, width, channels).
        activation: a Keras activation, or None for none.
        residual: what is added before the activation, or None.
    """
    norm = BatchNormalization(momentum=MOMENTUM, epsilon=epsilon, activation=activation, name=f"{name}_bn")
    return norm(x) if residual is None else norm(x, residual=residual)
