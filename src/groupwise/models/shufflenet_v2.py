"""ShuffleNet v2: half of the channels pass by, the other half is convolved, and a shuffle mixes the two.

Source: ShuffleNet V2, arXiv 1807.11164: the unit is figure 3, the table of widths is table 5.
"""

from dataclasses import dataclass
from typing import Any

import keras

from groupwise.layers import ChannelShuffle, MaxPooling2D
from groupwise.models.blocks import conv_bn, depthwise_bn
from groupwise.models.registry import Backbone, Variant
from groupwise.models.residual import CEILING, SYMMETRIC, check_choice

DEPTHS = (4, 8, 4)


@dataclass(frozen=True)
class ShuffleNetV2(Backbone):
    """ShuffleNet v2.

    Features: "stem" (a quarter of the image), "stage1" to "stage3", "final" (a 32nd).

    Attributes:
        widths: channels of the three stages, even numbers.
        final_width: channels of the last 1x1 convolution.
        pool_padding: of the stem's 3x3 pool.
        shuffle: "paper", or "inverse" as, in effect, in megvii's own.
        keep_width: whether the convolved shortcut of a unit with strides has as many channels as its input, as in
            megvii's own and pytorchcv's second form, or half of the unit's.
    """

    widths: tuple[int, int, int] = (116, 232, 464)
    final_width: int = 1024
    pool_padding: Any = SYMMETRIC
    shuffle: str = "paper"
    keep_width: bool = False

    def features(self, inputs: Any) -> dict[str, Any]:
        check_choice("shuffle", self.shuffle, ("paper", "inverse"))
        x = conv_bn(inputs, 24, 3, 2, name="stem")
        x = MaxPooling2D(3, 2, self.pool_padding, name="stem_pool")(x)
        features = {"stem": x}
        for stage, (width, depth) in enumerate(zip(self.widths, DEPTHS, strict=True), start=1):
            for unit in range(1, depth + 1):
                x = self.unit(x, width, 2 if unit == 1 else 1, name=f"stage{stage}_unit{unit}")
            features[f"stage{stage}"] = x
        features["final"] = conv_bn(x, self.final_width, 1, name="final")
        return features

    def unit(self, x: Any, filters: int, strides: int, *, name: str) -> Any:
        """Return the unit of x (batch, height, width, channels): (batch, out height, out width, filters).

        With strides 1 the first half of the channels passes unchanged, and channels must equal filters; with strides 2
        each half of the filters is a convolution of all channels.

        Source: arXiv 1807.11164, figure 3c and 3d.
        """
        half = filters // 2
        branch_filters = half
        if strides == 1:
            passed, branch = x[..., :half], x[..., half:]
        else:
            passed = depthwise_bn(x, 3, strides, name=f"{name}_shortcut_depthwise", activation=None)
            width = x.shape[-1] if self.keep_width else half
            passed = conv_bn(passed, width, 1, name=f"{name}_shortcut_expand")
            branch, branch_filters = x, filters - width
        branch = conv_bn(branch, half, 1, name=f"{name}_compress")
        branch = depthwise_bn(branch, 3, strides, name=f"{name}_depthwise", activation=None)
        branch = conv_bn(branch, branch_filters, 1, name=f"{name}_expand")
        x = keras.layers.Concatenate(name=f"{name}_join")([passed, branch])
        return ChannelShuffle(2, inverse=self.shuffle == "inverse", name=f"{name}_shuffle")(x)


def _variant(name: str, width: int, final_width: int, pool_padding: Any, keep_width: bool = False) -> Variant:
    widths = (width, 2 * width, 4 * width)
    backbone = ShuffleNetV2(widths, final_width, pool_padding, keep_width=keep_width)
    return Variant(name, "ShuffleNet v2", backbone)


VARIANTS: tuple[Variant, ...] = (
    _variant("shufflenet_v2_x0_5", 48, 1024, SYMMETRIC),
    _variant("shufflenet_v2_x1_0", 116, 1024, SYMMETRIC),
    _variant("shufflenet_v2_x1_5", 176, 1024, SYMMETRIC),
    _variant("shufflenet_v2_x2_0", 244, 2048, SYMMETRIC),
    _variant("shufflenetv2_wd2", 48, 1024, CEILING),
    _variant("shufflenetv2_w1", 116, 1024, CEILING),
    _variant("shufflenetv2_w3d2", 176, 1553, CEILING),
    _variant("shufflenetv2_w2", 244, 2153, CEILING),
    _variant("shufflenetv2b_wd2", 48, 1024, SYMMETRIC, keep_width=True),
    _variant("shufflenetv2b_w1", 116, 1024, SYMMETRIC, keep_width=True),
    _variant("shufflenetv2b_w3d2", 176, 1553, SYMMETRIC, keep_width=True),
    _variant("shufflenetv2b_w2", 244, 2153, SYMMETRIC, keep_width=True),
)
"""The first four are torchvision's, the others pytorchcv's."""
