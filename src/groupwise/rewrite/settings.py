"""What a layer's settings say of whether it may become another one, and what that is to be called."""

from typing import Any

import keras

from groupwise.keras_private import own_trainable_variables
from groupwise.running.graph import Graph, Node

_ELEMENTWISE = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


def objection_to_new_values(layer: Any, keeps_outputs: bool = False) -> str | None:
    """Return which setting says that a layer's weights or outputs must stay what they are, or None.

    Its new kernel is to have the old one's entries, perhaps with zeros between them, so that sums of their powers stay.

    Args:
        keeps_outputs: whether the new outputs, and so the bias, are the old ones.
    """
    of_variables = objection_to_variables(layer)
    if of_variables:
        return of_variables
    for name, value in set_penalties(layer).items():
        is_of_kernel = not name.startswith(("activity", "bias"))
        is_sum = name.endswith("_regularizer") and is_of_kernel and type(value) in _ELEMENTWISE
        if not is_sum and not (keeps_outputs and not is_of_kernel) and name != "bias_regularizer":
            return f"its {name} means these weights or outputs"
    return None


def objection_to_variables(layer: Any) -> str | None:
    """Return which setting of a variable's own, not of its layer, says that it must stay what it is, or None."""
    for variable in layer.variables:
        if any(variable is own for own in own_trainable_variables(layer)) and variable.trainable != layer.trainable:
            return f"its {variable.name} is frozen, or trained, by itself"
        for kind in ("regularizer", "constraint"):
            value = getattr(variable, kind, None)
            known = [own for name, own in vars(layer).items() if name.endswith(f"_{kind}")]
            if value is not None and not any(value is own for own in known):
                return f"its {variable.name} has a {kind} of its own"
    return None


def set_penalties(layer: Any) -> dict[str, Any]:
    """Return a layer's regularisers and constraints by name, but for those that are not set."""
    own = vars(layer).items()
    return {name: value for name, value in own if value is not None and name.endswith(("_constraint", "_regularizer"))}


def name_of_result(graph: Graph, node: Node, otherwise: str) -> str:
    """Return the name of what takes the place of calls of which `node` is the last, and so gives its value."""
    is_named = isinstance(node.operation, keras.layers.Layer) or graph.is_result(node.outputs[0])
    return str(node.operation.name) if is_named else otherwise
