"""MobileNet v1: depthwise separable convolutions, one after the other.

Source: MobileNets, arXiv 1704.04861, table 1; the width multiplier is section 3.3.
"""

from dataclasses import dataclass, replace
from typing import Any

from groupwise.models.blocks import conv_bn, depthwise_bn
from groupwise.models.registry import HALF, Backbone, Variant

FAMILY = "MobileNet v1"
STAGES = ((64,), (128,) * 2, (256,) * 2, (512,) * 6, (1024,) * 2)
"""Channels of every unit; each stage but the first begins with strides 2."""


@dataclass(frozen=True)
class MobileNet(Backbone):
    """MobileNet v1.

    Features: "stem" (half of the image), "stage1" to "stage5" (a 32nd), perhaps "final".

    Attributes:
        scale: the paper's width multiplier alpha.
        activation: "relu", or "relu6" as in timm.
        final_width: channels of a last 1x1 convolution, None for none.
    """

    scale: float = 1.0
    activation: str = "relu"
    final_width: int | None = None

    def features(self, inputs: Any) -> dict[str, Any]:
        x = conv_bn(inputs, int(32 * self.scale), 3, 2, name="stem", activation=self.activation)
        features = {"stem": x}
        for stage, widths in enumerate(STAGES, start=1):
            for unit, width in enumerate(widths, start=1):
                strides = 2 if unit == 1 < stage else 1
                name = f"stage{stage}_unit{unit}"
                x = depthwise_bn(x, 3, strides, name=f"{name}_depthwise", activation=self.activation)
                x = conv_bn(x, int(width * self.scale), 1, name=f"{name}_pointwise", activation=self.activation)
            features[f"stage{stage}"] = x
        if self.final_width:
            features["final"] = conv_bn(x, self.final_width, 1, name="final", activation=self.activation)
        return features


def _timm(name: str, crop: float = HALF.crop, **settings: Any) -> Variant:
    preprocessing = replace(HALF, interpolation="bicubic", crop=crop)
    return Variant(name, FAMILY, MobileNet(activation="relu6", **settings), preprocessing=preprocessing)


VARIANTS: tuple[Variant, ...] = (
    _timm("mobilenetv1_100"),
    _timm("mobilenetv1_100h", final_width=1024),
    _timm("mobilenetv1_125", crop=0.9, scale=1.25),
    Variant("mobilenet_wd4", FAMILY, MobileNet(0.25)),
    Variant("mobilenet_wd2", FAMILY, MobileNet(0.5)),
    Variant("mobilenet_w3d4", FAMILY, MobileNet(0.75)),
    Variant("mobilenet_w1", FAMILY, MobileNet()),
)
"""The first three are timm's, with ReLU6; the others pytorchcv's, with ReLU."""
