"""What the residual families share: the blocks, ResNeXt's three forms, and one network for all of them.

Layers are named `stage{s}_unit{u}_{part}_{conv, bn}`, parts `reduce`, `spatial` and `expand` for a bottleneck.
In forms a and b a part that is cut into paths is `stage{s}_unit{u}_path{p}_{part}_...`, p from 1: path p holds slice p
of the channels that the grouped form has under the name without `_path{p}`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class Block(ABC):
    """A residual block: relu(squeeze-excite(batch norm(branch)) + shortcut(x)).

    Attributes:
        shortcut: where the shapes differ, "projection" (convolution and batch norm) or "pad" (no parameters: average
            pool, then channels of zeros).
        shortcut_kernel: the projection's kernel where it strides; 1x1 where it does not.
        squeeze_ratio, squeeze_divisor: as for `SqueezeExcite`; None for none.
        relu_before_squeeze: whether a ReLU follows the branch's last batch norm.
        epsilon: of all batch norms.
    """

    shortcut: str = "projection"
    shortcut_kernel: int = 1
    squeeze_ratio: int | None = None
    squeeze_divisor: int = 1
    relu_before_squeeze: bool = False
    epsilon: float = 1e-5

    last: ClassVar[str]
    """The branch's last part: where nothing lies between, its batch norm adds and activates too."""

    def __call__(self, x: Any, planes: int, strides: int, *, name: str) -> Any:
        """Return the block of symbolic x, (batch, height, width, channels).

        Args:
            planes: 64 in the first stage, doubling from stage to stage.
            strides: of the branch, and so of the shortcut.
        """
        return self.join(x, self.branch(x, planes, strides, name), strides, name)

    @abstractmethod
    def branch(self, x: Any, planes: int, strides: int, name: str) -> Any:
        """Return the residual branch of x, before its last batch norm."""

    def join(self, x: Any, branch: Any, strides: int, name: str) -> Any:
        """Return what the block makes of its input and of its branch."""
        check_choice("shortcut", self.shortcut, SHORTCUTS)
        x = self._shortcut(x, branch.shape[-1], strides, name)
        norm: dict[str, Any] = {"name": f"{name}_{self.last}", "epsilon": self.epsilon}
        if self.squeeze_ratio is None:
            return bn_activation(branch, residual=x, **norm)
        branch = bn_activation(branch, activation="relu" if self.relu_before_squeeze else None, **norm)
        branch = SqueezeExcite(self.squeeze_ratio, self.squeeze_divisor, name=f"{name}_squeeze")(branch)
        x = keras.layers.Add(name=f"{name}_add")([branch, x])
        return keras.layers.Activation("relu", name=f"{name}_relu")(x)

    def _shortcut(self, x: Any, filters: int, strides: int, name: str) -> Any:
        if self.shortcut == "pad":
            if strides != 1:
                x = AveragePooling2D(strides, padding="same", name=f"{name}_shortcut_pool")(x)
            return x if x.shape[-1] == filters else PadChannels(filters, name=f"{name}_shortcut_pad")(x)
        if strides == 1 and x.shape[-1] == filters:
            return x
        kernel = self.shortcut_kernel if strides != 1 else 1
        return conv_bn(x, filters, kernel, strides, activation=None, epsilon=self.epsilon, name=f"{name}_shortcut")


@dataclass(frozen=True)
class BasicBlock(Block):
    """ResNet's block of two 3x3 convolutions, to `planes` channels.

    Source: Deep Residual Learning, arXiv 1512.03385, figure 5 left.

    Examples:
        >>> BasicBlock()(keras.Input((56, 56, 64)), 128, 2, name="stage2_unit1").shape
        (None, 28, 28, 128)
    """

    last = "spatial2"

    def branch(self, x: Any, planes: int, strides: int, name: str) -> Any:
        branch = conv_bn(x, planes, 3, strides, epsilon=self.epsilon, name=f"{name}_spatial1")
        return conv(branch, planes, 3, name=f"{name}_spatial2")


@dataclass(frozen=True)
class Bottleneck(Block):
    """The block of 1x1, 3x3 and 1x1 convolutions, to four times `planes`.

    Attributes:
        cardinality: how many groups the 3x3 has; width: how wide each is where `planes` is 64.
        reduction: how many times narrower than the 3x3 its input is (SENet: 2).
        form: "a", "b" or "c", ResNeXt's three equivalent forms: paths summed, paths concatenated, grouped convolution.
        stride_first: whether the first 1x1 strides, as in Caffe's ResNets, or the 3x3.
        Others: `Block`'s.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, figure 3 and section 3.3.

    Examples:
        >>> Bottleneck(cardinality=32, width=4)(keras.Input((56, 56, 64)), 64, 1, name="stage1_unit1").shape
        (None, 56, 56, 256)
    """

    cardinality: int = 1
    width: int = 64
    reduction: int = 1
    form: str = "c"
    stride_first: bool = False

    last = "expand"

    def branch(self, x: Any, planes: int, strides: int, name: str) -> Any:
        check_choice("form", self.form, FORMS)
        channels = self.cardinality * (planes * self.width // 64)
        paths = 1 if self.form == "c" else self.cardinality
        names = [name] if self.form == "c" else [f"{name}_path{path}" for path in range(1, paths + 1)]
        first, second = (strides, 1) if self.stride_first else (1, strides)
        branches = []
        for path in names:
            narrow = channels // self.reduction // paths
            branch = conv_bn(x, narrow, 1, first, epsilon=self.epsilon, name=f"{path}_reduce")
            shape: dict[str, Any] = {"strides": second, "groups": self.cardinality // paths, "epsilon": self.epsilon}
            branches.append(conv_bn(branch, channels // paths, 3, name=f"{path}_spatial", **shape))
        if self.form == "a":
            branches = [
                conv(branch, 4 * planes, 1, name=f"{path}_expand") for branch, path in zip(branches, names, strict=True)
            ]
            # Only after the paths' sum, one convolution's output, is a batch norm the same in every form.
            return keras.layers.Add(name=f"{name}_sum")(branches) if paths > 1 else branches[0]
        branch = keras.layers.Concatenate(name=f"{name}_concatenate")(branches) if paths > 1 else branches[0]
        return conv(branch, 4 * planes, 1, name=f"{name}_expand")


def residual_network(
    stem: Any, depths: Sequence[int], block: Block, *, pool: bool = True, ceiling_pool: bool = False
) -> dict[str, Any]:
    """Return a residual network's features: "stem" (before the pool), "stage1", "stage2", ...

    Args:
        stem: symbolic output of the first convolutions.
        depths: blocks in each stage.
        block: of 64 planes in the first stage, doubling from stage to stage; every stage but the first begins with a
            stride of 2.
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
