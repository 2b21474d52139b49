"""A functional model as a graph of calls: who makes a tensor, who reads it, and what a piece of it computes."""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, TypeAlias

import keras

from groupwise import keras_private
from groupwise.backends.activations import NAMES
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.errors import UserError

Node: TypeAlias = Any  # of Keras: one call of an operation, with its arguments and outputs
Tensor: TypeAlias = Any  # keras.KerasTensor

_RELU = {None: "relu", 6.0: "relu6"}  # by their greatest value
# "hard_silu" is the function, HardSilu the operation of that name.
_OPERATIONS = {row.keras.title().replace("_", ""): name for name, row in ACTIVATIONS.items() if name != "linear"}


def functional(model: keras.Model) -> Any:
    """Return the graph of Keras's own behind a functional or sequential model.

    Raises:
        UserError: it is no model, or one without: a subclass with a program for `call`, or a sequential one not built.
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"model={model!r}: must be a functional or sequential Keras model; {_cure(model)}")
    graph = keras_private.graph_of(model)
    if graph is None:
        raise UserError(f"model {model.name!r}: it is not built; give it a keras.Input, or call build()")
    if not is_graph(graph):
        raise UserError(
            f"model {model.name!r}: {type(model).__name__} computes in a method of its own, which cannot be rewritten; "
            "pass a functional or sequential model (its parts may be such)"
        )
    return graph


def _cure(value: Any) -> str:
    """Return how somebody comes from what is no model to one."""
    if isinstance(value, str | PathLike):
        return f"read the file first: `keras.saving.load_model({str(value)!r})`"
    if isinstance(value, keras.layers.Layer):
        return "make one of the layer: `keras.Sequential([keras.Input(shape), layer])`"
    return "pass one"


class Graph:
    """The calls of one functional or sequential model, without those of models within it.

    Attributes:
        nodes: the calls, each after those whose results it reads, those of one layer as they were made; inputs are
            none.
        inputs, outputs: the model's tensors, in flat lists.
    """

    def __init__(self, model: keras.Model) -> None:
        own = functional(model)
        depths = keras_private.calls_by_depth(own)
        self.nodes: list[Node] = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
        self.nodes = _in_order([node for node in self.nodes if node.operation and not node.is_input])
        self.inputs, self.outputs = list(own.inputs), list(own.outputs)
        self._producers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in {id(tensor): tensor for tensor in node.input_tensors}.values():
                self._readers.setdefault(id(tensor), []).append(node)
        self._results = {id(tensor) for tensor in self.outputs}
        self.place = {id(node): place for place, node in enumerate(self.nodes)}

    def producer(self, tensor: Tensor) -> Node | None:
        """Return the call that makes a tensor; None for the model's inputs."""
        return self._producers.get(id(tensor))

    def readers(self, tensor: Tensor) -> list[Node]:
        """Return the calls that read a tensor."""
        return self._readers.get(id(tensor), [])

    def is_result(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one of the model's outputs."""
        return id(tensor) in self._results

    def only_reader(self, tensor: Tensor) -> Node | None:
        """Return the one call that reads a tensor; None where there are several, or the model returns it."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and not self.is_result(tensor) else None

    def before(self, node: Node) -> Node | None:
        """Return the call whose only reader is `node`, which reads nothing else; None where there is none."""
        if len(node.input_tensors) != 1:
            return None
        tensor = node.input_tensors[0]
        return self.producer(tensor) if self.only_reader(tensor) is not None else None

    def after(self, node: Node) -> Node | None:
        """Return the call that alone reads the one output of `node`; None where there is none."""
        return self.only_reader(node.outputs[0]) if len(node.outputs) == 1 else None


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """Return calls in an order in which they could have been made: a layer's first call stays its `output`."""
    before: dict[int, list[Node]] = {}
    made_by = {id(tensor): node for node in nodes for tensor in node.outputs}
    known = {id(node) for node in nodes}
    for node in nodes:
        calls = [call for call in keras_private.calls_of(node.operation) if id(call) in known]
        before[id(node)] = [made_by[id(tensor)] for tensor in node.input_tensors if id(tensor) in made_by]
        before[id(node)] += calls[: next(place for place, call in enumerate(calls) if call is node)][-1:]
    ordered: dict[int, Node] = {}
    waiting = list(nodes)[::-1]
    while waiting:
        missing = [node for node in before[id(waiting[-1])] if id(node) not in ordered]
        if missing:
            waiting += missing
        else:
            node = waiting.pop()
            ordered[id(node)] = node
    return list(ordered.values())


def run(nodes: Sequence[Node], known: dict[int, Any], tensor: Tensor) -> Any:
    """Compute a tensor by calling `nodes` in order on arrays.

    Args:
        nodes: calls of operations without weights, each after those whose results it reads.
        known: the arrays of the tensors they begin with, by the tensors' ids.
    """
    values = dict(known)
    for node in nodes:
        arguments, keywords = node.arguments.fill_in(values)
        outputs = keras.tree.flatten(node.operation(*arguments, **keywords))
        values |= {id(made): output for made, output in zip(node.outputs, outputs, strict=True)}
    return keras.ops.convert_to_numpy(values[id(tensor)])


def is_weightless(operation: Any) -> bool:
    """Return whether an operation only moves or combines what it is given: no variables, no model, nothing random."""
    if isinstance(operation, keras.Model | keras.layers.InputLayer):
        return False
    return not isinstance(operation, keras.layers.Layer) or not operation.variables


def models_within(model: keras.Model) -> Iterator[keras.Model]:
    """Yield the model, and every functional or sequential model that it calls, at any depth, each once."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [node.operation for node in Graph(found).nodes if is_graph(node.operation)]


def is_graph(operation: Any) -> bool:
    """Return whether an operation is a model whose calls can be followed."""
    if not isinstance(operation, keras.Model) or not keras_private.is_of_keras(type(operation).call):
        return False  # a subclass with a program of its own
    return keras_private.has_calls(keras_private.graph_of(operation))


def is_plain(node: Node) -> bool:
    """Return whether a layer is called with one tensor and nothing else."""
    arguments = node.arguments
    is_alone = len(arguments.args) == 1 and len(arguments.keras_tensors) == 1
    return is_alone and all(value is None or value is False for value in arguments.kwargs.values())


def activation_of(node: Node) -> str | None:
    """Return the name of an activation other than linear, one of the core's, where that is all that a call does."""
    operation = node.operation
    if type(operation) is keras.layers.ReLU:
        plain = not operation.negative_slope and not operation.threshold
        return _RELU.get(operation.max_value) if plain else None
    if type(operation) is keras.layers.Activation:
        name = NAMES.get(operation.activation)
        return None if name == "linear" else name
    if keras_private.is_of_keras(type(operation)):
        return _OPERATIONS.get(type(operation).__name__)
    return None


def is_addition(node: Node) -> bool:
    """Return whether a call adds up tensors: Keras's Add layer, or `+`."""
    return type(node.operation).__name__ == "Add" and keras_private.is_of_keras(type(node.operation))
