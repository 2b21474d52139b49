"""Convolutions of another structure with the same sums, or the nearest: grouped, dense, separable."""

import fnmatch
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from groupwise import layers
from groupwise.errors import UserError
from groupwise.layers.twins import described, objection
from groupwise.models.costs import describe_model
from groupwise.rewrite import kernels
from groupwise.rewrite.carrying import without_permutations
from groupwise.rewrite.changes import Change, Gone, Left, report_of
from groupwise.rewrite.copying import Values, config_of, marked
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, SEPARABLE
from groupwise.rewrite.handmade import permuted
from groupwise.rewrite.rebuild import Replacement, Rewriter, apply, record_gone
from groupwise.rewrite.settings import objection_to_new_values, objection_to_variables, set_penalties
from groupwise.running.graph import Graph, Node, Tensor, is_plain

_SHARED_SETTINGS = (
    *("name", "trainable", "dtype", "strides", "padding", "dilation_rate", "data_format", "activation"),
    *("activity_regularizer", "bias_regularizer", "bias_constraint"),
)

Made = tuple[type, dict[str, Any], Values, Change]
"""A layer's class, the settings that differ from the old one's, its weights, and the report's row."""


def grouped_to_dense(model: keras.Model, layers: str = "*") -> keras.Model:
    """Return the same model with a dense convolution in place of each grouped and depthwise one, zero between groups.

    It is larger and slower, and shows that a grouped convolution is a dense one with zeros; once trained, it is no
    longer the same.

    Args:
        model: functional or sequential; it is left as it is.
        layers: which layers, as a shell pattern of their names.

    Returns:
        A new model; outputs agree to 1e-5. `report_of` says what was rewritten.

    Raises:
        UserError: a ValueError, where the model is no graph of layers.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, groups=4, use_bias=False, name="conv")(inputs))
        >>> tuple(grouped_to_dense(model).get_layer("conv").kernel.shape)
        (3, 3, 4, 4)
    """
    return record_gone(model, Rewriter((partial(_layer, make=_dense, pattern=layers),)).rewrite(model))


def separable_to_dense(model: keras.Model, layers: str = "*") -> keras.Model:
    """Return the same model with one dense convolution in place of each separable one.

    Also in place of a depthwise convolution and the 1x1 that follows it directly. Arguments, result and errors are
    `grouped_to_dense`'s.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> model = keras.Model(inputs, keras.layers.SeparableConv2D(5, 3, use_bias=False, name="conv")(inputs))
        >>> tuple(separable_to_dense(model).get_layer("conv").kernel.shape)
        (3, 3, 4, 5)
    """
    rules = (
        partial(_depthwise_and_pointwise, pattern=layers),
        partial(_layer, make=_dense_of_separable, pattern=layers),
    )
    return record_gone(model, Rewriter(rules).rewrite(model))


def dense_to_grouped(model: keras.Model, groups: int, layers: str = "*", approximate: bool = False) -> keras.Model:
    """Return the model with a grouped convolution in place of each dense one whose kernel is zero between groups.

    Args:
        model: functional or sequential; it is left as it is.
        groups: a common divisor of the channels; layers that it does not divide are left.
        layers: which layers, as a shell pattern of their names.
        approximate: whether to rewrite layers too that are not zero there: channels are put into an order that brings
            much of the kernel's norm into the groups (`kernels.group_channels`: never worse than the given order), the
            layers around take the order on in their weights, or a `PermuteChannels` stays where they cannot, and the
            rest of the kernel is left out.

    Returns:
        A new model; exact, unless `approximate`. `report_of` has each layer's error, the share of the kernel's norm
        that is left out, and what was left, with the share that lies outside.

    Raises:
        UserError: a ValueError, where no layer can be rewritten, saying why not, or the model is no graph of layers.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, groups=2, name="conv")(inputs))
        >>> dense_to_grouped(grouped_to_dense(model), 2).get_layer("conv").groups
        2
    """
    rule = partial(_to_grouped, groups=groups, pattern=layers, approximate=approximate)
    rewritten = without_permutations(Rewriter((rule,)).rewrite(model))
    report = report_of(rewritten)
    if not report.changes:
        reasons = "; ".join(f"{left.layer}: {left.reason}" for left in report.left[:3])
        raise UserError(
            f"groups={groups}: no layer of {model.name!r} that matches {layers!r} can be made grouped"
            + (f" ({reasons}); approximate=True leaves out what lies outside" if reasons else "")
        )
    return record_gone(model, rewritten)


def dense_to_separable(model: keras.Model, rank: int, layers: str = "*") -> keras.Model:
    """Return the model with the nearest separable convolution in place of each dense one larger than 1x1.

    Args:
        model: functional or sequential; it is left as it is.
        rank: the depth multiplier; at kernel height * width the result is exact, below it is the nearest by singular
            values (`kernels.separable_of_dense`).
        layers: which layers, as a shell pattern of their names.

    Returns:
        A new model. `report_of` has each layer's relative error, and a note of the MACs before and after.

    Raises:
        UserError: a ValueError, where rank is below 1, or the model is no graph of layers.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(5, 3, name="conv")(inputs))
        >>> dense_to_separable(model, rank=2).get_layer("conv").depth_multiplier
        2
    """
    if rank < 1:
        raise UserError(f"rank={rank}: must be at least 1; it is the depth multiplier of the separable convolutions")
    rewritten = Rewriter((partial(_layer, make=partial(_separable, rank=rank), pattern=layers),)).rewrite(model)
    before, after = (describe_model(each).counted_macs for each in (model, rewritten))
    if report_of(rewritten).changes and before:  # none are counted where the image's size is unknown
        saved = f"{1 - after / before:.1%} saved" if after <= before else f"{after / before - 1:.1%} more"
        report_of(rewritten).note(f"MACs for one image: {before:,} -> {after:,} ({saved})")
    return record_gone(model, rewritten)


def _layer(
    rewriter: Rewriter, graph: Graph, node: Node, make: Callable[[Any], Made | None], pattern: str
) -> Replacement | Left | None:
    """Put another layer in place of one, wherever it is called."""
    layer = node.operation
    made = make(layer) if _is_meant(layer, pattern) else None
    if made is None:
        return None
    kind, settings, values, change = made
    has_entries = kind is layers.GroupedConv2D and type(layer) not in SEPARABLE
    why_not = objection_to_new_values(layer, keeps_outputs=True) if has_entries else objection_to_variables(layer)
    if why_not:
        return Left(layer.name, described(layer), why_not)

    def build(new: Any) -> Tensor:
        arguments, keywords = node.arguments.fill_in({id(tensor): new(tensor) for tensor in node.input_tensors})
        config = {**_shared(layer), **settings}
        replaced = rewriter.once(layer, lambda: marked(layer, kind.from_config(config)))  # type: ignore[attr-defined]
        return apply(replaced, values, *arguments, **keywords)

    return Replacement([node], build, [change])


def _dense(layer: Any) -> Made | None:
    is_depthwise = type(layer) in DEPTHWISE
    if not is_depthwise and (type(layer) not in DENSE or layer.groups == 1):
        return None
    kernel, *bias = layer.get_weights()
    groups = kernel.shape[2] if is_depthwise else layer.groups
    kernel = kernels.dense_of_grouped(kernel.reshape(*kernel.shape[:2], 1, -1) if is_depthwise else kernel, groups)
    change = Change(layer.name, described(layer), "dense GroupedConv2D")
    regularizer = config_of(layer)["depthwise_regularizer" if is_depthwise else "kernel_regularizer"]
    settings = {**_kernel_settings(kernel, layer.use_bias), "kernel_regularizer": regularizer}
    return layers.GroupedConv2D, settings, [kernel, *bias], change


def _dense_of_separable(layer: Any) -> Made | None:
    if type(layer) not in SEPARABLE:
        return None
    depthwise, pointwise, *bias = layer.get_weights()
    kernel = kernels.dense_of_separable(depthwise, pointwise)
    change = Change(layer.name, "SeparableConv2D", "dense GroupedConv2D", _left_out(layer))
    return layers.GroupedConv2D, _kernel_settings(kernel, layer.use_bias), [kernel, *bias], change


def _separable(layer: Any, rank: int) -> Made | None:
    if type(layer) not in DENSE or layer.groups > 1 or tuple(layer.kernel_size) == (1, 1):
        return None
    kernel, *bias = layer.get_weights()
    rank = min(rank, int(np.prod(kernel.shape[:2])))
    depthwise, pointwise, error = kernels.separable_of_dense(kernel, rank)
    settings = {**_kernel_settings(kernel, layer.use_bias), "depth_multiplier": rank}
    change = Change(layer.name, described(layer), f"SeparableConv2D, rank {rank}", _left_out(layer), error)
    return layers.SeparableConv2D, settings, [depthwise, pointwise, *bias], change


def _depthwise_and_pointwise(rewriter: Rewriter, graph: Graph, node: Node, pattern: str) -> Replacement | Left | None:
    """Put one dense convolution in place of a depthwise one and the 1x1 that alone reads it."""
    depthwise, after = node.operation, graph.after(node)
    if type(depthwise) not in DEPTHWISE or after is None or not _is_meant(depthwise, pattern):
        return None
    pointwise = after.operation
    is_pointwise = type(pointwise) in DENSE and tuple(pointwise.kernel_size) == (1, 1) and pointwise.groups == 1
    if not is_pointwise or set(pointwise.strides) != {1} or objection(pointwise) or not _pads_nothing(pointwise):
        return None
    alone = all(rewriter.is_used_once(layer) for layer in (depthwise, pointwise)) and is_plain(node) and is_plain(after)
    is_linear = depthwise.activation is keras.activations.linear and depthwise.activity_regularizer is None
    if not alone or not is_linear or depthwise.compute_dtype != pointwise.compute_dtype:
        return None
    if depthwise.trainable != pointwise.trainable:
        return Left(pointwise.name, described(pointwise), f"it is frozen, or {depthwise.name} before it, and not both")
    why_not = objection_to_variables(depthwise) or objection_to_variables(pointwise)
    if why_not:
        return Left(pointwise.name, described(pointwise), why_not)
    spatial, *first_bias = depthwise.get_weights()
    mixing, *second_bias = pointwise.get_weights()
    kernel = kernels.dense_of_separable(spatial, mixing)
    bias = sum([value @ mixing[0, 0] for value in first_bias] + second_bias) if first_bias or second_bias else None
    own = ("name", "activation", "activity_regularizer", "bias_regularizer", "bias_constraint")
    settings = {**_shared(depthwise), **{name: config_of(pointwise)[name] for name in own}}
    settings |= _kernel_settings(kernel, bias is not None)

    def build(new: Any) -> Tensor:
        made = marked(pointwise, layers.GroupedConv2D.from_config(settings))
        return apply(made, [kernel] if bias is None else [kernel, bias], new(node.input_tensors[0]))

    note = ", ".join(filter(None, (_left_out(depthwise, keeps_bias=False), _left_out(pointwise))))
    change = Change(pointwise.name, "DepthwiseConv2D, 1x1 convolution", "dense GroupedConv2D", note)
    return Replacement([node, after], build, [change])


def _to_grouped(
    rewriter: Rewriter, graph: Graph, node: Node, groups: int, pattern: str, approximate: bool
) -> Replacement | Left | None:
    layer = node.operation
    if type(layer) not in DENSE or layer.groups > 1 or not _is_meant(layer, pattern) or groups < 2:
        return None
    kernel, *bias = layer.get_weights()
    kind = f"{type(layer).__name__}, {kernel.shape[2]} to {kernel.shape[3]} channels"
    if layer.filters % groups or kernel.shape[2] % groups:
        return Left(layer.name, kind, f"{groups} groups do not divide its channels")
    share = kernels.outside(kernel, groups)
    if share and not approximate:
        return Left(layer.name, kind, f"{share:.1%} of its kernel's norm lies outside the groups' blocks")
    if not rewriter.is_used_once(layer) or not is_plain(node):
        return Left(layer.name, kind, "it is shared, or is called with more than one tensor")
    why_not = objection_to_new_values(layer, keeps_outputs=not share)
    if why_not:
        return Left(layer.name, kind, why_not)
    ins, outs = kernels.group_channels(kernel, groups) if share else (np.arange(n) for n in kernel.shape[2:])
    ordered = kernel[:, :, ins][..., outs]
    error = kernels.outside(ordered, groups)
    weights = [kernels.grouped_of_dense(ordered, groups), *(value[outs] for value in bias)]
    regularizer = config_of(layer)["kernel_regularizer"]
    settings = {**_shared(layer), **_kernel_settings(kernel, layer.use_bias), "kernel_regularizer": regularizer}
    is_dealt = bool(np.any(np.diff(outs) < 0))
    name, permuted_name = layer.name, f"{layer.name}_out_order"
    if is_dealt and graph.is_result(node.outputs[0]):  # which is called by the name of what gives it
        name, permuted_name = f"{layer.name}_in_groups", layer.name

    def build(new: Any) -> Tensor:
        x = permuted(new(node.input_tensors[0]), ins.tolist(), f"{layer.name}_in_order", layer)
        made = layers.GroupedConv2D.from_config({**settings, "groups": groups, "name": name})
        x = apply(marked(layer, made), weights, x)
        return permuted(x, np.argsort(outs).tolist(), permuted_name, layer)

    note = f"{share:.1%} of the norm outside in the given order" if share else ""
    change = Change(layer.name, kind, f"GroupedConv2D, {groups} groups", note, error if share else None)
    gone = [Gone(layer.name, "its channels come in another order")] * is_dealt
    return Replacement([node], build, [change], gone=gone)


def _is_meant(layer: Any, pattern: str) -> bool:
    """Return whether a layer's name matches, and its weights can be taken as they are."""
    known = type(layer) in (*DENSE, *DEPTHWISE, *SEPARABLE)
    return known and fnmatch.fnmatch(layer.name, pattern) and objection(layer) is None and _is_last(layer)


def _is_last(layer: Any) -> bool:
    return bool(layer.data_format == "channels_last")


def _pads_nothing(layer: Any) -> bool:
    return isinstance(layer.padding, str) or not any(side for pair in layer.padding for side in pair)


def _left_out(layer: Any, keeps_bias: bool = True) -> str:
    """Say which regularisers and constraints are left out: those of weights that are others now mean nothing."""
    kept = ("activity", "bias") if keeps_bias else ("activity",)
    names = [name for name in set_penalties(layer) if not name.startswith(kept)]
    return f"without its {', '.join(names)}" if names else ""


def _shared(layer: Any) -> dict[str, Any]:
    config = config_of(layer)
    return {name: config[name] for name in _SHARED_SETTINGS}


def _kernel_settings(kernel: Sequence[Any] | np.ndarray, use_bias: bool) -> dict[str, Any]:
    shape = np.shape(kernel)
    return {"filters": int(shape[3]), "kernel_size": tuple(map(int, shape[:2])), "use_bias": bool(use_bias)}
