"""JAX: two convolutions in one pass, the second one 1x1, as a custom call of XLA.

Where a derivative is wanted, and nowhere else, they are two operations, and what lies between them is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from groupwise.backends.jax import passes
from groupwise.backends.jax.handlers import require
from groupwise.backends.jax.mesh import in_any_mesh
from groupwise.backends.jax.operations import Arrays, Parts, Rules, define, jvp_of
from groupwise.backends.jax.partition import call, dimensions, partitioned
from groupwise.backends.jax.passes import Pass
from groupwise.backends.steps import Step
from groupwise.core import convolution, epilogues


@dataclass(frozen=True)
class Pair:
    """Two forward passes over any batch; operands: inputs, both kernels, the first one's extras, the second one's."""

    grouped: Pass
    pointwise: Pass

    @property
    def roles(self) -> tuple[tuple[Pass, int], ...]:
        """The role of each operand in its pass."""
        first, second = self.grouped, self.pointwise
        kernels = (first, convolution.INPUTS), (first, convolution.KERNEL), (second, convolution.KERNEL)
        return (*kernels, *((p, role) for p in (first, second) for role in p.extras))

    @property
    def settings(self) -> np.ndarray:
        """What csrc/bindings/jax_separable.cc wants to know beside the shapes."""
        (*geometry, activation), (groups, *_, end) = self.grouped.settings, self.pointwise.settings
        follow, between = self.grouped.extras, self.grouped.sizes[3:5]
        given = [int(role in follow) for role in (passes.BIAS, passes.SCALE)]
        last = [int(role in self.pointwise.extras) for role in (passes.BIAS, passes.RESIDUAL, passes.SCALE)]
        return np.array([*geometry, activation, *given, *between, groups, end, *last], np.int64)


def separable(inputs: Any, grouped: Step, pointwise: Step, residual: Any = None) -> Any:
    """Return the outputs of both in one pass; see `backends.Core.separable`.

    Raises:
        ValueError: where a shape is not the specs', there is no such activation, or arrays lie on an accelerator.
        RuntimeError: where the core is not available.
    """
    require(inputs)
    first, first_extras = _pass(grouped)
    second, second_extras = _pass(pointwise, residual)
    pair = Pair(first, second)
    given = inputs, grouped.kernel, pointwise.kernel, *first_extras, *second_extras
    operands = [jnp.asarray(operand, "float32") for operand in given]
    for (pass_, role), operand in zip(pair.roles, operands, strict=True):
        if operand.shape != (shape := pass_.shapes(operands[0].shape[0])[role]):
            which = "grouped" if pass_ is first else "pointwise"
            raise ValueError(f"{which}: {passes.NAMES[role]} of shape {operand.shape}: must be of shape {shape}")
    return in_any_mesh(lambda *operands: _both(pair, *operands)[0], operands)


def _pass(step: Step, residual: Any = None) -> tuple[Pass, list[Any]]:
    """Return a step as a pass, and its operands after the kernel."""
    epilogues.number(step.activation)
    # A scale never comes without a bias.
    bias = jnp.zeros_like(step.scale) if step.scale is not None and step.bias is None else step.bias
    given = {passes.BIAS: bias, passes.RESIDUAL: residual, passes.SCALE: step.scale}
    extras = {role: array for role, array in given.items() if array is not None}
    sizes = convolution.sizes(step.spec, (1, *step.spec.input_shape[1:]))[1:]  # type: ignore[arg-type]
    return Pass(convolution.FORWARD, sizes, tuple(extras), step.activation), list(extras.values())


def _in_two(pair: Pair, inputs: Any, kernel: Any, pointwise: Any, *extras: Any) -> Arrays:
    count = len(pair.grouped.extras)
    (between,) = passes.fused(pair.grouped, inputs, kernel, *extras[:count])
    return passes.fused(pair.pointwise, between, pointwise, *extras[count:])


def _jvp(pair: Pair, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return jvp_of(partial(_in_two, pair), operands, tangents)


def _results(pair: Pair, *operands: Any) -> list[jax.ShapeDtypeStruct]:
    shape = pair.pointwise.shapes(operands[0].shape[0])[convolution.OUTPUTS]
    return [jax.ShapeDtypeStruct(shape, jnp.float32)]


def _images(pair: Pair) -> list[int]:
    return [i for i, (_, role) in enumerate(pair.roles) if role in (convolution.INPUTS, passes.RESIDUAL)]


@lru_cache(maxsize=4096)
def _operation(pair: Pair) -> Callable[..., Any]:
    shapes = [pass_.shapes(1)[role] for pass_, role in pair.roles]
    operands = [(len(shape), index in _images(pair)) for index, shape in enumerate(shapes)]
    return partitioned(partial(_call, pair), dimensions(operands, [(4, True)]))


def _call(pair: Pair, _: Any, __: int, *operands: Any) -> Any:
    """Run both on the images of one device."""
    return call("gw_jax_separable", _results(pair, *operands)[0], operands, pair.settings)


def _run(pair: Pair) -> Callable[..., Any]:
    return lambda *operands: (_operation(pair)(*operands),)


_both = define("separable", Rules(_run, _results, _jvp, images=_images))
