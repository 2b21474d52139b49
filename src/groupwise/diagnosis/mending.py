"""A model in which the safe cures are made: kernels that no training has changed start anew, and norms stand behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras

from groupwise.diagnosis.kernels import constant_pointwise, depthwise_kernel, small_depthwise, unnormalised
from groupwise.diagnosis.subject import Call, Subject
from groupwise.layers import DepthwiseHeNormal
from groupwise.rewrite.changes import Change, Left
from groupwise.rewrite.copying import Values, copied
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, SEPARABLE
from groupwise.rewrite.rebuild import Replacement, Rewriter, give
from groupwise.running.graph import Graph, Node, Tensor, activation_of, functional

MOMENTUM = 0.9  # of a new batch norm: Keras's 0.99 takes hundreds of steps until a prediction can be trusted


@dataclass
class _Cure:
    """What is changed of one layer.

    Attributes:
        settings: of its configuration. drawn: which of its variables are drawn anew, by name.
        norm: whether a batch norm is put behind it. said: the same in words.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    norm: bool = False
    said: list[str] = field(default_factory=list)


def mend(model: keras.Model, batch_norm: bool = False) -> keras.Model:
    """Return a new model with the safe cures of what `diagnose` finds.

    Depthwise kernels that start too small are drawn anew by their true fan-in. Pointwise kernels whose outputs are all
    the same sum are drawn anew, and freed. A kernel that was trained stays what it is.

    Args:
        model: functional or sequential; it is left as it is.
        batch_norm: whether a batch norm is put behind each separable convolution that nothing normalises, before its
            activation.

    Returns:
        A new model, compiled as the old one was. `groupwise.rewrite.report_of` says what was changed.

    Raises:
        UserError: a ValueError, where the model is no graph of layers, or cannot be made anew.

    Examples:
        >>> from groupwise.rewrite import report_of
        >>> inputs = keras.Input((8, 8, 16))
        >>> model = keras.Model(inputs, keras.layers.SeparableConv2D(16, 3, name="conv")(inputs))
        >>> print(report_of(mend(model)))
        conv  SeparableConv2D -> SeparableConv2D, depthwise kernel by its true fan-in
    """
    functional(model)
    cures = _cures(Subject(model, (), is_random=True), batch_norm)
    return Rewriter((partial(_mended, cures=cures),)).rewrite(model)


def _cures(subject: Subject, batch_norm: bool) -> dict[int, _Cure]:
    """Return what is to be changed, by the ids of the layers."""
    cures: dict[int, _Cure] = {}
    for call in small_depthwise(subject):
        cure = cures.setdefault(id(call.operation), _Cure())
        cure.settings["depthwise_initializer"] = _initializer(call)
        cure.drawn.append("depthwise_kernel" if type(call.operation) in SEPARABLE else "kernel")
        cure.said.append("depthwise kernel by its true fan-in")
    for call, kernel in constant_pointwise(subject):
        cure, is_separable = cures.setdefault(id(call.operation), _Cure()), type(call.operation) in SEPARABLE
        name = "pointwise" if is_separable else "kernel"
        cure.settings |= {f"{name}_initializer": "he_normal", "trainable": True}
        cure.drawn.append(kernel.name)
        cure.said.append("pointwise kernel drawn anew, and trainable")
    for call in unnormalised(subject) if batch_norm else ():
        cure = cures.setdefault(id(call.operation), _Cure())
        cure.norm = True
        cure.said.append("batch norm")
    return cures


def _initializer(call: Call) -> keras.initializers.Initializer:
    """Return how a depthwise kernel should start: with the factor of 2 that a ReLU behind it takes away, or without."""
    layer, after = call.operation, call.graph.after(call.node)
    is_rectified = layer.activation is not keras.activations.linear or (after is not None and activation_of(after))
    if type(layer) in DEPTHWISE and is_rectified:
        return DepthwiseHeNormal()
    height, width, *_ = depthwise_kernel(layer).shape
    return keras.initializers.RandomNormal(stddev=(height * width) ** -0.5)


def _mended(rewriter: Rewriter, graph: Graph, node: Node, cures: Mapping[int, _Cure]) -> Replacement | Left | None:
    """Put a layer that starts as it should in place of one, and a batch norm behind it."""
    layer = node.operation
    cure, kind = cures.get(id(layer)), type(layer).__name__
    if cure is None or type(layer) not in (*DENSE, *DEPTHWISE, *SEPARABLE):
        return None
    if not rewriter.is_used_once(layer):
        return Left(layer.name, kind, "it is shared")
    settings = {**cure.settings, **({"activation": None} if cure.norm else {})}

    def build(new: Any) -> Tensor:
        made = rewriter.once(layer, lambda: copied(layer, **settings))
        outputs = made(new(node.input_tensors[0]))
        give(made, _values(layer, made, cure))
        return _normalised(layer, outputs) if cure.norm else outputs

    return Replacement([node], build, [Change(layer.name, kind, ", ".join([kind, *cure.said]))])


def _values(layer: Any, made: Any, cure: _Cure) -> Values:
    """Return the values of a new layer: those of the old one, but for what is drawn anew."""
    pairs = zip(layer.weights, made.weights, strict=True)
    return [keras.ops.convert_to_numpy(new if old.name in cure.drawn else old) for old, new in pairs]


def _normalised(layer: Any, outputs: Tensor) -> Tensor:
    axis = 1 if layer.data_format == "channels_first" else -1
    outputs = keras.layers.BatchNormalization(axis, MOMENTUM, name=f"{layer.name}_norm")(outputs)
    if layer.activation is keras.activations.linear:
        return outputs
    return keras.layers.Activation(layer.activation, name=f"{layer.name}_activation")(outputs)
