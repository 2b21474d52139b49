"""ShuffleNet v1: grouped 1x1 convolutions, with a channel shuffle that lets the groups talk.

Source: ShuffleNet, arXiv 1707.01083: the unit is figure 2, the table of widths is table 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from groupwise.errors import UserError
from groupwise.layers import AveragePooling2D, ChannelShuffle, MaxPooling2D, SqueezeExcite
from groupwise.models.blocks import conv_bn, depthwise_bn
from groupwise.models.registry import Backbone, PooledHead, Variant

FAMILY = "ShuffleNet v1"
ONE = ((1, 1), (1, 1))
DEPTHS = (4, 8, 4)
STEM_WIDTH = 24
FIRST_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Channels of the first stage by the number of groups, chosen for equal cost; each later stage doubles them."""

SCALES = {"wd4": 0.25, "wd2": 0.5, "w3d4": 0.75, "w1": 1.0, "w3d2": 1.5, "w2": 2.0}
"""pytorchcv's names for the scales: d stands for divided by."""


def nearest_multiple(value: float, divisor: int) -> int:
    """Return the positive multiple of `divisor` nearest to `value`, halves up.

    Examples:
        >>> nearest_multiple(136, 16), nearest_multiple(1, 8)
        (144, 8)
    """
    return max(divisor, int(value / divisor + 0.5) * divisor)


@dataclass(frozen=True)
class ShuffleNet(Backbone):
    """ShuffleNet v1.

    Features: "stem" (a quarter of the image), "stage1", "stage2", "stage3" (a 32nd).

    Attributes:
        groups: 1, 2, 3, 4 or 8.
        scale: of all widths; a stage's is rounded to a multiple of 4 x groups, the stem's to one of groups.
        stem_width: instead of 24 x scale.
        squeeze_excite: whether each unit weighs its channels, with ratio 16, before the addition (the paper's SE
            variant, section 4.3).
        shuffle: "paper" (groups, n) to (n, groups); "inverse", as megvii and tensorpack do; False for none (the
            paper's ablation, section 4.1.2).
        shuffle_after_depthwise: megvii's place for the shuffle; the paper's is before.
        pool_first: whether units of stride 2 join [pool, branch], as megvii does, or [branch, pool], as pytorchcv.
        padding: None for PyTorch's, one pixel all around; "same" for TensorFlow's, which average pools do not count.
    """

    groups: int = 3
    scale: float = 1.0
    stem_width: int | None = None
    squeeze_excite: bool = False
    shuffle: str | bool = "paper"
    shuffle_after_depthwise: bool = False
    pool_first: bool = False
    padding: str | None = None

    def features(self, inputs: Any) -> dict[str, Any]:
        groups, shuffle = self.groups, self.shuffle
        if groups not in FIRST_WIDTHS:
            known = ", ".join(map(str, FIRST_WIDTHS))
            raise UserError(f"groups={groups!r}: ShuffleNet has {known}; choose one of them")
        if shuffle not in ("paper", "inverse", False):
            raise UserError(f'shuffle={shuffle!r}: must be "paper", "inverse" or False')
        width = self.stem_width or nearest_multiple(STEM_WIDTH * self.scale, groups)
        x = conv_bn(inputs, width, 3, 2, name="stem", padding=self.padding)
        x = MaxPooling2D(3, 2, self.padding or ONE, name="stem_pool")(x)
        features = {"stem": x}
        for stage, depth in enumerate(DEPTHS, start=1):
            width = nearest_multiple(FIRST_WIDTHS[groups] * 2 ** (stage - 1) * self.scale, 4 * groups)
            for unit in range(1, depth + 1):
                # The stem has too few channels to be worth cutting into groups.
                first_groups = 1 if stage == unit == 1 else groups
                x = self.unit(x, width, 2 if unit == 1 else 1, first_groups, name=f"stage{stage}_unit{unit}")
            features[f"stage{stage}"] = x
        return features

    def unit(self, x: Any, filters: int, strides: int, first_groups: int, *, name: str) -> Any:
        """Return ShuffleNet's unit of x (batch, height, width, channels): (batch, out height, out width, filters).

        1x1 of `first_groups` to a quarter of the filters, shuffle, depthwise 3x3, grouped 1x1. With strides 1 the input
        is added; with strides 2 its average pool is appended, and the branch has only the remaining filters.

        Source: arXiv 1707.01083, figure 2b and 2c.
        """
        branch_filters = filters - x.shape[-1] if strides == 2 else filters
        branch = conv_bn(x, filters // 4, 1, name=f"{name}_compress", groups=first_groups)
        if not self.shuffle_after_depthwise:
            branch = self._shuffled(branch, name)
        branch = depthwise_bn(branch, 3, strides, name=f"{name}_depthwise", activation=None, padding=self.padding)
        if self.shuffle_after_depthwise:
            branch = self._shuffled(branch, name)
        expand = partial(conv_bn, branch, branch_filters, 1, name=f"{name}_expand", groups=self.groups)
        if strides == 1 and not self.squeeze_excite:
            return expand(residual=x)
        branch = expand(activation=None)
        if self.squeeze_excite:
            branch = SqueezeExcite(name=f"{name}_excite")(branch)
        if strides == 2:
            pool = AveragePooling2D(3, 2, self.padding or ONE, name=f"{name}_pool")(x)
            x = keras.layers.Concatenate(name=f"{name}_join")([pool, branch] if self.pool_first else [branch, pool])
        else:
            x = keras.layers.Add(name=f"{name}_add")([branch, x])
        return keras.layers.Activation("relu", name=f"{name}_relu")(x)

    def _shuffled(self, x: Any, name: str) -> Any:
        if not self.shuffle:
            return x
        return ChannelShuffle(self.groups, inverse=self.shuffle == "inverse", name=f"{name}_shuffle")(x)


def _megvii(scale: float, groups: int, stem_width: int) -> Variant:
    """Return megvii's network of this scale, the authors' own: their shuffle, their order, no bias in the head."""
    backbone = ShuffleNet(groups, scale, stem_width, shuffle="inverse", shuffle_after_depthwise=True, pool_first=True)
    name = f"shufflenet_v1_x{scale:.1f}_g{groups}".replace(".", "_")
    return Variant(name, FAMILY, backbone, head=PooledHead(use_bias=False))


VARIANTS: tuple[Variant, ...] = (
    *(
        Variant(f"shufflenet_g{groups}_{name}", FAMILY, ShuffleNet(groups, scale))
        for groups in FIRST_WIDTHS
        for name, scale in SCALES.items()
    ),
    _megvii(0.5, groups=3, stem_width=12),
    _megvii(1.0, groups=3, stem_width=24),
    _megvii(1.5, groups=3, stem_width=24),
    _megvii(2.0, groups=3, stem_width=48),
    _megvii(0.5, groups=8, stem_width=16),
    _megvii(1.0, groups=8, stem_width=24),
    _megvii(1.5, groups=8, stem_width=24),
    _megvii(2.0, groups=8, stem_width=48),
)
"""`shufflenet_g3_w1` and its like are pytorchcv's; `shufflenet_v1_x1_0_g3` and its like are megvii's."""
