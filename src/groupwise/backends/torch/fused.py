"""PyTorch: a convolution and what follows it as one operation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from groupwise.backends.torch.operations import Rules, checked, define, total
from groupwise.backends.torch.passes import OPERATIONS, activated, executor, gradient_by, passed, tangents_by
from groupwise.core import convolution, epilogues

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)


def in_float32(name: str, tensor: Any) -> Any:
    """Return what is contiguous, and so is saved for the gradients and copied no second time; None stays None."""
    if tensor is None:
        return None
    if tensor.dtype is not torch.float32:
        if tensor.dtype not in _CASTABLE:
            raise ValueError(f"{name} of type {tensor.dtype}: must be one of {_CASTABLE}; the core computes in float32")
        tensor = tensor.to(torch.float32)
    return tensor.contiguous()


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
        gradient_by(convolution.INPUTS, tensors, context.sizes) if to_inputs else None,
        gradient_by(convolution.KERNEL, tensors, context.sizes) if to_kernel else None,
        gradient.sum((0, 1, 2)) if to_bias and gradient is not None else None,
        gradient if to_residual else None,
        *(None, None),
    )


def _fused_tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], outputs: Tensor) -> Tensor | None:
    tangent = total([*tangents_by(OPERATIONS[convolution.FORWARD], arguments, tangents), *tangents[2:4]])
    return None if tangent is None else passed(tangent.expand(outputs.shape), outputs, arguments[4])


def _with_activation_apart(*arguments: Any) -> Tensor | None:
    """Return the outputs by two operations where the activation's derivative needs what it sees; else None.

    So that is kept where a derivative is wanted, and nowhere else: without one, this is one call of the core.
    """
    *tensors, activation, sizes = arguments
    if epilogues.ACTIVATIONS[activation].reads_outputs:
        return None
    seen: Tensor = fused(*tensors, "linear", sizes)
    return activated(seen, activation)


fused = define(
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
