"""JAX: the C core's convolutions, with what follows one while its sums are in registers; `links`: of chains."""

from dataclasses import replace
from typing import Any

from jax import numpy as jnp

from groupwise.backends import activations
from groupwise.backends.jax import passes
from groupwise.backends.jax.handlers import is_available as is_available
from groupwise.backends.jax.handlers import require
from groupwise.backends.jax.links import link as link
from groupwise.backends.jax.mesh import in_any_mesh
from groupwise.backends.jax.operations import Arrays, Parts, Rules, define, sum_of
from groupwise.backends.jax.passes import Pass
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
            name = ("inputs", "kernel", "outputs", "bias", "residual", "scale")[role]
            raise ValueError(f"{name} of shape {operand.shape}: must be of shape {shapes[role]}")
    run = _fused if extras or activation != "linear" else passes.alone
    return in_any_mesh(lambda *operands: run(forward, *operands)[0], operands).astype(spec.dtype)


def _fused_jvp(forward: Pass, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    if passes.SCALE in forward.extras:
        return _fused_jvp(*_with_scaled_kernel(forward, operands, tangents))
    activation = forward.activation
    if epilogues.ACTIVATIONS[activation].reads_outputs:
        (outputs,) = _fused(forward, *operands)
        seen = outputs
    else:
        # Where a derivative is wanted, and nowhere else, what the activation sees is kept, and it runs by itself.
        (seen,) = _fused(replace(forward, activation="linear"), *operands)
        outputs = activations.FUNCTIONS[activation](seen)
    extras = [jnp.broadcast_to(extra, outputs.shape) for extra in tangents[2:] if extra is not None]
    tangent = sum_of([*passes.tangent_parts(Pass(convolution.FORWARD, forward.sizes), operands, tangents), *extras])
    return [outputs], [activations.passed(tangent, seen, activation)]


def _with_scaled_kernel(forward: Pass, operands: Arrays, tangents: Parts) -> tuple[Pass, Arrays, Parts]:
    """Return the same pass, its operands and their tangents with the scale in the kernel."""
    (_, kernel, *_, scale), (_, of_kernel, *_, of_scale) = operands, tangents
    parts = [x * y for x, y in ((of_kernel, scale), (kernel, of_scale)) if x is not None and y is not None]
    tangent = sum_of(parts) if parts else None
    plain = replace(forward, extras=tuple(role for role in forward.extras if role != passes.SCALE))
    return (
        plain,
        [operands[0], kernel * scale, *operands[2:-1]],
        [tangents[0], tangent, *tangents[2:-1]],
    )


_fused = define("fused", Rules(passes.run, passes.results, _fused_jvp, images=passes.images))
"""A forward pass and what follows it."""
