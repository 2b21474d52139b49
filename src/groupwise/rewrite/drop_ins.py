"""Rules that put our layers in place of Keras's, one by one."""

from collections.abc import Collection
from typing import Any

import keras

from groupwise.keras_private import layers_within
from groupwise.layers.stock import CONVOLUTIONS, STOCK_CONVOLUTIONS
from groupwise.layers.twins import OURS, TWINS, described, is_stock, kinds_of, objection
from groupwise.rewrite.changes import Change, Left, Report
from groupwise.rewrite.copying import copied, put_within
from groupwise.rewrite.rebuild import Replacement, Rewriter
from groupwise.running.graph import Graph, Node, Tensor

# Keras's and ours, by what they compute; a subclass may compute something else.
DENSE, DEPTHWISE, SEPARABLE, NORMS = (
    kinds_of(stock)
    for stock in (
        keras.layers.Conv2D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv2D,
        keras.layers.BatchNormalization,
    )
)
_IN_MEMORY = "Layers within other layers are ours in memory only: Keras saves and loads the outer ones as they were."
_WIDE = "The moving statistics of half-precision batch norms are float32, since half would stand still."


def drop_in(
    rewriter: Rewriter, graph: Graph, node: Node, leaders: Collection[int] | None = None
) -> Replacement | Left | None:
    """Put ours in place of one layer of Keras's, whatever it is called with.

    Args:
        leaders: the ids of the only layers that are meant, for what they will do beside their own work.
    """
    layer = node.operation
    if leaders is not None and id(layer) not in leaders:
        return None
    if not is_stock(layer) or objection(layer):
        return _left(layer)
    if isinstance(layer, keras.layers.BatchNormalization) and len(node.outputs[0].shape) != 4:
        return None
    ours = OURS[type(layer)]

    def build(new: Any) -> Tensor:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.variable_dtype in ("float16", "bfloat16"):
            rewriter.report.note(_WIDE)
        arguments, keywords = node.arguments.fill_in({id(tensor): new(tensor) for tensor in node.input_tensors})
        kind = TWINS[type(layer)] if rewriter.uses_twins else ours
        if rewriter.uses_twins:
            rewriter.report.note(_IN_MEMORY)
        return rewriter.succeed(layer, lambda: copied(layer, kind), *arguments, **keywords)

    changes = [Change(layer.name, described(layer), ours.__name__)] if leaders is None else []
    return Replacement([node], build, changes, is_drop_in=True)


def within(layer: Any, report: Report) -> None:
    """Put ours in place of the convolutions within a fresh layer that is made of layers.

    They stay where they are and keep their weights: a layer of ours differs from Keras's in its methods alone.
    """
    inside = layers_within(layer, include_self=False)
    found = [inner for inner in inside if OURS.get(type(inner)) in CONVOLUTIONS and not objection(inner)]
    for inner in found:
        report.changes.append(Change(f"{layer.name}/{inner.name}", described(inner), OURS[type(inner)].__name__))
        put_within(inner, TWINS[type(inner)])
    if found:
        report.note(_IN_MEMORY)


def _left(layer: Any) -> Left | None:
    """Say why a convolution that ours could stand for stays: settings, or a class of somebody's own."""
    is_other = not isinstance(layer, STOCK_CONVOLUTIONS) and not is_stock(layer)
    if is_other or isinstance(layer, CONVOLUTIONS):
        return None
    reason = objection(layer) or f"its class {type(layer).__name__} may compute something else than its base class"
    return Left(layer.name, described(layer), reason)
