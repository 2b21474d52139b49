"""What a network costs: a row for each layer, counted from its real weights and shapes."""

import math
from dataclasses import dataclass
from typing import Any

import keras

from groupwise.errors import UserError
from groupwise.keras_private import layers_within
from groupwise.layers import SqueezeExcite
from groupwise.texts import html_table


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name, kind and output shape, its parameters and its multiply-adds for one image.

    `macs` is None where they cannot be counted: the image's size is unknown, or the layer is made of others.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    macs: int | None

    def cells(self) -> tuple[str, ...]:
        """Return the five as a table shows them."""
        shape = "x".join("?" if length is None else str(length) for length in self.output_shape[1:])
        cost = "?" if self.macs is None else f"{self.macs:,}" if self.macs else ""
        return self.name, self.kind, shape, f"{self.parameters:,}", cost


@dataclass(frozen=True)
class Description:
    """A model's layers and totals.

    Attributes:
        rows: one a layer, in the model's order.
        trainable_parameters, parameters: the second also counts the moving statistics of batch norm.
    """

    name: str
    rows: tuple[LayerRow, ...]
    trainable_parameters: int
    parameters: int

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        at_least = "at least " if self.uncounted else ""
        totals = (self.name, "", "", f"{self.parameters:,}", f"{at_least}{self.counted_macs:,}")
        rows = [*(row.cells() for row in self.rows), totals]
        return html_table(("layer", "kind", "output", "parameters", "MACs"), rows, texts=2)

    @property
    def macs(self) -> int:
        """The multiply-adds of convolutions and dense layers for one image.

        Raises:
            ValueError: those of a layer cannot be counted.
        """
        if self.uncounted:
            raise ValueError(
                f"layer {self.uncounted[0]!r}: its MACs cannot be counted, since the image's size is unknown or the "
                "layer is made of others; counted_macs leaves such layers out"
            )
        return self.counted_macs

    @property
    def counted_macs(self) -> int:
        """Those of the layers of which they can be counted."""
        return sum(row.macs or 0 for row in self.rows)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The names of the others."""
        return tuple(row.name for row in self.rows if row.macs is None)


def describe_model(model: keras.Model) -> Description:
    """Return the description of a built functional or sequential model.

    Raises:
        UserError: the model computes in a method of its own, or was not built: its layers' shapes are unknown.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    try:
        shapes = [_output_shape(layer) for layer in layers]
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"model {model.name!r}: the shapes of its layers are unknown, since it computes in a method of its own or "
            "was not built; describe a functional or sequential model"
        ) from error
    rows = tuple(
        LayerRow(layer.name, type(layer).__name__, shape, layer.count_params(), _known_macs(layer))
        for layer, shape in zip(layers, shapes, strict=True)
    )
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return Description(model.name, rows, trainable, model.count_params())


def _known_macs(layer: keras.layers.Layer) -> int | None:
    try:
        return layer_macs(layer)
    except (AttributeError, ValueError):  # of what was never called by itself, and of unknown size
        return None


def layer_macs(layer: keras.layers.Layer) -> int:
    """Return a layer's multiply-adds for one image: those of convolutions and dense layers; 0 for all others.

    Raises:
        ValueError: the image's size is unknown, or the layer is made of others that have some.
    """
    if isinstance(layer, keras.Model):
        return sum(layer_macs(inner) for inner in layer.layers)
    if isinstance(layer, SqueezeExcite):
        return math.prod(layer.reduce.kernel.shape) + math.prod(layer.expand.kernel.shape)
    kernels = _kernels(layer)
    if not kernels:
        if any(_kernels(inner) for inner in layers_within(layer, include_self=False)):
            raise ValueError(f"layer {layer.name!r}: it is made of layers whose outputs' sizes are unknown")
        return 0
    first = getattr(layer, "data_format", None) == "channels_first"
    shape = _output_shape(layer)
    positions = shape[2:] if first else shape[1:-1]
    if None in positions:
        raise ValueError(f"layer {layer.name!r}: its output shape {shape} must be known to count MACs; give a size")
    # Every entry of a kernel is used once at every output position.
    return math.prod(positions) * sum(math.prod(kernel) for kernel in kernels)  # type: ignore[arg-type]


def _kernels(layer: keras.layers.Layer) -> list[tuple[int, ...]]:
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    return [getattr(layer, name).shape for name in names if getattr(layer, name, None) is not None]


def _output_shape(layer: keras.layers.Layer) -> Any:
    return tuple(keras.tree.flatten(layer.output)[0].shape)
