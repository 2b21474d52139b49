"""Faults of how channels meet: groups that stay apart, shuffles that do nothing, sums of the wrong channels, axes."""

from collections.abc import Iterator

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.reach import CHANNELWISE, is_grouped, rows
from groupwise.diagnosis.subject import Call
from groupwise.layers import ChannelShuffle
from groupwise.layers.permuting import PermuteChannels
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, NORMS, SEPARABLE
from groupwise.rewrite.handmade import sums_own_filters
from groupwise.rewrite.probing import pieces_after, sums
from groupwise.running.graph import Graph, Node, Tensor, activation_of

_CHANNELS = (1, 3, 4)  # of images
_TURNS = ("Permute", "Transpose", "Moveaxis", "Swapaxes")


def groups_apart(examined: Examined) -> Iterator[Finding]:
    """Find grouped convolutions in a row of which no output ever sees all inputs."""
    for graph, names in _graphs(examined).items():
        for row in rows(graph):
            groups = row.nodes[0].operation.groups
            yield Finding(
                "groups that never meet",
                Weight.COSTS,
                f"each output of {len(row.nodes)} grouped convolutions in a row sees {row.share:.0%} of the inputs",
                f"neither a channel shuffle nor a dense layer stands between them, so that their {groups} groups are "
                "as good as networks of their own",
                f"Put groupwise.layers.ChannelShuffle({groups}) between them",
                row.share,
                tuple(names[id(node)] for node in row.nodes),
            )


def _graphs(examined: Examined) -> dict[Graph, dict[int, str]]:
    """Return the graphs, with the names of their calls by the nodes' ids."""
    found: dict[Graph, dict[int, str]] = {}
    for call in examined.subject.calls:
        found.setdefault(call.graph, {})[id(call.node)] = call.name
    return found


def wrong_sums(examined: Examined) -> Iterator[Finding]:
    """Find sums after a depthwise convolution that add up each channel's own filters, and no two channels."""
    for call in examined.calls(*DEPTHWISE):
        multiplier, start = call.operation.depth_multiplier, call.node.outputs[0]
        if multiplier == 1 or call.operation.data_format != "channels_last":
            continue
        for nodes, end in pieces_after(call.graph, start):
            summed = sums(nodes, start, end)
            if summed is not None and summed.shape[0] > summed.shape[1] and sums_own_filters(summed, multiplier):
                yield Finding(
                    "sum of a channel's own filters",
                    Weight.STOPS,
                    f"the sum behind the depthwise convolution adds up the {multiplier} filters of each channel",
                    "no two channels ever meet, and the filters are as good as one: a grouped convolution sums over "
                    "the channels of each group instead",
                    "Reshape to (height, width, groups, channels / groups, multiplier), and sum over the channels, "
                    "axis 4; or use groupwise.layers.GroupedConv2D",
                    multiplier,
                    (call.name,),
                )
                break


def idle_shuffles(examined: Examined) -> Iterator[Finding]:
    """Find channel shuffles that leave all channels where they are, and those that undo the one before."""
    idle, undone = [], []
    ends: dict[int, NDArray[np.int64]] = {}
    for call in examined.subject.calls:
        order, end = _order(call)
        if order is None:
            continue
        before = ends.get(id(_source(call.graph, call.node.input_tensors[0])))
        if _is_in_order(order):
            idle.append(call.name)
        elif before is not None and len(before) == len(order) and _is_in_order(before[order]):
            undone.append(call.name)
        ends[id(end)] = order
    # Where no convolution has groups, as in a ShuffleNet of one group, there is nothing to shuffle.
    if idle and any(is_grouped(call.operation) for call in examined.subject.calls):
        yield Finding(
            "shuffle of nothing",
            Weight.COSTS,
            f"{len(idle)} channel shuffles leave every channel in its place",
            "with 1 group, or as many groups as channels, the transposed channels are those that were there",
            "Give ChannelShuffle the groups of the convolution before it",
            len(idle),
            tuple(idle),
        )
    if undone:
        yield Finding(
            "shuffle undone",
            Weight.COSTS,
            f"{len(undone)} channel shuffles undo the one before",
            "nothing that mixes channels stands between them, and the second puts all channels back",
            "Leave one of them out, or give both the same groups",
            len(undone),
            tuple(undone),
        )


def _order(call: Call) -> tuple[NDArray[np.int64] | None, Tensor]:
    """Return which input channel each output channel of a shuffle is, and the tensor that it ends in; or None."""
    start: Tensor = next(iter(call.node.input_tensors), None)
    if isinstance(call.operation, ChannelShuffle | PermuteChannels):
        if call.operation.data_format != "channels_last":
            return None, start
        nodes, end = [call.node], call.node.outputs[0]
        return _permutation(nodes, start, end), end
    if type(call.operation).__name__ != "Reshape" or start is None or len(start.shape) != 4:
        return None, start
    for nodes, end in pieces_after(call.graph, start):
        if nodes[0] is call.node and any(type(node.operation).__name__ in _TURNS for node in nodes):
            return _permutation(nodes, start, end), end
    return None, start


def _permutation(nodes: list[Node], start: Tensor, end: Tensor) -> NDArray[np.int64] | None:
    matrix = sums(nodes, start, end)
    if matrix is None or matrix.shape[0] != matrix.shape[1] or not (matrix.sum(axis=0) == 1).all():
        return None
    return matrix.argmax(axis=0)


def _is_in_order(order: NDArray[np.int64]) -> bool:
    return bool((order == np.arange(len(order))).all())


def _source(graph: Graph, tensor: Tensor) -> Tensor:
    """Return the tensor that another one was made of by what leaves each channel where it is."""
    while True:
        node = graph.producer(tensor)
        if node is None or len(node.input_tensors) != 1:
            return tensor
        kind = type(node.operation)
        is_channelwise = kind in NORMS or isinstance(node.operation, CHANNELWISE) or activation_of(node) is not None
        is_single = kind in DEPTHWISE and node.operation.depth_multiplier == 1
        if not is_channelwise and not is_single:
            return tensor
        tensor = node.input_tensors[0]


def axes(examined: Examined) -> Iterator[Finding]:
    """Find images whose channels lie on another axis than the one that the convolutions take for it."""
    for call in examined.calls(*DENSE, *DEPTHWISE, *SEPARABLE):
        tensor = call.node.input_tensors[0]
        if call.graph.inputs != list(examined.subject.model.inputs):
            continue  # of a model within
        producer = call.graph.producer(tensor)
        if producer is not None and not isinstance(
            producer.operation, keras.layers.Rescaling | keras.layers.Normalization
        ):
            continue
        _, *sides = tensor.shape
        is_last = call.operation.data_format == "channels_last"
        channels, others = (sides[-1], sides[:-1]) if is_last else (sides[0], sides[1:])
        other = others[0] if is_last else others[-1]
        rest = others[1:] if is_last else others[:-1]
        if other not in _CHANNELS or set(rest) != {channels}:
            continue
        wanted, given = ("last", "first") if is_last else ("first", "last")
        yield Finding(
            "channels on another axis",
            Weight.STOPS,
            f"images of {tuple(sides)} are read as {channels} channels of {others[0]}x{others[1]} pixels",
            f"the layer has data_format='channels_{wanted}', and these are {other} channels on the {given} axis",
            f"Move the axis, numpy.moveaxis(images, {'1, -1' if is_last else '-1, 1'}), or build the model with "
            f"data_format='channels_{given}'",
            channels,
            (call.name,),
        )


RULES = (groups_apart, wrong_sums, idle_shuffles, axes)
