"""What runs in one call: batch norm, the shortcut's addition, activation; padding, convolution, addition, activation.

The model's graph stays what it is, with all of its layers and their names. Only when it runs on arrays are some calls
made as one, by the layer of ours that leads them. So a tensor in between can still be asked for: the model that returns
it, as Grad-CAM builds one, runs call by call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from groupwise import layers
from groupwise.layers.stock import CONVOLUTIONS
from groupwise.layers.twins import objection, ours_for
from groupwise.running.graph import Graph, Node, Tensor, activation_of, is_addition, is_plain

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Join:
    """Calls that run as one, in order.

    Attributes:
        pad: a ZeroPadding2D before, or None. head: a batch norm or convolution.
        add: an addition after it, or None. activation: one that the core knows after these, or None.
    """

    head: Node
    pad: Node | None = None
    add: Node | None = None
    activation: Node | None = None

    @property
    def nodes(self) -> list[Node]:
        """All calls, in order."""
        return [node for node in (self.pad, self.head, self.add, self.activation) if node is not None]

    @property
    def description(self) -> str:
        """The classes of what runs as one."""
        return ", ".join(type(node.operation).__name__ for node in self.nodes)

    @property
    def shortcut(self) -> Tensor | None:
        """What is added."""
        if self.add is None:
            return None
        first, second = self.add.input_tensors
        return second if first is self.head.outputs[0] else first

    @property
    def zeros(self) -> Any:
        """The padding of the call before the head, or None."""
        return None if self.pad is None else self.pad.operation.padding

    @property
    def image(self) -> Tensor:
        """What the first call reads."""
        return (self.pad or self.head).input_tensors[0]

    @property
    def outputs(self) -> Tensor:
        """What the last call returns."""
        return self.nodes[-1].outputs[0]

    def run(self, values: dict[int, Any], wrapped: Callable[[Any], Any], **more: Any) -> Any:
        """Return what the last call makes of `values`, the arrays by the ids of their tensors.

        Args:
            wrapped: what Keras calls an operation by. more: further arguments of the layer that leads.
        """
        if self.pad is None:
            arguments, keywords = self.head.arguments.fill_in(values)
        else:
            padded = {id(self.pad.outputs[0]): values[id(self.image)]}
            arguments, keywords = self.head.arguments.fill_in(padded)
            keywords = {**keywords, "zeros": self.zeros}
        return wrapped(self.head.operation)(*arguments, **keywords, **self.followers(values), **more)

    def followers(self, values: dict[int, Any]) -> dict[str, Any]:
        """Return the arguments that say what follows the work of the layer that leads."""
        given: dict[str, Any] = {}
        if self.shortcut is not None:
            given["residual"] = values[id(self.shortcut)]
        if self.activation is not None:
            given["then"] = activation_of(self.activation)
        return given

    def still_holds(self) -> bool:
        """Return whether nobody has changed a layer since, or listens to one that would not be called by itself."""
        is_activation = self.activation is None or activation_of(self.activation) is not None
        follows = self.add is not None or self.activation is not None
        heard = self.nodes if follows else self.nodes[:-1]
        return (
            is_activation
            and (not follows or _is_linear(self.head.operation))
            and not any(is_heard(node.operation) for node in heard)
            and not any(_is_watched(node.operation) for node in self.nodes)
        )


def joins(graph: Graph) -> list[Join]:
    """Return what could run as one in a model, once its layers are ours; not in the models within it."""
    found: list[Join] = []
    taken: set[int] = set()
    for node in graph.nodes:
        join = _join(graph, node, taken) if _can_lead(node) else None
        if join is not None and len(join.nodes) > 1:
            found.append(join)
            taken |= set(map(id, join.nodes))
    return found


def _can_lead(node: Node) -> bool:
    """Return whether a call's layer can do more than its own work."""
    layer = node.operation
    kind = ours_for(type(layer))
    if kind is layers.BatchNormalization:
        is_image = len(node.outputs[0].shape) == 4 and layer.axis in (-1, 3)
    else:
        is_image = kind in CONVOLUTIONS and objection(layer) is None
    given = {name for name, value in node.arguments.kwargs.items() if value is not None}
    # What a join would say by itself.
    is_told = bool({"residual", "then", "zeros"} & given) or len(node.arguments.args) > 1
    return is_image and _is_linear(layer) and len(node.input_tensors) == 1 and not is_told


def _join(graph: Graph, node: Node, taken: set[int]) -> Join:
    pad = graph.before(node)
    if pad is not None and (id(pad) in taken or not _pads(pad, node)):
        pad = None
    if is_heard(node.operation):
        return Join(node, pad)
    add = graph.after(node)
    if add is None or id(add) in taken or not _adds(add) or not _is_alike(add, node):
        add = None
    activation = graph.after(add or node)
    if activation is not None and (
        id(activation) in taken or activation_of(activation) is None or not _is_alike(activation, node)
    ):
        activation = None
    return Join(node, pad, add, activation)


def _pads(pad: Node, node: Node) -> bool:
    """Return whether one call pads with zeros what a convolution without padding reads."""
    layer, convolution = pad.operation, node.operation
    if type(layer) is not keras.layers.ZeroPadding2D or getattr(convolution, "padding", None) != "valid":
        return False
    is_same = layer.data_format == convolution.data_format and layer.compute_dtype == convolution.compute_dtype
    return is_same and not is_heard(layer) and is_plain(node)


def _adds(node: Node) -> bool:
    """Return whether a call adds two tensors of one shape and type."""
    if not is_addition(node) or len(node.input_tensors) != 2:
        return False
    first, second = node.input_tensors
    return first is not second and first.shape == second.shape and first.dtype == second.dtype


def _is_alike(node: Node, head: Node) -> bool:
    """Return whether a call computes in the type of the one that would do its work, and nobody hears of its outputs."""
    dtype = getattr(node.operation, "compute_dtype", None) or head.operation.compute_dtype
    is_same = dtype == head.operation.compute_dtype and node.outputs[0].dtype == head.outputs[0].dtype
    return is_same and not is_heard(node.operation)


def _is_linear(layer: Any) -> bool:
    return getattr(layer, "activation", keras.activations.linear) is keras.activations.linear


def _is_watched(operation: Any) -> bool:
    """Return whether an operation has hooks of PyTorch's, or a `call` of its own that somebody gave it."""
    own = vars(operation)
    return "call" in own or any(own.get(name) for name in _HOOKS)


def is_heard(operation: Any) -> bool:
    """Return whether a layer's outputs are penalised."""
    return getattr(operation, "activity_regularizer", None) is not None
