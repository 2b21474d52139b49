"""The one engine of all rewrites: a model is built anew, call by call, with some calls replaced by what rules say."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras

from groupwise import keras_private
from groupwise.errors import UserError
from groupwise.models.steps import run_recorded
from groupwise.rewrite.assembling import assembled, compile_alike, input_like, is_saved_by_layers
from groupwise.rewrite.changes import Change, Gone, Left, Report, attach, report_of
from groupwise.rewrite.copying import Values, copied, finish, give_state
from groupwise.running.graph import Graph, Node, Tensor, functional, is_graph, models_within
from groupwise.running.links import ChainedNorm
from groupwise.running.run import is_fused, joined, linked, run_fused

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
        gone: layers whose values nothing gives any longer, other than those that have no successor of their name.
        is_drop_in: whether it is one layer for one layer, with the same weights.
    """

    nodes: Sequence[Node]
    build: Callable[[New], Tensor]
    changes: Sequence[Change] = ()
    reads: Sequence[Tensor] | None = None
    weights: dict[int, Values] = field(default_factory=dict)
    gone: Sequence[Gone] = ()
    is_drop_in: bool = False

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
    """One rewrite of one model and of all models within it: layers and models that are shared stay shared.

    Attributes:
        report: what was done.
        uses_twins: whether the model that is being built makes its layers by itself when it is loaded.
    """

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        after_copy: Callable[[Any, Report], None] | None = None,
        joins: bool = False,
    ) -> None:
        """Remember the rules.

        Args:
            after_copy: what is done to every fresh copy of a layer that stays.
            joins: whether calls that can run as one shall; they do in any case where they did in the old model.
        """
        self.rules, self.after_copy, self.joins = tuple(rules), after_copy, joins
        self.report = Report()
        self.uses_twins = False
        self._keeps_layers = True
        self._copies: dict[int, Any] = {}
        self._weights: dict[int, Values] = {}
        self._calls: Counter[int] = Counter()

    def rewrite(self, model: keras.Model) -> keras.Model:
        """Return the new model, compiled as the old one was, and its report attached."""
        _check_ties(model)
        for part in models_within(model):
            self._calls.update(id(node.operation) for node in Graph(part).nodes)
        rewritten = self._model(model)
        before = {join.head.operation.name for join in joined(model)}
        if self.joins or is_fused(model):
            new = [join for join in run_fused(rewritten) if join.head.operation.name not in before]
            self.report.changes += [Change(join.head.operation.name, join.description, "one call") for join in new]
            self.report.note(_chains(linked(rewritten)))
        for part in models_within(model):
            if part.compiled:
                self.report.note(compile_alike(part, self._copies[id(part)], self._copies, self._keeps_layers))
        run_recorded(rewritten)
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
        if id(layer) not in self._copies:
            self._copies[id(layer)] = make()
        return self._copies[id(layer)]

    def succeed(self, layer: Any, make: Callable[[], Any], *arguments: Any, **keywords: Any) -> Any:
        """Return what a layer's successor makes of new tensors; at its first call it is given the old one's state."""
        is_new = id(layer) not in self._copies
        made = self.once(layer, make)
        outputs = made(*arguments, **keywords)
        if is_new:
            give_state(layer, made)
            if id(layer) in self._weights:
                give(made, self._weights[id(layer)])
        return outputs

    def _model(self, model: keras.Model) -> keras.Model:
        return self.once(model, lambda: self._rebuilt(model))

    def _rebuilt(self, model: keras.Model) -> keras.Model:
        graph, own = Graph(model), functional(model)
        claims = self._match(graph)
        keeps_layers = all(claim.is_drop_in for claim in claims.values())
        input_structure, output_structure = keras_private.structures(own)
        inputs = keras.tree.map_structure(self._input, input_structure)
        tensors = dict(zip(map(id, own.inputs), keras.tree.flatten(inputs), strict=True))
        outer, self.uses_twins = self.uses_twins, keeps_layers and not is_saved_by_layers(model)
        for node in self._needed(graph, claims):
            replacement = claims.get(id(node))
            if replacement is None:
                made = keras.tree.flatten(self._call(node, tensors))
                tensors |= {id(old): new for old, new in zip(node.outputs, made, strict=True)}
            else:
                tensors[id(node.outputs[0])] = replacement.build(partial(_of, tensors))
        self.uses_twins = outer
        outputs = keras.tree.map_structure(lambda x: tensors[id(x)], output_structure)
        copies = {**self._copies, **tensors}
        rewritten, note = assembled(model, inputs, outputs, copies, keeps_layers, is_copy=not claims)
        self._keeps_layers &= keeps_layers
        self.report.note(note)
        return rewritten

    def _input(self, tensor: Tensor) -> Tensor:
        layer = keras_private.origin_of(tensor)[0]
        return self.once(layer, lambda: input_like(layer)).output

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
                    self.report.gone += found.gone
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
        is_new = id(operation) not in self._copies
        outputs = self.succeed(operation, lambda: copied(operation), *arguments, **keywords)
        if is_new and self.after_copy is not None:
            self.after_copy(self._copies[id(operation)], self.report)
        return outputs


def _check_ties(model: keras.Model) -> None:
    """Raise a UserError where a layer is part of another one and used elsewhere too: copies would be two layers."""
    operations = {id(node.operation): node.operation for part in models_within(model) for node in Graph(part).nodes}
    taken = set(operations)
    for operation in operations.values():
        if is_graph(operation) or not isinstance(operation, keras.layers.Layer):
            continue
        inner = {
            id(layer): layer for layer in keras_private.layers_within(operation, include_self=False) if layer.variables
        }
        for layer in inner.values():
            if id(layer) in taken:
                raise UserError(
                    f"layer {layer.name!r}: it is part of {operation.name!r} and used elsewhere too, which a rewrite "
                    "cannot keep; make two layers of it"
                )
        taken |= set(inner)


def _of(tensors: dict[int, Tensor], tensor: Tensor) -> Tensor:
    return tensors[id(tensor)]


def give(layer: Any, values: Values) -> None:
    """Give a built layer its weights, and let those within it that derive something from them do so."""
    layer.set_weights(values)
    finish(layer)


def apply(layer: Any, values: Values, *tensors: Tensor, **keywords: Any) -> Tensor:
    """Return what a new layer makes of new tensors, and give it its weights."""
    outputs = layer(*tensors, **keywords)
    give(layer, values)
    return outputs


def _copied(operation: Any) -> Any:
    """Return a fresh operation without state; it keeps its name, which a model's outputs are called by."""
    try:
        made = type(operation).from_config(operation.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return operation  # it has no state: it may be shared
    made.name = operation.name
    return made


def record_gone(old: keras.Model, new: keras.Model) -> keras.Model:
    """Let the report of a rewritten model name every layer that is not there by its name; return the model."""
    report, reasons = report_of(new), {gone.layer: gone.reason for gone in report_of(new).gone}
    present, reason = set(layers_by_path(new)), "it has become part of another layer"
    report.gone = [
        Gone(path, reasons.get(name, reason))
        for path in layers_by_path(old)
        if (name := path.rsplit("/", 1)[-1]) in reasons or path not in present
    ]
    return new


def layers_by_path(model: keras.Model, outer: str = "") -> dict[str, Any]:
    """Return a model's layers by their names, those within models behind the model's name."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        found[f"{outer}{layer.name}"] = layer
        if isinstance(layer, keras.Model):
            found |= layers_by_path(layer, f"{outer}{layer.name}/")
    return found


def _chains(links: Sequence[ChainedNorm]) -> str:
    """Return what of a model runs in chains while it trains, and what in one call while it predicts, or ""."""
    possible = [link for link in links if link.is_possible]
    read, ended = sum(link.is_read for link in possible), sum(link.can_end for link in links)
    said = []
    if possible:
        counted = _norms(len(possible))
        said.append(f"In chains while it trains: {counted}, {read} of them normalised as the next convolution reads.")
    if ended:
        said.append(f"While it predicts: {_norms(ended)} at the end of the convolution before.")
    return " ".join(said)


def _norms(count: int) -> str:
    return f"{count} batch norm{'s' * (count != 1)}"
