"""PyTorch: what one run of some Python did to tensors, written down.

A dispatch mode sees every operation below autograd, those of the backward pass included, while they run as they would
without it: the recorded run is a real one, and costs about twice its time.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from groupwise import keras_private

_aten = torch.ops.aten
_STEP, _OF_LIBRARIES = "groupwise.backends.torch.step", ("keras.", "groupwise.")
_MAKERS = frozenset({"tensor", "as_tensor", "asarray", "from_numpy", "frombuffer"})
"""Functions that make a tensor of Python's or NumPy's values, some of them without an operation."""
_READS = frozenset(
    {
        *("numpy", "__array__", "tolist", "data_ptr", "__dlpack__", "__repr__", "__format__"),
        *("apply_", "map_", "map2_"),
    }
)
"""Methods that look at a tensor's memory or write to it, where nobody sees what is done."""
_STATISTICS = frozenset({"running_mean", "running_var"})
"""Arguments that a batch norm's forward operation writes to, though its schema does not say so."""


@dataclass(frozen=True)
class Register:
    """A tensor of a recording."""

    index: int


@dataclass(frozen=True)
class Call:
    """An operation that ran: its arguments and results, tensors as registers.

    Attributes:
        writes: the constants that it writes to.
        has_effect: whether it does more than its results show: it writes, draws random numbers, or has no results.
        is_view: whether a result shares memory with an argument.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: Any
    writes: frozenset[int] = frozenset()
    has_effect: bool = False
    is_view: bool = False

    @cached_property
    def reads(self) -> set[int]:
        return registers_in((self.arguments, self.keywords))

    @cached_property
    def makes(self) -> set[int]:
        return registers_in(self.results)


@dataclass
class Stretch:
    """The calls up to where Python looked at a number of a tensor, or to the end.

    Attributes:
        calls: in order.
        looked_at: the register of that tensor, None at the end.
        seen: the number.
        place: where in Python, for a message.
        constants: by register, tensors used here first that were there before the run, or made of Python's values.
        values: those that were made of Python's values.
    """

    calls: list[Call] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    values: set[int] = field(default_factory=set)
    looked_at: int | None = None
    seen: Any = None
    place: str = ""


class Recording:
    """What a run did.

    Attributes:
        stretches: its calls, cut where a number was looked at.
        objection: why the run cannot be done again without its Python, or "".
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        self.stretches = [Stretch()]
        self.objection = ""
        self._registers = WeakTensorKeyDictionary()
        self._count = 0
        self._owners: dict[int, int] = {}
        self._of_python: set[int] = set()
        """The registers of what Python's values make, whatever the batch holds."""
        self._spoilt: set[int] = set()
        """The memory that something else was written to."""
        for tensor in inputs:
            self._owners[_storage(tensor)] = self.made(tensor).index
        self._inputs = frozenset(self._owners.values())

    def refuse(self, reason: str) -> None:
        self.objection = self.objection or reason

    def made(self, tensor: Tensor) -> Register:
        """Return the register of a tensor that an operation made, or that is given."""
        if tensor not in self._registers:
            if tensor.layout is not torch.strided:
                self.refuse(f"{_place()} uses a sparse tensor")
            self._registers[tensor] = Register(self._count)
            self._count += 1
        return self._registers[tensor]

    def register(self, tensor: Tensor) -> Register:
        """Return the register of a tensor; one that is not known is a constant."""
        if tensor not in self._registers:
            index = self.made(tensor).index
            self.stretches[-1].constants[index] = tensor
            self._owners[_storage(tensor)] = index
        return self._registers[tensor]

    def as_registers(self, value: Any) -> Any:
        def known(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.register(leaf)
            # One object, which is equal to itself.
            return math.nan if isinstance(leaf, float) and math.isnan(leaf) else leaf

        return tree_map(known, value)

    def call(self, function: Any, arguments: Any, keywords: Any, results: Any, written: list[Tensor]) -> None:
        """Write down a call that has run."""
        given, named = self.as_registers(arguments), self.as_registers(keywords)
        made = tree_map(lambda leaf: self.made(leaf) if isinstance(leaf, Tensor) else None, results)
        owners = (self._owners.get(_storage(tensor)) for tensor in written)
        writes = frozenset(owner for owner in owners if owner is not None)
        # What has no results is there for what it does: it looks whether a matrix has an inverse.
        is_random = torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())
        has_effect = bool(written) or is_random or not registers_in(made)
        for leaf in tree_leaves((arguments, keywords)):
            if isinstance(leaf, torch.Generator):
                self.refuse(f"{_place()} draws random numbers of a generator of its own")
            if isinstance(leaf, torch.ScriptObject):
                self.refuse(f"{_place()} uses an object of PyTorch's own, such as a group of processes")
        taken, gave = (set(map(_storage, _tensors(each))) for each in ((arguments, keywords), results))
        call = Call(function, given, named, made, writes, has_effect, is_view=not taken.isdisjoint(gave))
        self.stretches[-1].calls.append(call)
        if writes & self._inputs:
            self.refuse("a layer of it writes into the batch")
        if not has_effect and call.reads <= self._of_python:
            self._of_python |= call.makes
        elif not call.reads <= self._of_python:
            self._spoilt |= set(map(_storage, written))

    def is_of_python(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether tensors are made of Python's values alone."""
        return all(self.register(t).index in self._of_python and _storage(t) not in self._spoilt for t in tensors)

    def lift(self, tensor: Tensor) -> None:
        """Write down a tensor that was made of Python's values: the program copies it, since it may be written to."""
        with _disable_current_modes():
            value = tensor.clone()
        index = self.register(value).index
        self.stretches[-1].values.add(index)
        self._of_python.add(index)
        self.call(_aten.clone.default, (value,), {}, tensor, [])

    def look(self, tensor: Tensor, value: Any) -> None:
        """Write down that Python has looked at a tensor's only number."""
        stretch = self.stretches[-1]
        stretch.looked_at, stretch.seen, stretch.place = self.register(tensor).index, value, _place()
        self.stretches.append(Stretch())


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Write down what runs within."""
    functions = _Functions(recording)
    with (
        keras_private.seeding_generators(functions.seeded),
        _objecting_to(recording, torch, "manual_seed"),
        _objecting_to(recording, torch.random, "manual_seed"),
        _objecting_to(recording, torch, "set_rng_state"),
        _objecting_to(recording, torch.random, "set_rng_state"),
        functions,
        _Operations(recording),
    ):
        yield


@contextmanager
def _objecting_to(recording: Recording, module: Any, name: str) -> Iterator[None]:
    """Object where this thread calls a function that changes the state of random numbers, which is no operation."""
    function, thread = getattr(module, name), threading.get_ident()

    def called(*arguments: Any, **keywords: Any) -> Any:
        if threading.get_ident() == thread:
            recording.refuse(f"{_place()} sets the state of PyTorch's random numbers")
        return function(*arguments, **keywords)

    setattr(module, name, called)
    try:
        yield
    finally:
        setattr(module, name, function)


class _Operations(TorchDispatchMode):
    """Writes down operations, below autograd."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        results = function(*arguments, **keywords)
        if any(tensor.is_meta for tensor in _tensors((arguments, keywords, results))):
            return results
        if function is _aten._pack_padded_sequence.default:
            self.recording.refuse(f"{_place()} packs sequences by their lengths")
        if torch.Tag.dynamic_output_shape in function.tags and self._depends_on_values(function, arguments):
            self.recording.refuse(f"{_place()} makes a tensor whose size depends on values")
        if isinstance(results, bool) and function is not _aten._local_scalar_dense.default:
            self.recording.refuse(f"{_place()} compares tensors")
        if function is _aten._local_scalar_dense.default:
            self.recording.look(arguments[0], results)
        elif function is _aten.lift_fresh.default:
            self.recording.lift(results)
        else:
            named = zip(function._schema.arguments, arguments, strict=False)
            given = [*named, *((a, keywords[a.name]) for a in function._schema.arguments if a.name in keywords)]
            written = [v for a, v in given if _is_written(function, a)]
            self.recording.call(function, arguments, keywords, results, _tensors(written))
        return results

    def _depends_on_values(self, function: Any, arguments: Any) -> bool:
        """Return whether the size of what an operation makes can be another one at the next step."""
        deciding = _tensors(arguments)
        if function is _aten.index.Tensor:
            deciding = [index for index in _tensors(arguments[1]) if index.dtype in (torch.bool, torch.uint8)]
        return not self.recording.is_of_python(deciding)


class _Functions(TorchFunctionMode):
    """Writes down those functions whose arguments are looked at, or that draw from a generator of their own."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self._seeds: dict[int, tuple[torch.Generator, Tensor]] = {}

    def seeded(self, seed: Tensor) -> torch.Generator:
        """Return a generator that starts at `seed`."""
        with _disable_current_modes():
            generator = _generator(seed)
        self._seeds[id(generator)] = generator, seed
        return generator

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        name = getattr(function, "__name__", "")
        if any(tensor.is_meta for tensor in _tensors((arguments, keywords))):
            return function(*arguments, **keywords)
        if name in _READS or _looks_within(name, arguments) or function == Tensor.data.__set__:
            self.recording.refuse(f"{_place()} takes a tensor's memory ({name})")
        if name in _MAKERS and not _tensors((arguments, keywords)):
            with _disable_current_modes():
                results = function(*arguments, **keywords)
            if not results.is_meta:
                self.recording.lift(results)
            return results
        # A learning rate is a tensor, of which PyTorch takes the number.
        if name.startswith("_foreach_") and not torch.is_grad_enabled():
            with _disable_current_modes():
                results = function(*arguments, **keywords)
            written = _tensors(arguments[0]) if name[-1] == "_" else []
            self.recording.call(function, arguments, keywords, results, written)
            return results
        if id(keywords.get("generator")) in self._seeds:
            generator, seed = self._seeds[id(keywords.pop("generator"))]
            with _disable_current_modes():
                results = function(*arguments, generator=generator, **keywords)
            self.recording.call(_draw, (function, seed, *arguments), keywords, results, [])
            return results
        return function(*arguments, **keywords)


def _looks_within(name: str, arguments: Any) -> bool:
    """Return whether a function makes Python's values of tensors: those in a list, or those that say where to split."""
    if name == "tensor_split":
        return len(_tensors(arguments)) > 1
    given = arguments[1 if name == "new_tensor" else 0 :]
    makes = name in _MAKERS or name == "new_tensor"
    return makes and bool(given) and not isinstance(given[0], Tensor) and bool(_tensors(given))


def _draw(function: Callable[..., Any], seed: Tensor, *arguments: Any, **keywords: Any) -> Any:
    return function(*arguments, generator=_generator(seed), **keywords)


def _generator(seed: Tensor) -> torch.Generator:
    return torch.Generator(device=seed.device).manual_seed(int(seed) & 0xFFFFFFFF)


def _is_written(function: Any, argument: Any) -> bool:
    """Return whether an operation writes to an argument of its schema."""
    is_forward = not function._schema.name.endswith("backward")
    says_so = argument.alias_info is not None and argument.alias_info.is_write
    return says_so or (is_forward and argument.name in _STATISTICS)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def registers_in(value: Any) -> set[int]:
    """Return the registers' numbers in arguments or results."""
    return {leaf.index for leaf in tree_leaves(value) if isinstance(leaf, Register)}


def _storage(tensor: Tensor) -> int:
    """Return what tensors that share memory have in common; what is not one piece of memory has 0."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0


def _place() -> str:
    """Return the file and line of the step's innermost frame that is no library's; where all are, not PyTorch's."""
    frame: FrameType | None = sys._getframe(1)
    place = ""
    while frame is not None and (module := str(frame.f_globals.get("__name__"))) != _STEP:
        if module != __name__ and not module.startswith("torch."):
            here = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            place = place or here
            if not module.startswith(_OF_LIBRARIES):
                return here
        frame = frame.f_back
    return place
