"""PyTorch: a model's steps (training, evaluation, prediction) without Python between the operations.

Keras runs its Python at every step: layers' calls, the loss, the optimizer, metrics. The first steps of a kind are
recorded as they run; where two did the same, what follows does it again without Python: same operations, same order,
same numbers.
"""

import random
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import torch
from torch import _C, Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_flatten, tree_unflatten

from groupwise import keras_private
from groupwise.backends.torch.program import UNSEEN, Program
from groupwise.backends.torch.recording import Recording, recorded
from groupwise.backends.torch.settings import PYTHON_VALUES, Settings

_MOST_PROGRAMS, _MOST_RECORDED, _MOST_CHANGES, _OFTEN = 32, 32, 3, 4
_ONE_RECORDS, _ONE_LOOKS = threading.Lock(), threading.Lock()
"""Held while a step is recorded, which replaces functions of Keras and PyTorch; and while a program is looked up."""


class Step:
    """What Keras calls for each batch, `function([data])`, as a program where it can be one.

    A program is of one kind of batch (shapes, types) and of the model's settings: a layer's or the optimizer's setting
    that is changed between two steps is seen by the next one, as weights and learning rate are.

    Attributes:
        objection: why the last step was Keras's Python and was not recorded, or "".
        recorded, repeated: how many steps were.
    """

    def __init__(self, model: keras.Model, kind: str, function: Callable[[Any], Any], folds: bool) -> None:
        self.model, self.kind = model, kind
        # Keras's jit_compile=True lets torch.compile trace its Python, which breaks in dozens of places.
        self.function = getattr(function, "_torchdynamo_orig_callable", function)
        self._options = {"folds": folds, "is_compiled": bool(model.jit_compile)}
        self.objection = self._for_good = ""
        self.recorded = self.repeated = self._changed = 0
        self._said: set[str] = set()
        self._settings, self._logs = Settings(model), keras_private.Logs()
        self._tensors: frozenset[int] = frozenset()
        self._programs: dict[Any, Program] = {}
        self._met: Counter[Any] = Counter()

    def __call__(self, data: Any) -> Any:
        if self.model.run_eagerly or keras_private.is_stateless():
            return self.function(data)
        if _C._len_torch_dispatch_stack() > 0 or not all(map(_is_default_device, _get_current_function_mode_stack())):
            self.objection = "a mode of PyTorch's watches each operation, and would not see all of them"
            return self._as_keras(data)
        settings = self._settings.state()
        given, structure = tree_flatten(data)
        leaves = list(map(_as_tensor, given))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.objection = self._for_good or settings.objection or self._objection_to(given, leaves)
        if self.objection:
            return self._as_keras(data)
        key = structure, *map(_kind, leaves), *_surroundings(), settings.key
        program = self._program_of(key, settings.tensors)
        results = UNSEEN if program.objection else program.run(inputs)
        if results is not UNSEEN:
            self.repeated += 1
            return self._logs.as_keras(results)
        self.objection = program.objection or self._too_many(key)
        if self.objection:
            return self._as_keras(data)
        if not _ONE_RECORDS.acquire(blocking=False):
            return self.function(data)
        try:
            return self._record(program, inputs, tree_unflatten(leaves, structure))
        finally:
            _ONE_RECORDS.release()

    def _program_of(self, key: Any, tensors: frozenset[int]) -> Program:
        """Return the program of a kind of batch and of settings; a new one has nothing recorded."""
        with _ONE_LOOKS:
            if tensors != self._tensors:
                # Programs of weights that are no longer the model's would keep them.
                self._tensors = tensors
                self._programs.clear()
            # The one that was used last stands last.
            self._programs[key] = program = self._programs.pop(key, None) or Program(**self._options)
            while len(self._programs) > _MOST_PROGRAMS:
                del self._programs[next(iter(self._programs))]
        return program

    def _objection_to(self, given: list[Any], leaves: list[Any]) -> str:
        """Return why no batch like this is recorded, or ""."""
        if any(map(keras_private.has_mask, given)):
            return "its batches come with masks"
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *PYTHON_VALUES)):
                return f"its batches hold something of type {type(leaf).__name__}"
            if isinstance(leaf, Tensor) and leaf.layout is not torch.strided:
                return "its batches hold sparse tensors"
            if self.kind == "train" and isinstance(leaf, Tensor) and leaf.requires_grad:
                return "somebody wants the gradients of a batch"
        if torch.is_anomaly_enabled():
            return "torch.autograd.detect_anomaly looks at the gradients of each operation"
        devices = {"cpu", *(leaf.device.type for leaf in leaves if isinstance(leaf, Tensor))}
        if any(map(torch.is_autocast_enabled, devices)):
            return "torch.autocast keeps what it casts; mixed precision by Keras's dtype policies is recorded"
        return ""

    def _too_many(self, key: Any) -> str:
        """Return that recording does not pay, where most steps were recorded and this kind of batch is met seldom."""
        if self.recorded < _MOST_RECORDED + self.repeated:
            return ""
        self._met = self._met if len(self._met) < _MOST_PROGRAMS else Counter()
        self._met[hash(key)] += 1
        is_new = self._met[hash(key)] < _OFTEN
        return "its batches or its layers' settings are others at each step" if is_new else ""

    def _as_keras(self, data: Any) -> Any:
        """Run Keras's Python, and say why, once for each reason."""
        if self.objection not in self._said:
            self._said.add(self.objection)
            text = f"model {self.model.name!r} runs step by step, as Keras does: {self.objection}"
            warnings.warn(text, stacklevel=4)
        return self.function(data)

    def _record(self, program: Program, inputs: list[Tensor], data: Any) -> Any:
        recording, before, seed = Recording(inputs), self._settings.state().key, torch.initial_seed()
        with _no_random_python(recording), self._logs.as_tensors(), recorded(recording):
            results = self.function(data)
        if self.kind == "train":
            for variable in self.model.trainable_variables:
                variable.value.grad = None
        if self._settings.state().key is not before:
            # A step that builds something does so once.
            recording.refuse("its Python changes its own settings")
            self._changed += 1
            self._for_good = recording.objection if self._changed > _MOST_CHANGES else ""
        if torch.initial_seed() != seed:
            # It is seen once: the next step finds the seed that this one has set.
            self._for_good = "it sets the state of PyTorch's random numbers"
            recording.refuse(self._for_good)
        program.learn(recording, results)
        self.recorded += 1
        return self._logs.as_keras(results)


def _is_default_device(mode: Any) -> bool:
    return isinstance(mode, DeviceContext)


def _as_tensor(leaf: Any) -> Any:
    """Return an array of numbers as a tensor; a tensor as another one, so that no two of a batch are the same."""
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSU":
        return keras.ops.convert_to_tensor(leaf)
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) and leaf.layout is torch.strided else leaf


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), leaf


def _surroundings() -> tuple[Any, ...]:
    of_keras = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()
    return torch.is_grad_enabled(), torch.get_default_dtype(), *of_keras, keras_private.global_seeds()


@contextmanager
def _no_random_python(recording: Recording) -> Iterator[None]:
    """Object where Python's or NumPy's random numbers are drawn, which a program would not draw again."""
    before = _random_state()
    yield
    if _random_state() != before:
        recording.refuse("it draws random numbers of Python or NumPy")


def _random_state() -> Any:
    of_numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return random.getstate(), {name: np.asarray(value).tobytes() for name, value in of_numpy.items()}
