"""Links of chains: a convolution that normalises what it reads and counts what it writes, and all gradients of it."""

from typing import Any

import numpy as np
import pytest
from keras import ops

from groupwise import backends
from groupwise.backends.plain_links import Reading
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.epilogues import POINTWISE
from tests.frameworks import needs_core, value_and_every_gradient
from tests.links import READING, UPSTREAM, arrays_of, exact
from tests.passes import SPECS, near

pytestmark = needs_core

EVERY = [*(spec for specs in SPECS.values() for spec in specs), POINTWISE]
# Every convolution and activation; one of each family without a reading, and without statistics.
CASES = [
    *((spec, activation, True) for spec, activation in zip(EVERY, [*ACTIVATIONS] * 2, strict=True)),
    *((specs[1], None, True) for specs in SPECS.values()),
    *((specs[1], "silu", False) for specs in SPECS.values()),
    (POINTWISE, None, False),
]
compiled = pytest.mark.parametrize("compiled", [False, True])


def linked(arrays: dict[str, np.ndarray], spec: ConvSpec, activation: str | None, compiled: bool) -> list[np.ndarray]:
    """Return a link's results, flat, one after the other, and the gradient to each argument."""
    counts = "to_mean" in arrays
    names = [name for name in arrays if name not in UPSTREAM]

    def function(inputs: Any, kernel: Any, *reading: Any) -> Any:
        read = Reading(*reading, activation) if activation else None  # type: ignore[call-arg]
        results = backends.active.core.link(inputs, kernel, spec, read, counts)
        assert counts or results[1:] == (None, None)
        return ops.concatenate([ops.reshape(r, (-1,)) for r in results if r is not None])

    gradient = np.concatenate([arrays[name].ravel() for name in UPSTREAM if name in arrays])
    return value_and_every_gradient(function, [arrays[name] for name in names], gradient, compiled)


@compiled
@pytest.mark.parametrize(("spec", "activation", "counts"), CASES)
def test_values_and_gradients(spec: ConvSpec, activation: str | None, counts: bool, compiled: bool) -> None:
    arrays = arrays_of(spec, activation, counts)
    wanted = exact(spec, arrays, activation)
    results, *gradients = linked(arrays, spec, activation, compiled)
    outputs, bound = wanted["outputs"]
    near(results[: outputs.size], outputs.ravel(), bound.ravel(), "outputs")
    if counts:
        near(results[outputs.size :].reshape(2, -1), *wanted["statistics"], "statistics")
    names = ("inputs", "kernel", *(READING if activation else ()))
    for name, gradient in zip(names, gradients, strict=True):
        near(gradient, *wanted[name], f"gradient to {name}")


def test_an_empty_batch() -> None:
    spec = ConvSpec.of((0, 9, 10, 24), POINTWISE.kernel_shape, 1)
    results, *gradients = linked(arrays_of(spec, "relu", True), spec, "relu", False)
    assert [len(results), *(gradient.shape for gradient in gradients)] == [
        40,
        (0, 9, 10, 24),
        (1, 1, 24, 20),
        *3 * [(24,)],
    ]
    assert not any(array.any() for array in (results, *gradients))


@pytest.mark.parametrize("specs", SPECS.values(), ids=SPECS)
def test_the_same_bits_each_time(specs: tuple[ConvSpec, ...]) -> None:
    arrays = arrays_of(specs[0], "relu", True)
    runs = [linked(arrays, specs[0], "relu", False) for _ in range(2)]
    assert all(np.array_equal(one, other) for one, other in zip(*runs, strict=True))


def test_a_mean_a_thousand_times_the_deviation_keeps_the_digits_of_the_variance() -> None:
    inputs = (1000 + np.random.default_rng(0).normal(size=(2, 34, 30, 24))).astype("float32")
    kernel = np.zeros((3, 3, 1, 24), "float32")
    kernel[1, 1] = 1
    spec = ConvSpec.of(inputs.shape, kernel.shape, 24, 1, "valid")
    x, w = map(ops.convert_to_tensor, (inputs, kernel))
    outputs, mean, variance = map(ops.convert_to_numpy, backends.active.core.link(x, w, spec, None, True))
    wide = outputs.astype("float64")
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-5)


FIRST, SECOND = ConvSpec.of((4, 9, 8, 12), (1, 1, 12, 16), 1), ConvSpec.of((4, 9, 8, 16), (3, 3, 1, 16), 16, 2)


def chain(by_links: bool, compiled: bool) -> list[np.ndarray]:
    """Return the weights of convolution, batch norm, ReLU, convolution, batch norm after ten steps."""
    random = np.random.default_rng(0)
    x, target = random.normal(size=(4, 9, 8, 12)), random.normal(size=(4, 5, 4, 16))
    kernels = [random.normal(size=spec.kernel_shape) / 3 for spec in (FIRST, SECOND)]
    weights = [kernels[0], np.ones(16), np.zeros(16), kernels[1], np.ones(16), np.zeros(16)]
    weights = [np.asarray(weight, "float32") for weight in weights]

    def convolve(inputs: Any, kernel: Any, spec: ConvSpec, reading: Reading | None) -> tuple[Any, Any, Any]:
        if by_links:
            return backends.active.core.link(inputs, kernel, spec, reading, True)
        if reading is not None:
            inputs = ops.relu((inputs - reading.mean) * reading.scale + reading.shift)
        outputs = backends.active.convolve(inputs, kernel, spec)
        return outputs, ops.mean(outputs, (0, 1, 2)), ops.var(outputs, (0, 1, 2))

    def loss(*weights: Any) -> Any:
        first, gamma, beta, second, last_gamma, last_beta = weights
        outputs, mean, variance = convolve(ops.convert_to_tensor(x, "float32"), first, FIRST, None)
        reading = Reading(mean, gamma * ops.rsqrt(variance + 1e-3), beta, "relu")
        outputs, mean, variance = convolve(outputs, second, SECOND, reading)
        outputs = (outputs - mean) * (last_gamma * ops.rsqrt(variance + 1e-3)) + last_beta
        return ops.mean(ops.square(outputs - ops.convert_to_tensor(target, "float32")))

    for _ in range(10):
        _, *gradients = value_and_every_gradient(loss, weights, np.ones(()), compiled)
        weights = [(w - 0.5 * g).astype("float32") for w, g in zip(weights, gradients, strict=True)]
    return weights


@compiled
def test_a_chain_trains_like_plain_operations(compiled: bool) -> None:
    for mine, plain in zip(chain(True, compiled), chain(False, compiled), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "activation"), [("float16", "relu"), ("float32", "softmax")])
def test_wrong_arguments_are_refused(dtype: str, activation: str) -> None:
    arrays = arrays_of(POINTWISE, "relu", False)
    tensors = {name: ops.convert_to_tensor(array, dtype) for name, array in arrays.items()}
    reading = Reading(*(tensors[name] for name in READING), activation)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"float16|activation='softmax'"):
        backends.active.core.link(tensors["inputs"], tensors["kernel"], POINTWISE, reading)
