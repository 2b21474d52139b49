"""Parallel branches of equal layers that are concatenated or added up: merged into one, and cut into such branches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from groupwise import layers
from groupwise.layers.permuting import PermuteChannels
from groupwise.layers.twins import objection
from groupwise.rewrite.changes import Change, Left
from groupwise.rewrite.copying import copied, marked
from groupwise.rewrite.drop_ins import DENSE, NORMS
from groupwise.rewrite.probing import selection
from groupwise.rewrite.rebuild import Replacement, Rewriter, apply
from groupwise.rewrite.settings import name_of_result, objection_to_new_values
from groupwise.running.graph import Graph, Node, Tensor, is_addition, is_plain, is_weightless

_OF_ONE_LAYER = ("name", "filters", "groups", "kernel_initializer", "bias_initializer")
"""What may differ between a branch's layer and its fellow's, or is summed over the branches."""
ACROSS_CHANNELS = ("softmax", "log_softmax", "sparsemax", "glu")
"""Activations that look at all channels of a pixel."""


def merged_branches(
    rewriter: Rewriter, graph: Graph, node: Node, of_slices: bool, stays: str = "c"
) -> Replacement | Left | None:
    """Merge the branches that a call concatenates or adds up.

    Args:
        node: the concatenation; or, of branches that end with a convolution, the last addition.
        of_slices: whether the branches begin with slices of one tensor (a hand-made grouped convolution), or all with
            the tensor itself (ResNeXt's forms a and b).
        stays: the form whose blocks are left as they are.
    """
    found = _Branches.find(rewriter, graph, node, of_slices)
    if found is None:
        return None
    is_form = found.order is None and stays == ("a" if found.summed else "b")
    return Left(found.name, found.described, f"it has form {stays}") if is_form else found.merged()


@dataclass
class _Branches:
    """Equal branches, found from their ends.

    Attributes:
        steps: layer by layer, the calls of all branches side by side.
        source: the tensor that they begin with; order: the channels of it that the branches take, side by side, or
            None where each takes all.
        joint: the concatenation, or the additions; summed: whether they are added up.
        name: of the layer that will give their value.
    """

    steps: list[list[Node]]
    source: Tensor
    order: list[int] | None
    joint: list[Node]
    summed: bool
    name: str

    @staticmethod
    def find(rewriter: Rewriter, graph: Graph, node: Node, of_slices: bool) -> "_Branches | None":
        summed = is_addition(node)
        joint, ends = _added(graph, node) if summed else ([node], list(node.input_tensors))
        is_joint = summed or (type(node.operation).__name__ == "Concatenate" and node.operation.axis in (-1, 3))
        if not is_joint or len(ends) < 2:
            return None
        steps: list[list[Node]] = []
        while (nodes := _step(rewriter, graph, ends)) is not None:
            if summed and not steps and not is_linear_convolution(nodes[0]):
                return None
            steps.insert(0, nodes)
            ends = [made.input_tensors[0] for made in nodes]
        if not steps or type(steps[0][0].operation) not in DENSE or len({end.shape for end in ends}) > 1:
            return None
        if not _is_kept(steps, joint, summed):
            return None
        name = name_of_result(graph, joint[-1], _common_name([made.operation for made in steps[-1]]))
        if of_slices:
            cut = _slices(graph, ends)
            return None if cut is None else _Branches(steps, cut[1], cut[0], joint, summed, name)
        # Fewer convolutions in a row, as in Inception, make no ResNeXt block.
        is_block = sum(type(nodes[0].operation) in DENSE for nodes in steps) > 1
        is_shared = len(set(map(id, ends))) == 1 and steps[0][0].operation.groups == 1
        return _Branches(steps, ends[0], None, joint, summed, name) if is_block and is_shared else None

    @property
    def described(self) -> str:
        """What they are, for a report."""
        return f"{len(self.steps[0])} branches and their {'sum' if self.summed else 'concatenation'}"

    def merged(self) -> Replacement:
        def build(new: Any) -> Tensor:
            x = new(self.source)
            if self.order is not None and self.order != list(range(len(self.order))):
                name = f"{self.name}_order"
                x = PermuteChannels(self.order, "channels_last", name=name)(x)
            for place, nodes in enumerate(self.steps):
                is_last, is_first = place == len(self.steps) - 1, place == 0
                name = self.name if is_last else _common_name([node.operation for node in nodes])
                giver = self.joint[-1].operation if is_last else None
                x = _merged_layer(nodes, name, is_first and self.order is None, is_last and self.summed, giver, x)
            return x

        calls = [node for nodes in self.steps for node in nodes] + self.joint
        change = Change(self.name, self.described, "GroupedConv2D")
        return Replacement(calls, build, [change], reads=[self.source])


def _added(graph: Graph, node: Node) -> tuple[list[Node], list[Tensor]]:
    """Return the additions that end with `node`, which no other addition continues, and what they add up."""
    after = graph.after(node)
    if after is not None and is_addition(after) and type(node.operation) is type(after.operation):
        is_chain = len(after.input_tensors) == 2 and not isinstance(node.operation, keras.layers.Layer)
        if is_chain:
            return [], []
    joint, ends = [node], []
    waiting = list(node.input_tensors)[::-1]
    while waiting:
        tensor = waiting.pop()
        made = graph.producer(tensor)
        is_part = made is not None and is_addition(made) and not isinstance(made.operation, keras.layers.Layer)
        if is_part and graph.only_reader(tensor) is not None:
            assert made is not None
            joint.insert(0, made)
            waiting += list(made.input_tensors)[::-1]
        else:
            ends.append(tensor)
    return joint, ends


def _step(rewriter: Rewriter, graph: Graph, ends: Sequence[Tensor]) -> list[Node] | None:
    """Return the calls that make the branches' ends, if they are one step: layers alike, each of its own branch."""
    nodes = []
    for end in ends:
        node = graph.producer(end)
        if node is None or graph.only_reader(end) is None or not can_be_a_step(rewriter, node):
            return None
        nodes.append(node)
    configs = [{k: v for k, v in node.operation.get_config().items() if k not in _OF_ONE_LAYER} for node in nodes]
    shapes = {node.outputs[0].shape for node in nodes}
    kinds = {(type(node.operation), getattr(node.operation, "groups", 1), node.operation.autocast) for node in nodes}
    is_one = len(kinds) == len(shapes) == 1 and all(config == configs[0] for config in configs[1:])
    return nodes if is_one else None


def _slices(graph: Graph, ends: Sequence[Tensor]) -> tuple[list[int], Tensor] | None:
    """Return the channels that the branches begin with, side by side, and the tensor whose channels they share out."""
    nodes = [graph.producer(end) for end in ends]
    # What has state would be another afterwards: these are run to see what they do.
    cuts = [node for node in nodes if node and len(node.input_tensors) == 1 and is_weightless(node.operation)]
    if len(cuts) < len(ends) or len({id(node.input_tensors[0]) for node in cuts}) > 1:
        return None
    source = cuts[0].input_tensors[0]
    order: list[int] = []
    for node, end in zip(cuts, ends, strict=True):
        chosen = selection(node, source, end)
        if chosen is None:
            return None
        order += chosen.tolist()
    if sorted(order) != list(range(source.shape[-1])):
        return None
    return order, source


def can_be_a_step(rewriter: Rewriter, node: Node) -> bool:
    """Return whether a call is of a layer that can be merged with its like, or cut into several, channel by channel."""
    layer = node.operation
    is_known = type(layer) in (*DENSE, *NORMS, keras.layers.ReLU, keras.layers.Activation)
    if not is_known or not is_plain(node) or not rewriter.is_used_once(layer) or objection(layer):
        return False
    if objection_to_new_values(layer):
        return False
    if getattr(getattr(layer, "activation", None), "__name__", "") in ACROSS_CHANNELS:
        return False
    return getattr(layer, "data_format", "channels_last") == "channels_last" and getattr(layer, "axis", -1) in (-1, 3)


def is_linear_convolution(node: Node) -> bool:
    """Return whether a call is of a convolution of one group and without activation."""
    layer = node.operation
    return type(layer) in DENSE and layer.groups == 1 and layer.activation is keras.activations.linear


def _is_kept(steps: Sequence[Sequence[Node]], joint: Sequence[Node], summed: bool) -> bool:
    """Return whether one layer in place of the branches and what joins them has their types and penalties."""
    dtypes = {tensor.dtype for node in joint for tensor in (*node.input_tensors, *node.outputs)}
    joining = [node.operation for node in joint if isinstance(node.operation, keras.layers.Layer)]
    first = steps[-1][0].operation
    if any((each.dtype_policy, each.autocast) != (first.dtype_policy, first.autocast) for each in joining):
        return False
    is_heard = any(each.activity_regularizer is not None for each in joining)
    adds_biases = summed and any(node.operation.use_bias and node.operation.bias_regularizer for node in steps[-1])
    return len(dtypes) == 1 and not is_heard and not adds_biases


def _merged_layer(
    nodes: Sequence[Node], name: str, shares_input: bool, is_summed: bool, giver: Any, x: Tensor
) -> Tensor:
    """Return what the merged layer of a step makes of the merged branches; `giver` gave its value until now."""
    made = [node.operation for node in nodes]
    first = made[0]
    settings: dict[str, Any] = {"name": name}
    if type(first) not in DENSE:
        values = [np.concatenate(parts) for parts in zip(*(layer.get_weights() for layer in made), strict=True)]
        return apply(_of_giver(copied(first, **settings), giver), values, x)
    kernels, *biases = zip(*(layer.get_weights() for layer in made), strict=True)
    if is_summed:
        values = [np.concatenate(kernels, axis=2), *(sum(bias) for bias in biases)]
    else:
        values = [np.concatenate(kernels, axis=3), *(np.concatenate(bias) for bias in biases)]
        settings["filters"] = sum(layer.filters for layer in made)
        settings["groups"] = first.groups if shares_input else first.groups * len(made)
    return apply(_of_giver(copied(first, layers.GroupedConv2D, **settings), giver), values, x)


def _of_giver(merged: Any, giver: Any) -> Any:
    return marked(giver, merged) if isinstance(giver, keras.layers.Layer) else merged


def _common_name(made: Sequence[Any]) -> str:
    """Return a name for merged layers: the first branch's without its path's number, and none of theirs."""
    name = re.sub(r"_path1(?=_|$)", "", made[0].name)
    return f"{name}_merged" if name in {layer.name for layer in made} else name
