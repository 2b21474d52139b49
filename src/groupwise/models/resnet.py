"""ResNet, ResNeXt and both with squeeze-and-excitation, for ImageNet.

Strides stand in the 3x3 convolution, as in torchvision and timm (`stride_first` puts them in the 1x1 before it, as in
Caffe); stem and strided layers are padded symmetrically.
SE-ResNet 18 and 34 reduce 64 channels to 4, as the paper and pytorchcv do; timm's, to 8, are `squeeze_divisor=8`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from groupwise.models.blocks import conv_bn
from groupwise.models.registry import Variant
from groupwise.models.residual import basic_block, bottleneck, residual_network


def resnet(
    inputs: Any,
    depths: Sequence[int],
    bottlenecks: bool = True,
    squeeze_ratio: int | None = None,
    squeeze_divisor: int = 1,
    stride_first: bool = False,
    relu_before_squeeze: bool = False,
    ceiling_pool: bool = False,
    epsilon: float = 1e-5,
) -> dict[str, Any]:
    """Return the features of a ResNet or SE-ResNet.

    Args:
        inputs: symbolic (batch, height, width, channels).
        depths: blocks in each of the four stages.
        bottlenecks: whether the blocks are bottlenecks (50 layers and more) or two 3x3 convolutions.
        squeeze_ratio, squeeze_divisor: as for `SqueezeExcite`; None for none.
        stride_first: whether a bottleneck's first 1x1 strides, or its 3x3.
        relu_before_squeeze: whether a block of two convolutions has a ReLU before its squeeze-and-excitation, as
            Cadene's have.
        ceiling_pool: whether the stem's pool has no padding and rounds up, as in Caffe.
        epsilon: of all batch norms.

    Shapes, of a height H: "stem" (H / 2, 64 channels), "stage1" to "stage4" (H / 4 to H / 32, 64 to 512 channels, four
    times as many with bottlenecks).

    Source: Deep Residual Learning, arXiv 1512.03385, table 1; Squeeze-and-Excitation Networks, 1709.01507, figure 3.

    Examples:
        >>> import keras
        >>> resnet(keras.Input((224, 224, 3)), (2, 2, 2, 2), bottlenecks=False)["stage4"].shape
        (None, 7, 7, 512)
    """
    options: dict[str, Any] = {"squeeze_ratio": squeeze_ratio, "squeeze_divisor": squeeze_divisor, "epsilon": epsilon}
    block = (
        partial(bottleneck, stride_first=stride_first, **options)
        if bottlenecks
        else partial(basic_block, relu_before_squeeze=relu_before_squeeze, **options)
    )
    stem = conv_bn(inputs, 64, 7, 2, epsilon=epsilon, name="stem")
    return residual_network(stem, depths, block, ceiling_pool=ceiling_pool)


def resnext(
    inputs: Any,
    depths: Sequence[int],
    cardinality: int,
    width: int,
    squeeze_ratio: int | None = None,
    form: str = "c",
    ceiling_pool: bool = False,
    epsilon: float = 1e-5,
) -> dict[str, Any]:
    """Return the features of a ResNeXt or SE-ResNeXt.

    Args:
        inputs: symbolic (batch, height, width, channels).
        depths: blocks in each of the four stages.
        cardinality, width: 32 and 4 for a 32x4d.
        squeeze_ratio: as for `SqueezeExcite`; None for none.
        form: "a", "b" or "c", the paper's three equivalent forms: paths summed, paths concatenated, grouped
            convolution.
        ceiling_pool, epsilon: as for `resnet`.

    Shapes: as of `resnet` with bottlenecks.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, table 1 and figure 3.

    Examples:
        >>> import keras
        >>> resnext(keras.Input((224, 224, 3)), (1, 1, 1, 1), cardinality=32, width=4)["stage1"].shape
        (None, 56, 56, 256)
    """
    options: dict[str, Any] = {"cardinality": cardinality, "width": width, "squeeze_ratio": squeeze_ratio, "form": form}
    block = partial(bottleneck, epsilon=epsilon, **options)
    stem = conv_bn(inputs, 64, 7, 2, epsilon=epsilon, name="stem")
    return residual_network(stem, depths, block, ceiling_pool=ceiling_pool)


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

SE_RESNEXTS = ((26, 32, 4), (50, 32, 4), (101, 32, 4), (101, 64, 4), (101, 32, 8))


def _resnet(layers: int, **arguments: Any) -> Variant:
    squeeze = "se" if arguments else ""
    options: dict[str, Any] = {"depths": DEPTHS[layers], "bottlenecks": layers >= 50, **arguments}
    return Variant(f"{squeeze}resnet{layers}", "SE-ResNet" if squeeze else "ResNet", resnet, options)


def _resnext(layers: int, cardinality: int, width: int, **arguments: Any) -> Variant:
    squeeze = "se" if arguments else ""
    options: dict[str, Any] = {"depths": DEPTHS[layers], "cardinality": cardinality, "width": width, **arguments}
    name = f"{squeeze}resnext{layers}_{cardinality}x{width}d"
    return Variant(name, "SE-ResNeXt" if squeeze else "ResNeXt", resnext, options)


VARIANTS: tuple[Variant, ...] = (
    *(_resnet(layers) for layers in RESNETS),
    *(_resnext(*row) for row in RESNEXTS),
    *(_resnet(layers, squeeze_ratio=16) for layers in RESNETS),
    *(_resnext(*row, squeeze_ratio=16) for row in SE_RESNEXTS),
)
