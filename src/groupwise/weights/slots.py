"""Where weights go: every variable of a network by one name, and how a file's array becomes its value."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import keras_private
from groupwise.layers import DepthwiseConv2D, SeparableConv2D, SqueezeExcite
from groupwise.weights.reading import Layout

Array: TypeAlias = NDArray[np.float32]
Kind: TypeAlias = Literal["kernel", "depthwise", "dense", "vector"]
Shape: TypeAlias = tuple[int, ...]

LINE = 16
"""How many float32 numbers a cache line holds."""


@dataclass(frozen=True)
class Slot:
    """One variable of a network, and how a file stores it.

    Attributes:
        layer: our layer's name, with the step where it has two: "stage1_unit1_squeeze.reduce".
        role: PyTorch's word: "weight", "bias", "running_mean" or "running_var".
        variable: the Keras variable.
        kind: what its axes are.
    """

    layer: str
    role: str
    variable: Any = field(repr=False)
    kind: Kind

    @property
    def name(self) -> str:
        """The layer and the role, such as "stem_conv.weight"."""
        return f"{self.layer}.{self.role}"

    def stored_shape(self, layout: Layout) -> Shape:
        """Return the shape that the variable's value has in a file.

        Examples:
            >>> Slot("stem_conv", "weight", np.zeros((7, 7, 3, 64)), "kernel").stored_shape("OIHW")
            (64, 3, 7, 7)
        """
        shape = tuple(self.variable.shape)
        if layout == "HWIO" or self.kind == "vector":
            return shape
        if self.kind == "depthwise":
            height, width, channels, multiplier = shape
            return (channels * multiplier, 1, height, width)
        return (shape[3], shape[2], *shape[:2]) if self.kind == "kernel" else shape[::-1]

    def from_file(self, array: Array, layout: Layout) -> Array:
        """Return a file's array with the variable's shape and its axes' order."""
        shape = tuple(self.variable.shape)
        if layout == "HWIO" or self.kind == "vector":
            return array.reshape(shape)
        if self.kind == "depthwise":
            channels, multiplier = shape[2:]
            return in_order(array.reshape(channels, multiplier, *shape[:2]).transpose(2, 3, 0, 1))
        return in_order(array.transpose(2, 3, 1, 0) if self.kind == "kernel" else array.reshape(shape[::-1]).T)


def give(variable: Any, value: Array) -> None:
    """Make an array the value of a Keras variable, also of one that was built without any."""
    if keras_private.held_value(variable) is not None:
        variable.assign(value)
    else:
        keras_private.initialize(variable, lambda _shape, dtype: keras.ops.convert_to_tensor(value, dtype))


def in_order(view: Array) -> Array:
    """Return a transposed array in memory of its own, in C order.

    NumPy's own copy takes twice as long: it writes single numbers. 16 of the last axis at a time are whole cache lines.
    """
    result = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[-1], LINE):
        result[..., start : start + LINE] = view[..., start : start + LINE]
    return result


def slots_of(network: keras.Model) -> list[Slot]:
    """Return all variables of a network of this package, in its order."""
    return [slot for layer in network.layers for slot in _slots(layer)]


def _slots(layer: keras.layers.Layer) -> Iterator[Slot]:
    name = layer.name
    if isinstance(layer, keras.layers.BatchNormalization):
        roles = ("weight", "bias", "running_mean", "running_var")
        values = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        yield from (Slot(name, role, value, "vector") for role, value in zip(roles, values, strict=True))
    elif isinstance(layer, SeparableConv2D):
        yield Slot(f"{name}.depthwise", "weight", layer.depthwise_kernel, "depthwise")
        yield Slot(f"{name}.pointwise", "weight", layer.pointwise_kernel, "kernel")
    elif isinstance(layer, SqueezeExcite):
        for step in (layer.reduce, layer.expand):
            yield Slot(f"{name}.{step.name}", "weight", step.kernel, "dense")
            yield Slot(f"{name}.{step.name}", "bias", step.bias, "vector")
    elif layer.weights:
        kind: Kind = "depthwise" if isinstance(layer, DepthwiseConv2D) else "kernel"
        yield Slot(name, "weight", layer.kernel, "dense" if isinstance(layer, keras.layers.Dense) else kind)
        if layer.use_bias:
            yield Slot(name, "bias", layer.bias, "vector")


@dataclass(frozen=True)
class Edit:
    """A change to a value on its way into a variable, where a publisher's network is ours in another order.

    Attributes:
        change: from the file's value, its axes in Keras's order, to the variable's.
        stored_shape: the file's shape where it is not what `Slot.stored_shape` says.
    """

    change: Callable[[Array], Array]
    stored_shape: Shape | None = None
