"""What of two convolutions in one pass is JAX's alone: the custom call, and every transformation; see test_pairs.py."""

from typing import Any

import numpy as np
import pytest

from groupwise.backends.steps import Step
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, skip_without_core

if BACKEND != "jax":
    pytest.skip("the custom call is JAX's; the backend is another", allow_module_level=True)

import jax
from jax import numpy as jnp

from groupwise.backends.jax import core

skip_without_core()

GROUPED = ConvSpec.of((2, 6, 5, 8), (3, 3, 1, 16), 8, 2, "same")
POINTWISE = ConvSpec.of(GROUPED.output_shape, (1, 1, 8, 6), 2)
SHAPES = GROUPED.input_shape, GROUPED.kernel_shape, (16,), (16,), POINTWISE.kernel_shape, (6,), POINTWISE.output_shape


def one(inputs: Any, kernel: Any, bias: Any, scale: Any, last: Any, end: Any, residual: Any) -> Any:
    first = Step(kernel, GROUPED, bias, scale, "silu")
    return core.separable(inputs, first, Step(last, POINTWISE, None, end, "hard_swish"), residual)


def two(inputs: Any, kernel: Any, bias: Any, scale: Any, last: Any, end: Any, residual: Any) -> Any:
    between = jax.nn.silu(core.convolve(inputs, kernel, GROUPED) * scale + bias)
    return jax.nn.hard_swish(core.convolve(between, last, POINTWISE) * end + residual)


EXPANSION = ConvSpec.of((2, 6, 5, 3), (1, 1, 3, 8), 1)
EXPANDED = EXPANSION.input_shape, *SHAPES[1:], EXPANSION.kernel_shape, (8,), (8,)


def one_expanded(inputs: Any, kernel: Any, bias: Any, scale: Any, last: Any, end: Any, residual: Any, *own: Any) -> Any:
    wide, own_bias, own_scale = own
    first, second = Step(kernel, GROUPED, bias, scale, "silu"), Step(last, POINTWISE, None, end, "hard_swish")
    return core.separable(inputs, first, second, residual, Step(wide, EXPANSION, own_bias, own_scale, "silu"))


def two_expanded(inputs: Any, *others: Any) -> Any:
    *pair, wide, own_bias, own_scale = others
    return two(jax.nn.silu(inputs @ wide[0, 0] * own_scale + own_bias), *pair)


def operands(seed: int, shapes: Any = SHAPES) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    return tuple(jnp.asarray(random.normal(size=shape), "float32") for shape in shapes)


def every(function: Any, count: int = len(SHAPES)) -> Any:
    return jax.grad(lambda *x: jnp.sin(function(*x)).sum(), tuple(range(count)))


TRANSFORMATIONS: dict[str, Any] = {
    "nothing": lambda f, x, _: f(*x),
    "jvp": lambda f, x, t: jax.jvp(f, x, t),
    "gradient": lambda f, x, _: every(f)(*x),
    "reverse over reverse": lambda f, x, _: jax.grad(lambda *x: jnp.sin(every(f)(*x)[1]).sum(), (0, 1, 4))(*x),
    "forward over reverse": lambda f, x, t: jax.jvp(every(f), x, t)[1],
    "images in turns": lambda f, x, t: jax.vmap(f, (0, *[None] * 5, 0))(
        *(jnp.stack([a, b]) if i in (0, 6) else a for i, (a, b) in enumerate(zip(x, t, strict=True)))
    ),
    "kernels in turns": lambda f, x, t: jax.vmap(f, (None, 0, *[None] * 5))(x[0], jnp.stack([x[1], t[1]]), *x[2:]),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name: str) -> None:
    x, t = operands(0), operands(1)
    actual, wanted = (jax.jit(lambda x, t, f=f: TRANSFORMATIONS[name](f, x, t))(x, t) for f in (one, two))
    for found, expected in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


def test_transformations_of_three() -> None:
    x, t = operands(0, EXPANDED), operands(1, EXPANDED)
    text = jax.jit(one_expanded).lower(*x).compile().as_text()
    assert "gw_jax_separable" in text
    assert "gw_jax_forward" not in text
    many = [jnp.stack([a, b]) if i in (0, 6) else a for i, (a, b) in enumerate(zip(x, t, strict=True))]
    axes = 0, *[None] * 5, 0, *[None] * 3
    for change, given in (
        (lambda f: f, x),
        (lambda f: every(f, len(EXPANDED)), x),
        (lambda f: lambda *y: jax.jvp(f, y, t), x),
        (lambda f: jax.vmap(f, axes), many),
    ):
        actual, wanted = (jax.jit(change(f))(*given) for f in (one_expanded, two_expanded))
        for found, expected in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))
    wrong = [*x[:7], x[7][..., :-1], *x[8:]]
    with pytest.raises(ValueError, match=r"expansion: kernel of shape \(.*must be of shape"):
        one_expanded(*wrong)


def test_it_is_one_call_where_no_derivative_is_wanted() -> None:
    text = jax.jit(one).lower(*operands(0)).compile().as_text()
    assert "gw_jax_separable" in text
    assert "gw_jax_forward" not in text
    assert "gw_jax_separable" not in jax.jit(every(one)).lower(*operands(0)).compile().as_text()


@pytest.mark.parametrize(
    ("index", "name"),
    [(1, "grouped: kernel"), (3, "grouped: scale"), (4, "pointwise: kernel"), (6, "pointwise: residual")],
)
def test_wrong_shapes_are_refused(index: int, name: str) -> None:
    arrays = [*operands(0)]
    arrays[index] = arrays[index][..., :-1]
    with pytest.raises(ValueError, match=rf"{name} of shape \(.*must be of shape"):
        one(*arrays)


IMAGE, KERNEL, LAST, OUT, MANY, FEW = SHAPES[0], SHAPES[1], SHAPES[4], SHAPES[6], (16,), (6,)
SIZES = (8, 2, 2, 1, 1, 0, 1)  # of GROUPED
PAIR, NARROW, WIDE = (*SIZES, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0), EXPANDED[0], EXPANSION.kernel_shape


@pytest.mark.parametrize(
    ("operands", "settings", "words"),
    [
        ([IMAGE, KERNEL], (*SIZES, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0), "float32 arrays of rank 4"),
        ([IMAGE, KERNEL, LAST], (*SIZES, 0, 0, 0, 3, 3, 2, 0, 0, 0), "and its settings"),
        ([IMAGE, KERNEL, LAST], (*SIZES, 0, 0, 0, 3, 3, 1, 0, 0, 0, 0), "contradict"),
        ([IMAGE, KERNEL, LAST], (*SIZES, 0, 0, 0, 9, 9, 2, 0, 0, 0, 0), "no kernel computes this"),
        ([IMAGE, KERNEL, LAST], (*SIZES, 0, 1, 0, 3, 3, 2, 0, 0, 0, 0), "does not fit"),
        ([IMAGE, KERNEL, LAST, FEW], (*SIZES, 0, 1, 0, 3, 3, 2, 0, 0, 0, 0), "does not fit"),
        ([IMAGE, KERNEL, LAST, MANY], (*SIZES, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0), "does not fit"),
        ([IMAGE, KERNEL, LAST], (*SIZES, 99, 0, 0, 3, 3, 2, 0, 0, 0, 0), "sizes are invalid"),
        ([NARROW, KERNEL, LAST], (*PAIR, 1, 0, 0, 0), "float32 arrays of rank 4"),
        ([NARROW, KERNEL, LAST, WIDE], (*PAIR, 1, 0, 0, 0, 0), "and its settings"),
        ([NARROW, KERNEL, LAST, WIDE], (*PAIR, 2, 0, 0, 0), "contradict"),
        ([NARROW, KERNEL, LAST, WIDE, FEW], (*PAIR, 1, 0, 1, 0), "does not fit"),
        ([NARROW, KERNEL, LAST, WIDE], (*PAIR, 1, 99, 0, 0), "sizes are invalid"),
    ],
)
def test_the_handler_refuses_what_contradicts_itself(operands: Any, settings: Any, words: str) -> None:
    call = jax.ffi.ffi_call("gw_jax_separable", jax.ShapeDtypeStruct(OUT, "float32"))
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(
            call(*(jnp.ones(shape, "float32") for shape in operands), settings=np.array(settings, "int64"))
        )
