"""Bias, residual, scale and activation in the convolution's own call, on every backend: values and all gradients."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

from groupwise import backends, layers, ops
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.ops.algorithms import ALGORITHMS
from groupwise.spec import ConvSpec
from tests import epilogues
from tests.activations import TRUTH
from tests.frameworks import BACKEND, needs_core, skip_without_core

every_spec = pytest.mark.parametrize("spec", epilogues.ONE_EACH, ids=["depthwise", "narrow", "dense", "wide", "1x1"])
every_end = pytest.mark.parametrize("activation", ACTIVATIONS)
every_extra = pytest.mark.parametrize("extras", epilogues.EXTRAS, ids=lambda extras: " and ".join(extras) or "nothing")


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")), "float64")


def options(spec: ConvSpec) -> dict[str, Any]:
    return {"strides": spec.strides, "padding": spec.padding, "dilation_rate": spec.dilation_rate}


@pytest.fixture(params=["core", "without the core"])
def with_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    skip_without_core(request.param)
    if request.param != "core":
        monkeypatch.setenv("GROUPWISE_CORE", "0")
    return request.param == "core"


@needs_core
@pytest.mark.parametrize("compiled", [True] if BACKEND == "jax" else [False, True])
@every_extra
@every_end
@every_spec
def test_the_core(spec: ConvSpec, activation: str, extras: tuple[str, ...], compiled: bool) -> None:
    def run(inputs: Any, kernel: Any, **others: Any) -> Any:
        return backends.active.core.convolve(inputs, kernel, spec, **others, activation=activation)

    epilogues.check(run, spec, extras, activation, compiled)


@every_end
@every_spec
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_operation(spec: ConvSpec, activation: str, data_format: str, with_core: bool) -> None:
    to_first = lambda array: keras.ops.transpose(array, (0, 3, 1, 2))  # noqa: E731

    def run(inputs: Any, kernel: Any, residual: Any, **channels: Any) -> Any:
        settings = {**options(spec), **channels, "data_format": data_format, "activation": activation}
        if data_format == "channels_last":
            return ops.grouped_conv2d(inputs, kernel, spec.groups, residual=residual, **settings)
        outputs = ops.grouped_conv2d(to_first(inputs), kernel, spec.groups, residual=to_first(residual), **settings)
        return keras.ops.transpose(outputs, (0, 2, 3, 1))

    epilogues.check(run, spec, ("bias", "residual", "scale"), activation, compiled=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(algorithm: str) -> None:
    skip_without_core(algorithm)
    spec = {"matmul": epilogues.POINTWISE, "shifted_sum": epilogues.ONE_EACH[0]}.get(algorithm, epilogues.ONE_EACH[1])
    settings = {**options(spec), "algorithm": algorithm, "activation": "relu6"}
    run = lambda inputs, kernel, **others: ops.grouped_conv2d(inputs, kernel, spec.groups, **settings, **others)  # noqa: E731
    epilogues.check(run, spec, ("bias", "residual", "scale"), "relu6", compiled=True)


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_half_precision(dtype: str, step: float, with_core: bool) -> None:
    spec = epilogues.ONE_EACH[1]
    rounded = {
        name: array.astype(getattr(ml_dtypes, dtype, dtype)).astype("float32")
        for name, array in epilogues.arrays_of(spec, ("bias", "residual")).items()
    }
    wanted, bound = epilogues.exact(spec, rounded, "relu")["outputs"]
    images, kernel, bias, residual = (keras.ops.cast(rounded[n], dtype) for n in list(rounded)[:4])
    # The residual may be of another type: it is cast to that of inputs and kernel.
    outputs = ops.grouped_conv2d(
        *(images, kernel, spec.groups), **options(spec), bias=bias, residual=rounded["residual"], activation="relu"
    )
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    # Rounded once in the core, else after each step.
    allowed = bound + 4 * step * (np.abs(wanted) + np.abs(numpy(residual)) + 4)
    assert (np.abs(numpy(outputs) - wanted) <= allowed).all()


def test_a_scale_in_half_precision_is_no_factor_of_the_kernel(with_core: bool) -> None:
    """Kernel times scale is beyond float16, the outputs are not."""
    images, kernel = np.full((1, 3, 3, 4), 1e-3, "float16"), np.full((1, 1, 2, 4), 1e3, "float16")
    outputs = ops.grouped_conv2d(images, kernel, 2, scale=np.full(4, 1e3, "float16"))
    np.testing.assert_allclose(numpy(outputs), 2000, rtol=1e-2)


def test_depthwise_and_separable_operations(with_core: bool) -> None:
    random = np.random.default_rng(0)
    images, depthwise = random.normal(size=(2, 7, 6, 5)), random.normal(size=(3, 3, 5, 2))
    pointwise, bias = random.normal(size=(1, 1, 10, 4)), random.normal(size=10)
    images, depthwise, pointwise, bias = (a.astype("float32") for a in (images, depthwise, pointwise, bias))
    cases: list[tuple[Any, Any, int]] = [
        (ops.depthwise_conv2d, (depthwise,), 10),
        (ops.separable_conv2d, (depthwise, pointwise), 4),
    ]
    for function, kernels, channels in cases:
        residual = random.normal(size=(2, 7, 6, channels)).astype("float32")
        plain = numpy(function(images, *kernels))
        settings = {"bias": bias[:channels], "residual": residual, "activation": "relu6", "scale": bias[-channels:]}
        outputs = function(images, *kernels, **settings)
        wanted = np.clip(plain * bias[-channels:] + bias[:channels] + residual, 0, 6)
        np.testing.assert_allclose(numpy(outputs), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(None, None), (8, 6)])
def test_symbolic_bias_and_residual(size: tuple[int | None, ...], with_core: bool) -> None:
    images, residual, bias = keras.Input((*size, 4)), keras.Input((*size, 12)), keras.Input((), batch_size=12)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 12)).astype("float32")
    x = ops.grouped_conv2d(images, kernel, 2, bias=bias, residual=residual, activation="relu")
    assert x.shape == (None, *size, 12)
    given = [np.random.default_rng(i).normal(size=(2, 8, 6, c)).astype("float32") for i, c in enumerate((4, 12))]
    added = np.linspace(-1, 1, 12, dtype="float32")
    wanted = np.maximum(numpy(ops.grouped_conv2d(given[0], kernel, 2)) + added + given[1], 0)
    model = keras.Model([images, residual, bias], x)
    np.testing.assert_allclose(numpy(model([*given, added])), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(bias=np.ones(1, "float32")), "bias of shape (1,): must be of shape (6,)"),
        (dict(scale=np.ones((1, 6), "float32")), "scale of shape (1, 6): must be of shape (6,)"),
        (dict(residual=np.ones((1, 1, 1, 6), "float32")), "residual of shape (1, 1, 1, 6): must be of shape (2, 5"),
        (dict(residual=np.ones(6, "float32")), "residual of shape (6,): must be"),
        (dict(activation="gelu"), f"activation='gelu': must be one of {', '.join(ACTIVATIONS)} or None"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ops.grouped_conv2d(np.ones((2, 5, 5, 4), "float32"), np.ones((3, 3, 2, 6), "float32"), 2, **arguments)
    if "activation" not in arguments:
        symbolic = {name: keras.KerasTensor(array.shape) for name, array in arguments.items()}
        with pytest.raises(ValueError, match=re.escape(words)):
            ops.grouped_conv2d(keras.KerasTensor((2, 5, 5, 4)), np.ones((3, 3, 2, 6), "float32"), 2, **symbolic)


LAYERS: list[Callable[..., Any]] = [
    lambda **settings: layers.GroupedConv2D(8, 3, groups=2, **settings),
    lambda **settings: layers.GroupedConv2D(8, 1, **settings),
    lambda **settings: layers.DepthwiseConv2D(3, depth_multiplier=2, **settings),
    lambda **settings: layers.SeparableConv2D(8, 3, **settings),
]
every_layer = pytest.mark.parametrize("make", LAYERS, ids=["grouped", "1x1", "depthwise", "separable"])
FUNCTIONS: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    None: TRUTH["linear"].value,
    **{name: truth.value for name, truth in TRUTH.items()},
    "tanh": np.tanh,
}


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Return images of 4 channels and a residual of 8."""
    random = np.random.default_rng(5)
    images, residual = random.normal(size=(2, 7, 6, 4)), 3 * random.normal(size=(2, 7, 6, 8))
    return images.astype("float32"), residual.astype("float32")


@every_layer
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_layers(make: Callable[..., Any], activation: str | None, use_bias: bool, with_core: bool) -> None:
    images, residual = pair()
    for data_format in ("channels_last", "channels_first"):
        first = data_format == "channels_first"
        to_layout = (lambda a: a.transpose(0, 3, 1, 2)) if first else (lambda a: a)
        settings = {"padding": "same", "use_bias": use_bias, "data_format": data_format}
        layer = make(activation=activation, bias_initializer="random_normal", **settings)
        plain = make(**{**settings, "use_bias": False})
        for one in (layer, plain):
            one.build(to_layout(images).shape)
        plain.set_weights(layer.get_weights()[: len(plain.weights)])
        total = numpy(plain(to_layout(images)))
        if use_bias:
            total = total + np.asarray(layer.get_weights()[-1]).reshape((-1, 1, 1) if first else (-1,))
        for extra in (None, to_layout(residual)):
            wanted = FUNCTIONS[activation](total if extra is None else total + extra)
            np.testing.assert_allclose(numpy(layer(to_layout(images), extra)), wanted, rtol=1e-4, atol=1e-5)


@needs_core
@every_layer
def test_a_layer_is_one_call_of_the_core(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, convolve = [], backends.active.core.convolve

    def record(inputs: Any, kernel: Any, spec: ConvSpec, *epilogue: Any) -> Any:
        calls.append(epilogue)
        return convolve(inputs, kernel, spec, *epilogue)

    monkeypatch.setattr(backends.active.core, "convolve", record)
    images, residual = pair()
    for activation, name in (*zip(ACTIVATIONS, ACTIVATIONS, strict=True), (None, "linear"), ("tanh", "linear")):
        layer = make(activation=activation, padding="same")
        layer.build(images.shape)
        calls.clear()
        layer(images, residual=residual)
        bias, added, found, scale = calls[-1]
        assert bias is not None
        np.testing.assert_array_equal(numpy(added), residual)
        assert found == name
        assert scale is None
        assert len(calls) == (2 if make is LAYERS[3] else 1)


def test_models_with_residuals_train_and_are_saved(tmp_path: Path, with_core: bool) -> None:
    images = keras.Input((None, None, 6))
    x = layers.GroupedConv2D(6, 3, groups=3, padding="same", activation="relu")(images, residual=images)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x, residual=x)
    x = layers.SeparableConv2D(6, 3, padding="same", activation="gelu")(x, residual=images)
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))
    model.compile("sgd", "mse")
    data = np.random.default_rng(0).normal(size=(4, 7, 6, 6)).astype("float32")
    before = model.get_weights()
    model.fit(data, np.zeros((4, 6), "float32"), batch_size=2, verbose=0)
    assert not any(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    expected = numpy(model(data))
    model.save(tmp_path / "model.keras")
    for other in (keras.models.load_model(tmp_path / "model.keras"), keras.models.clone_model(model)):
        other.set_weights(model.get_weights())
        np.testing.assert_array_equal(numpy(other(data)), expected)


@every_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(make: Callable[..., Any], policy: str, with_core: bool) -> None:
    images, residual = pair()
    settings = {"padding": "same", "activation": "relu", "bias_initializer": "random_normal"}
    layer, exact = make(dtype=policy, **settings), make(**settings)
    for one in (layer, exact):
        one.build(images.shape)
    exact.set_weights(layer.get_weights())
    outputs = layer(images, residual=residual)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(numpy(outputs), numpy(exact(images, residual=residual)), rtol=3e-2, atol=1e-1)


def test_low_rank_adaptation_stays(with_core: bool) -> None:
    images, residual = pair()
    layer = layers.GroupedConv2D(8, 3, padding="same", activation="relu", bias_initializer="ones")
    layer.build(images.shape)
    before = numpy(layer(images, residual=residual))
    layer.enable_lora(2)
    np.testing.assert_allclose(numpy(layer(images, residual=residual)), before, rtol=1e-5, atol=1e-5)
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))
    stock = keras.layers.Conv2D(8, 3, padding="same", bias_initializer="ones")
    stock.build(images.shape)
    stock.kernel.assign(layer.kernel)
    wanted = np.maximum(numpy(stock(images)) + residual, 0)
    np.testing.assert_allclose(numpy(layer(images, residual=residual)), wanted, rtol=1e-4, atol=1e-4)
    assert not np.allclose(wanted, before, atol=1e-2)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_subclass_may_have_a_convolution_of_its_own(data_format: str) -> None:
    """As Keras documents it for weight standardisation."""

    class Doubled(layers.GroupedConv2D):
        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            return super().convolution_op(inputs, 2 * kernel)

    settings = {"padding": "same", "activation": "relu", "bias_initializer": "ones", "data_format": data_format}
    shape = (2, 3, 7, 6) if data_format == "channels_first" else (2, 7, 6, 3)
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    doubled, plain = Doubled(3, 3, **settings), layers.GroupedConv2D(3, 3, **settings)
    for layer in (doubled, plain):
        layer.build(shape)
    kernel, bias = doubled.get_weights()
    plain.set_weights([2 * kernel, bias])
    wanted = numpy(plain(images, residual=images))
    np.testing.assert_allclose(numpy(doubled(images, residual=images)), wanted, rtol=1e-5, atol=1e-5)
