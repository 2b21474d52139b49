"""PyTorch: a recorded step gives the losses, weights and states of Keras's own, to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends, models
from groupwise.backends.plain_links import Reading
from groupwise.models import steps
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, needs_core
from tests.recorded import (
    BATCHES,
    Build,
    assert_same,
    assert_trains_alike,
    batches,
    compiled,
    network,
    optimizer,
    pair,
    small,
    trained,
)

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: network("mnist_cnn_separable", size=28), id="mnist_cnn"),
        pytest.param(lambda: network("groupnet_cifar10", "average"), id="groupnet"),
        pytest.param(lambda: network("mobilenet_wd4", "accumulated", dropout=0.3), id="mobilenet"),
        pytest.param(lambda: network("resnet18", "nesterov"), id="resnet"),
        pytest.param(lambda: network("resnext14_16x4d", "lion"), id="resnext"),
        pytest.param(lambda: network("seresnet18", "rmsprop"), id="se-resnet"),
        # senet16 has its layers, too.
        pytest.param(lambda: network("seresnext26_32x4d", "average"), id="se-resnext", marks=pytest.mark.slow),
        pytest.param(lambda: network("senet16", "accumulated"), id="senet"),
        pytest.param(lambda: network("shufflenet_g3_wd4", "sgd"), id="shufflenet"),
        pytest.param(lambda: network("shufflenet_v2_x0_5", "sgd", dtype="mixed_bfloat16"), id="shufflenet v2"),
        pytest.param(lambda: network("efficientnet_lite0", "average"), id="efficientnet"),
        pytest.param(lambda: network("legacy_xception", "sgd", size=71), id="xception"),
        pytest.param(lambda: network("xception41", "sgd"), id="xception aligned", marks=pytest.mark.slow),
    ],
)
def test_a_family_trains_alike(build: Build) -> None:
    assert_trains_alike(build)


class Chain(keras.layers.Layer):
    """Two links: convolution, batch norm, ReLU, depthwise convolution."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.first = self.add_weight(shape=(1, 1, shape[-1], 8))
        self.gamma, self.beta = (self.add_weight(shape=(8,), initializer=start) for start in ("ones", "zeros"))
        self.average = self.add_weight(shape=(8,), initializer="zeros", trainable=False)
        self.second = self.add_weight(shape=(3, 3, 1, 8))

    def call(self, inputs: Any, training: bool = False) -> Any:
        link, (first, second) = backends.active.core.link, (self.first.value, self.second.value)
        raw, mean, variance = link(inputs, first, ConvSpec.of(inputs.shape, first.shape, 1), counts=True)
        if training:
            self.average.assign(0.9 * self.average + 0.1 * mean)
        reading = Reading(mean, self.gamma * keras.ops.rsqrt(variance + 1e-3), self.beta.value, "relu")
        return link(raw, second, ConvSpec.of(raw.shape, second.shape, 8), reading)[0]


@needs_core
def test_links_train_alike() -> None:
    assert_trains_alike(lambda: small(Chain()))


def test_a_loss_that_overflows_is_scaled_alike() -> None:
    def build() -> keras.Model:
        scaled = keras.optimizers.LossScaleOptimizer(optimizer("sgd"), initial_scale=2.0**40, dynamic_growth_steps=3)
        return compiled(models.create("mobilenet_wd4", input_shape=(32, 32, 3), dtype="mixed_float16"), scaled)

    assert_trains_alike(build, count=2 * BATCHES)


def test_random_layers_draw_alike() -> None:
    def build() -> keras.Model:
        noise = (
            keras.layers.GaussianNoise(0.1),
            keras.layers.RandomFlip(seed=3),
            keras.layers.SpatialDropout2D(0.3, seed=4),
        )
        return small(*noise, keras.layers.Dropout(0.5))

    assert_trains_alike(build)


def _lower_rate(model: Any, number: int) -> None:
    if number == 12:
        model.optimizer.learning_rate = 0.001


def _set_weights(model: Any, number: int) -> None:
    if number == 12:
        model.set_weights([0.9 * value for value in model.get_weights()])


def _freeze(model: Any, number: int) -> None:
    if number in (8, 14):
        model.layers[1].trainable = number == 14


def _freeze_a_variable(model: Any, number: int) -> None:
    if number == 9:
        model.layers[1].kernel.trainable = False


def _change_type(model: Any, number: int) -> None:
    if number == 9:
        model.layers[1].dtype_policy = "mixed_bfloat16"


def _change_activation(model: Any, number: int) -> None:
    if number == 9:
        model.layers[1].activation = keras.activations.silu


def _change_rate_of_dropout(model: Any, number: int) -> None:
    model.layers[2].rate = 0.25 if number < 9 else 0.75


@pytest.mark.parametrize(
    "change",
    [
        _lower_rate,
        _set_weights,
        _freeze,
        _freeze_a_variable,
        _change_type,
        _change_activation,
        _change_rate_of_dropout,
    ],
)
def test_a_change_is_seen_by_the_next_step(change: Callable[[keras.Model, int], None]) -> None:
    def build() -> keras.Model:
        return small(keras.layers.Conv2D(8, 3), keras.layers.Dropout(0.25, seed=1), keras.layers.BatchNormalization())

    assert_trains_alike(build, change)


def test_fit_evaluate_and_predict_agree() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    images, labels = (np.concatenate(part) for part in zip(*batches(own, 11, 3), strict=True))
    weights = np.linspace(0.5, 1.5, len(images))
    seen = []
    for model in (recorded, own):
        keras.utils.set_random_seed(2)
        history = model.fit(
            images, labels, 8, 3, verbose=0, validation_data=(images, labels), sample_weight=weights, shuffle=False
        ).history
        seen.append((history, model.evaluate(images, labels, 8, verbose=0), model.predict(images, 8, verbose=0)))
    (mine, *judged), (its, *expected) = seen
    for name in ("loss", "accuracy"):
        assert mine[name] == its[name]
        np.testing.assert_allclose(mine[f"val_{name}"], its[f"val_{name}"], rtol=1e-5)
    np.testing.assert_allclose(judged[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(judged[1], expected[1], rtol=1e-5, atol=1e-5)
    assert all(getattr(recorded, f"{kind}_function").repeated for kind in steps.KINDS)
    assert not steps.objections(recorded)


def test_a_prediction_follows_the_weights() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    image = batches(own, 1, 1)[0][0]
    for scale in (1.0, 0.5, 2.0):
        for model in (recorded, own):
            model.set_weights([scale * value for value in model.get_weights()])
        for _ in range(4):
            found, expected = recorded.predict_on_batch(image), own.predict_on_batch(image)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_what_was_trained_is_saved(tmp_path: Path) -> None:
    recorded = assert_trains_alike(lambda: network("shufflenet_v2_x0_5"), count=6)
    recorded.save(tmp_path / "trained.keras")
    loaded = keras.models.load_model(tmp_path / "trained.keras")
    assert_same(loaded, recorded)
    data = batches(recorded, 6)
    assert trained(loaded, data) == trained(recorded, data)
