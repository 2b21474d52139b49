"""PyTorch: a model's steps (training, evaluation, prediction) without Python between the operations.

Keras runs its Python at every step: layers' calls, the loss, the optimizer, metrics. The first steps of a kind are
recorded as they run; where two did the same, what follows does it again without Python: same operations, same order,
same numbers.
"""

import operator
import random
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from groupwise import keras_private
from groupwise.backends.torch.program import UNSEEN, Program
from groupwise.backends.torch.recording import Recording, recorded

_PLAIN = (bool, int, float, str, type(None), type, types.FunctionType, types.BuiltinFunctionType)
_MOST_PROGRAMS, _MOST_RECORDED = 16, 32
_HOOKS = operator.attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Step:
    """What Keras calls for each batch, `function([data])`, as a program where it can be one.

    A program is of one kind of batch (shapes, types) and of the model's settings: a layer's or the optimizer's setting
    that is changed between two steps is seen by the next one, as weights and learning rate are.

    Attributes:
        objection: why Keras's Python runs, or "".
        recorded, repeated: how many steps were.
    """

    def __init__(self, model: keras.Model, kind: str, function: Callable[[Any], Any]) -> None:
        self.model = model
        # Keras's jit_compile=True lets torch.compile trace its Python, which breaks in dozens of places.
        self.function = getattr(function, "_torchdynamo_orig_callable", function)
        self._options = {"folds": kind != "train", "is_compiled": bool(model.jit_compile)}
        self.objection = ""
        self._settings = _Settings(model)
        self._programs: dict[Any, Program] = {}
        self.recorded = self.repeated = 0
        self._one_records = threading.Lock()

    def __call__(self, data: Any) -> Any:
        if self.model.run_eagerly:
            return self.function(data)
        settings = self._settings.key()
        if not self.objection and self._settings.is_heard():
            self._object("somebody listens to a layer of it")
        if self.objection:
            return self.function(data)
        leaves, structure = tree_flatten(data)
        leaves = list(map(_as_tensor, leaves))
        foreign = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *_PLAIN))]
        if foreign:
            self._object(f"its batches hold something of type {foreign[0]}")
            return self.function(data)
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = structure, *map(_kind, leaves), *_surroundings(), settings
        program = self._programs.setdefault(key, Program(**self._options))
        results = program.run(inputs)
        if results is not UNSEEN:
            self.repeated += 1
            return results
        data = tree_unflatten(leaves, structure)
        if not self._one_records.acquire(blocking=False):
            return self.function(data)
        try:
            return self._record(program, inputs, data)
        finally:
            self._one_records.release()

    def _record(self, program: Program, inputs: list[Tensor], data: Any) -> Any:
        recording = Recording()
        for tensor in inputs:
            recording.new(tensor)
        with _no_random_python(recording), recorded(recording):
            results = self.function(data)
        for variable in self.model.trainable_variables:
            variable.value.grad = None
        program.learn(recording, results)
        self.recorded += 1
        while len(self._programs) > _MOST_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        if self.recorded > _MOST_RECORDED + self.repeated:
            program.objection = program.objection or "its batches or its layers' settings are others at each step"
        if program.objection:
            self._object(program.objection)
        return results

    def _object(self, reason: str) -> None:
        self.objection = reason
        self._programs.clear()
        warnings.warn(f"model {self.model.name!r} runs step by step, as Keras does: {reason}", stacklevel=4)


class _Settings:
    """What a program depends on: the settings of layers, variables, losses, metrics and optimizer.

    Making a key of them at each step would cost as much as some networks' operations. What is compared is which objects
    they are; where one is another, all are read.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._parts: list[dict[str, Any]] = []
        self._getters: list[Callable[[dict[str, Any]], tuple[Any, ...]]] = []
        self._seen: list[Any] = []
        self._heard: list[Any] = []
        self._key: tuple[Any, ...] = ()

    def is_heard(self) -> bool:
        """Return whether a layer has hooks of PyTorch's, which a program would not call."""
        return any(self._heard)

    def key(self) -> tuple[Any, ...]:
        """Return the settings as they are now."""
        if not self._seen or not self._is_as_seen():
            self._read()
        return self._key

    def _is_as_seen(self) -> bool:
        try:
            values = self._values()
        except KeyError:
            return False
        return all(map(operator.is_, values, self._seen))

    def _values(self) -> list[Any]:
        sizes = map(len, self._parts)
        return [*sizes, *chain.from_iterable(get(part) for get, part in zip(self._getters, self._parts, strict=True))]

    def _read(self) -> None:
        layers = keras_private.layers_within(self.model)
        optimizer = getattr(self.model, "optimizer", None)
        optimizers = [part for part in (optimizer, getattr(optimizer, "inner_optimizer", None)) if part is not None]
        variables = [*self.model.variables, *(v for part in optimizers for v in part.variables)]
        compiled = tree_leaves(keras_private.compile_arguments(self.model)) if optimizers else []
        judges = [part for part in compiled if isinstance(part, keras.losses.Loss | keras.metrics.Metric)]
        named = [(vars(part), keras_private.settings(part)) for part in (*layers, *optimizers, *variables, *judges)]
        self._parts = [part for part, names in named if names]
        # Twice the first name: of one name alone, it would be no tuple.
        self._getters = [operator.itemgetter(names[0], *names) for _, names in named if names]
        self._heard = list(chain.from_iterable(map(_HOOKS, layers)))
        self._seen = self._values()
        self._key = tuple(map(_plain, self._seen))


def _plain(value: Any) -> Any:
    """Return what of a setting matters: its value, which tensor it is, a policy's name, or else its type alone."""
    if isinstance(value, Tensor):
        return id(value), value.requires_grad
    if isinstance(value, keras.DTypePolicy):
        return value.name
    return value if isinstance(value, _PLAIN) else type(value)


def _as_tensor(leaf: Any) -> Any:
    """Return an array of numbers as a tensor; a tensor as another one, so that no two of a batch are the same."""
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSU":
        return keras.ops.convert_to_tensor(leaf)
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), leaf


def _surroundings() -> tuple[Any, ...]:
    kinds = "cpu", "cuda"
    autocast = [torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds]
    return *autocast, torch.is_grad_enabled(), keras.config.floatx()


@contextmanager
def _no_random_python(recording: Recording) -> Iterator[None]:
    """Object where Python's or NumPy's random numbers are drawn, which a program would not draw again."""
    before = _random_state()
    yield
    if _random_state() != before:
        recording.object("it draws random numbers of Python or NumPy")


def _random_state() -> Any:
    return random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
