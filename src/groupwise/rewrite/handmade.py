"""Rules for grouped convolutions that people write by hand: depthwise, reshape, sum; split, convolve, concatenate."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from groupwise import layers
from groupwise.layers.permuting import PermuteChannels
from groupwise.layers.twins import objection
from groupwise.rewrite.branches import merged_branches
from groupwise.rewrite.changes import Change, Gone, Left
from groupwise.rewrite.copying import config_of, marked
from groupwise.rewrite.drop_ins import DEPTHWISE
from groupwise.rewrite.probing import pieces_after, sums
from groupwise.rewrite.rebuild import Replacement, Rewriter, apply
from groupwise.rewrite.settings import name_of_result, objection_to_new_values
from groupwise.running.graph import Graph, Node, Tensor, is_plain

Groups = list[tuple[list[int], list[int]]]
"""Each group's input channels and output channels."""


def split_and_concatenated(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | Left | None:
    """Put one grouped convolution in place of slices, a convolution for each, and their concatenation."""
    return merged_branches(rewriter, graph, node, of_slices=True)


def depthwise_and_sum(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | Left | None:
    """Put one grouped convolution in place of a depthwise one, a reshape and a sum over the channels of each group.

    Which channels are summed is found by running what follows the depthwise convolution, so that the arrangement counts
    and not how it is written. Where the groups are strided, the channels are permuted before.
    """
    depthwise = node.operation
    if (
        type(depthwise) not in DEPTHWISE
        or objection(depthwise)
        or depthwise.depth_multiplier == 1
        or not is_plain(node)
    ):
        return None
    is_linear = depthwise.activation is keras.activations.linear and depthwise.data_format == "channels_last"
    if not is_linear or not rewriter.is_used_once(depthwise):
        return None
    for nodes, end in pieces_after(graph, node.outputs[0]):
        summed = sums(nodes, node.outputs[0], end)
        if summed is None or summed.shape[0] == summed.shape[1]:
            continue
        groups = _groups(summed, depthwise.depth_multiplier)
        if not isinstance(groups, str):
            groups = _why_not(depthwise, nodes) or groups
        if isinstance(groups, str):
            return Left(depthwise.name, "DepthwiseConv2D and a sum", groups)
        return _grouped([node, *nodes], summed, groups, name_of_result(graph, nodes[-1], f"{depthwise.name}_grouped"))
    return None


def _groups(summed: np.ndarray, multiplier: int) -> Groups | str:
    """Return each group's (input channels, output channels), or why the sums are no grouped convolution.

    Args:
        summed: `probing.sums` of the depthwise outputs, of which `q * multiplier + r` is input channel q's.
    """
    if sums_own_filters(summed, multiplier):
        return (
            "each sum is over the filters of one channel, so that no two channels ever meet: not a grouped convolution "
            "(sum over the middle axis of (groups, in/groups, out/groups) instead)"
        )
    found: dict[tuple[int, ...], list[int]] = {}
    for output, channels in enumerate(_channels_of(summed, multiplier)):
        found.setdefault(tuple(sorted(channels)), []).append(output)
    members = [channel for channels in found for channel in channels]
    sizes = {(len(channels), len(outputs)) for channels, outputs in found.items()}
    if len(sizes) != 1 or len(set(members)) != len(members):
        return "its sums are no equal groups of channels"
    return [(list(channels), outputs) for channels, outputs in found.items()]


def sums_own_filters(summed: np.ndarray, multiplier: int) -> bool:
    """Return whether each sum is over filters of one channel alone, as `_groups` is given them."""
    return all(len(set(channels)) == 1 for channels in _channels_of(summed, multiplier))


def _channels_of(summed: np.ndarray, multiplier: int) -> list[np.ndarray]:
    return [np.flatnonzero(column) // multiplier for column in summed.T]


def _why_not(depthwise: Any, nodes: Sequence[Node]) -> str | None:
    """Return which setting a grouped convolution in place of a depthwise one and the calls after it would not have."""
    if depthwise.bias_regularizer is not None and depthwise.use_bias:
        return "its bias is penalised, and would be another one"
    types = {depthwise.compute_dtype, *(getattr(node.operation, "compute_dtype", None) for node in nodes)} - {None}
    if len(types) > 1 or nodes[-1].outputs[0].dtype != depthwise.compute_dtype:
        return f"its type, {depthwise.compute_dtype}, is not that of the calls after it"
    if any(getattr(node.operation, "activity_regularizer", None) is not None for node in nodes):
        return "what it computes in between is penalised"
    return objection_to_new_values(depthwise)


def _grouped(nodes: list[Node], summed: np.ndarray, groups: Groups, name: str) -> Replacement:
    """Return the grouped convolution in place of a depthwise one, the first of `nodes`, and the sums after it."""
    depthwise = nodes[0].operation
    in_order = [channel for channels, _ in groups for channel in channels]
    out_order = [channel for _, outputs in groups for channel in outputs]
    kernel, *bias = depthwise.get_weights()
    weights = [_kernel(kernel, summed, groups), *((value @ summed)[out_order] for value in bias)]
    config = {
        "filters": len(out_order),
        "groups": len(groups),
        "kernel_regularizer": depthwise.depthwise_regularizer,
        **{name: getattr(depthwise, name) for name in ("kernel_size", "strides", "padding", "dilation_rate")},
        **{name: config_of(depthwise)[name] for name in ("trainable", "dtype", "use_bias", "data_format")},
    }
    is_dealt = out_order != sorted(out_order)

    def build(new: Any) -> Tensor:
        x = permuted(new(nodes[0].input_tensors[0]), in_order, f"{depthwise.name}_in_order", depthwise)
        own = layers.GroupedConv2D.from_config({**config, "name": f"{name}_in_groups" if is_dealt else name})
        last = nodes[-1].operation
        own = marked(last, own) if isinstance(last, keras.layers.Layer) else own
        return permuted(apply(own, weights, x), np.argsort(out_order).tolist(), name, depthwise)

    is_strided = in_order != sorted(in_order) or is_dealt
    notes = ["its groups are strided: the channels are permuted"] * is_strided
    # A sum of biases moves by the sum of their gradients.
    notes += ["its biases are added up to one, which is trained more slowly"] * bool(bias)
    before = "DepthwiseConv2D, reshape, sum"
    change = Change(name, before, f"GroupedConv2D, {len(groups)} groups", "; ".join(notes))
    gone = [Gone(depthwise.name, "its outputs are summed as they are computed")]
    return Replacement(nodes, build, [change], gone=gone)


def _kernel(depthwise: np.ndarray, summed: np.ndarray, groups: Groups) -> np.ndarray:
    """Return the grouped kernel: of each output channel, the depthwise filters that it sums, by their input channel."""
    height, width, _, multiplier = depthwise.shape
    flat = depthwise.reshape(height, width, -1)
    columns = []
    for channels, outputs in groups:
        for output in outputs:
            places = np.flatnonzero(summed[:, output])
            of_channel = dict(zip((places // multiplier).tolist(), places.tolist(), strict=True))
            columns.append(flat[..., [of_channel[channel] for channel in channels]])
    return np.stack(columns, axis=-1)


def permuted(x: Tensor, order: list[int], name: str, like: Any) -> Tensor:
    """Return the channels in another order, in the type of a layer; `x` itself where that is theirs."""
    if order == list(range(len(order))):
        return x
    return PermuteChannels(order, "channels_last", name=name, dtype=like.dtype_policy)(x)
