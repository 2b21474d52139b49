"""ResNet, ResNeXt and both with squeeze-and-excitation, for ImageNet.

Strides stand in the 3x3 convolution, as in torchvision and timm (`stride_first` puts them in the 1x1 before it, as in
Caffe); stem and strided layers are padded symmetrically.
SE-ResNet 18 and 34 reduce 64 channels to 4, as the paper and pytorchcv do; timm's, to 8, are `squeeze_divisor=8`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groupwise.models.blocks import conv_bn
from groupwise.models.registry import Backbone, Variant
from groupwise.models.residual import BasicBlock, Block, Bottleneck, residual_network


@dataclass(frozen=True)
class ResNet(Backbone):
    """ResNet or SE-ResNet.

    Features, of a height H: "stem" (H / 2, 64 channels), "stage1" to "stage4" (H / 4 to H / 32, 64 to 512 channels,
    four times as many with bottlenecks).

    Attributes:
        depths: blocks in each of the four stages.
        bottlenecks: whether the blocks are bottlenecks (50 layers and more) or two 3x3 convolutions.
        squeeze_ratio, squeeze_divisor: as for `SqueezeExcite`; None for none.
        stride_first: whether a bottleneck's first 1x1 strides, or its 3x3.
        relu_before_squeeze: whether a block of two convolutions has a ReLU before its squeeze-and-excitation, as
            Cadene's have.
        ceiling_pool: whether the stem's pool has no padding and rounds up, as in Caffe.
        epsilon: of all batch norms.

    Source: Deep Residual Learning, arXiv 1512.03385, table 1; Squeeze-and-Excitation Networks, 1709.01507, figure 3.

    Examples:
        >>> import keras
        >>> ResNet((2, 2, 2, 2), bottlenecks=False).features(keras.Input((224, 224, 3)))["stage4"].shape
        (None, 7, 7, 512)
    """

    depths: Sequence[int]
    bottlenecks: bool = True
    squeeze_ratio: int | None = None
    squeeze_divisor: int = 1
    stride_first: bool = False
    relu_before_squeeze: bool = False
    ceiling_pool: bool = False
    epsilon: float = 1e-5

    def features(self, inputs: Any) -> dict[str, Any]:
        shared: dict[str, Any] = {
            "squeeze_ratio": self.squeeze_ratio,
            "squeeze_divisor": self.squeeze_divisor,
            "epsilon": self.epsilon,
        }
        block = (
            Bottleneck(stride_first=self.stride_first, **shared)
            if self.bottlenecks
            else BasicBlock(relu_before_squeeze=self.relu_before_squeeze, **shared)
        )
        return _features(inputs, self, block)


@dataclass(frozen=True)
class ResNeXt(Backbone):
    """ResNeXt or SE-ResNeXt; its features are those of a `ResNet` with bottlenecks.

    Attributes:
        cardinality, width: 32 and 4 for a 32x4d.
        form: "a", "b" or "c", the paper's three equivalent forms: paths summed, paths concatenated, grouped
            convolution.
        Others: as for `ResNet`.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, table 1 and figure 3.

    Examples:
        >>> import keras
        >>> ResNeXt((1, 1, 1, 1), cardinality=32, width=4).features(keras.Input((224, 224, 3)))["stage1"].shape
        (None, 56, 56, 256)
    """

    depths: Sequence[int]
    cardinality: int
    width: int
    squeeze_ratio: int | None = None
    form: str = "c"
    ceiling_pool: bool = False
    epsilon: float = 1e-5

    def features(self, inputs: Any) -> dict[str, Any]:
        block = Bottleneck(
            cardinality=self.cardinality,
            width=self.width,
            squeeze_ratio=self.squeeze_ratio,
            form=self.form,
            epsilon=self.epsilon,
        )
        return _features(inputs, self, block)


def _features(inputs: Any, network: ResNet | ResNeXt, block: Block) -> dict[str, Any]:
    stem = conv_bn(inputs, 64, 7, 2, epsilon=network.epsilon, name="stem")
    return residual_network(stem, network.depths, block, ceiling_pool=network.ceiling_pool)


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


def _resnet(layers: int, squeeze_ratio: int | None = None) -> Variant:
    backbone = ResNet(DEPTHS[layers], bottlenecks=layers >= 50, squeeze_ratio=squeeze_ratio)
    return _variant(f"resnet{layers}", "ResNet", backbone)


def _resnext(layers: int, cardinality: int, width: int, squeeze_ratio: int | None = None) -> Variant:
    backbone = ResNeXt(DEPTHS[layers], cardinality, width, squeeze_ratio)
    return _variant(f"resnext{layers}_{cardinality}x{width}d", "ResNeXt", backbone)


def _variant(name: str, family: str, backbone: ResNet | ResNeXt) -> Variant:
    if backbone.squeeze_ratio is None:
        return Variant(name, family, backbone)
    return Variant(f"se{name}", f"SE-{family}", backbone)


VARIANTS: tuple[Variant, ...] = (
    *(_resnet(layers) for layers in RESNETS),
    *(_resnext(*row) for row in RESNEXTS),
    *(_resnet(layers, squeeze_ratio=16) for layers in RESNETS),
    *(_resnext(*row, squeeze_ratio=16) for row in SE_RESNEXTS),
)
