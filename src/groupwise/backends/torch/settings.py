"""PyTorch: what a recorded step depends on besides its batch: the settings of a model and of all that it is made of."""

import collections
import enum
import operator
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from groupwise import keras_private

Getter = Callable[[], tuple[Any, ...]]
_MOST_KNOWN = 32
PYTHON_VALUES = (bool, int, float, str, type(None))
_VALUES = (*PYTHON_VALUES, complex, bytes, np.generic, enum.Enum, torch.dtype, torch.device, torch.Size)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_LEAVES = (
    *(*_VALUES, *_FUNCTIONS, type, types.ModuleType, np.ndarray, Tensor),
    *(keras.DTypePolicy, keras.KerasTensor, keras.Initializer),
)
"""What has no settings of its own that a step goes by."""
_CONTAINERS = (list, tuple, dict, set, collections.deque)
_OPEN = {"argparse", "collections", "types"}
"""Modules of Python's own whose objects hold what users put there; a logger or a lock is no setting."""
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_LISTENERS = operator.attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The hooks on a layer, of which PyTorch keeps one dictionary each."""
_STATE = operator.attrgetter("requires_grad", "dtype", "_backward_hooks", "_post_accumulate_grad_hooks")
"""What of a tensor is a setting; the last two are its hooks."""
_NOTED = vars(torch.nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}
"""What PyTorch's modules note for themselves."""
_EVERYWHERE = [
    value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)
]
"""The hooks on all modules."""


@dataclass(frozen=True)
class State:
    """The settings as they were when they were read.

    Attributes:
        key: an object that is the same whenever the settings are these.
        tensors: by their ids, which ones the model has.
    """

    key: object
    tensors: frozenset[int]
    _getters: list[Getter]
    _attributes: list[dict[str, Any]]
    _containers: list[Any]
    _filled: list[Any]
    _memories: list[Tensor]
    _seen: list[Any]
    _numbers: list[int]
    _hooks: list[Any]
    _objection: str

    @property
    def objection(self) -> str:
        """Why steps cannot be repeated as long as the settings are these, or ""."""
        return (
            "somebody listens to a layer or a weight of it" if any(self._hooks) or any(_EVERYWHERE) else self._objection
        )

    def is_true(self) -> bool:
        """Return whether the settings are still these: the same objects in the same places."""
        try:
            if _numbers(self._attributes, self._containers, self._memories) != self._numbers:
                return False
            values = _values(self._getters, self._filled, self._memories)
            return all(map(operator.is_, values, self._seen))
        except (AttributeError, KeyError, RuntimeError):  # an attribute is gone, or another thread changes a container
            return False


class Settings:
    """The settings of layers, PyTorch's modules, variables, losses, metrics, optimizer, and of the objects they hold.

    Making a key of them at each step would cost as much as some networks' operations. What is compared is which objects
    they are; where one is another, all are read.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._state: State | None = None
        self._known: dict[tuple[Any, ...], object] = {}

    def state(self) -> State:
        """Return the settings as they are."""
        state = self._state
        if state is None or not state.is_true():
            state = self._state = self._read(state)
        return state

    def _read(self, before: State | None) -> State:
        layers = keras_private.layers_within(self.model)
        optimizer = getattr(self.model, "optimizer", None)
        both = optimizer, getattr(optimizer, "inner_optimizer", None)
        optimizers = [part for part in both if part is not None]
        variables = [*self.model.variables, *(v for part in optimizers for v in part.variables)]
        compiled = [*keras_private.compile_arguments(self.model).values(), *self.model.metrics] if optimizers else []
        getters, attributes, containers, modules = _reached([*layers, *optimizers, *variables, *compiled])
        filled = [container for container in containers if container]
        held = _values(getters, filled, [])
        every = list({id(value): value for value in held if isinstance(value, Tensor)}.values())
        # A sparse one has no memory of its own; its parts do.
        tensors = [tensor for tensor in every if tensor.layout is torch.strided]
        values, numbers = list(_values(getters, filled, tensors)), _numbers(attributes, containers, tensors)
        ids = frozenset(map(id, every))
        # Other weights: what is known of the ones before would keep them. To hash thousands at each step would be slow.
        if before is None or before.tensors != ids or len(self._known) > _MOST_KNOWN:
            self._known = {}
        key = self._known.setdefault((*map(_Setting, values), *numbers), object())
        of_tensors = (hooks for tensor in tensors for hooks in _STATE(tensor)[2:] if hooks is not None)
        hooks = [*chain.from_iterable(map(_LISTENERS, modules)), *of_tensors]
        objection = _objection(values, optimizers)
        return State(key, ids, getters, attributes, containers, filled, tensors, values, numbers, hooks, objection)


def _objection(values: Iterable[Any], optimizers: Iterable[Any]) -> str:
    if any(isinstance(value, _GENERATORS) for value in values):
        return "it has a generator of random numbers of its own"
    return "its learning rate is a function" if any(map(keras_private.rate_is_a_function, optimizers)) else ""


def _reached(parts: Iterable[Any]) -> tuple[list[Getter], list[dict[str, Any]], list[Any], list[torch.nn.Module]]:
    """Return what reads the settings of parts, of the objects that they hold as settings (regularizers), and so on.

    Returns:
        Functions that get an object's settings; objects' attributes; the containers, and the modules, that were met.
    """
    waiting, met = list(parts)[::-1], dict[int, Any]()
    getters, attributes, containers, modules = list[Getter](), list[Any](), list[Any](), list[Any]()
    while waiting:
        each = waiting.pop()
        if id(each) in met or isinstance(each, _LEAVES):
            continue
        met[id(each)] = each
        if isinstance(each, _CONTAINERS):
            if not isinstance(each, tuple):
                containers.append(each)
            waiting.extend(_elements(each))
            continue
        if isinstance(each, torch.nn.Module):
            modules.append(each)
        for values, names in _named(each):
            get: Any = operator.itemgetter if isinstance(values, dict) else operator.attrgetter
            # Of one name alone, it would be no tuple.
            getters.append(partial(get(*names, *names[: len(names) == 1]), values))
            attributes += [values] if isinstance(values, dict) else []
            waiting.extend(getters[-1]())
    return getters, attributes, containers, modules


def _named(part: Any) -> Iterator[tuple[Any, list[str]]]:
    """Yield the dictionaries in which an object has its settings, or itself, with the settings' names."""
    module = type(part).__module__.partition(".")[0]
    if module in sys.stdlib_module_names and module not in _OPEN:
        return
    if hasattr(part, "__dict__"):
        values, names = vars(part), keras_private.settings(part)
        if isinstance(part, torch.nn.Module):
            names = [name for name in names if name not in _NOTED]
        if isinstance(part, keras.Layer):
            # Keras makes the dictionary of its variables anew, again and again.
            modules = vars(part)["_modules"]
            yield from _with_names(modules, [name for name in modules if name != "_torch_params"])
        yield from _with_names(values, names)
    else:
        slots = chain.from_iterable(_as_tuple(vars(kind).get("__slots__", ())) for kind in type(part).__mro__)
        yield from _with_names(part, [name for name in slots if hasattr(part, name)])


def _with_names(values: Any, names: list[str]) -> list[tuple[Any, list[str]]]:
    return [(values, names)] if names else []


def _as_tuple(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _values(getters: Iterable[Getter], containers: Iterable[Any], tensors: Iterable[Tensor]) -> Iterator[Any]:
    attributes = chain.from_iterable(get() for get in getters)
    return chain(attributes, *map(_STATE, tensors), *map(_elements, containers))


def _numbers(attributes: Iterable[Any], containers: Iterable[Any], tensors: Iterable[Tensor]) -> list[int]:
    """Return how many attributes and elements there are, and where the tensors' memory is."""
    return [*map(len, attributes), *map(len, containers), *(tensor.data_ptr() for tensor in tensors)]


def _elements(container: Any) -> Iterator[Any]:
    return chain(container, container.values()) if isinstance(container, dict) else iter(container)


class _Setting:
    """A setting's value, to be compared: by what it is where that cannot change, else by which object it is."""

    def __init__(self, value: Any) -> None:
        self.value = value
        if isinstance(value, keras.DTypePolicy):
            self.compared = type(value), value.name
        elif isinstance(value, _VALUES) or (
            isinstance(value, tuple) and all(isinstance(v, PYTHON_VALUES) for v in value)
        ):
            self.compared = type(value), value if _is_hashable(value) else id(value)
        else:
            self.compared = type(None), id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Setting) and self.compared == other.compared

    def __hash__(self) -> int:
        return hash(self.compared)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
