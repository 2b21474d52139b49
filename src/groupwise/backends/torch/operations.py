"""PyTorch: operations that mean the same under every derivative: reverse and forward, nested, batched and traced.

To `torch.func` an operation of `torch.library.custom_op` is an error, and to forward mode a constant, without a word.
So ours are registered as PyTorch registers its own: a kernel differentiates for one level of transformations and runs
the operation again for the levels below. That takes names that are private to PyTorch.

PyTorch's dispatcher and a kernel in Python take longer than a small convolution: where nothing watches, the core is
called without them.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import _C, Tensor, autograd
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from groupwise.backends.torch.devices import refuse

_LIBRARY = torch.library.Library("groupwise", "DEF")

KERNELS: dict[Any, Callable[..., Any]] = {}
"""What each registered operation runs on the CPU."""
_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_VALUES = frozenset((type(None), bool, float, str, list, tuple))
"""The types of arguments behind which nothing hides: no subclass, no proxy."""


@dataclass(frozen=True)
class Rules:
    """How an operation is computed, differentiated and batched; its results are a tensor or a tuple of tensors.

    Where `instead` always has results, there are no `save`, `backward` and `tangent`.

    Attributes:
        compute: what it does on the CPU: (*arguments) -> results.
        shapes: the same for tensors without memory.
        save: (context, arguments, results) -> None: keeps what `backward` needs, as in `torch.autograd.Function`.
        backward: (context, *gradients of the results) -> a gradient or None for each argument. A gradient that is zero
            is None. Of `context.needs_input_grad`, the first element is not of an argument.
        tangent: (arguments, their tangents, *results) -> the results' tangents. Any of them that is zero is None.
        constants: the positions of the results that have no derivative.
        images: the positions of the arguments that begin with a batch, if all results do too: several batches are then
            computed as one, and a list among the arguments is of sizes, the batch first.
        recorded: (*arguments) -> those to run with where the operation is differentiated.
        instead: (*arguments) -> the results of other operations, which are differentiated instead, or None.
    """

    compute: Callable[..., Any]
    shapes: Callable[..., Any]
    save: Callable[[Any, tuple[Any, ...], Any], None] | None = None
    backward: Callable[..., tuple[Tensor | None, ...]] | None = None
    tangent: Callable[..., Any] | None = None
    constants: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    recorded: Callable[..., tuple[Any, ...]] = lambda *arguments: arguments
    instead: Callable[..., Any] = lambda *arguments: None


def define(name: str, schema: str, rules: Rules) -> Callable[..., Any]:
    """Register the operation `torch.ops.groupwise.<name>`, and return the function that runs it.

    That function passes PyTorch's dispatcher by wherever nothing watches what runs.
    """
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    operation = getattr(torch.ops.groupwise, name).default
    KERNELS[operation] = rules.compute
    record = _recorder(operation.name(), rules)
    _LIBRARY.impl(name, rules.compute, "CPU")
    _LIBRARY.impl(name, refuse, "CUDA")
    _LIBRARY.impl(name, _differentiated(operation, record, rules), "Autograd", with_keyset=True)
    # torch.library.register_fake would look for its caller's name among all loaded modules: a tenth of a second.
    _LIBRARY.impl(name, rules.shapes, "Meta")
    torch.library.register_vmap(f"groupwise::{name}", _batched(operation, rules), lib=_LIBRARY)
    return _dispatching(operation, record, rules)


def _dispatching(operation: Any, record: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
    """Return the function that calls the core itself; the operation where something watches, or is no plain tensor."""
    compute = rules.compute

    def dispatch(*arguments: Any) -> Any:
        if _is_watched():
            return operation(*arguments)
        is_recorded = False
        for argument in arguments:
            kind = type(argument)
            if kind in _TENSORS and _C._dispatch_keys(argument).raw_repr() in _CPU_KEYS:
                is_recorded = is_recorded or argument.requires_grad
            elif kind not in _VALUES:
                return operation(*arguments)
        if is_recorded and torch.is_grad_enabled():
            results = rules.instead(*arguments)
            return record(compute, *arguments) if results is None else results
        return compute(*arguments)

    return dispatch


def _is_watched() -> bool:
    """Return whether something traces, transforms, or is told of each operation: they must see ours by its name."""
    return (
        torch.compiler.is_compiling()
        or _C._len_torch_dispatch_stack() > 0
        or _C._len_torch_function_stack() > 0
        or _C._get_tracing_state() is not None
        or is_transformed()
        or autograd._profiler_enabled()
    )


def _cpu_keys() -> frozenset[int]:
    """Return the dispatch keys of tensors that are nothing but memory of the CPU, within `inference_mode` and without.

    The keys name all whom PyTorch asks before it reads that memory: devices, layouts, views of negatives, wrappers.
    """
    with torch.inference_mode():
        untracked = torch.empty(0, device="cpu")
    return frozenset(_C._dispatch_keys(tensor).raw_repr() for tensor in (torch.empty(0, device="cpu"), untracked))


_CPU_KEYS = _cpu_keys()


def _recorder(name: str, rules: Rules) -> Callable[..., Any]:
    """Return a function (run, *arguments) -> run(*arguments) that records what one level's derivatives need."""

    class Level(_SingleLevelFunction):
        @staticmethod
        def forward(context: Any, run: Callable[..., Any], *arguments: Any) -> Any:
            assert rules.save is not None
            arguments = rules.recorded(*arguments)
            results = run(*arguments)
            context.set_materialize_grads(False)
            rules.save(context, arguments, results)
            tensors = _as_tuple(results)
            if rules.constants:
                context.mark_non_differentiable(*(tensors[position] for position in rules.constants))
            if is_transformed():
                values = (*arguments, *tensors)
                context.save_for_forward(*(v if isinstance(v, Tensor) else None for v in values))
                context.options = [None if isinstance(v, Tensor) else v for v in values]
            return results

        @staticmethod
        def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            assert rules.backward is not None
            return None, *rules.backward(context, *gradients)

        @staticmethod
        def jvp(context: Any, _: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
            assert rules.tangent is not None
            with forward_ad._set_fwd_grad_enabled(True):
                # What is saved has tangents of this level; those of the levels below stay.
                saved = [None if v is None else forward_ad.unpack_dual(v, level=0)[0] for v in context.saved_tensors]
                values = [o if v is None else v for o, v in zip(context.options, saved, strict=True)]
                arguments, results = values[: len(tangents)], values[len(tangents) :]
                found = _as_tuple(rules.tangent(arguments, tangents, *results))
                pairs = enumerate(zip(found, results, strict=True))
                return tuple(
                    None if i in rules.constants else torch.zeros_like(result) if tangent is None else tangent
                    for i, (tangent, result) in pairs
                )

    # PyTorch names a gradient's node after the class.
    named: Any = type(name, (Level,), {})
    return named.apply  # type: ignore[no-any-return]


def _differentiated(operation: Any, record: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
    """Return the registered kernel that records what one level's derivatives need."""

    def below(keyset: Any, *arguments: Any) -> Any:
        with _C._AutoDispatchBelowAutograd():
            return operation.redispatch(keyset & _C._after_autograd_keyset, *arguments)

    def recording_below(keyset: Any, *arguments: Any) -> Any:
        with _recording_below():
            return below(keyset, *arguments)

    def differentiated(keyset: Any, *arguments: Any) -> Any:
        is_recorded = torch.is_grad_enabled() and any(getattr(a, "requires_grad", False) for a in arguments)
        if not is_recorded and not is_transformed():
            return below(keyset, *arguments)
        results = rules.instead(*arguments)
        if results is not None:
            return results
        if _C._are_functorch_transforms_active():
            with enable_single_level_autograd_function():
                return record(partial(recording_below, keyset), *arguments)
        return record(partial(below, keyset), *arguments)

    return differentiated


@contextmanager
def _recording_below() -> Iterator[None]:
    """Let the levels below record, which is off within one of `torch.func`."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def is_transformed() -> bool:
    """Return whether `torch.func` or forward mode is at work."""
    # A `torch.func.jvp` that torch.compile has traced enters no level of `forward_ad`.
    return forward_ad._current_level >= 0 or _C._are_functorch_transforms_active()


def checked(name: str, tensor: Any, shape: Sequence[int], types: Collection[torch.dtype] = (torch.float32,)) -> Any:
    """Return an operation's argument as contiguous memory; None stays None.

    Raises:
        ValueError: where it is not of this shape and one of these types.
    """
    if tensor is None:
        return None
    if tensor.shape != shape or tensor.dtype not in types:
        wanted = " or ".join(str(kind).removeprefix("torch.") for kind in types)
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} and type {tensor.dtype}: must be {wanted} of shape {tuple(shape)}"
        )
    return tensor.contiguous()


def tangents_of(function: Callable[..., Any], arguments: Sequence[Any], tangents: Sequence[Tensor | None]) -> Any:
    """Return the tangents of the results of `function`, which consists of PyTorch's own operations; for a rule."""
    pairs = zip(arguments, tangents, strict=True)
    results = function(*(a if t is None else forward_ad.make_dual(a, t, level=0) for a, t in pairs))
    return tuple(forward_ad.unpack_dual(result, level=0).tangent for result in results)


def total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of those parts that are not None, or None."""
    given = [part for part in parts if part is not None]
    return sum(given[1:], given[0]) if given else None


def _batched(operation: Any, rules: Rules) -> Callable[..., Any]:
    """Return the kernel for `torch.vmap`: one call with the mapped axis folded into the batch, or one for each."""

    def batched(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        # A list's dimension is a list of None.
        size, mapped = info.batch_size, {position for position, dim in enumerate(dims) if isinstance(dim, int)}
        given = [a.movedim(dims[i], 0) if i in mapped else a for i, a in enumerate(arguments)]

        def fold(position: int, argument: Any) -> Any:
            if isinstance(argument, list):
                return [size * argument[0], *argument[1:]]
            if position not in rules.images or argument is None:
                return argument
            return (argument if position in mapped else argument.expand(size, *argument.shape)).flatten(0, 1)

        if mapped <= set(rules.images):
            results = operation(*(fold(position, argument) for position, argument in enumerate(given)))
            return _map(lambda result: result.unflatten(0, (size, result.shape[0] // size)), results), 0
        each = [
            operation(*(a[i] if position in mapped else a for position, a in enumerate(given))) for i in range(size)
        ]
        return _map(lambda *results: torch.stack(results), *each), 0

    return batched


def _map(function: Callable[..., Tensor], *results: Any) -> Any:
    """Return function(*results), or a tuple of it where the results are tuples."""
    return tuple(map(function, *results)) if isinstance(results[0], tuple) else function(*results)


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)
