"""PyTorch: the C core's convolutions: with what follows, and links of chains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from groupwise.backends.torch.links import link as link
from groupwise.backends.torch.operations import Rules, checked, define, total
from groupwise.backends.torch.passes import OPERATIONS, activated, executor, gradient_by, passed, tangents_by
from groupwise.core import convolution, epilogues, library
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
    scale: Any = None,
) -> Any:
    """Return activation(convolution * scale + bias + residual), computed in float32 by the core in one call.

    Arguments and result are those of `backends.Core.convolve`: float32 or of half precision, on the CPU.

    Raises:
        ValueError: for float64, whose precision would be lost, where a shape is not the spec's, where the image's size
            is not known, and where there is no such activation.
    """
    if scale is not None:
        # A recorded prediction computes it once.
        kernel = kernel * scale
    inputs, kernel = _in_float32("inputs", inputs), _in_float32("kernel", kernel)
    bias, residual = _in_float32("bias", bias), _in_float32("residual", residual)
    sizes = convolution.sizes(spec)
    if bias is None and residual is None and activation == "linear":
        outputs = OPERATIONS[convolution.FORWARD](inputs, kernel, sizes)
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
    seen: Tensor = _FUSED(*tensors, "linear", sizes)
    return activated(seen, activation)


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
