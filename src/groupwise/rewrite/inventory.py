"""Which convolutions a model has: ours, as what they compute, and those of which there is no saying how they run."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from groupwise.errors import UserError, call
from groupwise.keras_private import layers_within
from groupwise.layers.specs import specs_of
from groupwise.layers.stock import CONVOLUTIONS, STOCK_CONVOLUTIONS
from groupwise.running.graph import is_graph
from groupwise.spec import ConvSpec


def convolutions(model: keras.Model) -> Iterator[ConvSpec]:
    """Yield every convolution of ours in a model, and in the models within it, in order; the batch is not known.

    Raises:
        UserError: the model is no graph of layers.
    """
    if not is_graph(model):
        raise UserError(
            f"model {model.name!r}: the shapes of its layers are unknown, since it computes in a method of its own "
            "or was not built; name a functional or sequential model"
        )
    for layer in _layers(model):
        if isinstance(layer, CONVOLUTIONS):
            yield from specs_of(layer, keras.tree.flatten(layer.input)[0].shape)


def unrouted(model: keras.Model) -> Counter[str]:
    """Count the convolutions of a model of which there is no saying how they run, by the reason."""
    found: Counter[str] = Counter()
    for layer in _layers(model):
        if isinstance(layer, STOCK_CONVOLUTIONS) and not isinstance(layer, CONVOLUTIONS):
            own = f"{type(layer).__name__} of Keras's own"
            found[f"{own}, which runs as Keras does; {call('accelerate')} puts ours in its place"] += 1
        inner = [part for part in layers_within(layer, include_self=False) if isinstance(part, STOCK_CONVOLUTIONS)]
        if inner:
            found[f"convolution within a {type(layer).__name__}, whose size is not known"] += len(inner)
    return found


def _layers(model: keras.Model) -> Iterator[Any]:
    """Yield a model's layers, and those of the models within it instead of these."""
    for layer in model.layers:
        if is_graph(layer):
            yield from _layers(layer)
        else:
            yield layer
