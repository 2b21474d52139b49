"""PyTorch: the C core as operations with derivatives of any order, on PyTorch's own OpenMP threads.

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
from groupwise.core import convolution, epilogues, library, threads
from groupwise.spec import ConvSpec

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Return whether the core is wanted and there; torch.compile asks once, and does not trace into the answer."""
    return library.is_available()


def convolve(
    inputs: Any,
    kernel: Any,
    spec: ConvSpec,
    bias: Any = None,
    residual: Any = None,
    activation: str = "linear",
) -> Any:
    """Return activation(convolution + bias + residual), computed in float32 by the core in one call.

    Arguments and result are those of `backends.Core.convolve`: float32 or of half precision, on the CPU.

    Raises:
        ValueError: for float64, whose precision would be lost, where a shape is not the spec's, where the image's size
            is not known, and where there is no such activation.
    """
    inputs, kernel = _in_float32("inputs", inputs), _in_float32("kernel", kernel)
    bias, residual = _in_float32("bias", bias), _in_float32("residual", residual)
    sizes = convolution.sizes(spec)
    if bias is None and residual is None and activation == "linear":
        outputs = _OPERATIONS[convolution.FORWARD](inputs, kernel, sizes)
    else:
        epilogues.number(activation)
        outputs = _FUSED(inputs, kernel, bias, residual, activation, sizes)
    return outputs if spec.dtype == "float32" else outputs.to(getattr(torch, spec.dtype))


def _in_float32(name: str, tensor: Any) -> Any:
    """Return what is contiguous, and so is saved for the gradients and copied no second time; None stays None."""
    if tensor is None:
        return None
    if tensor.dtype is not torch.float32:
        if tensor.dtype not in _CASTABLE:
            raise ValueError(f"{name} of type {tensor.dtype}: must be one of {_CASTABLE}; the core computes in float32")
        tensor = tensor.to(torch.float32)
    return tensor.contiguous()


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
            _gradient(first, tensors, context.sizes) if to_a else None,
            _gradient(second, tensors, context.sizes) if to_b else None,
            None,
        )

    def tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], _: Tensor) -> Tensor | None:
        return total(_tangents(operation, arguments, tangents))

    images = () if pass_ == convolution.KERNEL_GRADIENT else (0,)
    rules = Rules(compute, shapes, save, backward, tangent, images=images)
    operation = define(name, "(Tensor a, Tensor b, SymInt[] sizes) -> Tensor", rules)
    return operation


_OPERATIONS = [
    _operation(name, pass_)
    for name, pass_ in zip(("convolve", "input_gradient", "kernel_gradient"), convolution.PASSES, strict=True)
]


_PASSES = {roles[2]: pass_ for pass_, roles in enumerate(convolution.ROLES)}
"""By what they return."""


def _gradient(role: int, tensors: dict[int, Tensor | None], sizes: list[int]) -> Tensor | None:
    """Return the derivative by `role` of the sum over all three: the pass that gives it, of the two others."""
    pass_ = _PASSES[role]
    first, second, _ = convolution.ROLES[pass_]
    a, b = tensors[first], tensors[second]
    return None if a is None or b is None else _OPERATIONS[pass_](a, b, sizes)


def _tangents(operation: Any, arguments: Sequence[Any], tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the parts of the tangent of a pass, which is linear in both of its arguments."""
    (a, b, *_), sizes = arguments, arguments[-1]
    pairs = (tangents[0], b), (a, tangents[1])
    return [None if x is None or y is None else operation(x, y, sizes) for x, y in pairs]


# A forward pass and what follows it.


def _fused(
    inputs: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    sizes: list[int],
) -> Tensor:
    known = tuple(sizes)
    before, filters, after = convolution.known_shapes(known)
    # Held until the core has read them.
    inputs = checked("groupwise::fused_convolve: inputs", inputs, before)
    kernel = checked("groupwise::fused_convolve: kernel", kernel, filters)
    bias = checked("groupwise::fused_convolve: bias", bias, after[3:])
    residual = checked("groupwise::fused_convolve: residual", residual, after)
    out = inputs.new_empty(*after)
    bias_at = None if bias is None else bias.data_ptr()
    epilogue = convolution.fusion(activation, bias=bias_at, residual=None if residual is None else residual.data_ptr())
    arrays = (inputs.data_ptr(), kernel.data_ptr(), out.data_ptr())
    convolution.run(convolution.FORWARD, known, arrays, epilogue, executor())
    return out


def _save_fused(context: Any, arguments: tuple[Any, ...], outputs: Tensor) -> None:
    inputs, kernel, _, _, context.activation, context.sizes = arguments
    context.save_for_backward(inputs, kernel, None if context.activation == "linear" else outputs)


def _fused_backward(context: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs, kernel, outputs = context.saved_tensors
    gradient = passed(gradient, outputs, context.activation)
    tensors = {convolution.INPUTS: inputs, convolution.KERNEL: kernel, convolution.OUTPUTS: gradient}
    _, to_inputs, to_kernel, to_bias, to_residual, *_ = context.needs_input_grad
    return (
        _gradient(convolution.INPUTS, tensors, context.sizes) if to_inputs else None,
        _gradient(convolution.KERNEL, tensors, context.sizes) if to_kernel else None,
        gradient.sum((0, 1, 2)) if to_bias and gradient is not None else None,
        gradient if to_residual else None,
        *(None, None),
    )


def _fused_tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], outputs: Tensor) -> Tensor | None:
    tangent = total([*_tangents(_OPERATIONS[convolution.FORWARD], arguments, tangents), *tangents[2:4]])
    return None if tangent is None else passed(tangent.expand(outputs.shape), outputs, arguments[4])


def _with_activation_apart(*arguments: Any) -> Tensor | None:
    """Return the outputs by two operations where the activation's derivative needs what it sees; else None.

    So that is kept where a derivative is wanted, and nowhere else: without one, this is one call of the core.
    """
    *tensors, activation, sizes = arguments
    if epilogues.ACTIVATIONS[activation].reads_outputs:
        return None
    seen: Tensor = _FUSED(*tensors, "linear", sizes)
    if activation == "silu" and is_transformed():
        # PyTorch's own silu has no forward derivative of its gradient.
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


_FUSED = define(
    "fused_convolve",
    "(Tensor inputs, Tensor kernel, Tensor? bias, Tensor? residual, str activation, SymInt[] sizes) -> Tensor",
    Rules(
        compute=_fused,
        shapes=lambda inputs, *others: inputs.new_empty(convolution.shapes(tuple(others[-1]))[convolution.OUTPUTS]),
        save=_save_fused,
        backward=_fused_backward,
        tangent=_fused_tangent,
        images=(0, 3),
        instead=_with_activation_apart,
    ),
)


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
