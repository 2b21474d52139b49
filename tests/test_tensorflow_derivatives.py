"""Every kind of derivative that TensorFlow has, through the core's operations: those of TensorFlow's own in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, skip_without_core

if BACKEND != "tensorflow":
    pytest.skip("the transformations are TensorFlow's; the backend is another", allow_module_level=True)

import tensorflow as tf

from groupwise.backends.tensorflow import core, norm

skip_without_core()

EPSILON = 1e-3


def fused(x: Any, w: Any, bias: Any, residual: Any, activation: str = "relu6") -> Any:
    spec = ConvSpec.of(x.shape, w.shape, 2, (1, 2))
    return core.convolve(x, w, spec, bias, residual, activation)


def plain_fused(x: Any, w: Any, bias: Any, residual: Any, activation: Any = tf.nn.relu6) -> Any:
    # TensorFlow's own grouped convolution has no gradient without oneDNN.
    pairs = zip(tf.split(x, 2, 3), tf.split(w, 2, 3), strict=True)
    sums = tf.concat([tf.nn.conv2d(*pair, (1, 2), "SAME") for pair in pairs], 3)
    return activation(sums + bias + residual)


def trained(x: Any, gamma: Any, beta: Any, residual: Any, activation: str = "relu") -> Any:
    return norm.normalise(x, gamma, beta, None, EPSILON, residual, activation)[0]


def plain_trained(x: Any, gamma: Any, beta: Any, residual: Any, activation: Any = tf.nn.relu) -> Any:
    # tf.nn.moments has a wrong second derivative.
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
    return activation(tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON) + residual)


def inferred(x: Any, gamma: Any, beta: Any, mean: Any, deviation: Any) -> Any:
    return norm.normalise(x, gamma, beta, (mean, deviation**2), EPSILON, None, "relu6")[0]


def plain_inferred(x: Any, gamma: Any, beta: Any, mean: Any, deviation: Any) -> Any:
    return tf.nn.relu6(tf.nn.batch_normalization(x, mean, deviation**2, beta, gamma, EPSILON))


IMAGE, CHANNELS = (2, 3, 4, 4), (4,)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "fused": (fused, plain_fused, (IMAGE, (3, 2, 2, 6), (6,), (2, 3, 2, 6))),
    "trained": (trained, plain_trained, (IMAGE, CHANNELS, CHANNELS, IMAGE)),
    "inferred": (inferred, plain_inferred, (IMAGE, *[CHANNELS] * 4)),
}

for name, function in (("silu", lambda y: y * tf.sigmoid(y)), ("hard_swish", lambda y: y * tf.nn.relu6(y + 3) / 6)):
    for case in ("fused", "trained"):
        ours, plain, shapes = CASES[case]
        CASES[f"{case}, {name}"] = partial(ours, activation=name), partial(plain, activation=function), shapes


def arrays(case: str, seed: int, dtype: str) -> list[Any]:
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=shape), dtype) for shape in CASES[case][2]]


def forward(function: Any, x: Any, t: Any) -> Any:
    with tf.autodiff.ForwardAccumulator(list(x), list(t)) as accumulator:
        results = function(*x)
    return accumulator.jvp(results)


def every(function: Any) -> Any:
    """Return the gradient to every argument of a function of the outputs that differs at each of them."""

    def gradients(*x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.sin(function(*x)))
        return tape.gradient(total, x, unconnected_gradients="zero")

    return gradients


def jacobian(function: Any, x: Any) -> Any:
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        results = function(*x)
    return tape.jacobian(results, x)


TRANSFORMATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "forward": forward,
    "forward over reverse": lambda f, x, t: forward(every(f), x, t),
    "reverse over forward": lambda f, x, t: every(lambda *x: forward(f, x, t))(*x),
    "forward over forward": lambda f, x, t: forward(lambda *x: forward(f, x, t), x, t),
    "jacobian": lambda f, x, t: jacobian(f, x),
    "hessian": lambda f, x, t: jacobian(lambda kernel: every(f)(x[0], kernel, *x[2:])[1], [x[1]]),
    "vectorized_map": lambda f, x, t: tf.vectorized_map(
        lambda args: f(*args), [tf.stack(pair) for pair in zip(x, t, strict=True)]
    ),
    "gradients of each": lambda f, x, t: tf.vectorized_map(
        lambda image: every(f)(image, *x[1:]), tf.stack([x[0], t[0], x[0] - t[0]])
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name: str, case: str) -> None:
    function, plain, _ = CASES[case]
    run = tf.function(TRANSFORMATIONS[name])
    wanted = run(plain, arrays(case, 0, "float64"), arrays(case, 1, "float64"))
    actual = run(function, arrays(case, 0, "float32"), arrays(case, 1, "float32"))
    size = max(float(tf.reduce_max(abs(leaf))) for leaf in tf.nest.flatten(wanted))
    for one, other in zip(tf.nest.flatten(actual), tf.nest.flatten(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * size)
