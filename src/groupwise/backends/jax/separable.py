"""JAX: two convolutions in one pass, the second one 1x1, perhaps after an expansion, 1x1 too, as a custom call of XLA.

Where a derivative is wanted, and nowhere else, they are operations of their own, and what lies between them is kept.
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
    """Two forward passes over any batch, and perhaps one before them.

    Operands: inputs, the kernels of `passes`, the extras of each.
    """

    grouped: Pass
    pointwise: Pass
    expansion: Pass | None = None

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All of them, the expansion last."""
        pair = self.grouped, self.pointwise
        return pair if self.expansion is None else (*pair, self.expansion)

    @property
    def roles(self) -> tuple[tuple[Pass, int], ...]:
        """The role of each operand in its pass."""
        inputs = self.expansion or self.grouped, convolution.INPUTS
        kernels = ((p, convolution.KERNEL) for p in self.passes)
        return (inputs, *kernels, *((p, role) for p in self.passes for role in p.extras))

    @property
    def settings(self) -> np.ndarray:
        """What csrc/bindings/jax_separable.cc wants to know beside the shapes."""
        (*geometry, activation), (groups, *_, end) = self.grouped.settings, self.pointwise.settings
        follow, between = self.grouped.extras, self.grouped.sizes[3:5]
        given = [int(role in follow) for role in (passes.BIAS, passes.SCALE)]
        last = [int(role in self.pointwise.extras) for role in (passes.BIAS, passes.RESIDUAL, passes.SCALE)]
        before: list[Any] = []
        if self.expansion is not None:
            (own_groups, *_, own), extras = self.expansion.settings, self.expansion.extras
            before = [own_groups, own, *(int(role in extras) for role in (passes.BIAS, passes.SCALE))]
        return np.array([*geometry, activation, *given, *between, groups, end, *last, *before], np.int64)


def separable(inputs: Any, grouped: Step, pointwise: Step, residual: Any = None, expansion: Step | None = None) -> Any:
    """Return the outputs of both, or all three, in one pass; see `backends.Core.separable`.

    Raises:
        ValueError: where a shape is not the specs', there is no such activation, or arrays lie on an accelerator.
        RuntimeError: where the core is not available.
    """
    require(inputs)
    steps = {"grouped": grouped, "pointwise": pointwise, **({} if expansion is None else {"expansion": expansion})}
    made = {name: _pass(step, residual if step is pointwise else None) for name, step in steps.items()}
    pair = Pair(*(pass_ for pass_, _ in made.values()))
    names = {id(pass_): name for name, (pass_, _) in made.items()}
    extras = [extra for _, given in made.values() for extra in given]
    given = inputs, *(step.kernel for step in steps.values()), *extras
    operands = [jnp.asarray(operand, "float32") for operand in given]
    for (pass_, role), operand in zip(pair.roles, operands, strict=True):
        if operand.shape != (shape := pass_.shapes(operands[0].shape[0])[role]):
            raise ValueError(
                f"{names[id(pass_)]}: {passes.NAMES[role]} of shape {operand.shape}: must be of shape {shape}"
            )
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


def _in_turn(pair: Pair, inputs: Any, *operands: Any) -> Arrays:
    count = len(pair.passes)
    kernels, extras, parts = operands[:count], list(operands[count:]), []
    for pass_, kernel in zip(pair.passes, kernels, strict=True):
        parts.append((pass_, kernel, *(extras.pop(0) for _ in pass_.extras)))
    # The expansion is the last of the operands, and the first to run.
    for pass_, *arrays in (*parts[2:], *parts[:2]):
        (inputs,) = passes.fused(pass_, inputs, *arrays)
    return (inputs,)


def _jvp(pair: Pair, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return jvp_of(partial(_in_turn, pair), operands, tangents)


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
    """Run all on the images of one device."""
    return call("gw_jax_separable", _results(pair, *operands)[0], operands, pair.settings)


def _run(pair: Pair) -> Callable[..., Any]:
    return lambda *operands: (_operation(pair)(*operands),)


_both = define("separable", Rules(_run, _results, _jvp, images=_images))
