"""A small network for small grey images, with dense, grouped or separable convolutions.

It is the one in which people find that their separable convolution "stops learning at 10%"; docs/separable.md says
why theirs does and this one does not.
"""

from dataclasses import dataclass
from typing import Any

from groupwise.errors import UserError
from groupwise.layers import GroupedConv2D
from groupwise.layers.initializers import HeNormal
from groupwise.models.blocks import conv_bn, separable_bn
from groupwise.models.registry import GREY, Backbone, Variant
from groupwise.spec import symmetric_padding

STEM_WIDTH = 32
STAGES = ((64, 64), (128, 128))
"""Channels of every unit; a stage begins with strides 2."""

GROUP_WIDTH = 8
"""Input channels in a group of the grouped network."""


@dataclass(frozen=True)
class SmallNetwork(Backbone):
    """The network for small grey images, 28x28x1 or 8x8x1 for example.

    Features: "stem" (of the image's size), "stage1" (half of it) and "stage2" (a quarter).

    Attributes:
        convolution: what the units after the stem are made of: "dense" 3x3 convolutions; "separable" ones; or
            "grouped" ones, which are separable but for 8 channels in a group of the 3x3 instead of one.
        depth_multiplier: how many 3x3 filters a channel has before the 1x1 of a separable or grouped unit; a dense
            convolution has one for each pair of channels, and takes no notice.
    """

    convolution: str = "dense"
    depth_multiplier: int = 1

    def features(self, inputs: Any) -> dict[str, Any]:
        convolution, depth_multiplier = self.convolution, self.depth_multiplier
        if convolution not in UNITS:
            raise UserError(f"convolution={convolution!r}: must be one of {', '.join(UNITS)}")
        if depth_multiplier < 1:
            raise UserError(f"depth_multiplier={depth_multiplier}: must be at least 1")
        unit = UNITS[convolution]
        features = {"stem": conv_bn(inputs, STEM_WIDTH, 3, name="stem")}
        x = features["stem"]
        for stage, widths in enumerate(STAGES, start=1):
            for index, width in enumerate(widths, start=1):
                strides = 2 if index == 1 else 1
                x = unit(x, width, strides, name=f"stage{stage}_unit{index}", depth_multiplier=depth_multiplier)
            features[f"stage{stage}"] = x
        return features


def _dense(x: Any, filters: int, strides: int, *, name: str, depth_multiplier: int) -> Any:
    return conv_bn(x, filters, 3, strides, name=name)


def _separable(x: Any, filters: int, strides: int, *, name: str, depth_multiplier: int) -> Any:
    return separable_bn(x, filters, 3, strides, name=name, depth_multiplier=depth_multiplier)


def _grouped(x: Any, filters: int, strides: int, *, name: str, depth_multiplier: int) -> Any:
    channels = x.shape[-1]
    # As in a separable convolution, nothing between the two steps: a batch norm and ReLU there cost half a percent.
    convolution = GroupedConv2D(
        channels * depth_multiplier,
        3,
        strides,
        symmetric_padding(3),
        groups=channels // GROUP_WIDTH,
        use_bias=False,
        kernel_initializer=HeNormal(),
        name=f"{name}_grouped_conv",
    )
    return conv_bn(convolution(x), filters, 1, name=name)


UNITS = {"dense": _dense, "separable": _separable, "grouped": _grouped}


def _variant(name: str, convolution: str) -> Variant:
    return Variant(
        name,
        "MNIST",
        SmallNetwork(convolution),
        num_classes=10,
        input_shape=(28, 28, 1),
        reduction=4,
        preprocessing=GREY,
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("mnist_cnn", "dense"),
    _variant("mnist_cnn_separable", "separable"),
    _variant("mnist_cnn_grouped", "grouped"),
)
