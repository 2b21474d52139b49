"""JAX: the C core's convolutions, with what follows one while its sums are in registers; `links`: of chains."""

from typing import Any

from jax import numpy as jnp

from groupwise.backends.jax import passes
from groupwise.backends.jax.handlers import is_available as is_available
from groupwise.backends.jax.handlers import require
from groupwise.backends.jax.links import link as link
from groupwise.backends.jax.mesh import in_any_mesh
from groupwise.backends.jax.passes import Pass
from groupwise.backends.jax.separable import separable as separable
from groupwise.core import convolution, epilogues
from groupwise.spec import ConvSpec


def convolve(
    inputs: Any,
    kernel: Any,
    spec: ConvSpec,
    bias: Any = None,
    residual: Any = None,
    activation: str = "linear",
    scale: Any = None,
) -> Any:
    """Return activation(convolution * scale + bias + residual), computed in float32 by the core.

    It differentiates in every mode, any number of times, batches under `jax.vmap`, and stays where it is under data
    parallelism: a batch cut over devices is convolved where it lies, and only the kernel's gradient is summed.

    Arguments and result are those of `backends.Core.convolve`; they may be of any floating-point type.

    Raises:
        ValueError: where a shape is not the spec's, the activation is none of them, or arrays lie on an accelerator.
        RuntimeError: where the core is not available.

    Examples:
        >>> spec = ConvSpec.of((1, 1, 1, 2), (1, 1, 1, 2), groups=2)
        >>> convolve(jnp.array([[[[2.0, 3.0]]]]), jnp.full((1, 1, 1, 2), 10.0), spec).ravel().tolist()
        [20.0, 30.0]
    """
    require(inputs)
    epilogues.number(activation)
    if scale is not None and bias is None:
        bias = jnp.zeros_like(scale)
    given = ((passes.BIAS, bias), (passes.RESIDUAL, residual), (passes.SCALE, scale))
    extras = {role: value for role, value in given if value is not None}
    operands = [jnp.asarray(operand, "float32") for operand in (inputs, kernel, *extras.values())]
    batch, *image = operands[0].shape
    forward = Pass(convolution.FORWARD, convolution.sizes(spec, (1, *image))[1:], tuple(extras), activation)
    shapes = forward.shapes(batch)
    for role, operand in zip(forward.operands, operands, strict=True):
        if operand.shape != shapes[role]:
            raise ValueError(f"{passes.NAMES[role]} of shape {operand.shape}: must be of shape {shapes[role]}")
    run = passes.fused if extras or activation != "linear" else passes.alone
    return in_any_mesh(lambda *operands: run(forward, *operands)[0], operands).astype(spec.dtype)
