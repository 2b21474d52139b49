"""The layers against Keras's own and against NumPy: weights, configuration, saving, shapes, mixed precision."""

import json
import re
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends, layers, load_keras_weights, models
from groupwise.core import pooling
from groupwise.layers.initializers import HeNormal
from tests import poolings
from tests.frameworks import BACKEND, needs_core, values_and_gradients

numpy = keras.ops.convert_to_numpy
ELSEWHERE = BACKEND == "tensorflow"
CONVOLUTIONS = [
    (layers.GroupedConv2D, keras.layers.Conv2D, dict(filters=12, kernel_size=3, groups=1)),
    (layers.GroupedConv2D, keras.layers.Conv2D, dict(filters=12, kernel_size=(2, 3), groups=4)),
    (layers.DepthwiseConv2D, keras.layers.DepthwiseConv2D, dict(kernel_size=3)),
    (layers.DepthwiseConv2D, keras.layers.DepthwiseConv2D, dict(kernel_size=3, depth_multiplier=3)),
    (layers.SeparableConv2D, keras.layers.SeparableConv2D, dict(filters=5, kernel_size=3, depth_multiplier=2)),
]


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize(("ours", "stock", "arguments"), CONVOLUTIONS)
@pytest.mark.parametrize(
    "options",
    [
        dict(padding="same", strides=2, activation="relu"),
        dict(padding="valid", dilation_rate=2, use_bias=False),
        dict(padding="same", bias_initializer="ones", kernel_size=1),
    ],
)
def test_drop_in_equals_keras(ours, stock, arguments, options) -> None:
    arguments = {**arguments, **options}
    twin, original = ours(**arguments), stock(**arguments)
    inputs = images(2, 9, 8, 8)
    expected = numpy(original(inputs))
    twin.build(inputs.shape)
    assert [w.shape for w in twin.weights] == [w.shape for w in original.weights]
    twin.set_weights(original.get_weights())
    np.testing.assert_allclose(numpy(twin(inputs)), expected, rtol=1e-4, atol=1e-4)
    assert twin.compute_output_shape(inputs.shape) == tuple(expected.shape)
    assert twin.compute_output_shape((None, 9, None, 8)) == original.compute_output_shape((None, 9, None, 8))


@pytest.mark.skipif(BACKEND == "jax", reason="JAX computes in float64 only where JAX_ENABLE_X64 is set")
@pytest.mark.parametrize(("ours", "stock", "arguments"), CONVOLUTIONS)
def test_float64_stays_float64(ours, stock, arguments) -> None:
    twin, original = (each(**arguments, padding="same", dtype="float64") for each in (ours, stock))
    inputs = keras.ops.convert_to_tensor(images(2, 9, 8, 8), "float64")
    expected = numpy(original(inputs))
    twin.build(inputs.shape)
    twin.set_weights(original.get_weights())
    outputs = numpy(twin(inputs))
    assert outputs.dtype == "float64"
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        layers.GroupedConv2D(8, 3, 2, ((1, 2), (0, 1)), groups=2, algorithm="blocks"),
        layers.DepthwiseConv2D(3, 2, ((1, 1), (1, 1)), depth_multiplier=2),
        layers.SeparableConv2D(6, 3, padding=((2, 2), (2, 2))),
        layers.ChannelShuffle(2, inverse=True),
        layers.SqueezeExcite(ratio=2, divisor=2),
        layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
        layers.BatchNormalization(activation="relu6", fused=False),
        layers.MaxPooling2D(3, 2, ((1, 1), (1, 1)), algorithm="native"),
        layers.AveragePooling2D(3, 2, ((1, 1), (1, 1))),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_saving_loading_and_cloning_keep_everything(layer, tmp_path) -> None:
    inputs = images(2, 8, 7, 4)
    model = keras.Sequential([keras.Input((8, 7, 4)), layer])
    for variable in model.weights:
        variable.assign(np.random.default_rng(1).uniform(0.5, 1.5, variable.shape))
    expected = numpy(model(inputs))
    assert tuple(layer.compute_output_shape(inputs.shape)) == expected.shape
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(inputs)), expected)
    config = json.loads(json.dumps(layer.get_config()))
    assert json.loads(json.dumps(type(layer).from_config(config).get_config())) == config
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(numpy(clone(inputs)), expected)


def test_stock_weight_files_load_into_the_twin(tmp_path) -> None:
    def network(convolution, depthwise, separable, normalise):
        inputs = keras.Input((8, 8, 4))
        x = convolution(8, 3, padding="same", groups=2)(inputs)
        x = normalise()(x)
        x = keras.layers.Add()([depthwise(3, padding="same")(x), keras.layers.Conv2D(8, 1)(x)])
        return keras.Model(inputs, keras.layers.Dense(3)(separable(5, 3)(convolution(8, 1)(x))))

    stock = network(
        *(getattr(keras.layers, n) for n in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "BatchNormalization"))
    )
    for variable in stock.weights:
        variable.assign(np.random.default_rng(len(variable.path)).uniform(0.1, 1, variable.shape))
    stock.save_weights(tmp_path / "stock.weights.h5")
    ours = (layers.GroupedConv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.BatchNormalization)
    twin = network(*ours)
    load_keras_weights(twin, tmp_path / "stock.weights.h5")
    inputs = images(2, 8, 8, 4)
    np.testing.assert_allclose(numpy(twin(inputs)), numpy(stock(inputs)), rtol=1e-4, atol=1e-4)
    other = keras.Sequential([keras.Input((8, 8, 4)), layers.GroupedConv2D(8, 5)])
    with pytest.raises(ValueError, match=r"weights|shape|layer"):
        load_keras_weights(other, tmp_path / "stock.weights.h5")


@pytest.mark.skipif(ELSEWHERE, reason="TensorFlow's stock layers have no channels_first on a CPU to compare with")
@pytest.mark.parametrize(("ours", "stock", "arguments"), CONVOLUTIONS)
def test_channels_first_equals_keras(ours, stock, arguments) -> None:
    twin, original = (make(**arguments, data_format="channels_first", padding="same") for make in (ours, stock))
    inputs = images(2, 8, 6, 5)
    expected = numpy(original(inputs))
    twin.build(inputs.shape)
    twin.set_weights(original.get_weights())
    np.testing.assert_allclose(numpy(twin(inputs)), expected, rtol=1e-4, atol=1e-4)
    assert twin.compute_output_shape(inputs.shape) == expected.shape


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_computes_in_half_and_keeps_float32_weights(policy: str) -> None:
    inputs = keras.Input((8, 8, 8))
    x = layers.GroupedConv2D(16, 3, groups=4, dtype=policy)(inputs)
    x = layers.BatchNormalization(dtype=policy)(x)
    x = layers.SqueezeExcite(4, dtype=policy)(layers.ChannelShuffle(4, dtype=policy)(x))
    x = layers.SeparableConv2D(4, 3, dtype=policy)(layers.DepthwiseConv2D(3, dtype=policy)(x))
    model = keras.Model(inputs, x)
    assert keras.backend.standardize_dtype(model(images(2, 8, 8, 8)).dtype) == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}
    model.compile("sgd", "mse")
    history = model.fit(images(4, 8, 8, 8), images(4, 2, 2, 4), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_pooling_pads_as_pytorch_does() -> None:
    inputs = -np.ones((1, 4, 4, 1), "float32")
    maximum = layers.MaxPooling2D(3, 2, ((1, 1), (1, 1)))(inputs)
    np.testing.assert_array_equal(numpy(maximum).ravel(), [-1] * 4)
    average = layers.AveragePooling2D(3, 2, ((1, 1), (1, 1)))(inputs)
    np.testing.assert_allclose(numpy(average).ravel(), [-4 / 9, -6 / 9, -6 / 9, -1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 7), (5, 4), (1, 2)])
@pytest.mark.parametrize(("size", "strides"), [(3, 2), (2, 2), (3, 1)])
def test_averages_leave_the_same_padding_out(shape: tuple[int, int], size: int, strides: int) -> None:
    """Each output is the mean of those pixels of its window that lie in the image."""
    inputs = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")
    starts = []
    for length in shape:
        count = -(-length // strides)
        before = max((count - 1) * strides + size - length, 0) // 2
        starts.append([index * strides - before for index in range(count)])
    windows = [
        [inputs[:, max(i, 0) : i + size, max(j, 0) : j + size].mean(axis=(1, 2)) for j in starts[1]] for i in starts[0]
    ]
    expected = np.stack([np.stack(row, axis=1) for row in windows], axis=1)
    layer = layers.AveragePooling2D(size, strides, "same")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(inputs)), expected, rtol=1e-5, atol=1e-6)
    assert layer.compute_output_shape(inputs.shape) == expected.shape


@pytest.mark.parametrize(
    "options", [dict(pool_size=2), dict(pool_size=3, strides=2), dict(pool_size=(3, 2), padding="same")]
)
@pytest.mark.parametrize("name", ["MaxPooling2D", "AveragePooling2D"])
def test_pooling_equals_keras(name: str, options: dict) -> None:
    inputs = images(2, 9, 8, 3)
    ours, stock = getattr(layers, name)(**options), getattr(keras.layers, name)(**options)
    np.testing.assert_allclose(numpy(ours(inputs)), numpy(stock(inputs)), rtol=1e-5, atol=1e-6)
    assert ours.compute_output_shape(inputs.shape) == stock.compute_output_shape(inputs.shape)


@pytest.mark.parametrize("size", [2, 3])
def test_max_pooling_gives_its_gradient_to_the_first_maximum(size: int) -> None:
    random = np.random.default_rng(size)
    # Few different values, so that many windows hold their maximum more than once.
    inputs = random.integers(0, 4, (2, 9, 7, 3)).astype("float32")
    pooling = layers.MaxPooling2D(size, 2)
    gradient = random.normal(size=numpy(pooling(inputs)).shape).astype("float32")
    expected = np.zeros(inputs.shape)
    for n, i, j, channel in np.ndindex(gradient.shape):
        window = inputs[n, 2 * i : 2 * i + size, 2 * j : 2 * j + size, channel]
        row, column = np.unravel_index(window.argmax(), window.shape)
        expected[n, 2 * i + row, 2 * j + column, channel] += gradient[n, i, j, channel]
    scale = np.ones((), "float32")
    _, actual, _ = values_and_gradients(lambda x, factor: pooling(x) * factor, inputs, scale, gradient, True)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("padding", ["valid", "same", ((1, 1), (1, 1)), ((0, 1), (1, 0))])
@pytest.mark.parametrize("size", [2, 3])
def test_max_pooling_is_the_reference(size: int, padding: Any, dtype: str) -> None:
    """With and without the C core: the first maximum gets the gradient, padding is never one."""
    spec = pooling.window((2, 7, 6, 5), (size, size), (2, 2), padding)
    inputs, gradient = (a.astype(dtype) for a in poolings.images(spec, with_nan=False))
    expected = poolings.truth(spec, inputs, gradient)
    layer, scale = layers.MaxPooling2D(size, 2, padding, dtype=dtype), np.ones((), dtype)
    outputs, actual, _ = values_and_gradients(lambda x, factor: layer(x) * factor, inputs, scale, gradient, True)
    np.testing.assert_array_equal(outputs, expected.outputs)
    error = np.abs(actual - expected.gradient)
    assert np.all(error <= 2 * poolings.ROUNDING.get(dtype, 2**-10) * expected.bound), error.max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("padding", ["valid", ((1, 1), (1, 1)), ((0, 2), (1, 0))])
@pytest.mark.parametrize(("size", "strides"), [(2, 2), (3, 2), (3, 1)])
def test_average_pooling_is_the_mean_of_its_windows(size: int, strides: int, padding: Any, dtype: str) -> None:
    """With and without the C core, zeros around the image counted; the gradient is spread evenly."""
    rows, columns = ((0, 0), (0, 0)) if padding == "valid" else padding
    inputs = images(2, 7, 6, 5).astype(dtype)
    padded = np.pad(inputs.astype("float64"), ((0, 0), rows, columns, (0, 0)))
    count = [(n - size) // strides + 1 for n in padded.shape[1:3]]
    gradient = images(2, *count, 5, seed=1).astype(dtype)
    expected, spread = np.empty(gradient.shape), np.zeros(padded.shape)
    for i, j in np.ndindex(*count):
        window = np.s_[:, i * strides : i * strides + size, j * strides : j * strides + size]
        expected[:, i, j] = padded[window].mean(axis=(1, 2))
        spread[window] += gradient[:, i, j].astype("float64")[:, None, None] / size**2
    layer, scale = layers.AveragePooling2D(size, strides, padding, dtype=dtype), np.ones((), dtype)
    outputs, actual, _ = values_and_gradients(lambda x, factor: layer(x) * factor, inputs, scale, gradient, True)
    inside = spread[:, rows[0] : rows[0] + 7, columns[0] : columns[0] + 6]
    tolerance = 2**-6 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(outputs.astype("float64"), expected, tolerance, tolerance)
    np.testing.assert_allclose(actual.astype("float64"), inside, tolerance, tolerance)


@needs_core
@pytest.mark.skipif(ELSEWHERE, reason="on TensorFlow the core does not pool, and nothing pools channels_first on a CPU")
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_max_pooling_obeys_its_algorithm(data_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = backends.active.max_pool
    pooled: list[Any] = []

    def watched(inputs: Any, spec: Any) -> Any:
        pooled.append(spec)
        return real(inputs, spec)

    monkeypatch.setattr(backends.active, "max_pool", watched)
    inputs, outputs = images(2, 7, 8, 4), {}
    for algorithm in ("auto", "native", "core"):
        pooled.clear()
        layer = layers.MaxPooling2D(3, 2, "same", data_format, algorithm=algorithm)
        outputs[algorithm] = numpy(layer(inputs))
        assert bool(pooled) == (algorithm == "core" or (algorithm == "auto" and data_format == "channels_last"))
    np.testing.assert_array_equal(outputs["core"], outputs["native"])
    np.testing.assert_array_equal(outputs["auto"], outputs["native"])
    with pytest.raises(ValueError, match='algorithm="core": inputs of type float16'):
        layers.MaxPooling2D(2, algorithm="core", dtype="float16")(inputs)


def test_depthwise_initialiser_has_the_true_fan_in() -> None:
    """With it a depthwise convolution keeps ReLU activations' second moment; Keras's own shrinks it by the channels."""
    kernel = numpy(layers.DepthwiseHeNormal(seed=1)((3, 3, 512, 2)))
    assert kernel.std() == pytest.approx((2 / 9) ** 0.5, rel=0.03)
    stock = numpy(keras.initializers.HeNormal(seed=1)((3, 3, 512, 2)))
    assert kernel.std() / stock.std() == pytest.approx(512**0.5, rel=0.1)


@pytest.mark.parametrize("shape", [(3, 3, 4, 128), (1, 1, 5, 7), (7, 7, 3, 64), (1, 1, 2048, 2050)])
def test_initial_values_are_keras_own_whatever_was_compiled(shape: tuple[int, ...]) -> None:
    stock = keras.initializers.HeNormal(seed=3)(shape)
    np.testing.assert_array_equal(numpy(HeNormal(seed=3)(shape)), numpy(stock))
    stock = keras.random.normal(shape, stddev=(2 / (shape[0] * shape[1])) ** 0.5, seed=3)
    np.testing.assert_array_equal(numpy(layers.DepthwiseHeNormal(seed=3)(shape)), numpy(stock))


def test_compiled_training_moves_every_weight() -> None:
    network = models.create("shufflenet_g2_wd4", num_classes=3, input_shape=(32, 32, 3))
    before = network.get_weights()
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(images(4, 32, 32, 3), np.array([0, 1, 2, 0]), batch_size=4, verbose=0)
    moved = [not np.array_equal(old, new) for old, new in zip(before, network.get_weights(), strict=True)]
    assert all(moved), [w.path for w, m in zip(network.weights, moved, strict=True) if not m]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.GroupedConv2D(9, 3, groups=2), "filters"),
        (lambda: layers.GroupedConv2D(8, 3, padding="full"), "padding"),
        (lambda: layers.GroupedConv2D(8, 3, padding=((1, 1), (1,))), "padding=((1, 1), (1,))"),
        (lambda: layers.GroupedConv2D(8, 3, algorithm="fast"), "algorithm='fast'"),
        (lambda: layers.SeparableConv2D(8, 3, algorithm="fast"), "algorithm='fast'"),
        (lambda: layers.MaxPooling2D(2, algorithm="blocks"), "algorithm='blocks': must be one of auto, native, core"),
        (lambda: layers.MaxPooling2D(17, algorithm="core")(images(1, 20, 20, 1)), 'algorithm="core": '),
        (lambda: layers.SqueezeExcite(2, data_format="last"), "data_format='last'"),
        (lambda: layers.ChannelShuffle(2, data_format="last"), "data_format='last'"),
        (lambda: layers.PermuteChannels([0], data_format="last"), "data_format='last'"),
        (lambda: layers.SqueezeExcite(0), "ratio=0"),
        (lambda: layers.ChannelShuffle(3)(images(1, 2, 2, 8)), "groups=3"),
        (lambda: layers.GroupedConv2D(6, 3, groups=3)(images(1, 8, 8, 8)), "groups"),
    ],
)
def test_wrong_arguments_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()
