"""PyTorch: recordings made into a program, which does without Python what they did with it.

Where a run looked at a number of a tensor (is this the step that applies the accumulated gradients? are all gradients
finite?), the program has a branch for each number that was seen. One that was not seen is no error: what the program
has changed until there is undone, and the caller runs the Python, and records it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from groupwise.backends.torch.devices import random_state, set_random_state
from groupwise.backends.torch.folding import Folded, Registers
from groupwise.backends.torch.operations import KERNELS
from groupwise.backends.torch.recording import Call, Recording, Register, Stretch, registers_in
from groupwise.backends.torch.settings import PYTHON_VALUES
from groupwise.errors import first_line

UNSEEN = object()
"""What `Program.run` returns where it met what no recording has seen."""
_MOST_BRANCHES, _MOST_NODES, _MOST_OTHERS = 4, 64, 3


@dataclass
class _Node:
    """A stretch of calls, whether two recordings have agreed on it, and what follows each number seen at its end.

    Attributes:
        constants: those of the stretches before, too.
        results: what is returned at the end, tensors as registers; empty before.
    """

    stretch: Stretch
    constants: dict[int, Tensor]
    results: list[Any]
    structure: TreeSpec | None
    is_confirmed: bool = False
    branches: dict[Any, "_Node"] = field(default_factory=dict)
    run: Callable[[Registers], None] | None = None

    def agrees(self, other: "_Node") -> bool:
        mine, its = self.stretch, other.stretch
        return (
            (mine.calls, mine.looked_at, mine.constants.keys()) == (its.calls, its.looked_at, its.constants.keys())
            and (self.results, self.structure) == (other.results, other.structure)
            and all(
                tensor is its.constants[index] or (index in mine.values and _is_equal(tensor, its.constants[index]))
                for index, tensor in mine.constants.items()
            )
        )

    @property
    def wanted_after(self) -> set[int]:
        """The registers that are read after the stretch's calls."""
        looked_at = set() if self.stretch.looked_at is None else {self.stretch.looked_at}
        return registers_in(self.results) | looked_at | {i for node in self.branches.values() for i in node.wanted}

    @property
    def wanted(self) -> set[int]:
        """The registers that must be there before the stretch."""
        wanted = self.wanted_after
        for call in reversed(self.stretch.calls):
            wanted = wanted - call.makes | call.reads
        return wanted - self.constants.keys()

    def at_risk(self) -> Iterator[Tensor]:
        """Yield the constants that are written before a number is looked at."""
        if self.stretch.looked_at is not None:
            for call in self.stretch.calls:
                yield from (self.constants[index] for index in call.writes)
            for node in self.branches.values():
                yield from node.at_risk()


class Program:
    """What the recordings of a function of tensors agree on.

    Attributes:
        folds: whether batch norms are folded into convolutions; what it returns then agrees to 1e-5, else to the bit.
        is_compiled: whether PyTorch's Inductor makes machine code of the calls; that rounds otherwise.
        objection: why the function cannot become a program, or "".
    """

    def __init__(self, folds: bool = False, is_compiled: bool = False) -> None:
        self.folds, self.is_compiled, self.objection = folds, is_compiled, ""
        self._first: dict[Any, _Node] = {}
        self._others = self._nodes = 0
        self._at_risk: list[Tensor] = []

    def learn(self, recording: Recording, results: Any) -> None:
        """Take in a recording, and what its run returned."""
        returned, structure = tree_flatten(recording.as_registers(results))
        foreign = [leaf for leaf in returned if not isinstance(leaf, (Register, *PYTHON_VALUES))]
        if foreign:
            recording.refuse(f"it returns something of type {type(foreign[0]).__name__}")
        if recording.objection:
            self._object(recording.objection)
            return
        branches, number, place = self._first, None, ""
        constants: dict[int, Tensor] = {}
        for stretch in recording.stretches:
            constants = {**constants, **stretch.constants}
            ending = (returned, structure) if stretch is recording.stretches[-1] else ([], None)
            new = _Node(stretch, constants, *ending)
            node = branches.get(number)
            if node is not None and node.agrees(new):
                node.is_confirmed = True
                node.run = None
            else:
                self._others += node is not None
                self._nodes += node is None
                node = branches[number] = new
            if len(branches) > _MOST_BRANCHES or self._nodes > _MOST_NODES:
                self._object(f"{place} looks at a number that is another one at each step")
            branches, number, place = node.branches, stretch.seen, stretch.place
        if self._others > _MOST_OTHERS:
            self._object("its Python does something else at each step")
        self._at_risk = list({id(tensor): tensor for tensor in self._first[None].at_risk()}.values())

    def _object(self, reason: str) -> None:
        self.objection = self.objection or reason

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Do what the recorded runs did, with other inputs; return what they returned, or UNSEEN."""
        registers, node = dict(enumerate(inputs)), self._first.get(None)
        saved = [tensor.clone() for tensor in self._at_risk]
        looks = node is not None and node.stretch.looked_at is not None
        random = random_state() if looks else None
        while node is not None and node.is_confirmed:
            if node.run is None:
                calls = node.stretch.calls, node.constants, node.wanted_after
                compile_ = _by_inductor if self.is_compiled else _direct
                node.run = Folded(*calls, _direct, compile_) if self.folds else compile_(*calls)
            node.run(registers)
            if node.stretch.looked_at is None:
                made = [registers[v.index] if isinstance(v, Register) else v for v in node.results]
                return tree_unflatten(made, node.structure)
            node = node.branches.get(registers[node.stretch.looked_at].item())
        for tensor, value in zip(self._at_risk, saved, strict=True):
            tensor.copy_(value)
        if random is not None:
            set_random_state(random)
        return UNSEEN


def _is_equal(mine: Tensor, other: Tensor) -> bool:
    """Return whether tensors have the same elements, and what is not a number in the same places."""
    if mine.shape != other.shape or mine.dtype != other.dtype:
        return False
    return bool(((mine == other) | ((mine != mine) & (other != other))).all())


def _written(calls: Sequence[Call], constants: dict[int, Tensor], after: set[int]) -> Callable[[Registers], None]:
    """Return calls as a function of the registers: what they want of them is taken, what is wanted after them put."""
    wanted, namespace, lines = set(after), _Namespace(constants), list[str]()
    for call in reversed(calls):
        if not call.makes & wanted and not call.has_effect:
            continue
        done = (call.reads | call.makes) - wanted - constants.keys()
        lines.append(namespace.line(call, done))
        wanted = wanted - call.makes | call.reads
    taken = [f"r{i} = registers.pop({i})" for i in sorted(wanted - constants.keys())]
    put = [f"registers[{i}] = r{i}" for i in sorted(after)]
    body = [*taken, *reversed(lines), *put] or ["pass"]
    source = "def run(registers):\n" + "".join(f"    {line}\n" for line in body)
    exec(compile(source, "<recorded>", "exec"), namespace.values)
    return namespace.values["run"]


def _direct(calls: Sequence[Call], constants: dict[int, Tensor], after: set[int]) -> Callable[[Registers], None]:
    """Return what `_written` does, our own operations past PyTorch's dispatcher: where they were recorded, they ran."""
    direct = [replace(call, function=KERNELS.get(call.function, call.function)) for call in calls]
    return _written(direct, constants, after)


def _by_inductor(calls: Sequence[Call], constants: dict[int, Tensor], after: set[int]) -> Callable[[Registers], None]:
    """Return what `_written` does as machine code; where that cannot be had, as it is, and one warning says why."""
    as_written = _written(calls, constants, after)
    on_gpu = any(tensor.is_cuda for tensor in constants.values())
    if on_gpu:
        for tensor in constants.values():
            torch._dynamo.mark_static_address(tensor)
    # On a GPU a CUDA graph, which wants to know what stays where it is.
    fast = torch.compile(as_written, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    written = [constants[index] for index in {index for call in calls for index in call.writes}]
    works: list[bool] = []

    def try_fast(registers: Registers) -> None:
        """Run what is compiled; where a piece of it fails, undo what other pieces did, and run it as it is."""
        given, saved, random = dict(registers), [tensor.clone() for tensor in written], random_state()
        try:
            fast(registers)
            works.append(True)
        except Exception as error:
            works.append(False)
            warnings.warn(f"PyTorch cannot compile the step ({first_line(error)}); it runs as it is", stacklevel=3)
            registers.clear()
            registers.update(given)
            for tensor, value in zip(written, saved, strict=True):
                tensor.copy_(value)
            set_random_state(random)
            as_written(registers)

    def run(registers: Registers) -> None:
        (try_fast if not works else fast if works[0] else as_written)(registers)
        if on_gpu:
            # The next run of a CUDA graph writes to the same memory, and Keras collects what `predict` returns.
            registers.update({index: registers[index].clone() for index in after})

    return run


class _Namespace:
    """The names that a stretch's lines use: registers r0, r1, ..., and k0, k1, ... of what has no literal."""

    def __init__(self, constants: dict[int, Tensor]) -> None:
        self.values: dict[str, Any] = {f"r{index}": tensor for index, tensor in constants.items()}
        self._names: dict[int, str] = {}

    def line(self, call: Call, done: set[int]) -> str:
        """Return the line of a call, and forget the registers that nobody reads after it."""
        arguments = [self.text(v) for v in call.arguments]
        arguments += [f"{name}={self.text(v)}" for name, v in call.keywords.items()]
        made = f"{self.target(call.results)} = " if call.makes - call.reads else ""
        forgotten = "".join(f"; del r{index}" for index in sorted(done))
        return f"{made}{self.text(call.function)}({', '.join(arguments)}){forgotten}"

    def target(self, results: Any) -> str:
        if isinstance(results, list | tuple):
            return f"[{', '.join(map(self.target, results))}]"
        return "_" if results is None else self.text(results)

    def text(self, value: Any) -> str:
        if isinstance(value, Register):
            return f"r{value.index}"
        if isinstance(value, list):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, tuple):
            return f"({''.join(f'{self.text(v)}, ' for v in value)})"
        if type(value) in (bool, int, str, type(None)):
            return repr(value)
        name = self._names.setdefault(id(value), f"k{len(self._names)}")
        self.values[name] = value
        return name
