"""What a table of variants holds: one line of data for each named network."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from groupwise.data.preprocessing import Preprocessing
from groupwise.errors import UserError

IMAGENET = Preprocessing()
HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CIFAR = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop=1.0)
GREY = Preprocessing(mean=(0.5,), std=(0.5,), crop=1.0)


def pooled_head(x: Any, num_classes: int, dropout: float = 0.0, use_bias: bool = True) -> Any:
    """Return the logits (batch, num_classes) of features (batch, height, width, channels), in float32."""
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(num_classes, use_bias=use_bias, dtype="float32", name="head")(x)


@dataclass(frozen=True)
class Variant:
    """A named network: which function builds it, with which arguments.

    Attributes:
        name: timm's, else torchvision's, else pytorchcv's; it means that peer's architecture.
        family: for lists and tables.
        build: (inputs, **arguments) -> the ordered features {"stem": ..., "stage1": ..., ...}; the last one is the
            backbone's output.
        arguments: of `build`; `create`'s caller may override any.
        num_classes, input_shape: what the network is published for; input_shape is (height, width, channels).
        reduction: how many times smaller the last features are than the image.
        head: (features, num_classes, **head_arguments) -> logits.
        preprocessing: of its images.
    """

    name: str
    family: str
    build: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 1000
    input_shape: tuple[int, int, int] = (224, 224, 3)
    reduction: int = 32
    head: Callable[..., Any] = pooled_head
    head_arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = IMAGENET

    def split_arguments(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments of `build` and of `head`: the table's, overridden by the given ones.

        Raises:
            UserError: for an argument that neither takes.
        """
        for_build, for_head = _parameters(self.build, 1), _parameters(self.head, 2)
        unknown = [name for name in given if not self.takes(name)]
        if unknown:
            known = ", ".join([*for_build, *for_head])
            raise UserError(f"{unknown[0]}={given[unknown[0]]!r}: {self.name} has no such argument; it takes {known}")
        build = {**self.arguments, **{name: given[name] for name in for_build if name in given}}
        head = {**self.head_arguments, **{name: given[name] for name in for_head if name in given}}
        return build, head

    def takes(self, argument: str) -> bool:
        """Return whether `build` or `head` has this argument."""
        return argument in (*_parameters(self.build, 1), *_parameters(self.head, 2))


def _parameters(function: Callable[..., Any], skip: int) -> list[str]:
    return list(inspect.signature(function).parameters)[skip:]
