"""PyTorch: the C core as custom operations, with gradients of any order, on PyTorch's own OpenMP threads.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the gradient of one operation is the two others.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from groupwise import native
from groupwise.spec import ConvSpec

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Return whether the core is wanted and there; torch.compile asks once, and does not trace into the answer."""
    return native.is_available()


def convolve(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return the core's convolution of NHWC `inputs` and an HWIO `kernel`, both on the CPU, in `spec`'s type.

    Half precision is computed in float32.

    Raises:
        ValueError: for float64, whose precision would be lost, and where the image's size is not known.
    """
    for name, tensor in (("inputs", inputs), ("kernel", kernel)):
        if tensor.dtype not in _CASTABLE:
            raise ValueError(f"{name} of type {tensor.dtype}: must be one of {_CASTABLE}; the core computes in float32")
    # What is saved for the gradients is contiguous, and so is copied no second time.
    inputs, kernel = (tensor.to(torch.float32).contiguous() for tensor in (inputs, kernel))
    outputs = _OPERATIONS[native.FORWARD](inputs, kernel, native.sizes(spec))
    return outputs.to(getattr(torch, spec.dtype))


def _operation(name: str, pass_: int) -> Callable[..., Any]:
    """Register one pass as `torch.ops.groupwise.<name>(a, b, sizes)`; `sizes` are those of `GwConvolution`."""

    def compute(a: torch.Tensor, b: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        known = tuple(sizes)
        first, second, result = (native.shapes(known)[role] for role in native.ROLES[pass_])
        for argument, tensor, shape in (("a", a, first), ("b", b, second)):
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"groupwise::{name}: {argument} of shape {tuple(tensor.shape)} and type {tensor.dtype}: "
                    f"must be float32 of shape {shape}"
                )
        a, b, out = a.contiguous(), b.contiguous(), a.new_empty(result)
        native.run(pass_, known, a.data_ptr(), b.data_ptr(), out.data_ptr(), executor=executor())
        return out

    def shape_only(a: torch.Tensor, b: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        return a.new_empty(native.shapes(tuple(sizes))[native.ROLES[pass_][2]])

    def save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, list[int]], output: torch.Tensor) -> None:
        a, b, ctx.sizes = inputs
        ctx.save_for_backward(a, b)

    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        roles = native.ROLES[pass_]
        tensors = dict(zip(roles, (*ctx.saved_tensors, gradient), strict=True))
        gradients = [
            _gradient(role, tensors, ctx.sizes) if needed else None
            for role, needed in zip(roles[:2], ctx.needs_input_grad, strict=False)
        ]
        return *gradients, None

    schema = "(Tensor a, Tensor b, SymInt[] sizes) -> Tensor"
    operation = torch.library.custom_op(
        f"groupwise::{name}", compute, mutates_args=(), device_types="cpu", schema=schema
    )
    operation.register_fake(shape_only)
    operation.register_autograd(backward, setup_context=save)
    return operation


_OPERATIONS = [
    _operation(name, pass_)
    for name, pass_ in zip(("convolve", "input_gradient", "kernel_gradient"), native.PASSES, strict=True)
]


def _gradient(role: int, tensors: dict[int, torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """Return the derivative by `role` of the sum over all three: the pass that gives it, of the two others."""
    pass_ = next(pass_ for pass_, roles in enumerate(native.ROLES) if roles[2] == role)
    first, second, _ = native.ROLES[pass_]
    result: torch.Tensor = _OPERATIONS[pass_](tensors[first], tensors[second], sizes)
    return result


def executor() -> Any:
    """Return the address of a `GwExecutor` on as many of PyTorch's own threads as it uses now."""
    return native.openmp_executor(_openmp_parallel(), torch.get_num_threads())


@cache
def _openmp_parallel() -> int | None:
    """Return the address of the GOMP_parallel that PyTorch itself calls; None where it runs on no such runtime."""
    # Where the loader looks for PyTorch: first among the global symbols, then in what PyTorch depends on.
    for name in (None, torch._C.__file__):
        with suppress(AttributeError, OSError, TypeError):
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
    return None
