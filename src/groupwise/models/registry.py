"""What a table of variants holds: one row of data for each named network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import keras

from groupwise.data.preprocessing import Preprocessing
from groupwise.errors import UserError, argument

IMAGENET = Preprocessing()
HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CIFAR = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop=1.0)
GREY = Preprocessing(mean=(0.5,), std=(0.5,), crop=1.0)


@dataclass(frozen=True)
class Backbone(ABC):
    """A network below its head; the fields of a family's backbone are arguments of `create`."""

    @abstractmethod
    def features(self, inputs: Any) -> dict[str, Any]:
        """Return the features {"stem": ..., "stage1": ..., ...} in order, the last one the backbone's output.

        Args:
            inputs: symbolic (batch, height, width, channels).
        """


@dataclass(frozen=True)
class Head(ABC):
    """What follows a backbone; its fields are arguments of `create` too."""

    @abstractmethod
    def logits(self, features: Any, num_classes: int) -> Any:
        """Return the logits (batch, num_classes) of features (batch, height, width, channels), in float32."""


@dataclass(frozen=True)
class PooledHead(Head):
    """The channels' averages, perhaps dropout, and a dense layer.

    Attributes:
        dropout: how likely an average is dropped in training.
        use_bias: whether the dense layer has one.
    """

    dropout: float = 0.0
    use_bias: bool = True

    def logits(self, features: Any, num_classes: int) -> Any:
        x = keras.layers.GlobalAveragePooling2D(name="pool")(features)
        if self.dropout:
            x = keras.layers.Dropout(self.dropout, name="dropout")(x)
        return keras.layers.Dense(num_classes, use_bias=self.use_bias, dtype="float32", name="head")(x)


@dataclass(frozen=True)
class Variant:
    """A named network.

    Attributes:
        name: timm's, else torchvision's, else pytorchcv's; it means that peer's architecture.
        family: for lists and tables.
        backbone: the family's, with this network's settings; `create`'s caller may override any, and the head's.
        num_classes, input_shape: what the network is published for; input_shape is (height, width, channels).
        reduction: how many times smaller the last features are than the image.
        head: from features to logits.
        preprocessing: of its images.
    """

    name: str
    family: str
    backbone: Backbone
    num_classes: int = 1000
    input_shape: tuple[int, int, int] = (224, 224, 3)
    reduction: int = 32
    head: Head = PooledHead()
    preprocessing: Preprocessing = IMAGENET

    @property
    def arguments(self) -> dict[str, Any]:
        """The backbone's settings by name."""
        return dict(vars(self.backbone))

    def with_arguments(self, given: Mapping[str, Any]) -> "Variant":
        """Return this variant with the given settings of backbone and head in place of the table's.

        Raises:
            UserError: for an argument that neither takes.
        """
        unknown = [name for name in given if not self.takes(name)]
        if unknown:
            known = ", ".join([*_names(self.backbone), *_names(self.head)])
            named = f"{argument('argument')} {unknown[0]}={given[unknown[0]]!r}"
            raise UserError(f"{named}: {self.name} has no such argument; it takes {known}")

        def settled(part: Any) -> Any:
            return replace(part, **{name: given[name] for name in _names(part) if name in given})

        return replace(self, backbone=settled(self.backbone), head=settled(self.head))

    def takes(self, name: str) -> bool:
        """Return whether backbone or head has an argument of this name."""
        return name in (*_names(self.backbone), *_names(self.head))


def _names(part: Backbone | Head) -> list[str]:
    return [field.name for field in fields(part)]
