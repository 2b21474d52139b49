"""The one engine of all rewrites: a model is built anew, call by call, with some calls replaced by what rules say."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

from groupwise.errors import UserError
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.rewrite.graph import Graph, Node, Tensor, functional, is_graph, models_within
from groupwise.rewrite.report import Change, Left, Report, attach

Values = Sequence[np.ndarray]
New = Callable[[Tensor], Tensor]
"""From a tensor of the old model to the new model's."""


@dataclass(frozen=True)
class Replacement:
    """What takes the place of some calls.

    Attributes:
        nodes: the calls; what they make is read by no other, but for the last one's output.
        build: makes the new output, from a function that gives the new model's tensor for each old one that it reads.
        reads: the old tensors that `build` asks for; None: those that the calls read and do not make.
        changes: the report's rows.
        weights: new values for layers that stay, by their ids.
    """

    nodes: Sequence[Node]
    build: Callable[[New], Tensor]
    changes: Sequence[Change] = ()
    reads: Sequence[Tensor] | None = None
    weights: dict[int, Values] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Tensor]:
        """The old tensors that are read."""
        if self.reads is not None:
            return list(self.reads)
        made = {id(tensor) for node in self.nodes for tensor in node.outputs}
        return [tensor for node in self.nodes for tensor in node.input_tensors if id(tensor) not in made]


Rule = Callable[["Rewriter", Graph, Node], Replacement | Left | None]
"""Looks at one call: a replacement that begins, ends or lies there, the reason why there is none, or nothing."""


class Rewriter:
    """One rewrite of one model and of all models within it: layers and models that are shared stay shared."""

    def __init__(self, rules: Iterable[Rule], after_clone: Callable[[Any, Report], None] | None = None) -> None:
        self.rules, self.after_clone = tuple(rules), after_clone
        self.report = Report()
        self._layers: dict[int, Any] = {}
        self._models: dict[int, keras.Model] = {}
        self._weights: dict[int, Values] = {}
        self._calls: Counter[int] = Counter()

    def rewrite(self, model: keras.Model) -> keras.Model:
        """Return the new model, compiled anew where the old one was, and its report attached."""
        if not model.built:
            raise UserError(f"model {model.name!r}: it is not built; call it, or build(), once")
        for part in models_within(model):
            self._calls.update(id(node.operation) for node in Graph(part).nodes)
        rewritten = self._model(model)
        if model.compiled:
            try:
                rewritten.compile_from_config(model.get_compile_config())
            except (ValueError, TypeError):  # a loss or metric that is a function of the user's own
                self.report.notes.append(
                    "The old model's loss or metrics cannot be copied: compile the new one yourself."
                )
        attach(rewritten, self.report)
        return rewritten

    def is_used_once(self, operation: Any) -> bool:
        """Return whether the whole model calls a layer just once, so that it may become part of another one."""
        return self._calls[id(operation)] == 1

    def weights_of(self, layer: Any) -> Values:
        """Return the weights that a layer which stays will have."""
        return self._weights.get(id(layer)) or layer.get_weights()

    def once(self, layer: Any, make: Callable[[], Any]) -> Any:
        """Return the new layer in place of `layer`: made at the first call, the same one afterwards."""
        if id(layer) not in self._layers:
            self._layers[id(layer)] = make()
        return self._layers[id(layer)]

    def _model(self, model: keras.Model) -> keras.Model:
        if id(model) not in self._models:
            self._models[id(model)] = self._rebuilt(model)
        return self._models[id(model)]

    def _rebuilt(self, model: keras.Model) -> keras.Model:
        graph, own = Graph(model), functional(model)
        claims = self._match(graph)
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), own._inputs_struct
        )
        tensors = dict(zip(map(id, own.inputs), keras.tree.flatten(inputs), strict=True))
        for node in self._needed(graph, claims):
            replacement = claims.get(id(node))
            if replacement is None:
                made = keras.tree.flatten(self._call(node, tensors))
                tensors |= {id(old): new for old, new in zip(node.outputs, made, strict=True)}
            else:
                tensors[id(node.outputs[0])] = replacement.build(partial(_of, tensors))
        outputs = keras.tree.map_structure(lambda x: tensors[id(x)], own._outputs_struct)
        return _assembled(model, inputs, outputs)

    def _match(self, graph: Graph) -> dict[int, Replacement]:
        """Return the replacement that each call is part of; of two that overlap, the one found first."""
        claims: dict[int, Replacement] = {}
        for rule in self.rules:
            for node in graph.nodes:
                found = rule(self, graph, node) if id(node) not in claims else None
                if isinstance(found, Left):
                    self.report.left.append(found)
                elif found and not any(id(claimed) in claims for claimed in found.nodes):
                    claims |= {id(claimed): found for claimed in found.nodes}
                    self._weights |= found.weights
                    self.report.changes += found.changes
        return claims

    def _needed(self, graph: Graph, claims: dict[int, Replacement]) -> list[Node]:
        """Return the calls whose results the outputs depend on, of each replacement the last one alone, in order."""
        wanted = {id(tensor) for tensor in graph.outputs}
        chosen = []
        for node in reversed(graph.nodes):
            if any(id(tensor) in wanted for tensor in node.outputs):
                chosen.append(node)
                replacement = claims.get(id(node))
                wanted |= {id(tensor) for tensor in (replacement.inputs if replacement else node.input_tensors)}
        return chosen[::-1]

    def _call(self, node: Node, tensors: dict[int, Tensor]) -> Any:
        arguments, keywords = node.arguments.fill_in(tensors)
        operation = node.operation
        if is_graph(operation):
            return self._model(operation)(*arguments, **keywords)
        if not isinstance(operation, keras.layers.Layer):
            return _copied(operation)(*arguments, **keywords)
        is_new = id(operation) not in self._layers
        layer = self.once(operation, lambda: clone(operation))
        outputs = layer(*arguments, **keywords)
        if is_new:
            give(layer, self.weights_of(operation))
            if self.after_clone is not None:
                self.after_clone(layer, self.report)
        return outputs


def _of(tensors: dict[int, Tensor], tensor: Tensor) -> Tensor:
    return tensors[id(tensor)]


def clone(layer: Any) -> Any:
    """Return a fresh layer of the same class and settings, not built.

    Raises:
        UserError: the layer does not say how it was made.
    """
    try:
        return type(layer).from_config(layer.get_config())
    except (NotImplementedError, TypeError) as error:
        raise UserError(
            f"layer {layer.name!r}: {type(layer).__name__} cannot be made anew from its get_config(); write that method"
        ) from error


def give(layer: Any, values: Values) -> None:
    """Give a built layer its weights, and let those within it that derive something from them do so."""
    layer.set_weights(values)
    for inner in layer._flatten_layers():
        if hasattr(inner, "finalize_state"):
            inner.finalize_state()


def apply(layer: Any, values: Values, *tensors: Tensor, **keywords: Any) -> Tensor:
    """Return what a new layer makes of new tensors, and give it its weights."""
    outputs = layer(*tensors, **keywords)
    give(layer, values)
    return outputs


def _copied(operation: Any) -> Any:
    try:
        return type(operation).from_config(operation.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return operation  # it has no state: it may be shared


def _assembled(model: keras.Model, inputs: Any, outputs: Any) -> keras.Model:
    if isinstance(model, Network | RewrittenNetwork):
        rewritten: Any = RewrittenNetwork(inputs, outputs, name=model.name)
        rewritten.metadata.update(model.metadata)
    else:
        rewritten = keras.Model(inputs, outputs, name=model.name)
    # Keras's setter would also set it for every layer.
    rewritten._trainable = model._trainable
    return rewritten
