"""PyTorch: what a recorded step depends on besides its batch: the settings of a model and of all that it is made of."""

import enum
import operator
import random
import types
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from groupwise import keras_private

Parts = list[tuple[dict[str, Any], list[str]]]
_MOST_KNOWN = 32
PLAIN = (bool, int, float, str, type(None))
_VALUES = (*PLAIN, complex, bytes, np.generic, enum.Enum, torch.dtype, torch.device, torch.Size, keras.DTypePolicy)
_LEAVES = (
    *_VALUES,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    type,
    types.ModuleType,
    np.ndarray,
)
_CONTAINERS = (list, dict, set)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_LISTENERS = operator.attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE = operator.attrgetter("requires_grad", "dtype", "_backward_hooks", "_post_accumulate_grad_hooks")
_NOTED = vars(torch.nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}
"""What PyTorch's modules note for themselves."""
_EVERYWHERE = [
    value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)
]


class Settings:
    """The settings of layers, PyTorch's modules, variables, losses, metrics, optimizer, and of the objects they hold.

    Making a key of them at each step would cost as much as some networks' operations. What is compared is which objects
    they are; where one is another, all are read.

    Attributes:
        tensors: which ones, by their ids.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model, self.tensors = model, frozenset[int]()
        self._optimizers: list[Any] = []
        self._parts: list[dict[str, Any]] = []
        self._getters: list[Callable[[dict[str, Any]], tuple[Any, ...]]] = []
        self._containers: list[Any] = []
        self._tensors: list[Tensor] = []
        self._seen: list[Any] = []
        self._numbers: list[int] = []
        self._heard: list[Any] = []
        self._draws = False
        self._known: dict[tuple[Any, ...], object] = {}
        self._key: object = None

    def key(self) -> object:
        """Return an object that is the same as long as, and whenever, the settings are these."""
        if not self._seen or not self._is_as_seen():
            self._read()
        return self._key

    def objection(self) -> str:
        """Return why steps cannot be repeated as long as the settings are these, or ""; `key` was just called."""
        if any(self._heard) or any(_EVERYWHERE):
            return "somebody listens to a layer or a weight of it"
        if self._draws:
            return "it has a generator of random numbers of its own"
        return "its learning rate is a function" if any(map(keras_private.rate_is_a_function, self._optimizers)) else ""

    def _is_as_seen(self) -> bool:
        try:
            values = self._values()
        except KeyError:
            return False
        return all(map(operator.is_, values, self._seen)) and self._count() == self._numbers

    def _values(self) -> list[Any]:
        values = chain.from_iterable(get(part) for get, part in zip(self._getters, self._parts, strict=True))
        states = chain.from_iterable(map(_STATE, self._tensors))
        return [*values, *states, *chain.from_iterable(map(_elements, self._containers))]

    def _count(self) -> list[int]:
        """Return how many attributes and elements there are, and where the tensors' memory is."""
        sizes = chain(map(len, self._parts), map(len, self._containers))
        return [*sizes, *(tensor.data_ptr() for tensor in self._tensors)]

    def _read(self) -> None:
        within = keras_private.layers_within(self.model)
        layers = list({id(part): part for layer in within for part in (layer, *layer.modules())}.values())
        optimizer = getattr(self.model, "optimizer", None)
        both = optimizer, getattr(optimizer, "inner_optimizer", None)
        self._optimizers = [part for part in both if part is not None]
        variables = [*self.model.variables, *(v for part in self._optimizers for v in part.variables)]
        compiled = keras_private.compile_arguments(self.model) if self._optimizers else {}
        named = _with_held([*layers, *self._optimizers, *variables, *keras.tree.flatten(compiled)])
        self._parts = [part for part, _ in named]
        # Twice the first name: of one name alone, it would be no tuple.
        self._getters = [operator.itemgetter(names[0], *names) for _, names in named]
        held = [part[name] for part, names in named for name in names]
        self._containers = [value for value in held if isinstance(value, _CONTAINERS)]
        elements = [*held, *chain.from_iterable(map(_elements, self._containers))]
        self._tensors = list({id(value): value for value in elements if isinstance(value, Tensor)}.values())
        self.tensors = frozenset(map(id, self._tensors))
        hooks = chain.from_iterable(_STATE(tensor)[2:] for tensor in self._tensors)
        self._heard = [*chain.from_iterable(map(_LISTENERS, layers)), *(each for each in hooks if each is not None)]
        self._seen, self._numbers = self._values(), self._count()
        self._draws = any(isinstance(value, _GENERATORS) for value in self._seen)
        # To hash thousands of settings at each step would take milliseconds.
        self._known = self._known if len(self._known) < _MOST_KNOWN else {}
        self._key = self._known.setdefault((*map(_Setting, self._seen), *self._numbers), object())


class _Setting:
    """A setting's value, to be compared: by what it is where that cannot change, else by which object it is."""

    def __init__(self, value: Any) -> None:
        self.value = value
        is_value = isinstance(value, _VALUES) or (isinstance(value, tuple) and all(isinstance(v, PLAIN) for v in value))
        self.compared = (type(value), _hashable(value)) if is_value else id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Setting) and self.compared == other.compared

    def __hash__(self) -> int:
        return hash(self.compared)


def _hashable(value: Any) -> Any:
    return value.name if isinstance(value, keras.DTypePolicy) else value


def _with_held(parts: Iterable[Any]) -> Parts:
    """Return the attributes of parts, and of objects that they hold (regularizers, schedules), with their names."""
    named: dict[int, tuple[dict[str, Any], list[str]]] = {}
    for part in parts:
        for each in (part, *_held(part)):
            names = keras_private.settings(each) if hasattr(each, "__dict__") and not isinstance(each, _LEAVES) else []
            if isinstance(each, torch.nn.Module):
                names = [name for name in names if name not in _NOTED]
            if names:
                named.setdefault(id(each), (vars(each), names))
    return list(named.values())


def _held(part: Any) -> Iterator[Any]:
    """Yield the objects that a part has as settings, and that have settings themselves."""
    if not hasattr(part, "__dict__") or isinstance(part, _LEAVES):
        return
    for name in keras_private.settings(part):
        value = vars(part)[name]
        is_part = isinstance(value, Tensor | torch.nn.Module | keras.Variable | keras.KerasTensor | keras.Initializer)
        if not is_part and not isinstance(value, (*_LEAVES, *_CONTAINERS, tuple)):
            yield value


def _elements(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
