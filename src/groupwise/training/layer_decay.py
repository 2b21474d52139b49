"""Layer-wise decay of the learning rate: the nearer to the images a layer lies, the slower it learns."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from groupwise import keras_private

_DECAYS = ("weight_decay", "adam_weight_decay")  # the second one is Muon's, of what is no matrix
_BLOCK = re.compile(r"stage\d+(?:_unit\d+)?|[^\d_]+")


def shares_of(network: keras.Model, decay: float) -> dict[str, float]:
    """Return each layer's share of the learning rate, by the layer's name: decay ** depth (Bao et al. 2021, BEiT).

    Depth is counted in blocks, from the head, whose depth is 0, down to the stem, the deepest one. A block is what a
    layer's name begins with: "stage1_unit2" of "stage1_unit2_conv", else the first word without its number, such as
    "stem" of "stem1_bn". So a residual unit is one block, and all layers of the stem are one. Frozen ones count.

    Args:
        network: one of ours.
        decay: a block's share of the rate of the block above it.

    Examples:
        >>> from groupwise.models import create
        >>> shares = shares_of(create("mnist_cnn"), 0.5)
        >>> [shares[name] for name in ("stem_conv", "stage1_unit1_conv", "stage1_unit2_bn", "stage2_unit2_bn", "head")]
        [0.03125, 0.0625, 0.125, 0.5, 1.0]
    """
    blocks = {layer.name: _block(layer.name) for layer in network.layers if layer.weights}
    deepest_first = list(dict.fromkeys(blocks.values()))
    shares = {block: decay**depth for depth, block in enumerate(reversed(deepest_first))}
    return {name: shares[block] for name, block in blocks.items()}


def _block(name: str) -> str:
    begins = _BLOCK.match(name)
    return begins.group() if begins else name


def decay_by_layer(optimizer: keras.optimizers.Optimizer, network: keras.Model, decay: float) -> None:
    """Let an optimizer, in place, give every layer its share of the learning rate, and so of the weight decay.

    Gradients are what they were: they are accumulated and clipped as without, and Adam's moments are the same.

    Args:
        optimizer: built for the network's variables; none of whose steps changes what all variables share (Nadam).
        network, decay: as `shares_of`.
    """
    shares = shares_of(network, decay)
    by_variable = {id(each): shares[layer.name] for layer in network.layers for each in layer.trainable_variables}
    every = sorted(set(by_variable.values()))

    def update(step: Callable[..., None], gradients: Sequence[Any], variables: Sequence[Any], rate: Any) -> None:
        for share in every:
            places = [place for place, each in enumerate(variables) if by_variable[id(each)] == share]
            if places:
                step([gradients[place] for place in places], [variables[place] for place in places], rate * share)

    def decay_weights(step: Callable[..., None], variables: Sequence[Any]) -> None:
        whole = {name: getattr(optimizer, name) for name in _DECAYS if getattr(optimizer, name, None)}
        left_out, _ = keras_private.without_weight_decay(optimizer, variables)
        decayed = [each for place, each in enumerate(variables) if whole and place not in left_out]
        for share in every:
            some = [each for each in decayed if by_variable[id(each)] == share]
            if some:
                # What is taken off is this times the rate, which Keras asks for itself.
                vars(optimizer).update({name: value * share for name, value in whole.items()})
                step(some)
        vars(optimizer).update(whole)

    keras_private.replace_steps(optimizer, update, decay_weights)
