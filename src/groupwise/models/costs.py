"""What a network costs: a row for each layer, counted from its real weights and shapes."""

import math
from dataclasses import dataclass
from typing import Any

import keras

from groupwise.layers import SqueezeExcite


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name, kind and output shape, its parameters and its multiply-adds for one image."""

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Description:
    """A model's layers and totals; `str()` of it is a table in plain text.

    Attributes:
        rows: one a layer, in the model's order.
        trainable_parameters, parameters: the second also counts the moving statistics of batch norm.
        macs: the multiply-adds of convolutions and dense layers for one image.
    """

    name: str
    rows: tuple[LayerRow, ...]
    trainable_parameters: int
    parameters: int
    macs: int

    def __str__(self) -> str:
        lines = [f"{'layer':<40} {'kind':<24} {'output':<22} {'parameters':>12} {'MACs':>16}"]
        for row in self.rows:
            shape = "x".join("?" if size is None else str(size) for size in row.output_shape[1:])
            lines.append(f"{row.name:<40} {row.kind:<24} {shape:<22} {row.parameters:>12,} {row.macs:>16,}")
        lines.append(
            f"{self.name}: {self.trainable_parameters:,} trainable parameters ({self.parameters:,} in all), "
            f"{self.macs:,} MACs"
        )
        return "\n".join(lines)


def describe_model(model: keras.Model) -> Description:
    """Return the description of a built functional or sequential model.

    Raises:
        ValueError: where the image's size is unknown, so that its MACs cannot be counted.
    """
    rows = tuple(
        LayerRow(layer.name, type(layer).__name__, _output_shape(layer), layer.count_params(), layer_macs(layer))
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    )
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return Description(model.name, rows, trainable, model.count_params(), sum(row.macs for row in rows))


def layer_macs(layer: keras.layers.Layer) -> int:
    """Return a layer's multiply-adds for one image: those of convolutions and dense layers; 0 for all others."""
    if isinstance(layer, keras.Model):
        return sum(layer_macs(inner) for inner in layer.layers)
    if isinstance(layer, SqueezeExcite):
        return math.prod(layer.reduce.kernel.shape) + math.prod(layer.expand.kernel.shape)
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = [getattr(layer, name).shape for name in names if getattr(layer, name, None) is not None]
    if not kernels:
        return 0
    first = getattr(layer, "data_format", None) == "channels_first"
    shape = _output_shape(layer)
    positions = shape[2:] if first else shape[1:-1]
    if None in positions:
        raise ValueError(f"layer {layer.name!r}: its output shape {shape} must be known to count MACs; give a size")
    # Every entry of a kernel is used once at every output position.
    return math.prod(positions) * sum(math.prod(kernel) for kernel in kernels)  # type: ignore[arg-type]


def _output_shape(layer: keras.layers.Layer) -> Any:
    output = layer.output
    return tuple((output[0] if isinstance(output, (list, tuple)) else output).shape)
