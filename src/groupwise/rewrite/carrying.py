"""A reordering of channels, carried into the weights of the layers around it, so that none is left that moves data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from groupwise import layers
from groupwise.layers.permuting import PermuteChannels
from groupwise.layers.twins import objection
from groupwise.rewrite.branches import ACROSS_CHANNELS
from groupwise.rewrite.changes import Gone, attach, report_of
from groupwise.rewrite.copying import Values
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, NORMS, SEPARABLE
from groupwise.rewrite.rebuild import Replacement, Rewriter
from groupwise.rewrite.settings import objection_to_new_values
from groupwise.running.graph import Graph, Node, Tensor, activation_of, is_plain, models_within

_CHANNEL_BY_CHANNEL = (
    *(keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.Dropout, keras.layers.SpatialDropout2D),
    *(keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, layers.MaxPooling2D, layers.AveragePooling2D),
    *(keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.ZeroPadding2D),
)
"""Layers without weights that treat all channels alike, and leave them where they are."""


def carried(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | None:
    """Leave out a permutation of channels whose order the layers before or after it can take on in their weights.

    Before it, up to a convolution or dense layer, whose filters it reorders; else after it, down to one, of whose
    kernel it reorders the input channels. On the way batch norms and depthwise convolutions follow.
    """
    if type(node.operation) is not PermuteChannels or node.operation.data_format != "channels_last":
        return None
    order = np.array(node.operation.order)
    found = _edits(rewriter, node, graph.before, order, _outputs_in) or _edits(
        rewriter, node, graph.after, np.argsort(order), _inputs_in
    )
    if found is None:
        return None
    weights, reordered = found

    def build(new: Any) -> Tensor:
        return new(node.input_tensors[0])

    gone = [Gone(layer.name, "its channels come in another order") for layer in reordered]
    return Replacement([node], build, weights=weights, gone=gone, is_drop_in=True)


Step = Callable[[Any, Values, np.ndarray], Values | None]


def _edits(
    rewriter: Rewriter, node: Node, step: Callable[[Node], Node | None], order: np.ndarray, ending: Step
) -> tuple[dict[int, Values], list[Any]] | None:
    """Return the new weights of the layers from a call to where the reordering ends; None where it does not.

    Returns:
        also the layers whose outputs come in another order.
    """
    edits: dict[int, Values] = {}
    reordered: list[Any] = []
    found = step(node)
    while found is not None and is_plain(found):
        layer = found.operation
        if _ignores_order(found):
            reordered.append(layer)
            found = step(found)
            continue
        is_free = isinstance(layer, keras.layers.Layer) and rewriter.is_used_once(layer)
        if not is_free or objection(layer) or objection_to_new_values(layer):
            return None
        values = rewriter.weights_of(layer)
        last = ending(layer, values, order)
        if last is not None:
            return {**edits, id(layer): last}, reordered + [layer] * (ending is _outputs_in)
        reordered.append(layer)
        passed = _passing(layer, values, order)
        if passed is None:
            return None
        edits[id(layer)] = passed
        found = step(found)
    return None


def _ignores_order(node: Node) -> bool:
    layer = node.operation
    if type(layer) is keras.layers.Activation:
        return getattr(layer.activation, "__name__", "softmax") not in ACROSS_CHANNELS
    is_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return activation_of(node) is not None or (type(layer) in _CHANNEL_BY_CHANNEL and is_last)


def _passing(layer: Any, values: Values, order: np.ndarray) -> Values | None:
    """Return the weights of a layer that works channel by channel, for channels in another order."""
    if type(layer) in NORMS and layer.axis in (-1, 3):
        return [value[order] for value in values]
    if type(layer) in DEPTHWISE and layer.depth_multiplier == 1 and layer.data_format == "channels_last":
        return [values[0][:, :, order], *(bias[order] for bias in values[1:])] if _is_elementwise(layer) else None
    return None


def _outputs_in(layer: Any, values: Values, order: np.ndarray) -> Values | None:
    """Return the weights with which a layer's outputs come in another order."""
    if not _is_mixing(layer) or not _is_elementwise(layer):
        return None
    count = 2 if type(layer) in SEPARABLE else 1
    kernels, bias = values[:count], values[count:]
    return [*kernels[:-1], kernels[-1][..., order], *(value[order] for value in bias)]


def _inputs_in(layer: Any, values: Values, order: np.ndarray) -> Values | None:
    """Return the weights with which a layer takes its inputs in another order."""
    if not _is_mixing(layer):
        return None
    if type(layer) is keras.layers.Dense:
        return [values[0][order], *values[1:]]
    if type(layer) not in SEPARABLE:
        return [values[0][:, :, order], *values[1:]]
    pointwise = values[1].reshape(len(order), layer.depth_multiplier, -1)[order].reshape(values[1].shape)
    return [values[0][:, :, order], pointwise, *values[2:]]


def _is_mixing(layer: Any) -> bool:
    """Return whether every output of a layer is a sum over all of its input channels."""
    if type(layer) is keras.layers.Dense:
        return True
    is_convolution = type(layer) in (*DENSE, *SEPARABLE) and layer.data_format == "channels_last"
    return is_convolution and getattr(layer, "groups", 1) == 1


def _is_elementwise(layer: Any) -> bool:
    return getattr(layer.activation, "__name__", "softmax") not in ACROSS_CHANNELS


def without_permutations(model: keras.Model) -> keras.Model:
    """Return a rewritten model without the permutations of channels that its layers can take on, its report kept."""
    operations = (node.operation for part in models_within(model) for node in Graph(part).nodes)
    if not any(type(operation) is PermuteChannels for operation in operations):
        return model
    rewritten = Rewriter((carried,)).rewrite(model)
    report = report_of(model)
    report.gone += report_of(rewritten).gone
    attach(rewritten, report)
    return rewritten
