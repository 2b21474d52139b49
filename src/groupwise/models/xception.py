"""Xception: an Inception network taken to the extreme, separable convolutions with shortcuts.

Source: Xception, arXiv 1610.02357, figure 5.
"""

from dataclasses import dataclass, replace
from typing import Any

import keras

from groupwise.layers import MaxPooling2D
from groupwise.models.blocks import conv_bn, separable_bn
from groupwise.models.registry import HALF, Backbone, Variant

STAGES = (
    ((128, 128),),
    ((256, 256),),
    ((728, 728), *[(728, 728, 728)] * 8),
    ((728, 1024),),
)
"""Channels of every separable convolution of every unit of each stage; a stage begins with a unit of strides 2."""

FINAL_WIDTHS = (1536, 2048)


@dataclass(frozen=True)
class Xception(Backbone):
    """Xception.

    Features: "stem" (about half of the image), "stage1" to "stage4" and "final" (a 32nd).
    """

    def features(self, inputs: Any) -> dict[str, Any]:
        x = conv_bn(inputs, 32, 3, 2, name="stem1", padding="valid")
        x = conv_bn(x, 64, 3, name="stem2", padding="valid")
        features = {"stem": x}
        for stage, units in enumerate(STAGES, start=1):
            for unit, widths in enumerate(units, start=1):
                strides, begins = (2 if unit == 1 else 1), stage == unit == 1
                x = separable_unit(x, widths, strides, name=f"stage{stage}_unit{unit}", start_with_relu=not begins)
            features[f"stage{stage}"] = x
        for index, width in enumerate(FINAL_WIDTHS, start=1):
            x = separable_bn(x, width, 3, name=f"final{index}")
        features["final"] = x
        return features


def separable_unit(x: Any, widths: tuple[int, ...], strides: int, *, name: str, start_with_relu: bool = True) -> Any:
    """Return the unit of x (batch, height, width, channels): (batch, out height, out width, widths[-1]).

    A ReLU before each separable convolution (perhaps not the first), a max pool where strides are 2, and a shortcut:
    the input itself, or its 1x1 convolution where strides or channels change.

    Source: arXiv 1610.02357, figure 5.
    """
    branch, projects = x, strides > 1 or x.shape[-1] != widths[-1]
    for index, width in enumerate(widths, start=1):
        if index > 1 or start_with_relu:
            branch = keras.layers.Activation("relu", name=f"{name}_relu{index}")(branch)
        residual = x if index == len(widths) and not projects else None
        part = f"{name}_separable{index}"
        branch = separable_bn(branch, width, 3, name=part, activation=None, residual=residual)
    if strides > 1:
        branch = MaxPooling2D(3, strides, ((1, 1), (1, 1)), name=f"{name}_pool")(branch)
    if not projects:
        return branch
    return conv_bn(x, widths[-1], 1, strides, name=f"{name}_shortcut", activation=None, residual=branch)


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(
        name,
        "Xception",
        Xception(),
        input_shape=(299, 299, 3),
        preprocessing=replace(HALF, interpolation="bicubic", crop=0.8975),
    )
    for name in ("xception", "legacy_xception")
)
"""One network under its own name, also pytorchcv's, and under timm's."""
