"""A model made anew of new layers, with what is the model's own: class, attributes, types, how it was compiled."""

import copy
import inspect
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from groupwise import keras_private
from groupwise.errors import UserError, first_line
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.rewrite.copying import (
    attributes,
    attributes_of_models,
    copied,
    give_state,
    hand_over,
    is_equal,
    is_plain_data,
    plain_copy,
)
from groupwise.running.graph import Node, functional, models_within

Copies = dict[int, Any]
"""The new layers, models and tensors, by the old ones' ids."""


def input_like(layer: Any) -> Any:
    """Return a fresh input layer of the same name, shape and type, whether optional or sparse."""
    made = keras.layers.InputLayer.from_config(layer.get_config())
    made.dtype_policy, made.output.name = layer.dtype_policy, layer.output.name
    return made


def assembled(
    model: Any, inputs: Any, outputs: Any, copies: Copies, keeps_layers: bool, is_copy: bool
) -> tuple[Any, str]:
    """Return a model like `model` from new inputs to new outputs, and a note where its class is another; else "".

    Args:
        copies: what took the place of what.
        keeps_layers: whether every layer has a successor of its own: only then does a class that makes its layers by
            itself describe the new model too.
        is_copy: whether these are of the same classes.

    Raises:
        UserError: an attribute of the user's own cannot be copied.
    """
    kind, note = _kind(model, outputs, keeps_layers, is_copy)
    if kind is Network:
        made: Any = Network(inputs, outputs, model.architecture, copy.deepcopy(model.metadata))
    elif kind is RewrittenNetwork:
        made = RewrittenNetwork(inputs, outputs, name=model.name)
        made.metadata.update(copy.deepcopy(model.metadata))
    elif issubclass(kind, keras.Sequential):
        made = _sequence(kind, model, inputs, outputs)
    elif kind is keras.Model:
        made = keras.Model(inputs, outputs, name=model.name)
    else:
        # Without its own __init__, which would make the old layers again.
        made = kind.__new__(kind)
        next(base for base in kind.__mro__ if keras_private.is_of_keras(base)).__init__(
            made, inputs, outputs, name=model.name
        )
    made.dtype_policy = model.dtype_policy
    gone, lost = _give_attributes(model, made, {**copies, id(model): made})
    if lost and type(made) is type(model):
        raise UserError(f"model {model.name!r}: {lost}; delete it before and set it on the new model")
    # Keras's setter would also set it for every layer.
    keras_private.set_own_trainable(made, keras_private.own_trainable(model))
    return made, " ".join(filter(None, (note, *(f"Model {model.name!r}: {each}." for each in (*gone, lost) if each))))


def compile_alike(old: keras.Model, new: keras.Model, copies: Copies, keeps_layers: bool) -> str:
    """Compile a new model as the old one was, the optimizer's state included; return what could not be had, or ""."""
    if type(old).compile is not keras.Model.compile:
        if type(old).compile_from_config is keras.Model.compile_from_config:
            return f"{type(old).__name__}.compile is a method of its own: compile the new model yourself."
        new.compile_from_config(old.get_compile_config())
        return ""
    # To save it in HDF5 takes the optimizer out of this.
    given = {"optimizer": old.optimizer, **keras_private.compile_arguments(old)}
    given = keras.tree.map_structure(lambda value: _rebound(value, copies), given)
    try:
        optimizer = _fresh(given.pop("optimizer"))
        metrics = {name: keras.tree.map_structure(_fresh, given.pop(name)) for name in ("metrics", "weighted_metrics")}
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = first_line(error)
        return f"The old model's optimizer or metrics cannot be copied ({reason}): compile the new one yourself."
    scales_loss = isinstance(old.optimizer, keras.optimizers.LossScaleOptimizer)
    new.compile(optimizer=optimizer, **metrics, **given, auto_scale_loss=scales_loss)
    if old.optimizer is None:
        return ""
    lost = [_give_optimizer_settings(old, new, keeps_layers)]
    if old.optimizer.built:
        lost.append(_give_optimizer_state(old, new, keeps_layers))
    return " ".join(filter(None, lost))


def _kind(model: Any, outputs: Any, keeps_layers: bool, is_copy: bool) -> tuple[Any, str]:
    """Return the class that the new model can have, and what to say where it is another one."""
    kind = type(model)
    if isinstance(model, RewrittenNetwork) or (isinstance(model, Network) and is_copy):
        return kind, ""
    if isinstance(model, Network):
        said = f"model {model.name!r} is a RewrittenNetwork now: a file holds its layers, not the call that makes them."
        return RewrittenNetwork, said
    if isinstance(model, keras.Sequential):
        is_sequence = chain(outputs) is not None
        said = "" if is_sequence else _became(model, "Model", "its layers are no plain sequence any more")
        return (kind if is_sequence else keras.Model), said
    if keras_private.is_of_keras(kind):
        return keras.Model, ""
    if keeps_layers or is_saved_by_layers(model):
        return kind, ""
    return keras.Model, _became(model, "Model", "the class makes layers of its own that are others now")


def _became(model: keras.Model, kind: str, reason: str) -> str:
    name = type(model).__name__
    return f"model {model.name!r}: the class {name} became {kind}, since {reason}; what {name} adds is not there."


def is_saved_by_layers(model: keras.Model) -> bool:
    """Return whether Keras saves a functional model as its layers, rather than as a call of the class's own."""
    if keras_private.is_of_keras(type(model)) or isinstance(model, Network | RewrittenNetwork):
        return True
    try:
        return "layers" in model.get_config()
    except NotImplementedError:
        return False


def chain(outputs: Any) -> list[Any] | None:
    """Return the layers from the input to an output that each read just the one before; None where they do not."""
    layers: list[Any] = []
    while isinstance(outputs, keras.KerasTensor):
        operation, index, _ = keras_private.origin_of(outputs)
        layers.insert(0, operation)
        if isinstance(operation, keras.layers.InputLayer):
            return layers
        node = keras_private.calls_of(operation)[index]
        if not isinstance(operation, keras.layers.Layer) or len(node.outputs) != 1 or not _is_call_of_one(node):
            return None
        outputs = node.input_tensors[0]
    return None


def _is_call_of_one(node: Node) -> bool:
    """Return whether a layer is called with one tensor, and else with what its `call` takes by itself."""
    defaults = inspect.signature(node.operation.call).parameters
    arguments = node.arguments
    is_default = all(name in defaults and value == defaults[name].default for name, value in arguments.kwargs.items())
    return len(arguments.args) == len(arguments.keras_tensors) == 1 and is_default


def _sequence(kind: Any, model: Any, inputs: Any, outputs: Any) -> Any:
    made = kind.__new__(kind)
    keras.Sequential.__init__(made, name=model.name)
    keras_private.fill_sequence(made, chain(outputs) or [], keras.Model(inputs, outputs))
    return made


def _give_attributes(old: Any, new: Any, copies: Copies) -> tuple[list[str], str]:
    """Hand over the attributes that somebody gave a model, or its class did; say which cannot be.

    Returns:
        those that are parts of the old model which have no successor; and the first one that cannot be copied, or "".
    """
    gone: list[str] = []
    parts = {id(part): None for model in models_within(old) for part in functional(model).operations} | copies
    for name, value in attributes(old).items():
        if name in attributes_of_models() or name in vars(new):
            continue
        try:
            setattr(new, name, _carried(value, parts))
        except _NoSuccessorError as error:
            gone.append(f"its attribute {name!r} is not there, since {error}")
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            return gone, f"its attribute {name!r} of type {type(value).__name__} cannot be copied ({reason})"
    return gone, ""


class _NoSuccessorError(Exception):
    """A layer or tensor of the old model for which the new one has none."""


def _carried(value: Any, copies: Copies) -> Any:
    """Return what takes the place of a value in the new model."""
    if copies.get(id(value)) is not None:
        return copies[id(value)]
    if id(value) in copies or isinstance(value, keras.KerasTensor):
        raise _NoSuccessorError(f"{value.name} has become part of another layer")
    if isinstance(value, dict):
        return {key: _carried(each, copies) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        items = [_carried(each, copies) for each in value]
        return type(value)(*items) if hasattr(value, "_fields") else _plain_type(value)(items)
    if isinstance(value, keras.layers.Layer):
        return _fresh_layer(value)
    if isinstance(value, keras.Variable):
        return keras.Variable(
            np.array(keras.ops.convert_to_numpy(value)), None, value.dtype, value.trainable, name=value.name
        )
    if _is_configured(value):
        made = _fresh(value)
        for before, after in zip(_variables_of(value), _variables_of(made), strict=True):
            hand_over(before, after)
        return made
    if isinstance(value, types.MethodType):
        return _rebound(value, copies)
    if isinstance(value, type | types.ModuleType | Callable):  # type: ignore[arg-type]
        return value
    return copy.deepcopy(value)


def _rebound(value: Any, copies: Copies) -> Any:
    """Return a method of the old model's, or of a layer of it, as the new one's; anything else as it is."""
    owner = copies.get(id(value.__self__)) if isinstance(value, types.MethodType) else None
    return value if owner is None else types.MethodType(value.__func__, owner)


def _plain_type(value: Any) -> Callable[[Any], Any]:
    """Return the container that Keras may have wrapped to watch it."""
    return next(kind for kind in (list, tuple, set) if isinstance(value, kind))


def _variables_of(value: Any) -> list[Any]:
    """Return the variables of a metric, or of a generator of seeds."""
    state = getattr(value, "state", None)
    return list(getattr(value, "variables", [])) + ([state] if isinstance(state, keras.Variable) else [])


def _fresh_layer(layer: Any) -> Any:
    """Return a copy of a layer that stands beside the model's graph."""
    made = copied(layer)
    if layer.built:
        made.build_from_config(layer.get_build_config() or {})
        give_state(layer, made)
    return made


def _fresh(value: Any) -> Any:
    """Return a metric or optimizer as it was before its first step; anything else as it is."""
    return type(value).from_config(value.get_config()) if _is_configured(value) else value


def _is_configured(value: Any) -> bool:
    """Return whether an object, not a class, says how it was made."""
    return hasattr(value, "get_config") and hasattr(value, "from_config") and not isinstance(value, type)


def _give_optimizer_settings(old: keras.Model, new: keras.Model, keeps_layers: bool) -> str:
    """Hand over what was set on an optimizer after it was made; return what could not be, or ""."""
    before, after = (getattr(each.optimizer, "inner_optimizer", each.optimizer) for each in (old, new))
    for name, value in vars(before).items():
        is_setting = is_plain_data(value) and not name.startswith("_") and name != "built"
        if is_setting and not is_equal(vars(after).get(name), value):
            setattr(after, name, plain_copy(value))
    excluded, pattern = keras_private.without_weight_decay(before, old.variables)
    if pattern is not None or excluded:
        after.exclude_from_weight_decay([new.variables[place] for place in excluded if keeps_layers])
        keras_private.set_weight_decay_pattern(after, pattern)
    if not excluded or keeps_layers:
        return ""
    return "The optimizer's weight decay leaves out no single variables any more: they are others now."


def _give_optimizer_state(old: keras.Model, new: keras.Model, keeps_layers: bool) -> str:
    anew = "The optimizer starts anew: its state belongs to weights that are others now."
    if not keeps_layers:
        return anew
    # What the old one was built for need not be what is trainable now.
    trained = keras_private.built_for(getattr(old.optimizer, "inner_optimizer", old.optimizer))
    places = {id(variable): place for place, variable in enumerate(old.variables)}
    if any(id(variable) not in places for variable in trained):
        return anew
    new.optimizer.build([new.variables[places[id(variable)]] for variable in trained])
    shapes = [[tuple(v.shape) for v in model.optimizer.variables] for model in (old, new)]
    if shapes[0] != shapes[1]:
        return anew
    for before, after in zip(old.optimizer.variables, new.optimizer.variables, strict=True):
        hand_over(before, after)
    return ""
