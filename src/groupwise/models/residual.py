"""What the residual families share: the blocks, ResNeXt's three forms, and one network for all of them.

Layers are named `stage{s}_unit{u}_{part}_{conv, bn}`, parts `reduce`, `spatial` and `expand` for a bottleneck.
In forms a and b a part that is cut into paths is `stage{s}_unit{u}_path{p}_{part}_...`, p from 1: path p holds slice p
of the channels that the grouped form has under the name without `_path{p}`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from groupwise.errors import UserError
from groupwise.layers import AveragePooling2D, MaxPooling2D, SqueezeExcite
from groupwise.models.blocks import bn_activation, conv, conv_bn

SYMMETRIC = ((1, 1), (1, 1))
CEILING = ((0, 1), (0, 1))
"""An unpadded pool of 3 by 2 whose size is rounded up: the last window may reach one pixel over the edge."""

FORMS = ("a", "b", "c")
SHORTCUTS = ("projection", "pad")


@keras.saving.register_keras_serializable("groupwise")
class PadChannels(keras.layers.Layer):
    """Append channels of zeros, up to `filters`: the widening half of the shortcut without parameters.

    Shapes: (batch, height, width, channels) to (batch, height, width, filters).

    Examples:
        >>> PadChannels(256).compute_output_shape((1, 32, 32, 64))
        (1, 32, 32, 256)
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters

    def call(self, inputs: Any) -> Any:
        return ops.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, self.filters - inputs.shape[-1])))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


def check_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{argument}={value!r}: must be one of {', '.join(map(repr, choices))}")


def residual(
    x: Any,
    branch: Any,
    strides: int,
    *,
    name: str,
    last: str,
    shortcut: str = "projection",
    shortcut_kernel: int = 1,
    squeeze_ratio: int | None = None,
    squeeze_divisor: int = 1,
    relu_before_squeeze: bool = False,
    epsilon: float = 1e-5,
) -> Any:
    """Return relu(squeeze-excite(batch norm(branch)) + shortcut(x)), the end of every residual block.

    Args:
        x: the block's input; branch: its residual branch, before the last batch norm.
        strides: the branch's.
        last: the name of that batch norm, without `_bn`; where nothing lies between, it adds and activates too.
        shortcut: where the shapes differ, "projection" (convolution and batch norm) or "pad" (no parameters: average
            pool, then channels of zeros).
        shortcut_kernel: the projection's kernel where it strides; 1x1 where it does not.
        squeeze_ratio, squeeze_divisor: as for `SqueezeExcite`; None for none.
        relu_before_squeeze: whether a ReLU follows the branch's last batch norm.
        epsilon: of all batch norms.
    """
    check_choice("shortcut", shortcut, SHORTCUTS)
    filters = branch.shape[-1]
    if shortcut == "pad":
        if strides != 1:
            x = AveragePooling2D(strides, padding="same", name=f"{name}_shortcut_pool")(x)
        if x.shape[-1] != filters:
            x = PadChannels(filters, name=f"{name}_shortcut_pad")(x)
    elif strides != 1 or x.shape[-1] != filters:
        kernel = shortcut_kernel if strides != 1 else 1
        x = conv_bn(x, filters, kernel, strides, activation=None, epsilon=epsilon, name=f"{name}_shortcut")
    if squeeze_ratio is None:
        return bn_activation(branch, name=last, epsilon=epsilon, residual=x)
    activation = "relu" if relu_before_squeeze else None
    branch = bn_activation(branch, activation=activation, name=last, epsilon=epsilon)
    branch = SqueezeExcite(squeeze_ratio, squeeze_divisor, name=f"{name}_squeeze")(branch)
    x = keras.layers.Add(name=f"{name}_add")([branch, x])
    return keras.layers.Activation("relu", name=f"{name}_relu")(x)


def basic_block(x: Any, planes: int, strides: int, *, name: str, epsilon: float = 1e-5, **options: Any) -> Any:
    """Return ResNet's block of two 3x3 convolutions; epsilon and `options` are `residual`'s.

    Shapes: (batch, height, width, channels) to (batch, height / strides, width / strides, planes).

    Source: Deep Residual Learning, arXiv 1512.03385, figure 5 left.

    Examples:
        >>> basic_block(keras.Input((56, 56, 64)), 128, 2, name="stage2_unit1").shape
        (None, 28, 28, 128)
    """
    branch = conv_bn(x, planes, 3, strides, epsilon=epsilon, name=f"{name}_spatial1")
    branch = conv(branch, planes, 3, name=f"{name}_spatial2")
    return residual(x, branch, strides, name=name, last=f"{name}_spatial2", epsilon=epsilon, **options)


def bottleneck(
    x: Any,
    planes: int,
    strides: int,
    *,
    name: str,
    cardinality: int = 1,
    width: int = 64,
    reduction: int = 1,
    form: str = "c",
    stride_first: bool = False,
    epsilon: float = 1e-5,
    **options: Any,
) -> Any:
    """Return the block of 1x1, 3x3 and 1x1 convolutions, to four times `planes`.

    Args:
        x: symbolic (batch, height, width, channels).
        planes: 64 in the first stage, doubling from stage to stage.
        cardinality: how many groups the 3x3 has; width: how wide each is where `planes` is 64.
        reduction: how many times narrower than the 3x3 its input is (SENet: 2).
        form: "a", "b" or "c", ResNeXt's three equivalent forms: paths summed, paths concatenated, grouped convolution.
        stride_first: whether the first 1x1 strides, as in Caffe's ResNets, or the 3x3.
        epsilon, options: `residual`'s.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, figure 3 and section 3.3.

    Examples:
        >>> bottleneck(keras.Input((56, 56, 64)), 64, 1, cardinality=32, width=4, name="stage1_unit1").shape
        (None, 56, 56, 256)
    """
    check_choice("form", form, FORMS)
    channels = cardinality * (planes * width // 64)
    paths = 1 if form == "c" else cardinality
    names = [name] if form == "c" else [f"{name}_path{path}" for path in range(1, paths + 1)]
    first, second = (strides, 1) if stride_first else (1, strides)
    branches = []
    for path in names:
        branch = conv_bn(x, channels // reduction // paths, 1, first, epsilon=epsilon, name=f"{path}_reduce")
        shape: dict[str, Any] = {"strides": second, "groups": cardinality // paths, "epsilon": epsilon}
        branches.append(conv_bn(branch, channels // paths, 3, name=f"{path}_spatial", **shape))
    if form == "a":
        branches = [
            conv(branch, 4 * planes, 1, name=f"{path}_expand") for branch, path in zip(branches, names, strict=True)
        ]
        branch = keras.layers.Add(name=f"{name}_sum")(branches) if paths > 1 else branches[0]
    else:
        branch = keras.layers.Concatenate(name=f"{name}_concatenate")(branches) if paths > 1 else branches[0]
        branch = conv(branch, 4 * planes, 1, name=f"{name}_expand")
    # The paths' sum is one convolution's output: only after it is a batch norm the same in every form.
    return residual(x, branch, strides, name=name, last=f"{name}_expand", epsilon=epsilon, **options)


def residual_network(
    stem: Any, depths: Sequence[int], block: Callable[..., Any], *, pool: bool = True, ceiling_pool: bool = False
) -> dict[str, Any]:
    """Return a residual network's features: "stem" (before the pool), "stage1", "stage2", ...

    Args:
        stem: symbolic output of the first convolutions.
        depths: blocks in each stage.
        block: (x, planes, strides, name=) to the next x; planes are 64, doubling from stage to stage, and every stage
            but the first begins with a stride of 2.
        pool: whether a 3x3 max-pool halves the stem's output.
        ceiling_pool: whether that pool has no padding and rounds its size up, as in Caffe, or one pixel all around.
    """
    features = {"stem": stem}
    padding = CEILING if ceiling_pool else SYMMETRIC
    x = MaxPooling2D(3, 2, padding, name="stem_pool")(stem) if pool else stem
    for stage, depth in enumerate(depths):
        for index in range(depth):
            strides = 2 if stage > 0 and index == 0 else 1
            x = block(x, 64 * 2**stage, strides, name=f"stage{stage + 1}_unit{index + 1}")
        features[f"stage{stage + 1}"] = x
    return features
