"""JAX: the core's passes as custom calls of XLA, on XLA's own threads, that differentiate, batch and partition.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the transpose of one pass is another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from groupwise.backends import activations
from groupwise.backends.jax.operations import Arrays, Parts, Rules, define, sum_of
from groupwise.backends.jax.partition import call, partitioned
from groupwise.core import convolution, epilogues

_HANDLERS = ("gw_jax_forward", "gw_jax_input_gradient", "gw_jax_kernel_gradient")
# What may follow inputs, kernel and outputs in convolution.ROLES: a forward pass's further operands.
BIAS, RESIDUAL, SCALE = 3, 4, 5
NAMES = ("inputs", "kernel", "outputs", "bias", "residual", "scale")
"""Of the roles."""
# Each role's dimensions, as Shardy names them. Only the batch has one name everywhere: it alone stays cut over devices.
_DIMENSIONS = ("n h w c", "i j k l", "n p q o", "b", "n r s t", "b")


@dataclass(frozen=True)
class Pass:
    """One pass of a convolution over any batch, and what follows a forward one.

    Attributes:
        number: one of `convolution.PASSES`.
        sizes: those of `convolution.sizes` without the first, the batch.
        extras: a forward pass's operands after inputs and kernel, in this order: BIAS, RESIDUAL, SCALE or fewer; a
            SCALE never without a BIAS.
        activation: one of `epilogues.ACTIVATIONS`.
    """

    number: int
    sizes: tuple[int, ...]
    extras: tuple[int, ...] = ()
    activation: str = "linear"

    @property
    def operands(self) -> tuple[int, ...]:
        """The roles of its operands; the first one always has a batch."""
        return (*convolution.ROLES[self.number][:2], *self.extras)

    @property
    def result(self) -> int:
        """The role of its result."""
        return convolution.ROLES[self.number][2]

    @property
    def settings(self) -> np.ndarray:
        """What csrc/bindings/jax.cc wants to know beside the shapes."""
        return np.array([*self.sizes[8:], epilogues.number(self.activation)], np.int64)

    def shapes(self, batch: Any) -> tuple[tuple[Any, ...], ...]:
        """Return every role's shape."""
        inputs, kernel, outputs = convolution.shapes((batch, *self.sizes))
        return inputs, kernel, outputs, outputs[3:], outputs, outputs[3:]


def _has_batch(role: int) -> bool:
    return _DIMENSIONS[role].startswith("n")


# Transformations.


def run(pass_: Pass) -> Callable[..., Any]:
    """Return `Rules.run`."""
    return lambda *operands: (_operation(pass_)(*operands),)


def results(pass_: Pass, *operands: Any) -> list[jax.ShapeDtypeStruct]:
    """Return `Rules.results`."""
    return [jax.ShapeDtypeStruct(pass_.shapes(operands[0].shape[0])[pass_.result], jnp.float32)]


def images(pass_: Pass) -> list[int]:
    """Return `Rules.images`."""
    return [i for i, role in enumerate(pass_.operands) if _has_batch(role)] if _has_batch(pass_.result) else []


def tangent_parts(pass_: Pass, operands: Arrays, tangents: Parts) -> list[Any]:
    """Return the parts of the tangent of a pass, which is linear in each of its two operands."""
    (a, b, *_), (of_a, of_b, *_) = operands, tangents
    return [alone(pass_, x, y)[0] for x, y in ((of_a, b), (a, of_b)) if x is not None and y is not None]


def _linear_jvp(pass_: Pass, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return alone(pass_, *operands), [sum_of(tangent_parts(pass_, operands, tangents))]


def _linear_transpose(pass_: Pass, cotangents: Parts, operands: Parts) -> Parts:
    """Return the gradient to the one operand that is not known: the pass that gives it, of the two others."""
    arrays = dict(zip((*pass_.operands, pass_.result), (*operands, *cotangents), strict=True))
    by_result = {Pass(number, pass_.sizes).result: Pass(number, pass_.sizes) for number in convolution.PASSES}
    others = [by_result[role] if arrays[role] is None else None for role in pass_.operands]
    return [None if p is None else alone(p, *(arrays[role] for role in p.operands))[0] for p in others]


alone = define("pass", Rules(run, results, _linear_jvp, _linear_transpose, images))
"""One pass alone."""


def _fused_jvp(forward: Pass, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    if SCALE in forward.extras:
        return _fused_jvp(*_with_scaled_kernel(forward, operands, tangents))
    activation = forward.activation
    if epilogues.ACTIVATIONS[activation].reads_outputs:
        (outputs,) = fused(forward, *operands)
        seen = outputs
    else:
        # Where a derivative is wanted, and nowhere else, what the activation sees is kept, and it runs by itself.
        (seen,) = fused(replace(forward, activation="linear"), *operands)
        outputs = activations.FUNCTIONS[activation](seen)
    extras = [jnp.broadcast_to(extra, outputs.shape) for extra in tangents[2:] if extra is not None]
    tangent = sum_of([*tangent_parts(Pass(convolution.FORWARD, forward.sizes), operands, tangents), *extras])
    return [outputs], [activations.passed(tangent, seen, activation)]


def _with_scaled_kernel(forward: Pass, operands: Arrays, tangents: Parts) -> tuple[Pass, Arrays, Parts]:
    """Return the same pass, its operands and their tangents with the scale in the kernel."""
    (_, kernel, *_, scale), (_, of_kernel, *_, of_scale) = operands, tangents
    parts = [x * y for x, y in ((of_kernel, scale), (kernel, of_scale)) if x is not None and y is not None]
    tangent = sum_of(parts) if parts else None
    plain = replace(forward, extras=tuple(role for role in forward.extras if role != SCALE))
    return (
        plain,
        [operands[0], kernel * scale, *operands[2:-1]],
        [tangents[0], tangent, *tangents[2:-1]],
    )


fused = define("fused", Rules(run, results, _fused_jvp, images=images))
"""A forward pass and what follows it."""


# One pass as XLA sees it: the custom call, partitioned.


@lru_cache(maxsize=4096)
def _operation(pass_: Pass) -> Callable[..., Any]:
    rule = f"{', '.join(_DIMENSIONS[role] for role in pass_.operands)} -> {_DIMENSIONS[pass_.result]}"
    return partitioned(partial(_call, pass_), rule)


def _call(pass_: Pass, cut: Any, _: int, *operands: Any) -> Any:
    """Run a pass on the images of one device; a result without a batch is summed over those that have a part of it."""
    result = jax.ShapeDtypeStruct(pass_.shapes(operands[0].shape[0])[pass_.result], jnp.float32)
    part = call(_HANDLERS[pass_.number], result, operands, pass_.settings)
    return lax.psum(part, cut) if cut and not _has_batch(pass_.result) else part
