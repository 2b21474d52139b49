"""A functional model that runs joined calls as one, and chains without what lies between their convolutions."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from groupwise import keras_private
from groupwise.layers import convolutions
from groupwise.layers.twins import is_stock
from groupwise.ops.pairs import Convolution, pair_conv2d
from groupwise.running.graph import Graph, functional, models_within
from groupwise.running.joining import Join, joins
from groupwise.running.links import ChainedNorm, links


def run_fused(model: keras.Model) -> list[Join]:
    """Let a model, and those within it, run in one call or in chains what can; return what runs as one."""
    ready: list[Join] = []
    for part in models_within(model):
        graph, own = Graph(part), functional(part)
        here = [join for join in joins(graph) if not is_stock(join.head.operation)]
        chain = links(graph, here)
        if here or chain:
            keras_private.replace_run(own, Run(own, graph, here, chain))
            ready += here
    return ready


def joined(model: keras.Model) -> list[Join]:
    """Return what a model, and those within it, run as one."""
    return [join for run in _runs(model) for join in run.joins]


def linked(model: keras.Model) -> list[ChainedNorm]:
    """Return the batch norms that a model, and those within it, run in chains."""
    return [link for run in _runs(model) for link in run.links]


def is_fused(model: keras.Model) -> bool:
    """Return whether a model, or one within it, runs calls as one or in chains."""
    return bool(_runs(model))


def _runs(model: keras.Model) -> list["Run"]:
    runs = (keras_private.replaced_run(functional(part)) for part in models_within(model))
    return [run for run in runs if run is not None]


class Run:
    """Runs a functional model, joined calls as one.

    Attributes:
        joins: what runs as one. links: the batch norms in chains.
    """

    def __init__(self, model: Any, graph: Graph, joins: Sequence[Join], links: Sequence[ChainedNorm]) -> None:
        self.model, self.nodes, self.joins, self.links = model, graph.nodes, joins, links
        chained = [unit for link in links for unit in (link.norm, link.before, link.after) if unit is not None]
        self._units = {id(unit.nodes[-1]): unit for unit in (*joins, *chained)}
        self._asks = _Asks()
        self._others = {id(node): unit for unit in self._units.values() for node in unit.nodes[:-1]}

    def __call__(self, inputs: Any, operation_fn: Callable[[Any], Any] = lambda op: op, call_fn: Any = None) -> Any:
        arrays = keras.tree.flatten(inputs)
        if call_fn is not None or any(isinstance(x, keras.KerasTensor) for x in arrays):
            return keras_private.run_graph(self.model, inputs, operation_fn, call_fn)
        apart = {id(unit) for unit in self._units.values() if not unit.still_holds()}
        values = dict(zip(map(id, self.model.inputs), arrays, strict=True))
        is_training = bool(self.links) and operation_fn(self._asks)(arrays[0])
        held = [link for link in self.links if id(link.norm) not in apart and id(link.before) not in apart]
        chain = _Chain(held, is_training, apart, values, operation_fn)
        for node in self.nodes:
            unit, other = self._units.get(id(node)), self._others.get(id(node))
            if other is not None and id(other) not in apart:
                continue
            if unit is not None and id(unit) not in apart:
                outputs = chain.run(unit)
            else:
                arguments, keywords = node.arguments.fill_in(values)
                outputs = operation_fn(node.operation)(*arguments, **keywords)
            values |= zip(map(id, node.outputs), keras.tree.flatten(outputs), strict=False)
        return keras.tree.map_structure(lambda x: values[id(x)], keras_private.structures(self.model)[1])


class _Asks(keras.layers.Layer):
    """Says whether it is called in training, which Keras tells layers alone."""

    def __init__(self) -> None:
        super().__init__(autocast=False, name="is_training")
        self.supports_masking = True

    def call(self, inputs: Any, training: bool | None = None) -> bool:
        return bool(training)


class _Chain:
    """One run through a model's chains: what has been counted for batch norms, and how convolutions are to read.

    Args:
        apart: the ids of units that run call by call. values: the arrays, by the ids of their tensors.
    """

    def __init__(
        self,
        links: Sequence[ChainedNorm],
        is_training: bool,
        apart: set[int],
        values: dict[int, Any],
        wrapped: Callable[[Any], Any],
    ) -> None:
        self.is_training, self.apart, self.values, self.wrapped = is_training, apart, values, wrapped
        self.before: dict[int, list[ChainedNorm]] = {}
        for link in links:
            self.before.setdefault(id(link.before), []).append(link)
        self.norms = {id(link.norm): link for link in links}
        self.moments: dict[int, Any] = {}
        self.readings: dict[int, tuple[str, Any]] = {}
        self.waiting: set[int] = set()
        """The batch norms whose work the convolution before will do: it waits for what is added after them."""
        self.pending: dict[int, tuple[Any, tuple[Convolution, ...]]] = {}
        """What the next convolution computes in one pass with its own outputs: of which image, and how, in turn."""

    def run(self, unit: Join) -> Any:
        """Return the outputs of a unit; where they are read normalised, what is to be normalised; () for later."""
        more: dict[str, Any] = {}
        image, outputs_at, norm = id(unit.image), id(unit.outputs), self.norms.get(id(unit))
        if norm is not None and id(unit) in self.waiting:
            return self._ended(norm)
        links = self.before.get(id(unit), [])
        like = self.pending[image][0] if image in self.pending else self.values[image]
        counted = [link for link in links if self.is_training and link.counts(like)]
        ended = [link for link in links if link.ends(like, self.is_training)]
        if ended and image not in self.readings:
            self.waiting |= {id(link.norm) for link in ended}
            return ()
        if image in self.pending:
            return self._convolved(unit)
        if counted or image in self.readings:
            activation, reading = self.readings.get(image, ("linear", None))
            more = {"reading": reading, "link": convolutions.Link(activation, bool(counted))}
        if norm is not None and id(unit) in self.moments:
            more |= {"moments": self.moments[id(unit)], "is_read": id(norm.after) not in self.apart and norm.is_read}
        outputs = unit.run(self.values, self.wrapped, **more)
        if norm is not None and more.get("is_read"):
            self.readings[outputs_at] = norm.activation, outputs
            return self.values[image]
        if counted:
            outputs, *moments = outputs
            self.moments |= {id(link.norm): tuple(moments) for link in counted}
        return outputs

    def _ended(self, link: ChainedNorm) -> Any:
        """Return what the convolution before a batch norm by constants makes of both; () where the next one does."""
        ending, followers = link.norm.head.operation.ending(), link.followers(self.values)
        image, before = self._waiting_for(link.before)
        if not self.is_training and id(link.after) not in self.apart and _waits(link, before):
            unit = link.before.head.operation.unit(followers["then"], link.before.zeros, ending)
            self.pending[id(link.norm.outputs)] = image, (*before, unit)
            return ()
        return self._convolved(link.before, ending, **followers)

    def _waiting_for(self, unit: Join) -> tuple[Any, tuple[Convolution, ...]]:
        """Return the convolutions that are to run in one pass with one, and the image that the first of all reads."""
        image = id(unit.image)
        return self.pending[image] if image in self.pending else (self.values[image], ())

    def _convolved(self, unit: Join, ending: Any = None, **followers: Any) -> Any:
        """Return the outputs of a convolution; of two or three, where those before it wait."""
        image, before = self._waiting_for(unit)
        if not before:
            return unit.run(self.values, self.wrapped, ending=ending, **followers)
        # Keras calls none of the layers then: whoever listens to one keeps it apart (`Join.still_holds`).
        last = unit.head.operation.unit(followers.get("then"), unit.zeros, ending)
        *expansion, first, second = *before, last
        return pair_conv2d(image, first, second, followers.get("residual"), expansion=next(iter(expansion), None))


def _waits(link: ChainedNorm, before: tuple[Convolution, ...]) -> bool:
    """Return whether a convolution, and what waits for it, waits for the one behind the batch norm."""
    if not before:
        return link.can_pair or link.can_expand
    (first, *others) = before
    return link.can_pair and not others and tuple(first.kernel.shape)[:2] == (1, 1)
