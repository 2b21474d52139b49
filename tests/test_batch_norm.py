"""The layer: batch norm, residual and activation by their definition, however it is computed."""

import json
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import groupwise
from groupwise import backends, layers
from groupwise.backends.activations import FUNCTIONS
from tests.frameworks import BACKEND, needs_core, values_and_gradients
from tests.normalizations import EPSILON, random_arrays, truth

SHAPE = (3, 6, 5, 7)
ONE_PIXEL = (2, 1, 1, 8)
ACTIVATIONS: dict[str, Any] = {**FUNCTIONS, "gelu": keras.activations.gelu}


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def made(arrays: dict[str, Any], **options: Any) -> layers.BatchNormalization:
    layer = layers.BatchNormalization(momentum=0.9, epsilon=EPSILON, **options)
    layer.build(arrays["inputs"].shape)
    channels = arrays["inputs"].shape[-1]
    moving = np.linspace(-1, 1, channels), np.linspace(0.5, 2, channels)
    layer.set_weights([arrays["gamma"], arrays["beta"], *moving])
    return layer


@pytest.fixture(params=["fused", "without the core", "Keras's own"])
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    if request.param == "without the core":
        monkeypatch.setenv("GROUPWISE_CORE", "0")
    return {"fused": request.param != "Keras's own"}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_values_and_gradients(
    activation: str, residual: bool, training: bool, compiled: bool, options: dict[str, Any]
) -> None:
    arrays = random_arrays(SHAPE)
    layer = made(arrays, activation=activation, **options)
    moving = [weight.astype("float64") for weight in layer.get_weights()[2:]]
    exact = truth(arrays, activation, residual, None if training else (moving[0], moving[1]))

    def run(inputs: Any, other: Any) -> Any:
        if BACKEND == "jax":
            # Under jax.jit a layer's variables change only within a call that carries them along.
            state = [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]
            return layer.stateless_call(*state, inputs, other if residual else None, training=training)[0]
        return layer(inputs, residual=other if residual else None, training=training)

    if residual:
        inputs, other, gradient = (arrays[name] for name in ("inputs", "residual", "gradient"))
        results = values_and_gradients(run, inputs, other, gradient, compiled)
        np.testing.assert_allclose(results[2], exact["residual_gradient"], rtol=1e-4, atol=1e-5)
    else:
        one = np.ones((), "float32")
        scaled = lambda inputs, factor: run(inputs, None) * factor  # noqa: E731
        results = values_and_gradients(scaled, arrays["inputs"], one, arrays["gradient"], compiled)
    np.testing.assert_allclose(results[0], exact["outputs"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(results[1], exact["inputs_gradient"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, ONE_PIXEL])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
def test_moving_statistics_follow_the_batch(
    activation: str | None, residual: bool, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    arrays = random_arrays(shape)
    layer = made(arrays, activation=activation, **options)
    before = layer.get_weights()[2:]
    exact = truth(arrays, "linear", residual)
    outputs = layer(arrays["inputs"], residual=arrays["residual"] if residual else None, training=True)
    expected = numpy(ACTIVATIONS[activation or "linear"](ops.cast(exact["outputs"], "float32")))
    np.testing.assert_allclose(numpy(outputs), expected, rtol=1e-4, atol=1e-4)
    for old, new, batch in zip(before, layer.get_weights()[2:], (exact["mean"], exact["variance"]), strict=True):
        np.testing.assert_allclose(new, 0.9 * old + 0.1 * batch, rtol=1e-4, atol=1e-5)


def test_frozen_it_uses_the_moving_statistics_in_training(options: dict[str, Any]) -> None:
    arrays = random_arrays(SHAPE)
    layer = made(arrays, activation="relu", **options)
    layer.trainable = False
    before = layer.get_weights()
    exact = truth(arrays, "relu", True, (before[2], before[3]))
    outputs = layer(arrays["inputs"], residual=arrays["residual"], training=True)
    np.testing.assert_allclose(numpy(outputs), exact["outputs"], rtol=1e-4, atol=1e-4)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "settings",
    [dict(axis=1), dict(center=False), dict(scale=False), dict(dtype="mixed_bfloat16"), dict(dtype="float64")],
    ids=str,
)
def test_what_the_core_does_not_compute_is_kerass(settings: dict[str, Any]) -> None:
    arrays = random_arrays((3, 6, 5, 6))
    ours, stock = layers.BatchNormalization(activation="relu", **settings), keras.layers.BatchNormalization(**settings)
    actual = ours(arrays["inputs"], residual=arrays["residual"], training=True)
    expected = ops.relu(stock(arrays["inputs"], training=True) + ops.cast(arrays["residual"], stock.compute_dtype))
    tolerance = 3e-2 if "bfloat16" in str(settings) else 1e-4
    one, other = (numpy(ops.cast(outputs, "float32")) for outputs in (actual, expected))
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_the_configuration_keeps_everything() -> None:
    for activation in ("relu", "relu6", "silu", "gelu", None):
        layer = layers.BatchNormalization(activation=activation, momentum=0.9, fused=False)
        config = json.loads(json.dumps(layer.get_config()))
        again = layers.BatchNormalization.from_config(config)
        assert again.get_config() == config
        assert (again.activation, again.fused) == (keras.activations.get(activation), False)


def test_a_model_with_residuals_is_saved_cloned_and_made_of_stock_layers(tmp_path: Any) -> None:
    inputs = keras.Input((6, 5, 7))
    x = layers.GroupedConv2D(7, 3, padding="same")(inputs)
    outputs = layers.BatchNormalization(activation="relu", name="bn")(x, residual=inputs)
    model = keras.Model(inputs, outputs)
    images = random_arrays(SHAPE)["inputs"]
    expected = numpy(model(images))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.models.load_model(tmp_path / "model.keras")(images)), expected)
    for make in (keras.models.clone_model, lambda m: keras.models.clone_model(m, clone_function=layers.stock_twin)):
        copy = make(model)
        copy.set_weights(model.get_weights())
        np.testing.assert_allclose(numpy(copy(images)), expected, rtol=1e-4, atol=1e-4)
    assert not copy.get_layer("bn").fused
    copy.save_weights(tmp_path / "model.weights.h5")
    model.get_layer("bn").set_weights([weight + 1 for weight in model.get_layer("bn").get_weights()])
    groupwise.load_keras_weights(model, tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(numpy(model(images)), expected)


@needs_core
def test_the_core_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def record(inputs: Any, gamma: Any, beta: Any, *options: Any) -> Any:
        calls.append(options)
        return inputs, gamma, beta

    monkeypatch.setattr(backends.active.core_norm, "normalise", record)
    arrays = random_arrays(SHAPE)
    made(arrays, activation="relu6")(arrays["inputs"], residual=arrays["residual"], training=True)
    statistics, epsilon, residual, activation = calls[0]
    assert (statistics, epsilon, activation) == (None, EPSILON, "relu6")
    np.testing.assert_array_equal(numpy(residual), arrays["residual"])


def test_a_keras_that_knows_no_renorm() -> None:
    layer = layers.BatchNormalization()
    layer.build((None, 4, 4, 3))
    layer.__dict__.pop("renorm", None)
    assert layer(np.ones((1, 4, 4, 3), "float32")).shape == (1, 4, 4, 3)
