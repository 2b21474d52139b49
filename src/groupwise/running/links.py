"""Chains: convolution, batch norm, activation, convolution and so on, found by the graph of calls.

The convolution before a batch norm that trains counts the batch's statistics; the one behind it, where it alone reads
what is normalised, normalises as it reads (`backends.plain_links`). Any other reader gets the normalised tensor. What a
batch norm does by its moving statistics, the convolution before does at the end of its sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from groupwise import keras_private, layers
from groupwise.backends import activations
from groupwise.layers.stock import CONVOLUTIONS
from groupwise.layers.twins import is_stock, objection, ours_for
from groupwise.running.graph import Graph, Node, activation_of, is_plain
from groupwise.running.joining import Join, is_heard


@dataclass(frozen=True)
class ChainedNorm:
    """A batch norm in a chain.

    Attributes:
        norm: its call and what runs as one with it.
        before: the convolution that counts for it, or ends with it.
        after: the convolution that reads through it, or None.
        is_alone: whether nothing else reads what the convolution before it returns.
    """

    norm: Join
    before: Join
    after: Join | None = None
    is_alone: bool = False

    @property
    def activation(self) -> str:
        """The name of the activation that ends its work."""
        if self.norm.activation is not None:
            return activation_of(self.norm.activation) or "linear"
        return activations.NAMES.get(self.norm.head.operation.activation, "linear")

    @property
    def is_possible(self) -> bool:
        """Return whether the convolution before may count for it, whatever the images."""
        # What is counted is without the bias: nobody else may read it.
        is_whole = self.is_alone or not self.before.head.operation.use_bias
        trains = self.norm.head.operation.trainable and _is_as_written(self.norm)
        return trains and is_whole and _can_link(self.before)

    def counts(self, inputs: Any) -> bool:
        """Return whether the convolution before, which reads `inputs`, may count for it."""
        return self.is_possible and self.norm.head.operation.can_link(inputs)

    @property
    def is_read(self) -> bool:
        """Return whether the convolution behind it may normalise as it reads."""
        return self.after is not None and self._is_known and _can_link(self.after)

    @property
    def can_end(self) -> bool:
        """Return whether the convolution before may do its work by the moving statistics, whatever the images."""
        is_plain = self.is_alone and self._is_known and _is_as_written(self.norm)
        return is_plain and _can_link(self.before)

    def ends(self, inputs: Any, is_training: bool) -> bool:
        """Return whether the convolution before, which reads `inputs`, may do its work now."""
        layer = self.norm.head.operation
        return not (is_training and layer.trainable) and self.can_end and layer.can_end(inputs)

    @property
    def can_pair(self) -> bool:
        """Return whether the convolutions around it may run in one pass: one of several groups, then a 1x1."""
        return self._is_between(_is_grouped, _is_pointwise)

    @property
    def can_expand(self) -> bool:
        """Return whether they may be the first two of three in one pass: a 1x1, then one of several groups."""
        return self._is_between(_is_pointwise, _is_grouped)

    def _is_between(self, is_first: Callable[[Any], bool], is_second: Callable[[Any], bool]) -> bool:
        """Return whether both convolutions around it run as the core computes them, and are of these kinds."""
        if self.after is None or not self.can_end or not _can_link(self.after):
            return False
        return is_first(self.before.head.operation) and is_second(self.after.head.operation)

    @property
    def _is_known(self) -> bool:
        """Return whether a convolution knows its activation, and nobody hears of what it returns."""
        layer = self.norm.head.operation
        is_known = self.norm.activation is not None or layer.activation in activations.NAMES
        return is_known and not is_heard(layer)

    def followers(self, values: dict[int, Any]) -> dict[str, Any]:
        """Return the arguments of a convolution that say what follows the normalisation."""
        residual = self.norm.head.arguments.kwargs.get("residual")
        given = {} if residual is None else {"residual": values[id(residual)]}
        return {**given, "then": self.activation, **self.norm.followers(values)}


def links(graph: Graph, joins: Sequence[Join]) -> list[ChainedNorm]:
    """Return the batch norms of ours whose statistics a convolution of ours could count.

    Args:
        joins: what of the graph runs as one, led by layers of ours.
    """
    within = {id(node) for join in joins for node in join.nodes}
    alone = [Join(node) for node in graph.nodes if id(node) not in within and _is_ours(node.operation)]
    units = [*joins, *alone]
    by_last = {id(unit.nodes[-1]): unit for unit in units}
    by_first = {id(unit.nodes[0]): unit for unit in units}
    found = []
    for norm in units:
        if ours_for(type(norm.head.operation)) is not layers.BatchNormalization or not _is_asked_for_no_more(norm.head):
            continue
        producer = graph.producer(norm.image)
        before = by_last.get(id(producer)) if producer is not None else None
        if before is None or not _is_bare(before):
            continue
        after = None
        if norm.add is None and len(norm.head.input_tensors) == 1:
            reader = graph.only_reader(norm.outputs)
            after = by_first.get(id(reader)) if reader is not None else None
        after = after if after is not None and _is_bare(after) else None
        is_alone = graph.only_reader(before.outputs) is norm.head
        found.append(ChainedNorm(norm, before, after, is_alone))
    return found


def _is_grouped(layer: Any) -> bool:
    return isinstance(layer, layers.DepthwiseConv2D) or getattr(layer, "groups", 1) > 1


def _is_pointwise(layer: Any) -> bool:
    return isinstance(layer, layers.GroupedConv2D) and layer.kernel_size == layer.strides == (1, 1)


def _can_link(unit: Join) -> bool:
    return _is_free(unit) and bool(unit.head.operation.can_link())


def _is_free(unit: Join) -> bool:
    """Return whether a convolution may be called with more than an image."""
    layer = unit.head.operation
    # Where a call is made again, its arguments are tensors alone.
    is_once = not keras_private.is_rematerialised(layer)
    return is_once and _is_as_written(unit) and not is_heard(layer)


def _is_as_written(unit: Join) -> bool:
    """Return whether the layer that leads is called as this package has it, not as somebody has replaced that since."""
    return type(unit.head.operation).call.__module__.startswith(f"{layers.__name__}.")


def _is_ours(layer: Any) -> bool:
    return ours_for(type(layer)) is not None and not is_stock(layer)


def _is_bare(unit: Join) -> bool:
    """Return whether a unit is a convolution of one image, and nothing follows it."""
    layer = unit.head.operation
    is_convolution = ours_for(type(layer)) in CONVOLUTIONS and objection(layer) is None
    return is_convolution and unit.add is None and unit.activation is None and is_plain(unit.head)


def _is_asked_for_no_more(norm: Node) -> bool:
    """Return whether a batch norm is called with an image, and perhaps a residual that is a tensor of the graph."""
    arguments = norm.arguments
    given = {name: value for name, value in arguments.kwargs.items() if value is not None}
    return len(arguments.args) == 1 and all(
        name == "residual" and isinstance(value, keras.KerasTensor) for name, value in given.items()
    )
