"""The core's batch norm as TensorFlow's operations: values, gradients of any order, however TensorFlow runs them."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import layers
from groupwise.backends import plain_norm
from groupwise.backends.activations import FUNCTIONS
from groupwise.core.epilogues import ACTIVATIONS
from tests.frameworks import BACKEND, skip_without_core
from tests.normalizations import EPSILON, random_arrays, truth

if BACKEND != "tensorflow":
    pytest.skip("Keras runs on another backend than TensorFlow", allow_module_level=True)
tf: Any = importlib.import_module("tensorflow")
operations: Any = importlib.import_module("groupwise.backends.tensorflow.operations")
tensorflow_norm: Any = importlib.import_module("groupwise.backends.tensorflow.norm")
skip_without_core()

CASES = [(activation, residual) for activation in ACTIVATIONS for residual in (False, True)]
cases = pytest.mark.parametrize(("activation", "residual"), CASES)
training = pytest.mark.parametrize("training", [True, False])
compiled = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
LEAVES = ("inputs", "gamma", "beta", "residual")


def leaves(residual: bool, dtype: str = "float32", shape: tuple[int, ...] = (2, 3, 4, 5)) -> dict[str, Any]:
    """Return the tensors that have gradients, and the outputs' gradient."""
    names = [name for name in (*LEAVES, "gradient") if residual or name != "residual"]
    arrays = random_arrays(shape)
    return {name: tf.constant(arrays[name], dtype) for name in names}


def statistics(channels: int, dtype: str = "float32") -> tuple[Any, Any]:
    return tf.cast(tf.linspace(-0.5, 1.0, channels), dtype), tf.cast(tf.linspace(0.5, 1.5, channels), dtype)


def run(tensors: dict[str, Any], activation: str, training: bool) -> Any:
    constant = None if training else statistics(tensors["gamma"].shape[0])
    inputs, gamma, beta = (tensors[name] for name in ("inputs", "gamma", "beta"))
    return tensorflow_norm.normalise(inputs, gamma, beta, constant, EPSILON, tensors.get("residual"), activation)


def plain(tensors: dict[str, Any], activation: str, training: bool) -> Any:
    """Return the outputs by TensorFlow's elementary operations, in the tensors' type."""
    x = tensors["inputs"]
    constant = statistics(x.shape[-1], x.dtype)
    mean, variance = tf.nn.moments(x, [0, 1, 2]) if training else constant
    y = (x - mean) / tf.sqrt(variance + EPSILON) * tensors["gamma"] + tensors["beta"] + tensors.get("residual", 0)
    return FUNCTIONS[activation](y)


def results(tensors: dict[str, Any], activation: str, training: bool) -> dict[str, Any]:
    """Return outputs and statistics, and the gradients as `gradient_inputs` and so on."""
    sources = {name: tensors[name] for name in LEAVES if name in tensors}
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs, mean, variance = run(tensors, activation, training)
    gradients = tape.gradient(outputs, sources, tensors["gradient"])
    named = {f"gradient_{name}": gradient for name, gradient in gradients.items()}
    return {"outputs": outputs, "mean": mean, "variance": variance, **named}


def check(results: dict[str, Any], shape: tuple[int, ...], activation: str, residual: bool, training: bool) -> None:
    constant = None if training else tuple(s.numpy() for s in statistics(shape[-1]))
    exact = truth(random_arrays(shape), activation, residual, constant)
    wanted = {name: exact[name] for name in ("outputs", "mean", "variance")}
    wanted |= {"gradient_inputs": exact["inputs_gradient"], "gradient_residual": exact["residual_gradient"]}
    wanted |= dict(zip(("gradient_beta", "gradient_gamma"), exact["sums"], strict=True))
    assert set(results) == set(wanted) - (set() if residual else {"gradient_residual"})
    for name, result in results.items():
        size = abs(wanted[name]).max()
        np.testing.assert_allclose(result, wanted[name], rtol=1e-4, atol=1e-4 * size, err_msg=name)


@compiled
@training
@cases
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 7, 7, 24), (4, 80, 80, 40)])
def test_values_and_gradients_agree_with_the_definition(
    shape: tuple[int, ...], activation: str, residual: bool, training: bool, compiled: bool
) -> None:
    function = tf.function(results) if compiled else results
    check(function(leaves(residual, shape=shape), activation, training), shape, activation, residual, training)


@training
@cases
def test_unknown_sizes(activation: str, residual: bool, training: bool) -> None:
    traced: list[dict[str, Any]] = []
    signature = {
        name: tf.TensorSpec([*[None] * (tensor.shape.rank - 1), 5]) for name, tensor in leaves(residual).items()
    }

    @tf.function(input_signature=[signature])
    def traced_results(tensors: dict[str, Any]) -> dict[str, Any]:
        found = results(tensors, activation, training)
        traced.append({name: tuple(tensor.shape) for name, tensor in found.items()})
        return found

    for shape in ((2, 3, 4, 5), (1, 6, 2, 5)):
        check(traced_results(leaves(residual, shape=shape)), shape, activation, residual, training)
    images = ("outputs", "gradient_inputs", "gradient_residual")
    assert traced == [{name: (None, None, None, 5) if name in images else (5,) for name in traced[0]}]


def second_order(function: Any, tensors: dict[str, Any], *options: Any) -> list[Any]:
    """Return the derivatives of a sum of the gradients' squares, by everything."""
    sources = [tensors[name] for name in LEAVES if name in tensors]
    upstream = tensors["gradient"]
    with tf.GradientTape() as outer:
        outer.watch([*sources, upstream])
        with tf.GradientTape() as inner:
            inner.watch(sources)
            outputs = tf.sin(function(tensors, *options))
        first = inner.gradient(outputs, sources, upstream)
        total = tf.add_n([tf.reduce_sum(part**2) for part in first])
    gradients: list[Any] = outer.gradient(
        total, [*sources, upstream], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return gradients


@compiled
@training
@cases
def test_second_order_agrees_with_tensorflow_in_float64(
    activation: str, residual: bool, training: bool, compiled: bool
) -> None:
    function = tf.function(second_order) if compiled else second_order
    found = function(lambda *arguments: run(*arguments)[0], leaves(residual), activation, training)
    exact = second_order(plain, leaves(residual, "float64"), activation, training)
    for actual, value in zip(found, exact, strict=True):
        size = float(tf.reduce_max(abs(value)))
        np.testing.assert_allclose(actual, value, rtol=1e-3, atol=1e-4 * size + 1e-6)


def test_the_plain_gradient_is_the_cores() -> None:
    tensors = leaves(False)
    inputs, gradient, gamma, beta = (tensors[name] for name in ("inputs", "gradient", "gamma", "beta"))
    given = (inputs, gradient, gamma, beta, *statistics(5))
    options: dict[str, Any] = {"activation": "relu6", "epsilon": EPSILON, "training": False}
    exact = plain_norm.Normalization(**options).gradient(*given)
    function = operations.operations()["GroupwiseNormalizeGradient"]
    found = function(*given, [], activation=2, epsilon=EPSILON, constants=2)
    for actual, value in zip(found[:2], exact, strict=False):
        np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-5)


@training
def test_statistics_have_no_gradient(training: bool) -> None:
    tensors = leaves(False)
    with tf.GradientTape() as tape:
        tape.watch(tensors["inputs"])
        _, mean, variance = run(tensors, "relu", training)
        total = tf.reduce_sum(mean + variance)
    assert tape.gradient(total, tensors["inputs"]) is None


@compiled
def test_an_empty_batch(compiled: bool) -> None:
    shape = (0, 3, 4, 5)
    function = tf.function(results) if compiled else results
    found = function(leaves(True, shape=shape), "relu", True)
    assert {name: tuple(found[name].shape) for name in found} == {
        **dict.fromkeys(("outputs", "gradient_inputs", "gradient_residual"), shape),
        **dict.fromkeys(("mean", "variance", "gradient_gamma", "gradient_beta"), (5,)),
    }
    assert not any(array.numpy().any() for array in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": (1, 3, 4, 5)}, r"residual of shape \(1, 3, 4, 5\): must be of shape \(2, 3, 4, 5\)"),
        ({"gamma": (2,)}, r"gamma of shape \(2\): must be of shape \(5\)"),
        ({"beta": (5, 1)}, r"beta of shape \(5, 1\): must be of shape \(5\)"),
        ({"mean": (1,)}, r"mean of shape \(1\): must be of shape \(5\)"),
        ({"variance": (6,)}, r"variance of shape \(6\): must be of shape \(5\)"),
        ({"inputs": ()}, r"inputs of shape \(\): must be \(..., channels\)"),
        ({"inputs": (2, 0)}, r"inputs of shape \(2, 0\): must be .* at least one channel"),
    ],
    ids=str,
)
def test_wrong_shapes_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = dict.fromkeys(("gamma", "beta", "mean", "variance"), (5,)) | dict.fromkeys(LEAVES[::3], (2, 3, 4, 5))
    x = {name: tf.ones(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"GroupwiseNormalize: {message}"):
        tensorflow_norm.normalise(
            x["inputs"], x["gamma"], x["beta"], (x["mean"], x["variance"]), EPSILON, x["residual"]
        )


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (1, r"gradient of shape \(1\): must be of shape \(2, 5\)"),
        (4, r"mean of shape \(1\)"),
        (6, r"seen of shape \(1\): must be of shape \(2, 5\)"),
    ],
)
def test_wrong_shapes_of_a_gradient_are_refused(position: int, message: str) -> None:
    arguments = [tf.ones((2, 5)), tf.ones((2, 5)), *[tf.ones(5)] * 4, tf.ones((2, 5))]
    arguments[position] = tf.ones(1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        operations.operations()["GroupwiseNormalizeGradient"](
            *arguments[:6], arguments[6:], activation=1, epsilon=EPSILON, constants=0
        )


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activation": 5}, "activation=5: must be from 0 to 4"),
        ({"statistics": 1}, "constants=1: must be 0, or 2 for a mean and a variance"),
        ({"residual": 2}, "residuals=2: must be 0 or 1"),
    ],
)
def test_wrong_attributes_are_refused(attributes: dict[str, int], message: str) -> None:
    number = {"activation": 0, "statistics": 0, "residual": 0} | attributes
    one = tf.ones(1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        operations.operations()["GroupwiseNormalize"](
            *[one] * 3,
            [one] * number["statistics"],
            [one] * number["residual"],
            activation=number["activation"],
            epsilon=EPSILON,
        )


@compiled
@pytest.mark.parametrize("name", LEAVES)
def test_other_types_are_refused(name: str, compiled: bool) -> None:
    tensors = leaves(True) | {name: leaves(True, "float64")[name]}
    with pytest.raises(ValueError, match=f"{name} of type float64: must be float32"):
        (tf.function(run) if compiled else run)(tensors, "relu", True)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation='gelu': must be one of linear, relu, relu6"):
        run(leaves(False), "gelu", True)


LOAD = """
import sys, numpy as np, tensorflow as tf
from groupwise.backends.tensorflow import core
assert core.is_available()
model, data = tf.saved_model.load(sys.argv[1]), dict(np.load(sys.argv[2]))
leaves = {name: tf.constant(array) for name, array in data.items() if name != "gradient"}
results = {}
for number, function in enumerate(model.functions):
    with tf.GradientTape() as outer:
        outer.watch(leaves)
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            outputs, mean, variance = function(leaves)
        gradients = tape.gradient(outputs, leaves, data["gradient"])
        total = tf.reduce_sum(gradients["inputs"] ** 2)
    again = outer.gradient(total, leaves["inputs"])
    results |= {f"{number}-gradient_{name}": gradient for name, gradient in gradients.items()}
    results |= {f"{number}-outputs": outputs, f"{number}-mean": mean, f"{number}-variance": variance}
    results |= {f"{number}-again": again}
np.savez(sys.argv[3], **results)
"""


def test_a_saved_model_in_a_new_process(tmp_path: Path) -> None:
    shape = (2, 3, 4, 5)
    tensors = leaves(True, shape=shape)
    signature = {name: tf.TensorSpec([*[None] * (tensors[name].shape.rank - 1), 5]) for name in LEAVES}
    module = tf.Module()
    module.functions = [
        tf.function(lambda tensors, training=training: run(tensors, "relu", training), input_signature=[signature])
        for training in (False, True)
    ]
    tf.saved_model.save(module, str(tmp_path / "model"))
    np.savez(tmp_path / "data.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    paths = [str(tmp_path / name) for name in ("model", "data.npz", "results.npz")]
    command = [sys.executable, "-c", LOAD, *paths]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    loaded = np.load(tmp_path / "results.npz")
    for training in (False, True):
        prefix = f"{int(training)}-"
        found = {name.removeprefix(prefix): loaded[name] for name in loaded.files if name.startswith(prefix)}
        with tf.GradientTape() as tape:
            tape.watch(tensors["inputs"])
            total = tf.reduce_sum(results(tensors, "relu", training)["gradient_inputs"] ** 2)
        np.testing.assert_allclose(found.pop("again"), tape.gradient(total, tensors["inputs"]), rtol=1e-4, atol=1e-5)
        check(found, shape, "relu", True, training)


def model(fused: bool = True) -> keras.Model:
    inputs = keras.Input((6, 5, 7))
    x = layers.BatchNormalization(activation="relu6", fused=fused)(inputs)
    x = layers.BatchNormalization(activation="relu", fused=fused)(x, residual=inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def fitted(model: keras.Model, jit_compile: bool) -> list[np.ndarray]:
    """Return the weights after two epochs, whose last batches are smaller."""
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    model.fit(random_arrays((8, 6, 5, 7))["inputs"], np.ones((8, 7)), 3, 2, shuffle=False, verbose=0)
    weights: list[np.ndarray] = model.get_weights()
    return weights


def test_keras_fits_it_like_its_own() -> None:
    for one, other in zip(fitted(model(), False), fitted(model(fused=False), False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_keras_exports_it(tmp_path: Path) -> None:
    ours, images = model(), random_arrays((3, 6, 5, 7))["inputs"]
    ours.export(tmp_path / "model", format="tf_saved_model", verbose=False)
    again = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_array_equal(again.serve(images), ours.predict(images, verbose=0))


def test_xla_refuses_the_operation_and_keras_turns_xla_off() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="GroupwiseNormalize"):
        tf.function(lambda: run(leaves(False), "relu", True), jit_compile=True)()
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        weights = fitted(model(), True)
    for one, other in zip(weights, fitted(model(), False), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("fused", [True, False])
def test_xla_compiles_what_the_core_does_not_compute(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fused:
        monkeypatch.setenv("GROUPWISE_CORE", "0")
    ours = model(fused)
    weights = fitted(ours, True)
    assert ours.jit_compile
    for one, other in zip(weights, fitted(model(fused=False), False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
