"""A layer made anew with all that it is: settings, weights and other state, types, what is frozen, names."""

import contextlib
import copy
import inspect
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

from groupwise import keras_private
from groupwise.errors import UserError, first_line
from groupwise.frameworks import FRAMEWORKS
from groupwise.layers.twins import TWINS
from groupwise.models.steps import KINDS

Values = Sequence[np.ndarray]

_FRAMEWORKS = ("keras", *FRAMEWORKS, "jaxlib")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.ndarray, np.generic)


def copied(layer: Any, kind: Any = None, **settings: Any) -> Any:
    """Return a fresh layer of the same settings, not built.

    Args:
        kind: another class than the layer's. settings: what differs in its configuration.

    Raises:
        UserError: the layer does not say how it was made.
    """
    kind = kind or type(layer)
    try:
        if kind is keras.layers.Lambda:  # Keras makes no function of a file's again, and need not
            made = kind(
                layer.function,
                keras_private.lambda_output_shape(layer),
                layer.mask,
                layer.arguments,
                dtype=layer.dtype_policy,
            )
        else:
            made = kind.from_config({**config_of(layer), **settings})
    except (NotImplementedError, TypeError, ValueError) as error:
        raise error if isinstance(error, UserError) else _not_made_anew(layer, error) from error
    # A configuration that Keras writes can lack a name that was given among keywords, or have a type for the policy.
    if "dtype" not in settings and made.dtype_policy != layer.dtype_policy:
        made.dtype_policy = layer.dtype_policy
    made.name, made.autocast = settings.get("name", layer.name), layer.autocast
    return made


def _not_made_anew(layer: Any, error: Exception) -> UserError:
    return UserError(
        f"layer {layer.name!r}: {type(layer).__name__} cannot be made anew from its get_config() "
        f"({first_line(error)}); write that method"
    )


def config_of(layer: Any) -> dict[str, Any]:
    """Return a layer's configuration, with its functions, regularisers and the like themselves.

    They have no state, and one that was never registered with Keras cannot be found by its name.

    Raises:
        UserError: the layer, or one of these, does not say how it was made.
    """
    try:
        config: dict[str, Any] = layer.get_config()
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _not_made_anew(layer, error) from error
    shared = (keras.regularizers.Regularizer, keras.constraints.Constraint, keras.initializers.Initializer)
    for name, value in config.items():
        own = vars(layer).get(name)
        if isinstance(value, dict) and (inspect.isroutine(own) or isinstance(own, shared)):
            config[name] = own
    return config


def give_state(old: Any, new: Any) -> None:
    """Give a built layer all that an old one's configuration does not say.

    Weights and seeds, what `adapt` learnt, what is frozen at any depth, the types and plain values that were set
    afterwards, and our classes within it.

    Raises:
        UserError: the new layer is made of other parts or variables than the old one.
    """
    parts, made = _parts(old), _parts(new)
    if len(parts) != len(made) or [v.shape for v in old.variables] != [v.shape for v in new.variables]:
        raise UserError(
            f"layer {old.name!r}: made anew from its get_config(), {type(old).__name__} has other parts or variables "
            "than it has now; let that method say all that it is made of"
        )
    for before, after in zip(parts, made, strict=True):
        _give_settings(before, after)
        _give_own_state(before, after)
    for before, after in zip(old.variables, new.variables, strict=True):
        hand_over(before, after)
        # Both may be set on the variable itself, after the layer was built.
        after.regularizer, after.constraint = before.regularizer, before.constraint
        if after.trainable != before.trainable:
            after.trainable = before.trainable
    finish(new)


def marked(layer: Any, new: Any) -> Any:
    """Give a layer that takes another one's place what somebody noted on that one, and how it casts; return it."""
    known = _names_of(layer) | vars(new).keys()
    for name, value in vars(layer).items():
        if name not in known and not name.startswith("_") and is_plain_data(value):
            setattr(new, name, plain_copy(value))
    new.autocast = layer.autocast
    return new


def hand_over(before: Any, after: Any) -> None:
    """Give a variable another one's value, in memory of its own: a training step on JAX takes away what it is given."""
    after.assign(np.array(keras.ops.convert_to_numpy(before)))


def finish(layer: Any) -> None:
    """Let the layers within one that derive something from their weights do so."""
    for inner in _parts(layer):
        if inner.weights and hasattr(inner, "finalize_state"):
            inner.finalize_state()


def put_within(inner: Any, ours: Any) -> None:
    """Make a layer of Keras's, in its place, one of ours, which adds methods and no state."""
    inner.__class__ = ours
    inner._set_padding(inner.padding, "auto")


def _parts(layer: Any) -> list[Any]:
    """Return the layer and all within it, outer ones first."""
    return keras_private.layers_within(layer)


def _give_settings(before: Any, after: Any) -> None:
    # The setter passes the value on to the layers within, which come later and have their own.
    after.trainable = keras_private.own_trainable(before)
    if after.dtype_policy != before.dtype_policy:
        after.dtype_policy = before.dtype_policy
    if TWINS.get(type(after)) is type(before):
        put_within(after, type(before))
    of_keras = attributes_of_models() if isinstance(before, keras.Model) else _of_every_layer()
    for name, value in list(vars(before).items()):
        if name not in of_keras:
            _set_like(after, name, value)


def _give_own_state(before: Any, after: Any) -> None:
    """Hand over what a layer saves in ways of its own, such as the vocabulary that it learnt."""
    if type(before).save_own_variables is not keras.layers.Layer.save_own_variables:
        store: dict[str, Any] = {}
        before.save_own_variables(store)
        after.load_own_variables(store)
    if hasattr(before, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            before.save_assets(folder)
            if any(Path(folder).iterdir()):
                after.load_assets(folder)


def is_plain_data(value: Any) -> bool:
    """Return whether a value is made of numbers, texts, arrays and containers of them alone."""
    if isinstance(value, dict):
        return all(map(is_plain_data, value.values()))
    return isinstance(value, _PLAIN) or (
        isinstance(value, list | tuple | set | frozenset) and all(map(is_plain_data, value))
    )


def plain_copy(value: Any) -> Any:
    """Return a copy of plain data, in plain containers: those by which Keras watches a layer cannot be copied."""
    if isinstance(value, dict):
        return {name: plain_copy(each) for name, each in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(plain_copy, value))
    return value.copy() if isinstance(value, np.ndarray) else value


def _set_like(after: Any, name: str, value: Any) -> None:
    """Give a copy what somebody set on the original, data, tensor or function, if its class does not make its like."""
    own = vars(after).get(name)
    if is_plain_data(value):
        if name not in vars(after) or not is_equal(own, value):
            setattr(after, name, plain_copy(value))
    elif keras.ops.is_tensor(value) and not isinstance(value, keras.Variable):
        setattr(after, name, keras.ops.convert_to_tensor(np.array(keras.ops.convert_to_numpy(value)), value.dtype))
    elif inspect.isroutine(value) and not hasattr(value, "__self__") and _code(value) is not _code(own):
        setattr(after, name, value)
    elif type(value).__module__.partition(".")[0] not in _FRAMEWORKS and type(value) is not type(own):
        with contextlib.suppress(Exception):  # such as a lock, which both then have
            value = copy.deepcopy(value)
        setattr(after, name, value)


def _code(function: Any) -> Any:
    """Return what tells functions apart: one that a class makes for each of its layers has the same code in all."""
    return getattr(function, "__code__", function)


def is_equal(first: Any, second: Any) -> bool:
    """Return whether two values are of one type and say the same."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return type(first) is type(second) and np.array_equal(first, second)
    return type(first) is type(second) and repr(first) == repr(second)


def _names_of(layer: Any) -> frozenset[str]:
    """Return the attributes that a layer of this class has by itself."""
    return _of_every_layer() | frozenset(vars(copied(layer)))


@cache
def _of_every_layer() -> frozenset[str]:
    """Return the attributes that Keras gives every layer, and keeps itself."""
    layer = keras.layers.Layer()
    layer.build(())
    return frozenset(vars(layer)) | {"input_spec", "supports_jit"}


@cache
def attributes_of_models() -> frozenset[str]:
    """Return the attributes that Keras and this package give every functional or sequential model, built and run."""
    made = (f"make_{kind}_function" for kind in KINDS)
    return keras_private.attributes_of_models() | {"metadata", "architecture", *made}


def attributes(model: keras.Model) -> dict[str, Any]:
    """Return a model's attributes; PyTorch keeps those that are layers in a dictionary of their own."""
    return {**vars(model).get("_modules", {}), **vars(model)}
