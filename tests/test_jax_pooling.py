"""The C core's max pooling as JAX's custom calls: values, gradients of any order, and transformations around them."""

from typing import Any

import numpy as np
import pytest

from groupwise.core import pooling
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, skip_without_core
from tests.poolings import ROUNDING, SPECS, images, truth

if BACKEND != "jax":
    pytest.skip("the custom calls are JAX's; the backend is another", allow_module_level=True)

import jax
from jax import lax
from jax import numpy as jnp

from groupwise.backends.jax import native as backend

skip_without_core()

SPEC = SPECS[1]
SETTINGS = (3, 3, 2, 2, 1, 1)  # of SPEC


def pool(inputs: Any, spec: ConvSpec = SPEC) -> Any:
    return backend.max_pool(inputs, spec)


def stock(inputs: Any) -> Any:
    """XLA's own pooling, as `SPEC` describes it."""
    sides = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(inputs, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), sides)


def passes(function: Any, inputs: Any, gradient: Any) -> tuple[Any, Any]:
    """Return the outputs and the inputs' gradient."""
    outputs, pull = jax.vjp(function, inputs)
    return outputs, pull(gradient)[0]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", pooling.ELEMENTS)
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_agree_with_the_reference(spec: ConvSpec, dtype: str, compiled: bool) -> None:
    spec = pooling.window(spec.input_shape, spec.kernel_shape[:2], spec.strides, spec.padding, dtype)
    inputs, gradient = images(spec)
    expected = truth(spec, inputs, gradient)
    run: Any = lambda x, g: passes(lambda x: pool(x, spec), x, g)  # noqa: E731
    outputs, actual = (jax.jit(run) if compiled else run)(inputs, gradient)
    assert outputs.dtype == actual.dtype == dtype
    np.testing.assert_array_equal(np.asarray(outputs, "float64"), expected.outputs)
    assert np.all(np.abs(np.asarray(actual, "float64") - expected.gradient) <= ROUNDING[dtype] * expected.bound)
    np.testing.assert_array_equal(np.asarray(pool(inputs, spec), "float64"), expected.outputs)


def test_ties_are_xlas_own() -> None:
    inputs, gradient = images(SPEC, with_nan=False)
    for actual, value in zip(passes(pool, inputs, gradient), passes(stock, inputs, gradient), strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-6, atol=1e-6)


def test_second_order_is_xlas_own() -> None:
    inputs, gradient = images(SPEC, with_nan=False)
    results = []
    for function in (pool, stock):
        first = lambda g, f=function: jnp.sum(passes(f, inputs, g)[1] ** 2)  # noqa: E731
        second = lambda g, f=first: jnp.sum(jax.grad(f)(g) ** 2)  # noqa: E731
        results.append((jax.grad(first)(gradient), jax.grad(second)(gradient)))
    for actual, value in zip(*results, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)


def test_second_order_of_windows_that_see_only_padding() -> None:
    spec = pooling.window((1, 2, 2, 3), (2, 2), (1, 1), ((4, 0), (0, 0)))
    inputs, gradient = images(spec, with_nan=False)
    second = jax.grad(lambda g: jnp.sum(passes(lambda x: pool(x, spec), inputs, g)[1]))(gradient)
    # A window's gradient arrives once, unless there was no pixel.
    np.testing.assert_array_equal(second, np.isfinite(pool(inputs, spec)))


@pytest.mark.parametrize("batch", [2, 0])
def test_vmap_folds_into_the_batch(batch: int) -> None:
    drawn = [images(SPEC, seed) for seed in (0, 1)]
    inputs, gradient = (np.stack([pair[role][:batch] for pair in drawn]) for role in (0, 1))
    run = lambda x, g: passes(pool, x, g)  # noqa: E731
    alone = [run(x, g) for x, g in zip(inputs, gradient, strict=True)]
    for actual, values in zip(jax.jit(jax.vmap(run))(inputs, gradient), zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(actual, np.stack(values))
    one_gradient = jax.vmap(lambda x: passes(pool, x, gradient[0])[1])(inputs)
    np.testing.assert_array_equal(one_gradient[0], passes(pool, inputs[0], gradient[0])[1])


@pytest.mark.parametrize(
    ("arrays", "result", "settings", "words"),
    [
        ([(2, 9, 8, 35)], [(1, 5, 4, 35)], SETTINGS, "contradict"),
        ([(2, 9, 8, 35)], [(2, 5, 4, 34)], SETTINGS, "contradict"),
        ([(2, 9, 8, 35)], [(2, 5, 4, 35), (2, 5, 3, 35)], SETTINGS, "contradict"),
        ([(2, 9, 8, 35)], [(2, 5, 4, 35)], SETTINGS[:5], "its settings"),
        ([(2, 9, 280)], [(2, 5, 4, 35)], SETTINGS, "arrays of rank 4"),
        ([(2, 9, 8, 35)], [(2, 5, 4, 35)], (3, 3, 0, 2, 1, 1), "sizes are invalid"),
        ([(2, 9, 8, 35)], [(2, 5, 4, 35)], (16, 17, 2, 2, 1, 1), "no kernel"),
        ([(2, 9, 8, 35)] * 2, [(2, 5, 4, 35)], SETTINGS, "wrong number"),
    ],
)
def test_a_call_that_would_touch_foreign_memory_is_refused(
    arrays: list[tuple], result: list[tuple], settings: tuple, words: str
) -> None:
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(result, ("float32", "uint8"), strict=False)]
    call = jax.ffi.ffi_call("gw_jax_max_pool", shapes)
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(
            call(*(jnp.ones(shape, "float32") for shape in arrays), settings=np.array(settings, "int64"))
        )


def test_the_core_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUPWISE_CORE", "0")
    with pytest.raises(RuntimeError, match="GROUPWISE_CORE is 0"):
        pool(images(SPEC)[0])
