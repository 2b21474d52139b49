"""Aligned Xception: convolutions of strides 2 in place of the pools, a batch norm after every step, and more depth.

Layers are named `stage{s}_unit{u}_separable{i}_{depthwise, pointwise}_{conv, bn}`. With preactivation they are
`stage{s}_unit{u}_separable{i}_{conv, bn}`, where a batch norm belongs to what lies before it, and the unit begins with
`stage{s}_unit{u}_bn`.

Source: Encoder-Decoder with Atrous Separable Convolution, arXiv 1802.02611, figure 4; the deeper and the preactivated
ones are timm's.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras

from groupwise.models.blocks import bn_activation, conv, conv_bn, depthwise_bn, separable, separable_bn
from groupwise.models.registry import HALF, Backbone, Variant

Widths = tuple[int, int, int]

SHORT_ENTRY = ((128,), (256,), (728,))
LONG_ENTRY = ((128, 256), (256, 728), (728,))
"""Channels of the units of the first three stages; a stage begins with a unit of strides 2."""

MIDDLE_WIDTH = 728
EXIT_WIDTHS: Widths = (728, 1024, 1024)
FINAL_WIDTHS: Widths = (1536, 1536, 2048)


@dataclass(frozen=True)
class AlignedXception(Backbone):
    """Aligned Xception.

    Features: "stem" (half of the image), "stage1" to "stage4" and "final" (both a 32nd).

    Attributes:
        entry: channels of the units of the first three stages.
        middle: how many units of 728 channels the third stage goes on with.
        preactivation: whether batch norm and ReLU stand before the convolutions, and not after them.
        epsilon: of all batch norms.
    """

    entry: tuple[tuple[int, ...], ...] = SHORT_ENTRY
    middle: int = 8
    preactivation: bool = False
    epsilon: float = 1e-3

    def features(self, inputs: Any) -> dict[str, Any]:
        epsilon = self.epsilon
        unit = partial(preactivation_unit if self.preactivation else aligned_unit, epsilon=epsilon)
        x = conv_bn(inputs, 32, 3, 2, name="stem1", epsilon=epsilon)
        x = conv(x, 64, 3, name="stem2") if self.preactivation else conv_bn(x, 64, 3, name="stem2", epsilon=epsilon)
        features = {"stem": x}
        stages: list[list[Widths]] = [[(width, width, width) for width in widths] for widths in self.entry]
        stages[-1] += [(MIDDLE_WIDTH, MIDDLE_WIDTH, MIDDLE_WIDTH)] * self.middle
        stages.append([EXIT_WIDTHS])
        for stage, units in enumerate(stages, start=1):
            for index, widths in enumerate(units, start=1):
                x = unit(x, widths, 2 if index == 1 else 1, name=f"stage{stage}_unit{index}")
            features[f"stage{stage}"] = x
        if self.preactivation:
            x = preactivation_unit(x, FINAL_WIDTHS, name="final", epsilon=epsilon, shortcut=False)
            x = keras.layers.Activation("relu", name="final_relu")(x)
        else:
            for index, width in enumerate(FINAL_WIDTHS, start=1):
                x = depthwise_bn(x, 3, name=f"final_separable{index}_depthwise", epsilon=epsilon)
                x = conv_bn(x, width, 1, name=f"final_separable{index}_pointwise", epsilon=epsilon)
        features["final"] = x
        return features


def aligned_unit(x: Any, widths: Widths, strides: int = 1, *, name: str, epsilon: float = 1e-3) -> Any:
    """Return the unit of x (batch, height, width, channels): (batch, out height, out width, widths[-1]).

    Three times ReLU, depthwise 3x3, batch norm, 1x1, batch norm, the last depthwise one with the strides; then the
    shortcut is added: the input itself, or its 1x1 convolution and batch norm where strides or channels change.

    Source: arXiv 1802.02611, figure 4.
    """
    projects = strides > 1 or x.shape[-1] != widths[-1]
    branch = keras.layers.Activation("relu", name=f"{name}_relu")(x)
    for index, width in enumerate(widths, start=1):
        part, last = f"{name}_separable{index}", index == len(widths)
        branch = depthwise_bn(
            branch, 3, strides if last else 1, name=f"{part}_depthwise", activation=None, epsilon=epsilon
        )
        options: dict[str, Any] = {"activation": None if last else "relu", "epsilon": epsilon}
        residual = x if last and not projects else None
        branch = conv_bn(branch, width, 1, name=f"{part}_pointwise", residual=residual, **options)
    if not projects:
        return branch
    name = f"{name}_shortcut"
    return conv_bn(x, widths[-1], 1, strides, name=name, activation=None, epsilon=epsilon, residual=branch)


def preactivation_unit(
    x: Any, widths: Widths, strides: int = 1, *, name: str, epsilon: float = 1e-3, shortcut: bool = True
) -> Any:
    """Return the unit with every batch norm and ReLU before its separable convolution.

    The shortcut, if there is one, begins after the first batch norm and ReLU, and is a 1x1 convolution alone where
    strides or channels change. Arguments and shapes are `aligned_unit`'s.
    """
    x = bn_activation(x, name=name, epsilon=epsilon)
    branch = x
    for index, width in enumerate(widths[:-1], start=1):
        branch = separable_bn(branch, width, 3, name=f"{name}_separable{index}", epsilon=epsilon)
    branch = separable(branch, widths[-1], 3, strides, name=f"{name}_separable{len(widths)}")
    if not shortcut:
        return branch
    if strides > 1 or x.shape[-1] != widths[-1]:
        x = conv(x, widths[-1], 1, strides, name=f"{name}_shortcut")
    return keras.layers.Add(name=f"{name}_add")([branch, x])


def _variant(name: str, crop: float, **settings: Any) -> Variant:
    preprocessing, backbone = replace(HALF, interpolation="bicubic", crop=crop), AlignedXception(**settings)
    return Variant(name, "Aligned Xception", backbone, input_shape=(299, 299, 3), preprocessing=preprocessing)


VARIANTS: tuple[Variant, ...] = (
    _variant("xception41", crop=0.903),
    _variant("xception65", crop=0.94, middle=16),
    _variant("xception71", crop=0.903, middle=16, entry=LONG_ENTRY),
    _variant("xception41p", crop=0.94, preactivation=True, epsilon=1e-5),
    _variant("xception65p", crop=0.94, middle=16, preactivation=True),
)
"""timm's. The crop of xception65 is that of timm's default weights, `ra3_in1k`; `tf_in1k` has 0.903."""
