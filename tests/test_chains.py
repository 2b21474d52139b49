"""Chains in models: found by the graph, and the same numbers step by step as layer by layer."""

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as stock
from keras import ops

from groupwise import backends, layers, models, rewrite
from groupwise.backends.steps import Step
from groupwise.keras_private import replaced_run
from groupwise.layers.convolutions import Link
from groupwise.ops import pairs
from groupwise.running.graph import functional
from groupwise.running.run import linked, run_fused
from tests.frameworks import BACKEND, needs_core, value_and_every_gradient

pytestmark = needs_core

SAME = ((1, 1), (1, 1))


def norm(x: Any, name: str, activation: str | None = "relu", **options: Any) -> Any:
    return layers.BatchNormalization(activation=activation, name=name, **options)(x)


def bottleneck(x: Any) -> Any:
    y = layers.GroupedConv2D(16, 1, use_bias=False, name="reduce")(x)
    y = norm(y, "first")
    y = layers.GroupedConv2D(16, 3, 2, SAME, groups=4, use_bias=False, name="spatial")(y)
    y = norm(y, "second")
    y = layers.GroupedConv2D(24, 1, use_bias=False, name="expand")(y)
    shortcut = norm(layers.GroupedConv2D(24, 1, 2, use_bias=False, name="shortcut")(x), "fourth", None)
    return layers.BatchNormalization(activation="relu", name="third")(y, residual=shortcut)


def inverted_residual(x: Any) -> Any:
    y = norm(layers.GroupedConv2D(24, 1, use_bias=False, name="expand")(x), "first", "relu6")
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = norm(y, "second", "relu6")
    y = layers.GroupedConv2D(6, 1, use_bias=False, name="project")(y)
    return layers.BatchNormalization(name="third")(y, residual=x)


def separable(x: Any) -> Any:
    y = layers.SeparableConv2D(24, 3, padding="same", use_bias=False, name="one")(x)
    y = layers.SeparableConv2D(20, 3, padding=SAME, use_bias=False, name="two")(norm(y, "first", "silu"))
    return norm(y, "second", "hard_silu")


def of_stock_layers(x: Any) -> Any:
    """As Keras Applications writes it: padding, ReLU and addition are layers, and some have biases that do nothing."""
    y = stock.Conv2D(16, 1, bias_initializer="random_normal", name="reduce")(x)
    y = stock.ReLU(6.0)(stock.BatchNormalization(name="first")(y))
    y = stock.DepthwiseConv2D(3, 2, use_bias=False, name="depthwise")(stock.ZeroPadding2D(1)(y))
    y = stock.Activation("relu")(stock.BatchNormalization(name="second")(y))
    y = stock.BatchNormalization(name="third")(stock.Conv2D(24, 1, bias_initializer="ones", name="expand")(y))
    shortcut = stock.Conv2D(24, 1, 2, use_bias=False, name="shortcut")(x)
    return stock.ReLU()(stock.Add()([y, stock.BatchNormalization(name="fourth")(shortcut)]))


BLOCKS: dict[Callable[[Any], Any], dict[str, str | None]] = {
    bottleneck: {"first": "spatial", "second": "expand", "third": None, "fourth": None},
    inverted_residual: {"first": "depthwise", "second": "project", "third": None},
    separable: {"first": "two", "second": None},
    of_stock_layers: {"first": "depthwise", "second": "expand", "third": None, "fourth": None},
}
"""Blocks, and their batch norms that are counted for, each with the convolution that reads through it."""


def model_of(block: Callable[[Any], Any], size: int = 9) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((size, size, 6))
    outputs = stock.Dense(3)(stock.GlobalAveragePooling2D()(block(inputs)))
    return rewrite.accelerate(keras.Model(inputs, outputs))


def chains(model: keras.Model) -> dict[str, str | None]:
    """Return the batch norms that run in chains, each with the convolution that reads through it."""
    return {
        link.norm.head.operation.name: None if link.after is None else link.after.head.operation.name
        for link in linked(model)
    }


def layer_by_layer(model: keras.Model) -> keras.Model:
    """Let a model run each of its layers by itself."""
    assert replaced_run(functional(model)) is not None
    vars(functional(model)).pop("_run_through_graph")
    return model


def batch(model: keras.Model, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images = random.normal(0.3, 1, (6, *model.input_shape[1:])).astype("float32")
    return images, random.normal(size=(6, model.output_shape[-1])).astype("float32")


def train(model: keras.Model, steps: int = 10) -> list[np.ndarray]:
    """Return all variables after some steps, the moving statistics included, and the outputs."""
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), "mse")
    for step in range(steps):
        model.train_on_batch(*batch(model, step))
    return [*model.get_weights(), model.predict_on_batch(batch(model)[0])]


def assert_alike(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).max() <= tolerance * max(1.0, np.abs(other).max())


@pytest.fixture
def made(monkeypatch: Any) -> list[tuple[bool, bool]]:
    """Return what the core's links do, call by call: whether they read, and whether they count."""
    calls: list[tuple[bool, bool]] = []
    core = backends.active.core

    def link(
        inputs: Any, kernel: Any, spec: Any, reading: Any = None, counts: bool = False, run: Any = core.link
    ) -> Any:
        calls.append((reading is not None, counts))
        return run(inputs, kernel, spec, reading, counts)

    monkeypatch.setattr(core, "link", link)
    return calls


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_ten_steps_in_chains_are_those_of_the_layers(block: Callable[[Any], Any], made: list[Any]) -> None:
    model, plain = model_of(block), layer_by_layer(model_of(block))
    assert chains(model) == BLOCKS[block]
    read = sum(reader is not None for reader in BLOCKS[block].values())
    assert f"{len(BLOCKS[block])} batch norms, {read} of them normalised" in str(rewrite.report_of(model))
    before = model.get_weights()
    found = train(model)
    # Where a step is traced or recorded, its links are made once or twice.
    assert {calls[0] for calls in made} == {False, True}
    steps, rest = divmod(sum(counts for _, counts in made), len(BLOCKS[block]))
    assert steps
    assert not rest
    made.clear()
    assert_alike(found, train(plain))
    assert not made
    assert max(np.abs(one - other).max() for one, other in zip(before, found[:-1], strict=True)) > 0.05


def grouped_twice(x: Any) -> Any:
    """Each convolution of several groups could run in one pass with the 1x1 behind it, whose input then waits."""
    for index in range(2):
        x = norm(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x), f"first_{index}")
        x = norm(layers.GroupedConv2D(12, 1, groups=3, use_bias=False)(x), f"second_{index}")
        x = norm(layers.GroupedConv2D(6, 1, use_bias=False)(x), f"third_{index}")
    return layers.GroupedConv2D(6, 1, padding=((1, 0), (0, 0)), activation="relu")(x)


def around(x: Any) -> Any:
    """What the depthwise convolution reads is added to what the 1x1 behind it returns."""
    y = norm(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x), "first")
    return layers.BatchNormalization(name="second")(layers.GroupedConv2D(6, 1, use_bias=False)(y), residual=x)


def with_biases(x: Any) -> Any:
    x = norm(layers.GroupedConv2D(16, 3, 2, groups=2, bias_initializer="random_normal")(x), "first")
    return norm(layers.DepthwiseConv2D(3, bias_initializer="random_normal")(x), "second", None)


def with_statistics(model: keras.Model, size: float = 1.0) -> keras.Model:
    """Give batch norms statistics and weights as after a training; `size` is that of means over deviations."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (array.shape for array in layer.get_weights())
            drawn = random.normal(1, 0.3, gamma), random.normal(size=beta)
            layer.set_weights([*drawn, size * random.normal(size=mean), random.uniform(0.5, 2, variance)])
    return model


@pytest.fixture
def scaled(monkeypatch: Any) -> list[str]:
    """Return what ends the core's convolutions whose sums are scaled, call by call."""
    calls: list[str] = []
    core = backends.active.core
    for name in ("FEW_PIXELS", "NARROW", "FEW_OUTPUTS"):
        monkeypatch.setattr(pairs, name, 0)
    monkeypatch.setattr(pairs, "usable_cores", lambda: 1)

    def convolve(*arguments: Any, run: Any = core.convolve) -> Any:
        *_, activation, scale = arguments
        if scale is not None:
            calls.append(activation)
        return run(*arguments)

    def separable(inputs: Any, grouped: Step, pointwise: Step, *others: Any, run: Any = core.separable) -> Any:
        _, *expansion = others
        calls.extend(step.activation for step in (*expansion, grouped, pointwise) if step.scale is not None)
        return run(inputs, grouped, pointwise, *others)

    monkeypatch.setattr(core, "convolve", convolve)
    monkeypatch.setattr(core, "separable", separable)
    return calls


@pytest.mark.parametrize("size", [1.0, 1000.0])
@pytest.mark.parametrize("block", [*BLOCKS, with_biases, grouped_twice], ids=lambda block: block.__name__)
def test_predictions_are_those_of_the_layers(block: Callable[[Any], Any], size: float, scaled: list[str]) -> None:
    model, plain = (with_statistics(model_of(block), size) for _ in range(2))
    plain = layer_by_layer(plain)
    images, _ = batch(model)
    found = model(images, training=False)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(scaled) == len(norms)
    assert f"While it predicts: {len(norms)} batch norms at the end" in str(rewrite.report_of(model))
    scaled.clear()
    wanted = ops.convert_to_numpy(plain(images, training=False))
    assert not scaled
    np.testing.assert_allclose(ops.convert_to_numpy(found), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(model.predict_on_batch(images), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("block", [*BLOCKS, around], ids=lambda block: block.__name__)
def test_gradients_of_predictions_are_those_of_the_layers(block: Callable[[Any], Any], scaled: list[str]) -> None:
    model, plain = (with_statistics(model_of(block)) for _ in range(2))
    plain = layer_by_layer(plain)
    images, gradient = batch(model)
    for compiled in (False, True):
        found, wanted = (
            value_and_every_gradient(lambda x, one=one: one(x, training=False), [images], gradient, compiled)
            for one in (model, plain)
        )
        assert_alike(found, wanted)
    assert scaled


@pytest.mark.parametrize("block", [*BLOCKS, with_biases], ids=lambda block: block.__name__)
def test_frozen_batch_norms_are_ends_in_training_too(block: Callable[[Any], Any], scaled: list[str]) -> None:
    def frozen() -> keras.Model:
        model = with_statistics(model_of(block))
        for layer in model.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        return model

    found = train(frozen(), 5)
    assert scaled
    scaled.clear()
    assert_alike(found, train(layer_by_layer(frozen()), 5))
    assert not scaled


def test_the_bits_are_the_same_from_run_to_run() -> None:
    for one, other in zip(train(model_of(bottleneck), 3), train(model_of(bottleneck), 3), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize(
    ("name", "counted", "read"),
    [
        ("resnext50_32x4d", 53, 32),
        ("mobilenetv1_100", 27, 26),
        ("xception", 40, 22),
        ("efficientnet_lite0", 49, 34),
        ("shufflenet_g3_w1", 49, 16),
    ],
)
def test_our_networks_run_in_chains(name: str, counted: int, read: int) -> None:
    with keras.StatelessScope(initialize_variables=False):
        found = chains(models.create(name, input_shape=(64, 64, 3), num_classes=2))
    assert (len(found), sum(reader is not None for reader in found.values())) == (counted, read)


def test_what_stays_apart() -> None:
    inputs = keras.Input((8, 8, 6))
    x = layers.GroupedConv2D(6, 1, use_bias=False, name="a")(inputs)
    twice = norm(x, "read_twice")
    x = layers.GroupedConv2D(6, 3, padding="same", use_bias=False, name="b")(twice)
    returned = norm(x, "returned")
    x = layers.GroupedConv2D(6, 1, use_bias=False, name="c")(returned)
    x = stock.MaxPooling2D()(norm(x, "pooled"))
    x = norm(stock.Add()([x, stock.MaxPooling2D()(twice)]), "of_a_sum")
    x = norm(layers.GroupedConv2D(6, 1, name="with_bias")(x), "after_a_bias")
    model = keras.Model(inputs, [returned, x])
    run_fused(model)
    found = chains(model)
    assert found == {"read_twice": None, "returned": None, "pooled": None, "after_a_bias": None}
    held = {link.norm.head.operation.name for link in linked(model) if link.counts(ops.zeros((1, 8, 8, 6)))}
    assert held == {*found}


def a_convolution(filters: int = 4, **options: Any) -> Any:
    return layers.GroupedConv2D(filters, 1, use_bias=False, **options)


def two_norms(x: Any) -> Any:
    for number, bias in enumerate((None, "ones")):
        x = layers.GroupedConv2D(4, 1, use_bias=bias is not None, bias_initializer=bias or "zeros")(x)
        frozen = layers.BatchNormalization(name=f"frozen_{number}", trainable=False)(x)
        x = stock.Add()([norm(x, f"free_{number}"), frozen])
    return x


def told_otherwise(x: Any) -> Any:
    """Every call of what could be a chain says something that a link does not do."""
    constant = np.ones((6, 4, 4, 4), "float32")
    outputs = [layers.BatchNormalization()(a_convolution()(x, then="relu"))]
    for options in ({"then": "relu"}, {"residual": constant}):
        outputs.append(a_convolution()(layers.BatchNormalization()(a_convolution()(x), **options)))
        outputs.append(a_convolution()(layers.BatchNormalization()(a_convolution()(x)), **options))
    outputs.append(layers.BatchNormalization()(a_convolution()(x), training=False))
    return stock.Activation("relu")(stock.Concatenate()([*outputs, a_convolution()(x, then="silu")]))


@pytest.mark.parametrize("block", [two_norms, told_otherwise])
def test_calls_mean_what_they_say(block: Callable[[Any], Any]) -> None:
    assert_alike(train(model_of(block, 4), 3), train(layer_by_layer(model_of(block, 4)), 3))


def test_an_activation_that_is_set_later_counts() -> None:
    def changed(activation: str) -> keras.Model:
        model = model_of(bottleneck)
        model.get_layer("first").activation = keras.activations.get(activation)
        return model

    for activation in ("relu6", "tanh"):
        assert_alike(train(changed(activation), 3), train(layer_by_layer(changed(activation)), 3))
    first, second = changed("relu"), changed("linear")
    images, _ = batch(first)
    assert np.abs(first.predict_on_batch(images) - second.predict_on_batch(images)).max() > 0.01


def test_a_report_tells_of_no_chain_that_never_runs() -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, stock.BatchNormalization()(stock.Conv2D(4, 3, activation="tanh")(inputs)))
    assert "chains" not in str(rewrite.report_of(rewrite.accelerate(model)))
    with pytest.raises(ValueError, match="leave link out"):
        layers.GroupedConv2D(4, 1, activation="relu")(np.ones((1, 2, 2, 3), "float32"), link=Link(counts=True))


@pytest.mark.parametrize("setting", ["frozen", "penalised", "activation", "bfloat16", "native", "plain"])
def test_what_is_set_otherwise_runs_layer_by_layer(setting: str) -> None:
    tolerance = {"bfloat16": 3e-2, "frozen": 1e-4, "penalised": 1e-4, "activation": 1e-4}.get(setting, 0)

    def built() -> keras.Model:
        model = model_of(bottleneck)
        first, spatial, second = (model.get_layer(name) for name in ("first", "spatial", "second"))
        if setting == "frozen":
            first.trainable = second.trainable = False
        elif setting == "penalised":
            for layer in (first, spatial):
                layer.activity_regularizer = keras.regularizers.L2(0.1)
        elif setting == "activation":
            spatial.activation = keras.activations.tanh
        elif setting == "bfloat16":
            spatial.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        else:
            for layer in model.layers:
                layer.algorithm, layer.fused = ("native", True) if setting == "native" else ("auto", False)
        return model

    assert_alike(train(built(), 3), train(layer_by_layer(built()), 3), tolerance)


def test_a_chain_is_saved_loaded_and_copied(tmp_path: Any) -> None:
    model = models.create("mobilenetv1_100", input_shape=(32, 32, 3), num_classes=2)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert chains(loaded) == chains(model) != {}
    assert chains(copy.deepcopy(loaded)) == chains(rewrite.accelerate(loaded)) == chains(model)


def test_layers_in_between_can_be_asked_for() -> None:
    model = model_of(bottleneck)
    images, _ = batch(model)
    part = keras.Model(model.inputs, [model.get_layer("second").output, model.output])
    inside, outputs = part([images], training=False)
    assert np.asarray(ops.convert_to_numpy(inside)).shape == (6, 5, 5, 16)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), model.predict_on_batch(images), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras rematerialises on TensorFlow and JAX alone")
def test_layers_that_are_rematerialised_are_no_links() -> None:
    """Batch norms are none: Keras cannot do it with theirs, either."""

    def block(x: Any) -> Any:
        with keras.RematScope(mode="list_of_layers", layer_names=["spatial"]):
            return bottleneck(x)

    assert_alike(train(model_of(block), 3), train(layer_by_layer(model_of(bottleneck)), 3))
