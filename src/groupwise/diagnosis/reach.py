"""Which channels of a row of grouped convolutions see which: followed through a graph, call by call."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, NORMS, SEPARABLE
from groupwise.rewrite.probing import image_size
from groupwise.running.graph import Graph, Node, Tensor, activation_of, is_addition, is_weightless

Mask = NDArray[np.bool_]
"""(channels, groups): whether a channel sees anything of a group of the row's inputs."""

CHANNELWISE = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.UpSampling2D,
)
"""What computes each channel by itself, beside batch norm and activations."""


@dataclass(frozen=True)
class Row:
    """Grouped convolutions with neither a shuffle nor a dense layer between.

    Attributes:
        nodes: their calls. share: of the pairs of an output of the last one and an input of the first, those connected.
    """

    nodes: tuple[Node, ...]
    share: float


def rows(graph: Graph) -> Iterator[Row]:
    """Yield each row of two or more grouped convolutions of which no output sees all inputs until a dense layer."""
    covered: set[int] = set()
    for node in graph.nodes:
        layer = node.operation
        if is_grouped(layer) and layer.data_format == "channels_last" and id(node) not in covered:
            row = _row(graph, node)
            covered |= {id(found) for found in row.nodes}
            if len(row.nodes) > 1 and row.share < 1:
                yield row


def is_grouped(operation: Any) -> bool:
    """Return whether a layer is a convolution in groups of several channels."""
    return type(operation) in DENSE and 1 < operation.groups < operation.kernel.shape[2] * operation.groups


def _row(graph: Graph, first: Node) -> Row:
    """Return the row that begins with a call, up to where all its inputs are seen."""
    start, groups = first.input_tensors[0], first.operation.groups
    masks: dict[int, Mask] = {id(start): _by_group(start.shape[-1], groups)}
    found: list[Node] = []
    share = 1.0
    for node in graph.nodes[graph.place[id(first)] :]:
        if not any(id(tensor) in masks for tensor in node.input_tensors):
            continue
        mask = _after(node, masks, groups)
        if mask is None:
            continue
        if is_grouped(node.operation):
            found.append(node)
            share = float(mask.mean())
            if mask.all():
                break
        masks |= {id(tensor): mask for tensor in node.outputs}
    return Row(tuple(found), share)


def _by_group(channels: int, groups: int) -> Mask:
    return np.repeat(np.eye(groups, dtype=bool), channels // groups, axis=0)


def _after(node: Node, masks: dict[int, Mask], groups: int) -> Mask | None:
    """Return what the outputs of a call see; None where the row ends: a dense layer mixes all, or it cannot be told."""
    operation = node.operation
    given = [masks.get(id(tensor)) for tensor in node.input_tensors]
    first = next(mask for mask in given if mask is not None)
    if type(operation) in DEPTHWISE:
        return np.repeat(first, operation.depth_multiplier, axis=0)
    if is_grouped(operation):
        merged = first.reshape(operation.groups, -1, groups).any(axis=1)
        return np.repeat(merged, operation.filters // operation.groups, axis=0)
    if len(given) == 1 and (type(operation) in NORMS or isinstance(operation, CHANNELWISE) or activation_of(node)):
        return first
    if type(operation) in (*DENSE, *SEPARABLE) or not is_weightless(operation):
        return None
    if is_addition(node) and all(mask is None or mask.shape == first.shape for mask in given):
        return np.any([mask for mask in given if mask is not None], axis=0)
    return _tried(node, given, groups)


def _tried(node: Node, given: list[Mask | None], groups: int) -> Mask | None:
    """Return what the outputs of a call without weights see, by running it: each group of inputs moved, one by one."""
    random = np.random.default_rng(0)
    values: dict[int, Any] = {}
    for tensor, mask in zip(node.input_tensors, given, strict=True):
        shape = _shape(tensor)
        base = np.broadcast_to(random.uniform(1, 2, shape), (groups + 1, *shape)).astype("float32")
        if mask is not None:
            moved = np.concatenate([np.zeros((1, len(mask)), bool), mask.T])
            base = base + moved.reshape(groups + 1, *[1] * (len(shape) - 1), len(mask))
        values[id(tensor)] = keras.ops.convert_to_tensor(base.astype("float32"))
    try:
        arguments, keywords = node.arguments.fill_in(values)
        outputs = keras.ops.convert_to_numpy(keras.tree.flatten(node.operation(*arguments, **keywords))[0])
    except Exception:  # an operation may demand anything, such as one size of the batch
        return None
    if len(outputs) != groups + 1:
        return None
    differs = outputs[1:] != outputs[:1]
    reached: Mask = differs.any(axis=tuple(range(1, differs.ndim - 1))).T
    return reached


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return (
        (*image_size(tensor), tensor.shape[-1])
        if len(tensor.shape) == 4
        else tuple(side or 1 for side in tensor.shape[1:])
    )
