"""Every transformation that JAX has, through the core's operations: as through XLA's own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from groupwise.core import pooling
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, skip_without_core

if BACKEND != "jax":
    pytest.skip("the transformations are JAX's; the backend is another", allow_module_level=True)

import jax
from jax import lax
from jax import numpy as jnp

from groupwise.backends.jax import core, norm
from groupwise.backends.jax import native as backend

skip_without_core()

EPSILON = 1e-3


def strided(x: Any, w: Any) -> ConvSpec:
    return ConvSpec.of(x.shape, w.shape, 2, (1, 2))


def convolution(x: Any, w: Any) -> Any:
    return core.convolve(x, w, strided(x, w))


def plain_convolution(x: Any, w: Any) -> Any:
    return backend.convolve(x, w, strided(x, w))


def fused(x: Any, w: Any, bias: Any, residual: Any, activation: str = "relu6") -> Any:
    return core.convolve(x, w, strided(x, w), bias, residual, activation)


def plain_fused(x: Any, w: Any, bias: Any, residual: Any, activation: Any = jax.nn.relu6) -> Any:
    return activation(plain_convolution(x, w) + bias + residual)


def maxima(x: Any) -> Any:
    return backend.max_pool(x, pooling.window(x.shape, (3, 3), (2, 2), ((1, 1), (1, 1))))


def plain_maxima(x: Any) -> Any:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return lax.reduce_window(padded, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def shifted(x: Any) -> Any:
    """What pools where there is no core."""
    return backend.pool(x, "max", (2, 2), (1, 2))


def plain_shifted(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 2, 1), "VALID")


def trained(x: Any, gamma: Any, beta: Any, residual: Any, activation: str = "relu") -> Any:
    outputs, mean, variance = norm.normalise(x, gamma, beta, None, EPSILON, residual, activation)
    return outputs + mean * variance


def plain_trained(x: Any, gamma: Any, beta: Any, residual: Any, activation: Any = jax.nn.relu) -> Any:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return activation(plain_norm(x, gamma, beta, mean, variance) + residual) + mean * variance


def inferred(x: Any, gamma: Any, beta: Any, mean: Any, deviation: Any, activation: str = "relu6") -> Any:
    return norm.normalise(x, gamma, beta, (mean, deviation**2), EPSILON, None, activation)[0]


def plain_inferred(x: Any, gamma: Any, beta: Any, mean: Any, deviation: Any, activation: Any = jax.nn.relu6) -> Any:
    return activation(plain_norm(x, gamma, beta, mean, deviation**2))


def plain_norm(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
    return (x - mean) * lax.rsqrt(variance + EPSILON) * gamma + beta


IMAGE, KERNEL, CHANNELS = (2, 3, 4, 4), (3, 2, 2, 6), (4,)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "convolution": (convolution, plain_convolution, (IMAGE, KERNEL)),
    "fused": (fused, plain_fused, (IMAGE, KERNEL, (6,), (2, 3, 2, 6))),
    "maxima": (maxima, plain_maxima, (IMAGE,)),
    "shifted": (shifted, plain_shifted, (IMAGE,)),
    "trained": (trained, plain_trained, (IMAGE, CHANNELS, CHANNELS, IMAGE)),
    "inferred": (inferred, plain_inferred, (IMAGE, *[CHANNELS] * 4)),
}

for case in ("fused", "trained", "inferred"):
    ours, plain, shapes = CASES[case]
    CASES[f"{case}, silu"] = partial(ours, activation="silu"), partial(plain, activation=jax.nn.silu), shapes


def arrays(case: str, seed: int) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    return tuple(jnp.asarray(random.normal(size=shape), "float32") for shape in CASES[case][2])


def every(function: Any) -> Any:
    """Return the gradient to every argument of a function of the outputs that differs at each of them."""
    return lambda *x: jax.grad(lambda *x: jnp.sin(function(*x)).sum(), tuple(range(len(x))))(*x)


def mapped(function: Any, x: Any, t: Any, axes: Callable[[int], int | None], out_axes: int = 0) -> Any:
    """Return `function` mapped over several of the arguments that have an axis."""
    dims = tuple(axes(position) for position in range(len(x)))
    given = [a if dim is None else jnp.stack([a, b, a - b], dim) for a, b, dim in zip(x, t, dims, strict=True)]
    return jax.vmap(function, dims, out_axes)(*given)


def gauss_newton(function: Any, x: Any, t: Any) -> Any:
    """Return the transpose of the gradient, which is the tangent again, and what it makes of that."""
    outputs, pull = jax.vjp(function, *x)
    transposed = jax.linear_transpose(pull, outputs)
    return pull(transposed(t)[0])


def hessian_of_last(function: Any, x: Any, t: Any) -> Any:
    return jax.hessian(lambda last: jnp.sin(function(*x[:-1], last)).sum())(x[-1])


def through(x: Any, t: Any, function: Any) -> Any:
    """Return the tangents of the gradients of a scan over rematerialised calls."""

    def scanned(*x: Any) -> Any:
        call = jax.checkpoint(function)
        return lax.scan(lambda carry, scale: (carry, call(x[0] * scale, *x[1:])), 0, jnp.arange(2.0))[1]

    return jax.jvp(every(scanned), x, t)[1]


TRANSFORMATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "jvp": lambda f, x, t: jax.jvp(f, x, t),
    "jvp of the last": lambda f, x, t: jax.jvp(lambda last: f(*x[:-1], last), x[-1:], t[-1:]),
    "linear_transpose": gauss_newton,
    "hessian": hessian_of_last,
    "reverse over forward": lambda f, x, t: every(lambda *x: jax.jvp(f, x, t)[1])(*x),
    "forward over forward over reverse": lambda f, x, t: jax.jvp(lambda *x: jax.jvp(every(f), x, t)[1], x, t),
    "vmap of the others": lambda f, x, t: mapped(f, x, t, lambda position: None if position == 1 else 0),
    "gradients of each": lambda f, x, t: mapped(every(f), x, t, lambda position: None if position else 0),
    "vmap of jvp": lambda f, x, t: mapped(lambda *x: jax.jvp(f, x, x)[1], x, t, lambda _: -1, 1),
    "checkpoint and scan": lambda f, x, t: through(x, t, f),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name: str, case: str) -> None:
    function, plain, _ = CASES[case]
    actual, wanted = (
        jax.jit(lambda x, t, f=f: TRANSFORMATIONS[name](f, x, t))(arrays(case, 0), arrays(case, 1))
        for f in (function, plain)
    )
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * size)
