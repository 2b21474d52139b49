"""Keras layers: drop-ins for Keras's own that override only the operation, and those of our networks."""

from groupwise.layers.batch_norm import BatchNormalization
from groupwise.layers.convolutions import DepthwiseConv2D, GroupedConv2D, SeparableConv2D
from groupwise.layers.initializers import DepthwiseHeNormal
from groupwise.layers.permuting import PermuteChannels
from groupwise.layers.pooling import AveragePooling2D, MaxPooling2D
from groupwise.layers.shuffle import ChannelShuffle
from groupwise.layers.squeeze_excite import SqueezeExcite, reduced_width
from groupwise.layers.stock import STOCK, stock_twin

__all__ = [
    "STOCK",
    "AveragePooling2D",
    "BatchNormalization",
    "ChannelShuffle",
    "DepthwiseConv2D",
    "DepthwiseHeNormal",
    "GroupedConv2D",
    "MaxPooling2D",
    "PermuteChannels",
    "SeparableConv2D",
    "SqueezeExcite",
    "reduced_width",
    "stock_twin",
]
