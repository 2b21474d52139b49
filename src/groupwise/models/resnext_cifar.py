"""ResNeXt for CIFAR: three stages on images of 32x32."""

from dataclasses import dataclass
from typing import Any

from groupwise.models.blocks import conv_bn
from groupwise.models.registry import CIFAR, Backbone, Variant
from groupwise.models.residual import Bottleneck, residual_network


@dataclass(frozen=True)
class CifarResNeXt(Backbone):
    """ResNeXt for images of 32x32.

    Features, of a height H: "stem" (H, 64 channels), "stage1" to "stage3" (H to H / 4, 256 to 1024 channels).

    Attributes:
        blocks: in each of the three stages.
        cardinality, width, form: as for `ResNeXt`.
        shortcut: "projection", or "pad" for the one without parameters: average pool, then channels of zeros.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, section 5.3.

    Examples:
        >>> import keras
        >>> CifarResNeXt(3, cardinality=8, width=64).features(keras.Input((32, 32, 3)))["stage3"].shape
        (None, 8, 8, 1024)
    """

    blocks: int
    cardinality: int
    width: int
    form: str = "c"
    shortcut: str = "projection"

    def features(self, inputs: Any) -> dict[str, Any]:
        block = Bottleneck(self.shortcut, cardinality=self.cardinality, width=self.width, form=self.form)
        return residual_network(conv_bn(inputs, 64, 3, name="stem"), 3 * (self.blocks,), block, pool=False)


RESNEXTS = (
    (20, 16, 4),
    (20, 32, 2),
    (20, 32, 4),
    (29, 32, 4),
    (29, 8, 64),
    (29, 16, 64),
    (56, 32, 2),
    (272, 1, 64),
    (272, 2, 32),
)
"""Layers, cardinality, width."""

VARIANTS: tuple[Variant, ...] = tuple(
    Variant(
        f"resnext{layers}_{cardinality}x{width}d_cifar10",
        "CIFAR ResNeXt",
        CifarResNeXt((layers - 2) // 9, cardinality, width),
        num_classes=10,
        input_shape=(32, 32, 3),
        reduction=4,
        preprocessing=CIFAR,
    )
    for layers, cardinality, width in RESNEXTS
)
