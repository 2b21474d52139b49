"""One block of a ResNeXt in its three forms: its layers and costs, and how far the outputs really differ."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from groupwise.errors import UserError
from groupwise.layers import BatchNormalization, SqueezeExcite
from groupwise.models import create, find
from groupwise.models.costs import layer_macs
from groupwise.models.network import Network, without_values
from groupwise.models.residual import FORMS
from groupwise.rewrite import to_form

UNIT = "stage1_unit2"
"""The block shown: the first whose shortcut is the input itself, as in the paper's figure 3."""

PARTS = ("reduce", "spatial", "expand")
SMALL = 16  # pixels of the first stage, on the image that the outputs are compared on


@dataclass(frozen=True)
class Part:
    """A convolution of the block, or as many equal ones as there are paths: shapes of one, costs of all."""

    name: str
    count: int
    groups: int
    output_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    parameters: int
    macs: int

    @property
    def in_channels(self) -> int:
        """Input channels of one."""
        return self.kernel_shape[2] * self.groups


class Block(NamedTuple):
    """The block in one form, its convolutions, the narrow width of its squeeze-and-excitation, and all its costs."""

    form: str
    input_shape: tuple[int, ...]
    parts: tuple[Part, ...]
    squeezed: int | None
    parameters: int
    macs: int

    @property
    def cardinality(self) -> int:
        """How many paths or groups."""
        return self.parts[1].count * self.parts[1].groups


def describe_block(name: str, form: str) -> Block:
    """Return the block of a network, in one of the forms.

    Raises:
        UserError: there is no such network, or it has no forms.

    Examples:
        >>> describe_block("resnext50_32x4d", "a").parts[0].kernel_shape
        (1, 1, 256, 4)
    """
    with without_values():
        network = create(name, features=["stage1"], form=form, **_shortened(name))
    layers = {layer.name: layer for layer in network.layers if layer.name.startswith(UNIT)}
    first = next(layer for name, layer in layers.items() if name.endswith("reduce_conv"))
    squeezed = [int(layer.reduce.units) for layer in layers.values() if isinstance(layer, SqueezeExcite)]
    parts = tuple(_part(part, layers) for part in PARTS)
    return Block(form, first.input.shape[1:], parts, next(iter(squeezed), None), *_costs(layers.values()))


def _part(part: str, layers: dict[str, keras.layers.Layer]) -> Part:
    pattern = re.compile(rf"{UNIT}_(path\d+_)?{part}_conv")
    found = [layer for name, layer in layers.items() if pattern.fullmatch(name)]
    one = found[0]
    return Part(part, len(found), one.groups, one.output.shape[1:], tuple(one.kernel.shape), *_costs(found))


def _costs(layers: Collection[keras.layers.Layer]) -> tuple[int, int]:
    """Return how many trainable numbers layers have, and their multiply-adds for one image."""
    weights = (math.prod(weight.shape) for layer in layers for weight in layer.trainable_variables)
    return sum(weights), sum(map(layer_macs, layers))


def _shortened(name: str) -> dict[str, Any]:
    """Return the arguments of `create` that leave two blocks in the first stage."""
    variant = find(name)
    if not variant.takes("form"):
        raise UserError(
            f"model {name!r}: has no forms a, b and c; take a ResNeXt, SE-ResNeXt or SENet such as resnext50_32x4d"
        )
    return {"depths": [2]} if variant.takes("depths") else {"blocks": 2}


def measure(name: str) -> dict[str, float]:
    """Return, for each form, how far its outputs are from form c's on a random image, relative to the largest one.

    The weights are form c's, carried over; batch norm's are random, so that none of them is idle.

    Raises:
        UserError: as `describe_block`.
    """
    # ImageNet's stems make an image 4 times smaller, CIFAR's leave it.
    side = SMALL if find(name).reduction < 32 else 4 * SMALL
    network = create(name, features=["stage1"], input_shape=(side, side, 3), form="c", **_shortened(name))
    generator = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    image = generator.normal(size=(1, side, side, 3)).astype("float32")
    expected = _outputs(network, image)
    differences = {form: np.abs(_outputs(to_form(network, form), image) - expected).max() for form in FORMS}
    return {form: float(difference / np.abs(expected).max()) for form, difference in differences.items()}


def _outputs(network: Network, image: Any) -> Any:
    return keras.ops.convert_to_numpy(network(image, training=False)["stage1"])
