"""Rules that put our layers in place of Keras's, one by one, and join what runs as one."""

from typing import Any

import keras

from groupwise import layers
from groupwise.rewrite.graph import Graph, Node, Tensor
from groupwise.rewrite.rebuild import Replacement, Rewriter, apply
from groupwise.rewrite.report import Change, Left, Report

OURS: dict[type, Any] = {stock: ours for ours, stock in layers.STOCK.items()} | {
    keras.layers.BatchNormalization: layers.BatchNormalization
}
"""Keras's layers and ours, which compute the same."""

# Keras's and ours, by what they compute; a subclass may compute something else.
DENSE = (keras.layers.Conv2D, layers.GroupedConv2D)
DEPTHWISE = (keras.layers.DepthwiseConv2D, layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv2D, layers.SeparableConv2D)
NORMS = (keras.layers.BatchNormalization, layers.BatchNormalization)
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
RELU = {None: "relu", 6.0: "relu6"}  # by their greatest value
_RELU_FUNCTIONS = {keras.activations.relu: "relu", keras.activations.relu6: "relu6"}
_RELU_OPERATIONS = {"Relu": "relu", "Relu6": "relu6"}


def drop_in(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | Left | None:
    """Put ours in place of one layer of Keras's, whatever it is called with."""
    layer = node.operation
    ours = OURS.get(type(layer))
    if ours is None or objection(layer):
        return _left(layer)
    if isinstance(layer, keras.layers.BatchNormalization) and len(node.outputs[0].shape) != 4:
        return None

    def build(new: Any) -> Tensor:
        read = {id(tensor): new(tensor) for tensor in node.input_tensors}
        arguments, keywords = node.arguments.fill_in(read)
        made = rewriter.once(layer, lambda: ours.from_config(layer.get_config()))
        return apply(made, layer.get_weights(), *arguments, **keywords)

    return Replacement([node], build, [Change(layer.name, described(layer), ours.__name__)])


def padded_convolution(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | None:
    """Let a convolution without padding pad by itself what a ZeroPadding2D before it pads."""
    layer, before = node.operation, graph.before(node)
    if type(layer) not in OURS or not isinstance(layer, CONVOLUTIONS) or objection(layer) or before is None:
        return None
    pad = before.operation
    alone = all(rewriter.is_used_once(operation) for operation in (layer, pad)) and is_plain(node)
    if type(pad) is not keras.layers.ZeroPadding2D or layer.padding != "valid" or not alone:
        return None
    if pad.data_format != layer.data_format:
        return None
    ours: Any = OURS[type(layer)]

    def build(new: Any) -> Tensor:
        made = ours.from_config({**layer.get_config(), "padding": pad.padding})
        return apply(made, layer.get_weights(), new(before.input_tensors[0]))

    change = Change(layer.name, f"ZeroPadding2D, {described(layer)}", f"{ours.__name__} that pads")
    return Replacement([before, node], build, [change])


def norm_and_activation(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | None:
    """Let one batch norm do what follows it: the addition of a shortcut, ReLU or ReLU6, or both."""
    norm = node.operation
    if type(norm) not in NORMS or len(node.outputs[0].shape) != 4 or norm.axis not in (-1, 3):
        return None
    if getattr(norm, "activation", keras.activations.linear) is not keras.activations.linear:
        return None
    if not is_plain(node) or not rewriter.is_used_once(norm):
        return None
    nodes, shortcut = [node], _shortcut(graph, node)
    if shortcut is not None:
        nodes.append(graph.after(node))
    activation = graph.after(nodes[-1])
    kind = relu_of(activation) if activation is not None else None
    if kind is not None:
        nodes.append(activation)
    if len(nodes) == 1 or not all(rewriter.is_used_once(other.operation) for other in nodes):
        return None

    def build(new: Any) -> Tensor:
        made = layers.BatchNormalization.from_config({**norm.get_config(), "activation": kind})
        residual = {} if shortcut is None else {"residual": new(shortcut)}
        return apply(made, norm.get_weights(), new(node.input_tensors[0]), **residual)

    after = "BatchNormalization" + " that adds" * (shortcut is not None) + f" with {kind}" * (kind is not None)
    before = ", ".join(type(other.operation).__name__ for other in nodes)
    return Replacement(nodes, build, [Change(norm.name, before, after)])


def convolution_and_activation(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | None:
    """Let a convolution do the ReLU or ReLU6 that follows it."""
    layer, after = node.operation, graph.after(node)
    ours: Any = OURS.get(type(layer), type(layer))
    if not isinstance(layer, CONVOLUTIONS) or ours not in layers.STOCK or objection(layer) or after is None:
        return None
    kind = relu_of(after)
    alone = all(rewriter.is_used_once(operation) for operation in (layer, after.operation))
    if kind is None or not alone or not is_plain(node) or layer.activation is not keras.activations.linear:
        return None

    def build(new: Any) -> Tensor:
        made = ours.from_config({**layer.get_config(), "activation": kind})
        return apply(made, layer.get_weights(), new(node.input_tensors[0]))

    change = Change(layer.name, f"{described(layer)}, {kind}", f"{ours.__name__} with {kind}")
    return Replacement([node, after], build, [change])


def within(layer: Any, report: Report) -> None:
    """Put ours in place of the convolutions within a fresh layer that is made of layers.

    They stay where they are and keep their weights: a layer of ours differs from Keras's in its methods alone.
    """
    found = [inner for inner in layer._flatten_layers(include_self=False) if type(inner) in OURS]
    found = [inner for inner in found if isinstance(inner, CONVOLUTIONS) and not objection(inner)]
    for inner in found:
        report.changes.append(Change(f"{layer.name}/{inner.name}", described(inner), OURS[type(inner)].__name__))
        inner.__class__ = OURS[type(inner)]
        inner._set_padding(inner.padding, "auto")
    note = "Layers within other layers are ours in memory only: Keras saves and loads the outer ones as they were."
    if found and note not in report.notes:
        report.notes.append(note)


def is_plain(node: Node) -> bool:
    """Return whether a layer is called with one tensor and nothing else."""
    arguments = node.arguments
    return len(arguments.args) == 1 and len(arguments.keras_tensors) == 1 and not any(arguments.kwargs.values())


def relu_of(node: Node) -> str | None:
    """Return "relu" or "relu6" where that is all that a call does."""
    operation = node.operation
    if type(operation) is keras.layers.ReLU:
        plain = not operation.negative_slope and not operation.threshold
        return RELU.get(operation.max_value) if plain else None
    if type(operation) is keras.layers.Activation:
        return _RELU_FUNCTIONS.get(operation.activation)
    if type(operation).__module__.startswith("keras."):
        return _RELU_OPERATIONS.get(type(operation).__name__)
    return None


def is_addition(node: Node) -> bool:
    """Return whether a call adds up tensors: Keras's Add layer, or `+`."""
    return type(node.operation).__name__ == "Add" and type(node.operation).__module__.startswith("keras.")


def described(layer: Any) -> str:
    """Return a layer's class, and its groups where it has several."""
    groups = getattr(layer, "groups", 1)
    return type(layer).__name__ + (f", {groups} groups" if groups > 1 else "")


def objection(layer: Any) -> str | None:
    """Return why a layer of Keras's must stay what it is, or None."""
    if getattr(layer, "lora_enabled", False):
        return "it has a LoRA adapter; merge it first"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantized ({layer.quantization_mode})"
    return None


def _shortcut(graph: Graph, node: Node) -> Tensor | None:
    """Return what alone is added to a call's output, of the same shape; None where nothing is."""
    add, output = graph.after(node), node.outputs[0]
    if add is None or not is_addition(add) or len(add.input_tensors) != 2:
        return None
    first, second = add.input_tensors
    if first is second or first.shape != second.shape or first.dtype != second.dtype:
        return None
    return second if first is output else first


def _left(layer: Any) -> Left | None:
    """Say why a convolution that ours could stand for stays: settings, or a class of somebody's own."""
    if not isinstance(layer, CONVOLUTIONS) or type(layer) in OURS.values():
        return None
    reason = objection(layer) or f"its class {type(layer).__name__} may compute something else than its base class"
    return Left(layer.name, described(layer), reason)
