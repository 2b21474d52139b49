"""EfficientNet-Lite: inverted residuals for small devices; ReLU6, no squeeze-and-excitation, stem and head not scaled.

Source: EfficientNet, arXiv 1905.11946, table 1 and section 3.3; the Lite variants are the authors' in
github.com/tensorflow/tpu (models/official/efficientnet/lite).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras

from groupwise.models.blocks import conv_bn, depthwise_bn
from groupwise.models.registry import HALF, IMAGENET, Backbone, PooledHead, Variant

STEM_WIDTH, FINAL_WIDTH = 32, 1280


class Stage(NamedTuple):
    """One row of the paper's table 1."""

    depth: int
    kernel_size: int
    strides: int
    expansion: int
    filters: int


STAGES = (
    Stage(depth=1, kernel_size=3, strides=1, expansion=1, filters=16),
    Stage(depth=2, kernel_size=3, strides=2, expansion=6, filters=24),
    Stage(depth=2, kernel_size=5, strides=2, expansion=6, filters=40),
    Stage(depth=3, kernel_size=3, strides=2, expansion=6, filters=80),
    Stage(depth=3, kernel_size=5, strides=1, expansion=6, filters=112),
    Stage(depth=4, kernel_size=5, strides=2, expansion=6, filters=192),
    Stage(depth=1, kernel_size=3, strides=1, expansion=6, filters=320),
)


def round_filters(filters: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` nearest to `filters`, the next one where that loses more than a tenth.

    Examples:
        >>> round_filters(16 * 1.1), round_filters(11.9)
        (16, 16)
    """
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * filters else rounded


def scaled_stages(width: float, depth: float) -> list[Stage]:
    """Return the stages with scaled filters and depths; the first and the last stage keep their depth."""
    inner = range(1, len(STAGES) - 1)
    return [
        stage._replace(
            filters=round_filters(stage.filters * width),
            depth=math.ceil(stage.depth * depth) if index in inner else stage.depth,
        )
        for index, stage in enumerate(STAGES)
    ]


@dataclass(frozen=True)
class EfficientNetLite(Backbone):
    """EfficientNet-Lite.

    Features: "stem" (half of the image), "stage1" to "stage7", "final" (a 32nd).

    Attributes:
        width, depth: what filters and depths are scaled by.
        padding: of all convolutions: None (PyTorch's, symmetric) or "same" (TensorFlow's).
        epsilon: of all batch norms.
        drop_connect: how likely the last unit's branch is dropped in training; a unit's share grows with its place.
    """

    width: float = 1.0
    depth: float = 1.0
    padding: str | None = None
    epsilon: float = 1e-5
    drop_connect: float = 0.2

    def features(self, inputs: Any) -> dict[str, Any]:
        stages = scaled_stages(self.width, self.depth)
        options: dict[str, Any] = {"activation": "relu6", "padding": self.padding, "epsilon": self.epsilon}
        x = conv_bn(inputs, STEM_WIDTH, 3, 2, name="stem", **options)
        features = {"stem": x}
        total, place = sum(stage.depth for stage in stages), 0
        for index, stage in enumerate(stages, start=1):
            for unit in range(1, stage.depth + 1):
                here = stage if unit == 1 else stage._replace(strides=1)
                drop = self.drop_connect * place / total
                x = inverted_residual(x, here, name=f"stage{index}_unit{unit}", drop_connect=drop, **options)
                place += 1
            features[f"stage{index}"] = x
        features["final"] = conv_bn(x, FINAL_WIDTH, 1, name="final", **options)
        return features


def inverted_residual(x: Any, stage: Stage, *, name: str, drop_connect: float = 0.0, **options: Any) -> Any:
    """Return the unit of x (batch, height, width, channels): (batch, out height, out width, stage.filters).

    1x1 that expands, depthwise, 1x1 without activation; the input is added where its shape is the output's. In
    training a sample's branch is dropped with probability `drop_connect`. The options are `conv_bn`'s.

    Source: MobileNetV2, arXiv 1801.04381, section 3.4; Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """
    channels, branch = x.shape[-1], x
    if stage.expansion > 1:
        branch = conv_bn(branch, channels * stage.expansion, 1, name=f"{name}_expand", **options)
    branch = depthwise_bn(branch, stage.kernel_size, stage.strides, name=f"{name}_depthwise", **options)
    adds = stage.strides == 1 and channels == stage.filters
    residual = x if adds and not drop_connect else None
    last = {**options, "activation": None, "residual": residual}
    branch = conv_bn(branch, stage.filters, 1, name=f"{name}_project", **last)
    if not adds or residual is not None:
        return branch
    branch = keras.layers.Dropout(drop_connect, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(branch)
    return keras.layers.Add(name=f"{name}_add")([branch, x])


class Lite(NamedTuple):
    """One published network: its scales, dropout, image size and centre crop."""

    width: float
    depth: float
    dropout: float
    size: int
    crop: float


LITE = (
    Lite(width=1.0, depth=1.0, dropout=0.2, size=224, crop=0.875),
    Lite(width=1.0, depth=1.1, dropout=0.2, size=240, crop=0.882),
    Lite(width=1.1, depth=1.2, dropout=0.3, size=260, crop=0.890),
    Lite(width=1.2, depth=1.4, dropout=0.3, size=300, crop=0.904),
    Lite(width=1.4, depth=1.8, dropout=0.3, size=380, crop=0.922),
)
"""Sizes and crops are timm's; TensorFlow's own recipe has 280 and 300 for the last two."""


def _variants(index: int, lite: Lite) -> tuple[Variant, Variant]:
    """Return timm's two of a kind: with PyTorch's habits, and with those of the published TensorFlow weights."""
    backbone = EfficientNetLite(lite.width, lite.depth)
    pytorch = Variant(
        f"efficientnet_lite{index}",
        "EfficientNet-Lite",
        backbone,
        input_shape=(lite.size, lite.size, 3),
        head=PooledHead(lite.dropout),
        preprocessing=replace(IMAGENET, interpolation="bicubic", crop=lite.crop),
    )
    tensorflow = replace(
        pytorch,
        name=f"tf_efficientnet_lite{index}",
        backbone=replace(backbone, padding="same", epsilon=1e-3),
        preprocessing=replace(HALF, interpolation="bicubic" if index < 3 else "bilinear", crop=lite.crop),
    )
    return pytorch, tensorflow


VARIANTS: tuple[Variant, ...] = tuple(variant for index, lite in enumerate(LITE) for variant in _variants(index, lite))
"""`efficientnet_lite0` to `4` and `tf_efficientnet_lite0` to `4`, timm's names."""
