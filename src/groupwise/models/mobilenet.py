"""MobileNet v1: depthwise separable convolutions, one after the other.

Source: MobileNets, arXiv 1704.04861, table 1; the width multiplier is section 3.3.
"""

from dataclasses import replace
from typing import Any

from groupwise.models.blocks import conv_bn, depthwise_bn
from groupwise.models.registry import HALF, Variant

STAGES = ((64,), (128,) * 2, (256,) * 2, (512,) * 6, (1024,) * 2)
"""Channels of every unit; each stage but the first begins with strides 2."""


def build(inputs: Any, scale: float = 1.0, activation: str = "relu", final_width: int | None = None) -> dict[str, Any]:
    """Return MobileNet's features: "stem" (half of the image), "stage1" to "stage5" (a 32nd), perhaps "final".

    Args:
        inputs: symbolic (batch, height, width, channels).
        scale: the paper's width multiplier alpha.
        activation: "relu", or "relu6" as in timm.
        final_width: channels of a last 1x1 convolution, None for none.
    """
    x = conv_bn(inputs, int(32 * scale), 3, 2, name="stem", activation=activation)
    features = {"stem": x}
    for stage, widths in enumerate(STAGES, start=1):
        for unit, width in enumerate(widths, start=1):
            strides = 2 if unit == 1 < stage else 1
            name = f"stage{stage}_unit{unit}"
            x = depthwise_bn(x, 3, strides, name=f"{name}_depthwise", activation=activation)
            x = conv_bn(x, int(width * scale), 1, name=f"{name}_pointwise", activation=activation)
        features[f"stage{stage}"] = x
    if final_width:
        features["final"] = conv_bn(x, final_width, 1, name="final", activation=activation)
    return features


def _variant(name: str, scale: float) -> Variant:
    return Variant(name, "MobileNet v1", build, {"scale": scale})


def _timm(name: str, crop: float = HALF.crop, **arguments: Any) -> Variant:
    preprocessing = replace(HALF, interpolation="bicubic", crop=crop)
    arguments = {"activation": "relu6", **arguments}
    return Variant(name, "MobileNet v1", build, arguments, preprocessing=preprocessing)


VARIANTS: tuple[Variant, ...] = (
    _timm("mobilenetv1_100"),
    _timm("mobilenetv1_100h", final_width=1024),
    _timm("mobilenetv1_125", crop=0.9, scale=1.25),
    _variant("mobilenet_wd4", 0.25),
    _variant("mobilenet_wd2", 0.5),
    _variant("mobilenet_w3d4", 0.75),
    _variant("mobilenet_w1", 1.0),
)
"""The first three are timm's, with ReLU6; the others pytorchcv's, with ReLU."""
