"""PyTorch: a convolution's three passes as operations with derivatives of any order, on PyTorch's own OpenMP threads.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the gradient of one operation is the two others.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from groupwise.backends import activations
from groupwise.backends.torch.operations import Rules, checked, define, is_transformed, total
from groupwise.core import convolution, threads


def _operation(name: str, pass_: int) -> Callable[..., Any]:
    """Register one pass as `torch.ops.groupwise.<name>(a, b, sizes)`; `sizes` are those of `GwConvolution`."""
    first, second, result = convolution.ROLES[pass_]
    name_of_a, name_of_b = f"groupwise::{name}: a", f"groupwise::{name}: b"

    def compute(a: Tensor, b: Tensor, sizes: Sequence[int]) -> Tensor:
        known = tuple(sizes)
        shapes = convolution.known_shapes(known)
        a, b = checked(name_of_a, a, shapes[first]), checked(name_of_b, b, shapes[second])
        out = a.new_empty(*shapes[result])
        arrays = (a.data_ptr(), b.data_ptr(), out.data_ptr())
        convolution.run(pass_, known, arrays, executor=executor())
        return out

    def shapes(a: Tensor, b: Tensor, sizes: Sequence[int]) -> Tensor:
        return a.new_empty(convolution.shapes(tuple(sizes))[result])

    def save(context: Any, arguments: tuple[Any, ...], _: Tensor) -> None:
        a, b, context.sizes = arguments
        context.save_for_backward(a, b)

    def backward(context: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b = context.saved_tensors
        tensors = {first: a, second: b, result: gradient}
        _, to_a, to_b, _ = context.needs_input_grad
        return (
            gradient_by(first, tensors, context.sizes) if to_a else None,
            gradient_by(second, tensors, context.sizes) if to_b else None,
            None,
        )

    def tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], _: Tensor) -> Tensor | None:
        return total(tangents_by(operation, arguments, tangents))

    images = () if pass_ == convolution.KERNEL_GRADIENT else (0,)
    rules = Rules(compute, shapes, save, backward, tangent, images=images)
    operation = define(name, "(Tensor a, Tensor b, SymInt[] sizes) -> Tensor", rules)
    return operation


OPERATIONS = [
    _operation(name, pass_)
    for name, pass_ in zip(("convolve", "input_gradient", "kernel_gradient"), convolution.PASSES, strict=True)
]


_PASSES = {roles[2]: pass_ for pass_, roles in enumerate(convolution.ROLES)}
"""By what they return."""


def gradient_by(role: int, tensors: dict[int, Tensor | None], sizes: list[int]) -> Tensor | None:
    """Return the derivative by `role` of the sum over all three: the pass that gives it, of the two others."""
    pass_ = _PASSES[role]
    first, second, _ = convolution.ROLES[pass_]
    a, b = tensors[first], tensors[second]
    return None if a is None or b is None else OPERATIONS[pass_](a, b, sizes)


def tangents_by(operation: Any, arguments: Sequence[Any], tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the parts of the tangent of a pass, which is linear in both of its arguments."""
    (a, b, *_), sizes = arguments, arguments[-1]
    pairs = (tangents[0], b), (a, tangents[1])
    return [None if x is None or y is None else operation(x, y, sizes) for x, y in pairs]


def activated(seen: Tensor, activation: str) -> Tensor:
    """Return an activation by PyTorch's own operations, with derivatives of any order."""
    if activation == "silu" and is_transformed():
        # PyTorch's own has no forward derivative of its gradient.
        return seen * torch.sigmoid(seen)
    outputs: Tensor = activations.FUNCTIONS[activation](seen)
    return outputs


def passed(gradient: Tensor | None, seen: Tensor, activation: str) -> Tensor | None:
    """Return `activations.passed`, in one operation of PyTorch's own where it has one; None stays None."""
    if gradient is None:
        return None
    if activation == "relu":
        return torch.ops.aten.threshold_backward(gradient, seen, 0)
    if activation == "relu6":
        return torch.ops.aten.hardtanh_backward(gradient, seen, 0, 6)
    return activations.passed(gradient, seen, activation)


def executor() -> Any:
    """Return the address of a `GwExecutor` on as many of PyTorch's own threads as it uses now."""
    return threads.openmp_executor(_openmp_parallel(), torch.get_num_threads())


@cache
def _openmp_parallel() -> int | None:
    """Return the address of the GOMP_parallel that PyTorch itself calls; None where it runs on no such runtime."""
    # Where the loader looks for PyTorch: first among the global symbols, then in what PyTorch depends on.
    for name in (None, torch._C.__file__):
        with suppress(AttributeError, OSError, TypeError):
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
    return None
