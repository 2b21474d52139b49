"""SENet, the grouped residual network with squeeze-and-excitation that won ILSVRC 2017, and smaller ones like it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groupwise.models.blocks import conv_bn
from groupwise.models.registry import Backbone, PooledHead, Variant
from groupwise.models.residual import Bottleneck, residual_network


@dataclass(frozen=True)
class SENet(Backbone):
    """SENet.

    It differs from SE-ResNeXt in its stem of three 3x3 convolutions, its first 1x1 convolutions of half the width, and
    its 3x3 projections where a stage strides.

    Features, of a height H: "stem" (H / 2, 128 channels), "stage1" to "stage4" (H / 4 to H / 32, 256 to 2048 channels).

    Attributes:
        depths: blocks in each of the four stages.
        cardinality, width, form: as for `ResNeXt`; squeeze_ratio: as for `SqueezeExcite`.
        ceiling_pool: as for `ResNet`.

    Source: Squeeze-and-Excitation Networks, arXiv 1709.01507, section 6.2 and appendix.

    Examples:
        >>> import keras
        >>> SENet((1, 1, 1, 1), cardinality=32).features(keras.Input((224, 224, 3)))["stage4"].shape
        (None, 7, 7, 2048)
    """

    depths: Sequence[int]
    cardinality: int
    width: int = 4
    squeeze_ratio: int = 16
    form: str = "c"
    ceiling_pool: bool = False

    def features(self, inputs: Any) -> dict[str, Any]:
        block = Bottleneck(
            cardinality=self.cardinality,
            width=self.width,
            reduction=2,
            form=self.form,
            shortcut_kernel=3,
            squeeze_ratio=self.squeeze_ratio,
        )
        x = conv_bn(inputs, 64, 3, 2, name="stem1")
        x = conv_bn(x, 64, 3, name="stem2")
        x = conv_bn(x, 128, 3, name="stem3")
        return residual_network(x, self.depths, block, ceiling_pool=self.ceiling_pool)


SENETS = (
    (16, (1, 1, 1, 1), 32),
    (28, (2, 2, 2, 2), 32),
    (40, (3, 3, 3, 3), 32),
    (52, (3, 4, 6, 3), 32),
    (103, (3, 4, 23, 3), 32),
    (154, (3, 8, 36, 3), 64),
)
"""Layers, blocks in the stages, cardinality."""

VARIANTS: tuple[Variant, ...] = tuple(
    Variant(f"senet{layers}", "SENet", SENet(depths, cardinality), head=PooledHead(dropout=0.2))
    for layers, depths, cardinality in SENETS
)
