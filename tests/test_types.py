"""Half precision and float64: every sum of ours against float64 NumPy, to about a unit of the type."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

from groupwise import layers, ops
from groupwise.ops.algorithms import ALGORITHMS
from tests.frameworks import BACKEND, needs_core, skip_without_core, value_and_every_gradient, with_weights
from tests.reference import Convolution

HALF = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
UNIT = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-5, "float64": 1e-12}
COMPILED = BACKEND == "jax"  # where every operation by itself would be compiled


def drawn(dtype: str, *shape: int, low: float = 0.5, high: float = 1.5, seed: int = 0) -> np.ndarray:
    """Return positive numbers, of which a sum in half precision would stop."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(HALF.get(dtype, np.dtype(dtype)))


def close(dtype: str, actual: Any, expected: Any, scale: Any = None, what: str = "", units: float = 1.01) -> None:
    error = np.abs(np.asarray(actual) - expected) / (np.abs(expected) if scale is None else scale)
    assert error.max() <= units * UNIT[dtype], f"{what}: {error.max() / UNIT[dtype]:.1f} units of {dtype}"


def wide(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")), "float64")


@contextlib.contextmanager
def float64_allowed() -> Iterator[None]:
    """Let JAX compute in float64, which it does only where it is told to."""
    with importlib.import_module("jax").enable_x64(True) if BACKEND == "jax" else contextlib.nullcontext():
        yield


def convolution_case(algorithm: str, dtype: str, side: int) -> tuple[Convolution, list[np.ndarray], np.ndarray]:
    """Return a convolution that `algorithm` can compute, its inputs, kernel, bias and residual, and a gradient."""
    kernel_shape, groups = {"matmul": ((1, 1, 4, 8), 1), "shifted_sum": ((3, 3, 1, 4), 4)}.get(
        algorithm, ((3, 3, 2, 8), 2)
    )
    reference = Convolution(groups, (2, 2))
    inputs = drawn(dtype, 1, side, side, 4, low=0.05, high=0.15)
    kernel = drawn(dtype, *kernel_shape, low=0.05, high=0.15, seed=1)
    shape = (1, *reference.output_size(inputs.shape, kernel.shape), kernel.shape[3])
    extras = [drawn(dtype, kernel.shape[3], seed=2), drawn(dtype, *shape, seed=3)]
    return reference, [inputs, kernel, *extras], drawn(dtype, *shape, seed=4)


def check_convolution(algorithm: str, dtype: str, side: int) -> None:
    reference, arrays, gradient = convolution_case(algorithm, dtype, side)

    def run(inputs: Any, kernel: Any, bias: Any, residual: Any) -> Any:
        options: dict[str, Any] = dict(algorithm=algorithm, bias=bias, residual=residual, activation="relu")
        return ops.grouped_conv2d(inputs, kernel, reference.groups, 2, "valid", **options)

    results = value_and_every_gradient(run, arrays, gradient, COMPILED)
    inputs, kernel, bias, residual, upstream = (array.astype("float64") for array in (*arrays, gradient))
    expected = {
        "outputs": reference.forward(inputs, kernel) + bias + residual,
        "inputs' gradient": reference.input_gradient(inputs, kernel, upstream),
        "kernel's gradient": reference.kernel_gradient(inputs, kernel, upstream),
        "bias's gradient": upstream.sum((0, 1, 2)),
        "residual's gradient": upstream,
    }
    for (name, value), result in zip(expected.items(), results, strict=True):
        close(dtype, result, value, np.maximum(np.abs(value), 1e-30), name)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_a_convolutions_sums_are_long(algorithm: str, dtype: str) -> None:
    skip_without_core(algorithm)
    check_convolution(algorithm, dtype, side=161)


@pytest.mark.parametrize("algorithm", ["auto", *(name for name in ALGORITHMS if name != "core")])
def test_float64_keeps_every_digit(algorithm: str) -> None:
    if BACKEND == "tensorflow" and algorithm in ("native", "depthwise_sum"):
        pytest.skip("TensorFlow has no gradient of a grouped float64 convolution on a CPU")
    with float64_allowed():
        check_convolution(algorithm, "float64", side=9)


def test_float64_decides_over_float32() -> None:
    with float64_allowed():
        inputs, kernel = drawn("float64", 1, 5, 5, 4), drawn("float32", 3, 3, 2, 4, seed=1)
        expected = Convolution(2).forward(inputs, kernel)
        for one, other in ((inputs, kernel), (inputs.astype("float32"), kernel.astype("float64"))):
            outputs = ops.grouped_conv2d(one, other, 2, padding="valid")
            assert keras.backend.standardize_dtype(outputs.dtype) == "float64"
            exact = expected if one is inputs else Convolution(2).forward(one, other)
            close("float64", keras.ops.convert_to_numpy(outputs), exact)


@needs_core
def test_the_core_refuses_float64_and_other_types_are_named() -> None:
    kernel = np.ones((1, 1, 2, 2))
    with float64_allowed(), pytest.raises(ValueError, match='algorithm="core": it computes in float32'):
        ops.grouped_conv2d(keras.ops.ones((1, 2, 2, 2), "float64"), kernel, 1, algorithm="core")
    with pytest.raises(ValueError, match="inputs of type complex64"):
        ops.grouped_conv2d(keras.ops.cast(np.ones((1, 2, 2, 2)), "complex64"), kernel.astype("float32"), 1)
    with pytest.raises(ValueError, match="dtype='int8'"):
        ops.explain_routing((1, 4, 4, 2), (1, 1, 2, 2), 1, dtype="int8")
    whole = ops.grouped_conv2d(np.full((1, 2, 2, 2), 200, "uint8"), kernel.astype("float32"), 1, algorithm="core")
    assert wide(whole).ravel().tolist() == [400.0] * 8


def norm_truth(arrays: list[np.ndarray], gradient: np.ndarray, epsilon: float) -> dict[str, np.ndarray]:
    inputs, gamma, beta, upstream = (array.astype("float64") for array in (*arrays, gradient))
    scale = 1 / np.sqrt(inputs.var((0, 1, 2)) + epsilon)
    normalised = (inputs - inputs.mean((0, 1, 2))) * scale
    sums = upstream.mean((0, 1, 2)) + normalised * (upstream * normalised).mean((0, 1, 2))
    return {
        "outputs": normalised * gamma + beta,
        "inputs": gamma * scale * (upstream - sums),
        "gamma": (upstream * normalised).sum((0, 1, 2)),
        "beta": upstream.sum((0, 1, 2)),
    }


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"])
def test_batch_norms_statistics_and_gradients(policy: str) -> None:
    dtype = policy.removeprefix("mixed_")
    with float64_allowed():
        # A mean of ten deviations.
        inputs = np.random.default_rng(0).normal(10, 1, (2, 80, 80, 3)).astype(HALF.get(dtype, np.dtype(dtype)))
        gradient = drawn(dtype, *inputs.shape, seed=1)
        layer = layers.BatchNormalization(momentum=0.5, dtype=policy)
        layer.build(inputs.shape)
        arrays = [inputs, drawn(dtype, 3, seed=2), drawn(dtype, 3, seed=3)]
        results = value_and_every_gradient(with_weights(layer, training=True), arrays, gradient, COMPILED)
        expected = norm_truth(arrays, gradient, layer.epsilon)
        products = np.abs(
            gradient.astype("float64") * norm_truth([inputs, np.ones(3), np.zeros(3)], gradient, 1e-3)["outputs"]
        )
        bounds = {"outputs": 1.0, "inputs": 1.0, "gamma": products.sum((0, 1, 2)), "beta": 0.0}
        for (name, value), result in zip(expected.items(), results, strict=True):
            close(dtype, result, value, np.abs(value) + bounds[name], name)
        layer(inputs, training=True)
        mean, variance = (
            keras.ops.convert_to_numpy(value).astype("float64") for value in layer.non_trainable_variables
        )
        exact = inputs.astype("float64")
        close(dtype, mean, exact.mean((0, 1, 2)) / 2, what="moving mean")
        close(dtype, variance, 0.5 + exact.var((0, 1, 2)) / 2, what="moving variance")


@pytest.mark.parametrize("fused", [True, False])
def test_moving_statistics_arrive_in_half_precision(fused: bool) -> None:
    layer, inputs = layers.BatchNormalization(dtype="bfloat16", fused=fused), drawn("bfloat16", 2, 3, 3, 1)
    for _ in range(300):
        layer(inputs, training=True)
    # In bfloat16 a step of a hundredth is lost from 0.8 of the way on.
    reached = inputs.astype("float64").mean() * (1 - 0.99**300)
    close("bfloat16", wide(layer.moving_mean), reached)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 160, 160, 8), (600, 2, 2, 8)], ids=["large image", "large batch"])
def test_squeeze_excite_is_its_formula(policy: str, shape: tuple[int, ...]) -> None:
    dtype = policy.removeprefix("mixed_")
    with float64_allowed():
        # In float16 the image's sum is infinite.
        inputs, gradient = drawn(dtype, *shape) * 3, drawn(dtype, *shape, seed=1) / 64
        layer = layers.SqueezeExcite(4, dtype=policy)
        layer.build(shape)
        sizes = [variable.shape for variable in layer.trainable_variables]
        weights = [drawn(dtype, *size, low=0.02, high=0.2, seed=place) for place, size in enumerate(sizes)]
        results = value_and_every_gradient(with_weights(layer), [inputs, *weights], gradient, COMPILED)
    x, k, b, c, d, upstream = (array.astype("float64") for array in (inputs, *weights, gradient))
    pooled = x.mean((1, 2))
    hidden = pooled @ k + b
    gate = 1 / (1 + np.exp(-(hidden @ c + d)))
    to_last = (upstream * x).sum((1, 2)) * gate * (1 - gate)
    to_hidden = to_last @ c.T
    to_pooled = (to_hidden @ k.T)[:, None, None] / (shape[1] * shape[2])
    expected = {
        "outputs": x * gate[:, None, None],
        "inputs": upstream * gate[:, None, None] + to_pooled,
        "first kernel": pooled.T @ to_hidden,
        "first bias": to_hidden.sum(0),
        "second kernel": hidden.T @ to_last,
        "second bias": to_last.sum(0),
    }
    for (name, value), result in zip(expected.items(), results, strict=True):
        close(dtype, result, value, what=name)


@pytest.mark.parametrize("dtype", [*HALF, "float64"])
@pytest.mark.parametrize("padding", ["same", ((2, 2), (2, 2))], ids=str)
def test_averages_of_large_windows(padding: Any, dtype: str) -> None:
    side, size, gradient_side = 23, 21, 23 if padding == "same" else 7
    with float64_allowed():
        inputs, gradient = drawn(dtype, 1, side, side, 2) * 40, drawn(dtype, 1, gradient_side, gradient_side, 2, seed=1)
        layer = layers.AveragePooling2D(size, 1, padding, dtype=dtype)
        results = value_and_every_gradient(layer, [inputs], gradient, COMPILED)
    before = 10 if padding == "same" else 2
    x, upstream = inputs.astype("float64"), gradient.astype("float64")
    edge = ((0, 0), (before, before), (before, before), (0, 0))
    padded, ones, back = np.pad(x, edge), np.pad(np.ones_like(x), edge), np.zeros(np.pad(x, edge).shape)
    outputs = np.zeros_like(upstream)
    for row, column in np.ndindex(gradient_side, gradient_side):
        window = slice(None), slice(row, row + size), slice(column, column + size)
        count = ones[window].sum((1, 2)) if padding == "same" else size * size
        outputs[:, row, column] = padded[window].sum((1, 2)) / count
        back[window] += (upstream[:, row, column] / count)[:, None, None]
    close(dtype, results[0], outputs, what="outputs")
    close(dtype, results[1], back[:, before : before + side, before : before + side], what="gradient", units=10)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("algorithm", ["auto", "native"])
def test_a_maximum_of_many_windows_gets_all_their_gradients(algorithm: str, dtype: str) -> None:
    inputs, gradient = np.zeros((1, 48, 48, 1), HALF[dtype]), np.ones((1, 24, 24, 1), HALF[dtype])
    inputs[0, 24, 24] = 1
    layer = layers.MaxPooling2D(25, 1, algorithm=algorithm, dtype=dtype)
    to_inputs = value_and_every_gradient(layer, [inputs], gradient, COMPILED)[1]
    close(dtype, to_inputs[0, 24, 24], 24.0 * 24.0)


def test_global_pooling_of_a_large_image() -> None:
    inputs = drawn("bfloat16", 1, 160, 160, 4)
    pool = keras.layers.GlobalAveragePooling2D(dtype="mixed_bfloat16")  # what `pooled_head` begins with
    close("bfloat16", wide(pool(inputs)), inputs.astype("float64").mean((1, 2)))


def test_images_of_integers() -> None:
    images = np.arange(16, dtype="uint8").reshape(1, 4, 4, 1) + 200
    maxima = layers.MaxPooling2D(2, 2, ((1, 1), (1, 1)))(images)
    assert wide(maxima).ravel().tolist() == [
        200,
        202,
        203,
        208,
        210,
        211,
        212,
        214,
        215,
    ]
    assert wide(layers.AveragePooling2D(2, 2)(images)).ravel().tolist() == [202.5, 204.5, 210.5, 212.5]
    outputs = layers.SqueezeExcite(1)(images)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
