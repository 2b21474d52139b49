"""PyTorch: the calls of an evaluation or prediction, batch norms folded into the convolutions before them.

What depends on weights alone is computed once, for batches of all sizes, and again when PyTorch has counted a change of
one of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from groupwise.backends.torch.devices import random_state, set_random_state
from groupwise.backends.torch.recording import Call, Register, registers_in

_CONVOLVE, _FUSED = torch.ops.groupwise.convolve.default, torch.ops.groupwise.fused_convolve.default
_NORMALIZE = torch.ops.groupwise.normalize.default
_TOLERANCE, _TRIALS = 1e-5, 2

_PREPARED: WeakValueDictionary[Any, Tensor] = WeakValueDictionary()
"""What was computed of weights, by how: the function, and which tensors of which version."""

Registers = dict[int, Tensor]
Compile = Callable[[Sequence[Call], Registers, set[int]], Callable[[Registers], None]]


class Folded:
    """Calls with batch norms folded, as long as that gives what they give to 1e-5; else as they are.

    Called as compiled calls are: with the registers, of which some are taken, and to which others are put.
    """

    def __init__(
        self, calls: Sequence[Call], constants: Registers, after: set[int], as_is: Compile, compiled: Compile
    ) -> None:
        """Prepare both ways.

        Args:
            calls: in order. constants: by register, what they read. after: the registers that are read after them.
            as_is, compiled: (calls, constants, after) -> a function of the registers, of the calls as they are, and of
                those that run often.
        """
        written = {index for call in calls for index in call.writes}
        self.after, self.unfolded = after, as_is(calls, constants, after)
        self.written = [constants[index] for index in written]
        # A tensor of inference mode counts no changes.
        fixed = {i for i, tensor in constants.items() if i not in written and not tensor.is_inference()}
        self.preparing, rest = _apart(_folded(calls, fixed, after), fixed, after)
        self.rest = compiled(rest, constants, after)
        self.wanted = {index for call in rest for index in call.reads}
        self.fixed = {i: constants[i] for i in {i for call in self.preparing for i in call.reads} & fixed}
        self.state: tuple[list[int], Registers | None, int, list[Any]] = [], None, _TRIALS, []
        """Versions of the weights, what was made of them, how often to try, and the weights' memory: held, so that no
        other weights come to lie at its address meanwhile."""

    def __call__(self, registers: Registers) -> None:
        versions = [number for tensor in self.fixed.values() for number in _version(tensor)]
        known, prepared, trials, _ = self.state
        if known != versions or trials:
            self._try(versions, registers, trials if known == versions else _TRIALS)
        elif prepared is None:
            self.unfolded(registers)
        else:
            registers.update(prepared)
            self.rest(registers)

    def _try(self, versions: list[int], registers: Registers, trials: int) -> None:
        """Run both ways, leave what the unfolded one gives, and note whether the other one gives the same."""
        prepared = self._prepared()
        saved, random = [tensor.clone() for tensor in self.written], random_state()
        other = registers | prepared
        self.rest(other)
        for tensor, value in zip(self.written, saved, strict=True):
            tensor.copy_(value)
        set_random_state(random)
        self.unfolded(registers)
        memory = [tensor.untyped_storage() for tensor in self.fixed.values()]
        agrees = all(_is_close(other[index], registers[index]) for index in self.after)
        self.state = (versions, prepared, trials - 1, memory) if agrees else (versions, None, 0, memory)

    def _prepared(self) -> Registers:
        """Return what the calls that run often want of those that depend on weights alone."""
        values = dict(self.fixed)
        keys: dict[int, Any] = {index: (id(tensor), *_version(tensor)) for index, tensor in values.items()}

        def known(value: Any) -> Any:
            return tree_map(lambda leaf: values[leaf.index] if isinstance(leaf, Register) else leaf, value)

        for call in self.preparing:
            leaves, structure = tree_flatten((call.arguments, call.keywords))
            key = (
                call.function,
                structure,
                *(keys[v.index] if isinstance(v, Register) else (type(v), v) for v in leaves),
            )
            made = {v.index: (key, place) for place, v in enumerate(tree_leaves(call.results)) if v is not None}
            found = {index: _PREPARED.get(own) for index, own in made.items()}
            if None in found.values():
                results = tree_leaves(call.function(*known(call.arguments), **known(call.keywords)))
                found = {index: results[place] for index, (_, place) in made.items()}
                _PREPARED.update({made[index]: tensor for index, tensor in found.items()})
            values, keys = values | found, keys | made  # type: ignore[assignment]
        return {index: tensor for index, tensor in values.items() if index in self.wanted - self.fixed.keys()}


def _version(tensor: Tensor) -> tuple[int, int]:
    """Return what changes when a tensor's values do: PyTorch's count, or where its memory is."""
    return tensor._version, tensor.data_ptr()


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    most = _TOLERANCE * max(1.0, float(expected.abs().max())) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=most, equal_nan=True)


def _folded(calls: Sequence[Call], fixed: set[int], after: set[int]) -> list[Call]:
    """Return the calls with a convolution, and the batch norm by fixed statistics that alone reads it, as one."""
    made_by = {index: place for place, call in enumerate(calls) for index in call.makes}
    readers = Counter(index for call in calls for index in call.reads) + Counter(after)
    known, free = _constant(calls, fixed), count(1 + max([*made_by, *fixed], default=0))
    result: list[list[Call]] = [[call] for call in calls]
    for place, call in enumerate(calls):
        if call.function is not _NORMALIZE:
            continue
        image, *constants, residual, activation, epsilon = call.arguments
        before = made_by.get(image.index)
        convolution = None if before is None or readers[image.index] > 1 else _parts(calls[before])
        outputs, *statistics = call.results
        if before is None or convolution is None or any(readers[moment.index] for moment in statistics):
            continue
        inputs, kernel, bias, sizes = convolution
        if not registers_in((kernel, bias, constants)) <= known or None in constants:
            continue
        folded = Register(next(free)), Register(next(free))
        folding = Call(_fold, (kernel, bias, *constants, epsilon), {}, folded)
        result[place] = [folding, Call(_FUSED, (inputs, *folded, residual, activation, sizes), {}, outputs)]
        result[before] = []
    return [call for each in result for call in each]


def _parts(call: Call) -> tuple[Register, Register, Register | None, Any] | None:
    """Return a convolution's inputs, kernel, bias and sizes where nothing else follows it; else None."""
    if call.function is _CONVOLVE:
        inputs, kernel, sizes = call.arguments
        return inputs, kernel, None, sizes
    if call.function is _FUSED:
        inputs, kernel, bias, residual, activation, sizes = call.arguments
        return (inputs, kernel, bias, sizes) if residual is None and activation == "linear" else None
    return None


def _fold(
    kernel: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the kernel and bias of a convolution that does the batch norm after it, too."""
    scale = gamma.double() / (variance.double() + epsilon).sqrt()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    return (kernel * scale).to(kernel.dtype), (shift * scale + beta.double()).to(beta.dtype)


def _constant(calls: Iterable[Call], fixed: set[int]) -> set[int]:
    """Return the registers that depend on fixed ones alone."""
    known = set(fixed)
    for call in calls:
        if call.reads and call.reads <= known and not call.has_effect:
            known |= call.makes
    return known


def _apart(calls: Sequence[Call], fixed: set[int], after: set[int]) -> tuple[list[Call], list[Call]]:
    """Return the calls that depend on fixed registers alone, and the others.

    What is returned is made anew each time, since its receiver may write to it. Where one of the others writes to what
    would be made once, all are made anew.
    """
    known, later = _constant(calls, fixed), set(after)
    once: list[bool] = []
    for call in reversed(calls):
        is_once = bool(call.reads) and call.reads <= known and not call.has_effect and not call.makes & later
        later |= call.reads if call.is_view and call.makes & later else set()
        once.insert(0, is_once)
    made = {index for call, is_once in zip(calls, once, strict=True) if is_once for index in call.makes}
    if any(call.has_effect and call.reads & made for call in calls):
        return [], list(calls)
    pairs = list(zip(calls, once, strict=True))
    return [call for call, is_once in pairs if is_once], [call for call, is_once in pairs if not is_once]
