"""Which values change on their way from a publisher's network into ours, for each slot that does."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from groupwise.errors import UserError
from groupwise.weights.channel_orders import CONVENTIONS, Convention, Order, exchange, reordered_groups
from groupwise.weights.slots import Array, Edit, slots_of

BGR = Edit(lambda kernel: kernel[:, :, ::-1, :])
"""The stem's kernel of a network that was trained on blue, green and red, in this order."""

VECTORS = ("weight", "bias", "running_mean", "running_var")


def edits_of(publisher: str, family: str, network: keras.Model) -> dict[str, Edit]:
    """Return the edits by slot.

    Args:
        publisher: whose network the file holds.
        family: `Variant.family` of the network.
        network: that takes the values, complete.

    Raises:
        UserError: the network shuffles in a way that the file's weights cannot be reordered for.
    """
    if publisher == "keras.applications":
        return {
            slot.name: grouped_from_depthwise(tuple(slot.variable.shape))
            for slot in slots_of(network)
            if slot.layer.endswith("_spatial_conv")
        }
    edits = {"stem_conv.weight": BGR} if publisher in ("megvii", "tensorpack") else {}
    if family == "ShuffleNet v1":
        edits |= _shuffled(network, CONVENTIONS[publisher])
    elif family == "ShuffleNet v2" and publisher == "megvii":
        edits |= _even_first(network)
    return edits


def grouped_from_depthwise(shape: tuple[int, ...]) -> Edit:
    """Return the edit that makes a grouped kernel of keras.applications' depthwise one, whose results are then summed.

    With c channels a group, the depthwise kernel has c filters for every channel: filter j of channel g * c + k holds
    what input k of its group adds to output g * c + j, so that grouped[:, :, k, g * c + j] is it.

    Args:
        shape: (height, width, c, channels) of the grouped kernel, which has as many outputs as inputs.

    Examples:
        >>> grouped_from_depthwise((3, 3, 4, 128)).stored_shape
        (3, 3, 128, 4)
    """
    height, width, inputs, channels = shape
    groups = channels // inputs

    def change(kernel: Array) -> Array:
        split = kernel.reshape(height, width, groups, inputs, inputs)
        return split.transpose(0, 1, 3, 2, 4).reshape(shape)

    return Edit(change, (height, width, channels, inputs))


def _shuffled(network: keras.Model, source: Convention) -> dict[str, Edit]:
    """Return the edits of every unit of a ShuffleNet v1 whose weights follow another convention than the network."""
    edits: dict[str, Edit] = {}
    names = [layer.name for layer in network.layers]
    for layer in network.layers:
        if not layer.name.endswith("_compress_conv"):
            continue
        unit, channels = layer.name.removesuffix("_compress_conv"), layer.filters
        groups = network.get_layer(f"{unit}_expand_conv").groups
        orders = None
        if f"{unit}_shuffle" in names:
            shuffle = network.get_layer(f"{unit}_shuffle")
            after = names.index(shuffle.name) > names.index(f"{unit}_depthwise_conv")
            target = Convention("inverse" if shuffle.inverse else "paper", after)
            orders = exchange(groups, channels, source, target)
        if orders is None:
            raise UserError(
                f"shuffle: these weights shuffle {channels} channels in {groups} groups otherwise than the network, "
                "and no order of channels makes up for it; leave the argument out, or pass "
                f'shuffle="{source.shuffle}"'
            )
        edits |= _ordered(f"{unit}_compress", orders.compress, axis=3)
        edits |= _ordered(f"{unit}_depthwise", orders.depthwise, axis=2)
        edits[f"{unit}_expand_conv.weight"] = Edit(partial(reordered_groups, order=orders.expand, groups=groups))
    return edits


def _even_first(network: keras.Model) -> dict[str, Edit]:
    """Return the edits of what reads the stages' ends: the next stage's first unit, and the last 1x1."""
    edits: dict[str, Edit] = {}
    for layer in network.layers:
        found = re.fullmatch(r"stage([23])_unit1_(compress|shortcut_depthwise)_conv|final_conv", layer.name)
        if found is None:
            continue
        channels = layer.kernel.shape[2]
        order = np.concatenate([np.arange(0, channels, 2), np.arange(1, channels, 2)])
        edits[f"{layer.name}.weight"] = Edit(_taken(order, 2))
        if found[2] == "shortcut_depthwise":
            edits |= _ordered(layer.name.removesuffix("_conv"), order, axis=2)
            expand = layer.name.replace("depthwise", "expand")
            edits[f"{expand}.weight"] = Edit(_taken(order, 2))
    return edits


def _ordered(name: str, order: Order, axis: int) -> dict[str, Edit]:
    """Return the edits that reorder the output channels of a convolution and its batch norm."""
    vectors = {f"{name}_bn.{role}": Edit(_taken(order, 0)) for role in VECTORS}
    return {f"{name}_conv.weight": Edit(_taken(order, axis)), **vectors}


def _taken(order: Order, axis: int) -> Callable[[Array], Any]:
    return lambda value: np.take(value, order, axis)
