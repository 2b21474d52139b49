"""The core's batch norm as JAX's custom calls: values, gradients of any order, and JAX's transformations."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from groupwise.backends.activations import FUNCTIONS
from groupwise.core.epilogues import ACTIVATIONS
from tests.frameworks import BACKEND, skip_without_core
from tests.normalizations import EPSILON, random_arrays, truth

if BACKEND != "jax":
    pytest.skip("the custom calls are JAX's; the backend is another", allow_module_level=True)

import jax
from jax import lax
from jax import numpy as jnp
from jax.test_util import check_grads

from groupwise.backends.jax import norm
from tests import four_devices

skip_without_core()

cases = pytest.mark.parametrize("residual", [False, True])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
training = pytest.mark.parametrize("training", [True, False])
SHAPE = (2, 3, 4, 5)


def operands(residual: bool, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[Any]:
    arrays = random_arrays(shape, seed)
    return [arrays[name] for name in ("inputs", "gamma", "beta", *(["residual"] if residual else []))]


def statistics(channels: int) -> tuple[Any, Any]:
    return np.linspace(-0.5, 1, channels).astype("float32"), np.linspace(0.5, 1.5, channels).astype("float32")


def run(activation: str, training: bool, inputs: Any, gamma: Any, beta: Any, residual: Any = None) -> Any:
    constant = None if training else statistics(gamma.shape[0])
    return norm.normalise(inputs, gamma, beta, constant, EPSILON, residual, activation)[0]


def plain(activation: str, training: bool, x: Any, gamma: Any, beta: Any, residual: Any = 0) -> Any:
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if training else statistics(gamma.shape[0])
    y = (x - mean) * lax.rsqrt(variance + EPSILON) * gamma + beta + residual
    return FUNCTIONS[activation](y)


def close(actual: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * (1 + float(np.abs(other).max())))


@training
@cases
@activations
@pytest.mark.parametrize("shape", [SHAPE, (3, 7, 7, 24), (4, 80, 80, 40)])
def test_values_and_gradients_agree_with_the_definition(
    shape: tuple[int, ...], activation: str, residual: bool, training: bool
) -> None:
    arrays = random_arrays(shape)
    exact = truth(arrays, activation, residual, None if training else statistics(shape[-1]))
    outputs, pull = jax.vjp(jax.jit(partial(run, activation, training)), *operands(residual, shape))
    wanted = [exact["inputs_gradient"], *exact["sums"][::-1], *([exact["residual_gradient"]] if residual else [])]
    close(outputs, exact["outputs"])
    close(pull(jnp.asarray(arrays["gradient"])), wanted)


def test_the_statistics_are_the_batchs() -> None:
    exact = truth(random_arrays(SHAPE), "relu", False)
    inputs, gamma, beta = operands(False)
    _, mean, variance = norm.normalise(inputs, gamma, beta, None, EPSILON, None, "relu")
    close((mean, variance), (exact["mean"], exact["variance"]), 1e-6)


@training
@cases
@activations
def test_gradients_of_gradients(activation: str, residual: bool, training: bool) -> None:
    def twice(function: Any) -> Any:
        loss = lambda *arrays: jnp.sum(jnp.sin(function(activation, training, *arrays)))  # noqa: E731
        wanted = tuple(range(4 if residual else 3))
        return jax.grad(lambda *a: sum(jnp.sum(g**2) for g in jax.grad(loss, wanted)(*a)), wanted)

    arrays = operands(residual)
    close(jax.jit(twice(run))(*arrays), jax.jit(twice(plain))(*arrays), 2e-3)


def test_gradients_of_gradients_by_differences() -> None:
    check_grads(partial(run, "linear", True), operands(True), order=2, modes=["rev"], rtol=5e-2, atol=5e-2)


@training
def test_vmap_is_a_loop(training: bool) -> None:
    many = [operands(True, seed=seed) for seed in range(3)]
    stacked = [np.stack(arrays) for arrays in zip(*many, strict=True)]
    function = partial(run, "relu", training)
    gradients = jax.grad(lambda *arrays: jnp.sum(jnp.sin(function(*arrays))), (0, 1, 2, 3))
    for mapped in (function, gradients):
        loop = [mapped(*arrays) for arrays in many]
        close(jax.jit(jax.vmap(mapped))(*stacked), jax.tree.map(lambda *results: np.stack(results), *loop))
    inputs, gamma, beta, residual = many[0]
    shared = jax.vmap(function, (0, None, None, 0))(stacked[0], gamma, beta, stacked[3])
    close(shared[0], function(inputs, gamma, beta, residual))


def test_no_operation_of_xla_reads_the_images() -> None:
    gradients = jax.grad(lambda *arrays: jnp.sum(run("relu", True, *arrays)), (0, 1, 2, 3))
    text = jax.jit(gradients).lower(*operands(True)).compile().as_text()
    assert all(f"gw_jax_{name}" in text for name in ("moments", "normalize", "gradient_sums", "gradient"))
    assert "reduce(" not in text


@pytest.mark.parametrize("around", [jax.jit, jax.checkpoint])
def test_transformations_change_nothing(around: Any) -> None:
    function = partial(run, "relu6", True)
    gradients = jax.grad(lambda *arrays: jnp.sum(jnp.sin(around(function)(*arrays))), (0, 1, 2))
    arrays = operands(False)
    close(jax.jit(gradients)(*arrays), jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), (0, 1, 2))(*arrays))


@pytest.mark.parametrize(
    ("index", "wrong", "words"),
    [
        (0, np.ones((3, 5), "float32"), "of rank 4"),
        (1, np.ones(4, "float32"), r"array of shape \(4,\): must be"),
        (3, np.ones((1, 3, 4, 5), "float32"), r"array of shape \(1, 3, 4, 5\)"),
    ],
)
def test_wrong_arguments_are_named(index: int, wrong: Any, words: str) -> None:
    arrays = operands(True)
    arrays[index] = wrong
    with pytest.raises(ValueError, match=words):
        run("relu", True, *arrays)
    with pytest.raises(ValueError, match="activation='gelu': must be one of"):
        run("gelu", True, *operands(False))


@pytest.mark.parametrize(
    ("name", "shapes", "results", "settings"),
    [
        ("moments", [(2, 3, 4, 5)], [(5,), (4,)], (0, 1, 0)),
        ("moments", [(2, 3, 20)], [(5,), (5,)], (0, 1, 0)),
        ("moments", [(2, 3, 4, 5)], [(5,), (5,)], (0, 1)),
        ("moments", [(2, 3, 4, 5)], [(5,), (5,)], (len(ACTIVATIONS), 1, 0)),
        ("normalize", [(2, 3, 4, 5), (5,), (5,), (5,)], [(2, 3, 4, 5)], (0, 1, 0)),
        ("normalize", [(2, 3, 4, 5), (5,), (5,), (5,), (5,)], [(2, 3, 5, 4)], (0, 1, 0)),
        ("normalize", [(2, 3, 4, 5), (5,), (5,), (5,), (5,), (2, 3, 4, 1)], [(2, 3, 4, 5)], (0, 1, 0)),
        ("gradient_sums", [(2, 3, 4, 5)] * 2 + [(5,)] * 4, [(3, 5)], (0, 1, 0)),
        ("gradient", [(2, 3, 4, 5)] * 2 + [(5,)] * 4, [(2, 3, 4, 5)], (0, 1, 0)),
    ],
)
def test_a_call_that_would_touch_foreign_memory_is_refused(
    name: str, shapes: list[tuple], results: list[tuple], settings: tuple
) -> None:
    call = jax.ffi.ffi_call(f"gw_jax_{name}", [jax.ShapeDtypeStruct(shape, "float32") for shape in results])
    with pytest.raises(Exception, match="groupwise: "):
        jax.block_until_ready(
            call(*(jnp.ones(shape, "float32") for shape in shapes), settings=np.array(settings, "int64"))
        )


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return four_devices.outcomes("tests.four_devices_norm", tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("check", ["norm_mesh", "norm_explicit", "norm_keras_distribution"])
def test_four_devices(check: str, on_four_devices: dict[str, str]) -> None:
    """See tests/four_devices_norm.py: statistics of the whole batch, and no image leaves its device."""
    if check == "norm_explicit" and not hasattr(jax.sharding, "auto_axes"):
        pytest.skip(f"JAX {jax.__version__} has no auto_axes")
    assert on_four_devices[check] == "as expected"
