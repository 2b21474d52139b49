"""PyTorch: the C core's convolutions: with what follows, two in one pass, and links of chains."""

from typing import Any

import torch

from groupwise.backends.torch.fused import fused, in_float32
from groupwise.backends.torch.links import link as link
from groupwise.backends.torch.passes import OPERATIONS
from groupwise.backends.torch.separable import separable as separable
from groupwise.core import convolution, epilogues, library
from groupwise.spec import ConvSpec


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
    inputs, kernel, scale = (
        in_float32(name, array) for name, array in (("inputs", inputs), ("kernel", kernel), ("scale", scale))
    )
    if scale is not None:
        # A recorded prediction computes it once.
        kernel = kernel * scale
    bias, residual = in_float32("bias", bias), in_float32("residual", residual)
    sizes = convolution.sizes(spec)
    if bias is None and residual is None and activation == "linear":
        outputs = OPERATIONS[convolution.FORWARD](inputs, kernel, sizes)
    else:
        epilogues.number(activation)
        outputs = fused(inputs, kernel, bias, residual, activation, sizes)
    return outputs if spec.dtype == "float32" else outputs.to(getattr(torch, spec.dtype))
