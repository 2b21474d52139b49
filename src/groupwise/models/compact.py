"""A compact network of grouped convolutions for images of 32x32, made to be trained on a CPU in minutes."""

from dataclasses import dataclass
from typing import Any

import keras

from groupwise.layers import BatchNormalization, ChannelShuffle, GroupedConv2D, MaxPooling2D
from groupwise.layers.initializers import HeNormal
from groupwise.models.blocks import MOMENTUM
from groupwise.models.registry import CIFAR, Backbone, Head, Variant

# Groups of 64 channels keep oneDNN's matrix kernels full; narrower groups and depthwise kernels wait for memory.
GROUP_WIDTH = 64


@dataclass(frozen=True)
class GroupNet(Backbone):
    """A network that widens as the image shrinks, with grouped residual convolutions.

    A CPU spends its time in this network on arithmetic, not on memory: large images meet few channels, the wide
    layers stand where the image is down to 7x7 and 3x3, and their 3x3 convolutions are grouped, with a channel shuffle
    before every second one, so that all groups meet.

    Features, of 32x32 images: "stem" (31x31, widths[0]), "stage1" (7x7, widths[1]), "stage2" (3x3, widths[2]), "stage3"
    (3x3, widths[3]).

    Attributes:
        widths: channels of the stem and the three stages.
        activation: of all layers.

    Examples:
        >>> GroupNet((24, 64, 256, 512)).features(keras.Input((32, 32, 3)))["stage3"].shape
        (None, 3, 3, 512)
    """

    widths: tuple[int, int, int, int]
    activation: str = "silu"

    def features(self, inputs: Any) -> dict[str, Any]:
        widths, activation = self.widths, self.activation
        x = stem = _unit(inputs, widths[0], 2, activation, name="stem", padding="valid")
        x = _unit(x, widths[1], 3, activation, name="stage1_unit1", pool=True)
        x = _unit(x, widths[1], 3, activation, name="stage1_unit2")
        x = stage1 = MaxPooling2D(2, name="stage1_pool")(x)
        x = _unit(x, widths[2], 3, activation, name="stage2_unit1")
        x = _residual(x, activation, name="stage2_unit2", shuffle=True)
        x = stage2 = MaxPooling2D(2, name="stage2_pool")(x)
        x = _unit(x, widths[3], 1, activation, name="stage3_unit1")
        x = _residual(x, activation, name="stage3_unit2", shuffle=False)
        x = _residual(x, activation, name="stage3_unit3", shuffle=True)
        return {"stem": stem, "stage1": stage1, "stage2": stage2, "stage3": x}


@dataclass(frozen=True)
class MaximumHead(Head):
    """Each channel's maximum, a dense layer without bias, times `scale`."""

    scale: float = 0.125

    def logits(self, features: Any, num_classes: int) -> Any:
        x = keras.layers.GlobalMaxPooling2D(name="pool")(features)
        initialiser = keras.initializers.RandomNormal(stddev=x.shape[-1] ** -0.5)
        dense = keras.layers.Dense(
            num_classes, use_bias=False, kernel_initializer=initialiser, dtype="float32", name="head"
        )
        # Smaller logits let the first steps of a high learning rate stay small.
        return keras.layers.Rescaling(self.scale, dtype="float32", name="scale")(dense(x))


def _unit(
    x: Any,
    filters: int,
    kernel_size: int,
    activation: str,
    *,
    name: str,
    pool: bool = False,
    gamma: float = 1.0,
    **options: Any,
) -> Any:
    """Return convolution, perhaps a 2x2 pool (first, so that the rest has a quarter to do), norm and activation.

    `options` are the convolution's.
    """
    convolution = GroupedConv2D(
        filters,
        kernel_size,
        use_bias=False,
        kernel_initializer=HeNormal(),
        name=f"{name}_conv",
        **{"padding": "same", **options},
    )
    x = convolution(x)
    if pool:
        x = MaxPooling2D(2, name=f"{name}_pool")(x)
    initialiser = keras.initializers.Constant(gamma)
    norm = BatchNormalization(
        momentum=MOMENTUM, epsilon=1e-5, gamma_initializer=initialiser, activation=activation, name=f"{name}_bn"
    )
    return norm(x)


def _residual(x: Any, activation: str, *, name: str, shuffle: bool) -> Any:
    """Return x + activation(norm(grouped 3x3 (x))), the channels perhaps shuffled first; the branch starts at half."""
    groups = max(1, x.shape[-1] // GROUP_WIDTH)
    branch = ChannelShuffle(groups, name=f"{name}_shuffle")(x) if shuffle else x
    branch = _unit(branch, x.shape[-1], 3, activation, name=name, groups=groups, gamma=0.5)
    return keras.layers.Add(name=f"{name}_add")([branch, x])


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "groupnet_cifar10",
        "compact",
        GroupNet((24, 64, 256, 512)),
        num_classes=10,
        input_shape=(32, 32, 3),
        reduction=10,
        head=MaximumHead(),
        preprocessing=CIFAR,
    ),
)
