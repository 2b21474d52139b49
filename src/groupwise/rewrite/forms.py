"""`to_form`: ResNeXt's blocks as summed paths (a), concatenated paths (b) or grouped convolutions (c)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from groupwise import layers
from groupwise.models.form_weights import has_forms, in_form
from groupwise.models.residual import FORMS, check_choice
from groupwise.rewrite.branches import can_be_a_step, is_linear_convolution, merged_branches
from groupwise.rewrite.changes import Change, Left, Report, attach, report_of
from groupwise.rewrite.copying import copied, marked
from groupwise.rewrite.drop_ins import DENSE, NORMS
from groupwise.rewrite.rebuild import Replacement, Rewriter, apply, layers_by_path, record_gone
from groupwise.running.graph import Graph, Node, Tensor


def to_form(model: keras.Model, form: str) -> keras.Model:
    """Return the same trained model with its ResNeXt blocks in another of the three equivalent forms.

    Args:
        model: any functional or sequential model, of Keras's layers or ours; a network that `models.create` made is
            created anew. It is left as it is.
        form: "a" (paths summed), "b" (paths concatenated) or "c" (grouped convolution). A block is, in form c, a
            convolution with one group, one with several and, for form a, another with one group, with nothing but
            batch norm and activations between.

    Returns:
        A new model with all weights, the moving statistics of batch norm included. Its outputs are the model's up to
        rounding: they differ by at most 1e-5 of the largest one. `report_of` says which blocks were rewritten.

    Raises:
        UserError: a ValueError, where `form` is not one of the three, or the model is no graph of layers.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, figure 3 and section 3.3.

    Examples:
        >>> from groupwise.models import create
        >>> to_form(create("resnext20_16x4d_cifar10"), "b").architecture["form"]
        'b'
    """
    check_choice("form", form, FORMS)
    if has_forms(model):
        converted = in_form(model, form)
        before = model.architecture.get("form", "c")
        attach(converted, Report([Change(model.name, f"form {before}", f"form {form}")]))
        return _with_notes(model, record_gone(model, converted))
    merges = [partial(merged_branches, of_slices=of_slices, stays=form) for of_slices in (False, True)]
    merging = Rewriter(merges)
    converted = merging.rewrite(model)
    if form != "c":
        converted = Rewriter((partial(_cut, form=form),)).rewrite(converted)
        report = report_of(converted)
        report.left[:0] = merging.report.left
        report.notes[:0] = [note for note in merging.report.notes if note not in report.notes]
    return _with_notes(model, record_gone(model, converted))


def _with_notes(model: keras.Model, converted: keras.Model) -> keras.Model:
    """Give the layers of a converted model what was noted on those of the same names."""
    known = layers_by_path(model)
    for path, layer in layers_by_path(converted).items():
        old = known.get(path)
        if old is not None and not isinstance(old, keras.Model) and vars(old).keys() - vars(layer).keys():
            marked(old, layer)
    return converted


@dataclass(frozen=True)
class _Block:
    """The calls of a block in form c, in order: its grouped convolution, what lies before and what after.

    Attributes:
        nodes: all of them, from the convolution that narrows to the one that ends the paths.
        groups: into how many paths the block is cut.
        ends_with_sum: whether the last call is a convolution of one group, whose inputs the paths share out.
    """

    nodes: list[Node]
    groups: int
    ends_with_sum: bool


def _cut(rewriter: Rewriter, graph: Graph, node: Node, form: str) -> Replacement | Left | None:
    """Cut a block whose grouped convolution is `node` into paths."""
    groups = getattr(node.operation, "groups", 1)
    if type(node.operation) not in DENSE or groups == 1:
        return None
    block = _block(rewriter, graph, node, form)
    if isinstance(block, str):
        return Left(node.operation.name, f"{type(node.operation).__name__}, {groups} groups", block)
    last = block.nodes[-1].operation

    def build(new: Any) -> Tensor:
        x = new(block.nodes[0].input_tensors[0])
        ends = [_path(block, x, path) for path in range(groups)]
        kind: Any = keras.layers.Add if block.ends_with_sum else keras.layers.Concatenate
        return marked(last, kind(name=last.name, dtype=last.dtype_policy, autocast=last.autocast))(ends)

    change = Change(node.operation.name, "form c", f"form {form}, {groups} paths")
    return Replacement(block.nodes, build, [change])


def _block(rewriter: Rewriter, graph: Graph, node: Node, form: str) -> _Block | str:
    """Return the block around a grouped convolution, or why it is none."""
    if not can_be_a_step(rewriter, node):
        return "it is shared, or is called with more than one tensor"
    nodes = [node]
    while (before := graph.before(nodes[0])) is not None and can_be_a_step(rewriter, before):
        nodes.insert(0, before)
        if type(before.operation) in DENSE:
            break
    if type(nodes[0].operation) not in DENSE or nodes[0] is node or nodes[0].operation.groups != 1:
        return "before it stands no convolution with one group, but for batch norm and activation"
    while (after := graph.after(nodes[-1])) is not None and can_be_a_step(rewriter, after):
        if type(after.operation) in DENSE:
            break
        nodes.append(after)
    if form == "b":
        return _Block(nodes, node.operation.groups, False)
    is_end = after is not None and can_be_a_step(rewriter, after) and is_linear_convolution(after)
    if after is None or not is_end or after.operation.use_bias:
        return "after it stands no convolution with one group and without bias and activation"
    return _Block([*nodes, after], node.operation.groups, True)


def _path(block: _Block, x: Tensor, path: int) -> Tensor:
    """Return what one path of the block makes of the block's input."""
    for place, node in enumerate(block.nodes):
        layer = node.operation
        is_last = place == len(block.nodes) - 1 and block.ends_with_sum
        settings: dict[str, Any] = {"name": f"{layer.name}_path{path + 1}"}
        values = layer.get_weights()
        if type(layer) in DENSE:
            settings["groups"] = 1
            if is_last:
                values = [_slice(values[0], block.groups, path, axis=2)]
            else:
                settings["filters"] = layer.filters // block.groups
                values = [_slice(value, block.groups, path) for value in values]
            x = apply(copied(layer, layers.GroupedConv2D, **settings), values, x)
        else:
            values = [_slice(value, block.groups, path) for value in values] if type(layer) in NORMS else []
            x = apply(copied(layer, **settings), values, x)
    return x


def _slice(value: np.ndarray, groups: int, path: int, axis: int = -1) -> np.ndarray:
    return np.split(value, groups, axis)[path]
