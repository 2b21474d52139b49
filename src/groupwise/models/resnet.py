"""ResNet, ResNeXt and both with squeeze-and-excitation, for ImageNet.

Strides stand in the 3x3 convolution, as in torchvision and timm; stem and strided layers are padded symmetrically.
SE-ResNet 18 and 34 reduce 64 channels to 4, as the paper and pytorchcv do; timm's, to 8, are `squeeze_divisor=8`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from groupwise.blocks import conv_bn
from groupwise.models.registry import Variant
from groupwise.models.residual import basic_block, bottleneck, residual_network


def resnet(
    inputs: Any,
    depths: Sequence[int],
    bottlenecks: bool = True,
    squeeze_ratio: int | None = None,
    squeeze_divisor: int = 1,
) -> dict[str, Any]:
    """Return the features of a ResNet or SE-ResNet.

    Args:
        inputs: symbolic (batch, height, width, channels).
        depths: blocks in each of the four stages.
        bottlenecks: whether the blocks are bottlenecks (50 layers and more) or two 3x3 convolutions.
        squeeze_ratio, squeeze_divisor: as for `SqueezeExcite`; None for none.

    Shapes, of a height H: "stem" (H / 2, 64 channels), "stage1" to "stage4" (H / 4 to H / 32, 64 to 512 channels, four
    times as many with bottlenecks).

    Source: Deep Residual Learning, arXiv 1512.03385, table 1; Squeeze-and-Excitation Networks, 1709.01507, figure 3.

    Examples:
        >>> import keras
        >>> resnet(keras.Input((224, 224, 3)), (2, 2, 2, 2), bottlenecks=False)["stage4"].shape
        (None, 7, 7, 512)
    """
    block = partial(
        bottleneck if bottlenecks else basic_block, squeeze_ratio=squeeze_ratio, squeeze_divisor=squeeze_divisor
    )
    return residual_network(conv_bn(inputs, 64, 7, 2, name="stem"), depths, block)


def resnext(
    inputs: Any,
    depths: Sequence[int],
    cardinality: int,
    width: int,
    squeeze_ratio: int | None = None,
    form: str = "c",
) -> dict[str, Any]:
    """Return the features of a ResNeXt or SE-ResNeXt.

    Args:
        inputs: symbolic (batch, height, width, channels).
        depths: blocks in each of the four stages.
        cardinality, width: 32 and 4 for a 32x4d.
        squeeze_ratio: as for `SqueezeExcite`; None for none.
        form: "a", "b" or "c", the paper's three equivalent forms: paths summed, paths concatenated, grouped
            convolution.

    Shapes: as of `resnet` with bottlenecks.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, table 1 and figure 3.

    Examples:
        >>> import keras
        >>> resnext(keras.Input((224, 224, 3)), (1, 1, 1, 1), cardinality=32, width=4)["stage1"].shape
        (None, 56, 56, 256)
    """
    block = partial(bottleneck, cardinality=cardinality, width=width, squeeze_ratio=squeeze_ratio, form=form)
    return residual_network(conv_bn(inputs, 64, 7, 2, name="stem"), depths, block)


DEPTHS: dict[int, tuple[int, ...]] = {
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    38: (3, 3, 3, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Layers of a network: blocks in its stages."""

RESNETS = (18, 34, 50, 101, 152)
RESNEXTS = (
    (14, 16, 4),
    (14, 32, 2),
    (14, 32, 4),
    (26, 16, 4),
    (26, 32, 2),
    (26, 32, 4),
    (38, 32, 4),
    (50, 32, 4),
    (101, 32, 4),
    (101, 64, 4),
    (101, 32, 8),
    (101, 32, 16),
    (101, 32, 32),
)
"""Layers, cardinality, width."""

SE_RESNEXTS = ((50, 32, 4), (101, 32, 4), (101, 64, 4), (101, 32, 8))


def _resnet(layers: int, **arguments: Any) -> Variant:
    squeeze = "se" if arguments else ""
    options = {"depths": DEPTHS[layers], "bottlenecks": layers >= 50, **arguments}
    return Variant(f"{squeeze}resnet{layers}", "SE-ResNet" if squeeze else "ResNet", resnet, options)


def _resnext(layers: int, cardinality: int, width: int, **arguments: Any) -> Variant:
    squeeze = "se" if arguments else ""
    options = {"depths": DEPTHS[layers], "cardinality": cardinality, "width": width, **arguments}
    name = f"{squeeze}resnext{layers}_{cardinality}x{width}d"
    return Variant(name, "SE-ResNeXt" if squeeze else "ResNeXt", resnext, options)


VARIANTS: tuple[Variant, ...] = (
    *(_resnet(layers) for layers in RESNETS),
    *(_resnext(*row) for row in RESNEXTS),
    *(_resnet(layers, squeeze_ratio=16) for layers in RESNETS),
    *(_resnext(*row, squeeze_ratio=16) for row in SE_RESNEXTS),
)
