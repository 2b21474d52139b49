"""One block of a ResNeXt in its three forms: its layers and costs, and how far the outputs really differ."""

import math
import re
from dataclasses import dataclass
from typing import Any

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
    """A convolution of the block, or as many equal ones as there are paths.

    Attributes:
        name: "reduce", "spatial" or "expand".
        count: how many of them.
        output_shape: (height, width, channels) of one.
        kernel_shape: of one. groups: of one.
        macs: multiply-adds of all of them for one image.
    """

    name: str
    count: int
    output_shape: tuple[int, int, int]
    kernel_shape: tuple[int, int, int, int]
    groups: int
    macs: int

    @property
    def parameters(self) -> int:
        """Weights in all of them."""
        return self.count * math.prod(self.kernel_shape)

    @property
    def in_channels(self) -> int:
        """Input channels of one."""
        return self.kernel_shape[2] * self.groups


@dataclass(frozen=True)
class Block:
    """The block in one form.

    Attributes:
        form: "a", "b" or "c". cardinality: how many paths or groups.
        input_shape: (height, width, channels).
        parts: the convolutions.
        squeezed: the narrow width of its squeeze-and-excitation, or None.
        parameters: trainable, of the whole block. macs: of the whole block.
    """

    form: str
    cardinality: int
    input_shape: tuple[int, int, int]
    parts: tuple[Part, Part, Part]
    squeezed: int | None
    parameters: int
    macs: int

    @property
    def channels(self) -> int:
        """Output channels of all paths' 3x3 together."""
        return self.parts[1].count * self.parts[1].output_shape[-1]


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
    parts = [_part(part, layers) for part in PARTS]
    squeezes = [layer for layer in layers.values() if isinstance(layer, SqueezeExcite)]
    first = next(layer for layer in layers.values() if layer.name.endswith("reduce_conv"))
    return Block(
        form,
        parts[1].count * parts[1].groups,
        _image(first.input.shape),
        (parts[0], parts[1], parts[2]),
        int(squeezes[0].reduce.units) if squeezes else None,
        sum(math.prod(weight.shape) for layer in layers.values() for weight in layer.trainable_variables),
        sum(layer_macs(layer) for layer in layers.values()),
    )


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


def _shortened(name: str) -> dict[str, Any]:
    """Return the arguments of `create` that leave two blocks in the first stage."""
    variant = find(name)
    if not variant.takes("form"):
        raise UserError(
            f"model {name!r}: has no forms a, b and c; take a ResNeXt, SE-ResNeXt or SENet such as resnext50_32x4d"
        )
    return {"depths": [2]} if variant.takes("depths") else {"blocks": 2}


def _part(part: str, layers: dict[str, keras.layers.Layer]) -> Part:
    pattern = re.compile(rf"{UNIT}_(path\d+_)?{part}_conv")
    found = [layer for name, layer in layers.items() if pattern.fullmatch(name)]
    height, width, inputs, outputs = (int(size) for size in found[0].kernel.shape)
    macs = sum(layer_macs(layer) for layer in found)
    shape = (height, width, inputs, outputs)
    return Part(part, len(found), _image(found[0].output.shape), shape, int(found[0].groups), macs)


def _image(shape: Any) -> tuple[int, int, int]:
    height, width, channels = (int(size) for size in shape[1:])
    return height, width, channels


def _outputs(network: Network, image: Any) -> Any:
    return keras.ops.convert_to_numpy(network(image, training=False)["stage1"])
