"""Grouped, depthwise and separable convolution and channel shuffle: on arrays, traced or symbolic tensors."""

from groupwise.ops.convolutions import depthwise_conv2d, explain_routing, grouped_conv2d
from groupwise.ops.pairs import separable_conv2d
from groupwise.ops.shuffle import channel_shuffle

__all__ = [
    "channel_shuffle",
    "depthwise_conv2d",
    "explain_routing",
    "grouped_conv2d",
    "separable_conv2d",
]
