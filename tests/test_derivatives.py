"""A network of our layers under each framework's own transformations: every image's gradient, and forward mode."""

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import layers
from tests.frameworks import BACKEND

numpy = keras.ops.convert_to_numpy


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    images = keras.Input((6, 6, 4))
    first = layers.GroupedConv2D(8, 3, groups=2, padding="same", activation="relu")(images)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(first)
    x = layers.BatchNormalization(activation="relu6")(x, residual=first)
    x = layers.SqueezeExcite(2)(layers.ChannelShuffle(2)(x))
    x = layers.MaxPooling2D(3, 2, padding=((1, 1), (1, 1)))(x)
    x = layers.AveragePooling2D(2, padding="same")(layers.SeparableConv2D(6, 3, padding="same")(x))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


@pytest.fixture(scope="module")
def images() -> Any:
    return keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype("float32"))


def loss(network: keras.Model, training: bool) -> Callable[[Any, Any], Any]:
    """Return a function of the trainable variables' values and the images."""
    rest = [variable.value for variable in network.non_trainable_variables]

    def run(values: Any, images: Any) -> Any:
        outputs, _ = network.stateless_call(values, rest, images, training=training)
        return keras.ops.sum(outputs**2)

    return run


def functional(transform: str, function: Any, values: list[Any], images: Any) -> Any:
    """Return what JAX's or PyTorch's transformations of function(values, images) give, or that of each image."""
    module = importlib.import_module("jax" if BACKEND == "jax" else "torch.func")
    if transform == "gradient":
        return module.grad(function)(values, images)
    if transform == "of each":
        return module.vmap(module.grad(function), (None, 0))(values, images[:, None])
    return module.jvp(lambda values: function(values, images), (values,), (values,))[1]


def taped(transform: str, network: keras.Model, training: bool, images: Any) -> Any:
    tf = importlib.import_module("tensorflow")
    values = [variable.value for variable in network.trainable_variables]
    if transform == "tangent":
        with tf.autodiff.ForwardAccumulator(values, [tf.identity(value) for value in values]) as accumulator:
            total = tf.reduce_sum(network(images, training=training) ** 2)
        return accumulator.jvp(total)

    def one(images: Any) -> Any:
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(network(images, training=training) ** 2)
        return tape.gradient(total, values)

    return one(images) if transform == "gradient" else tf.vectorized_map(one, images[:, None])


def run(transform: str, network: keras.Model, training: bool, images: Any) -> Any:
    """Return the loss's "gradient", that "of each" image, or its "tangent" along the variables themselves."""
    if BACKEND == "tensorflow":
        return taped(transform, network, training, images)
    values = [keras.ops.copy(variable.value) for variable in network.trainable_variables]
    if BACKEND == "torch":
        values = [value.detach() for value in values]
    return functional(transform, loss(network, training), values, images)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_each_image(network: keras.Model, images: Any, training: bool) -> None:
    together = run("of each", network, training, images)
    for index in range(3):
        alone = run("gradient", network, training, images[index : index + 1])
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(numpy(one[index]), numpy(other), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_forward_mode_agrees_with_reverse_mode(network: keras.Model, images: Any, training: bool) -> None:
    values = [numpy(variable.value) for variable in network.trainable_variables]
    gradients = run("gradient", network, training, images)
    along = sum(np.vdot(value, numpy(gradient)) for value, gradient in zip(values, gradients, strict=True))
    assert abs(along) > 1e-4
    np.testing.assert_allclose(numpy(run("tangent", network, training, images)), along, rtol=1e-4, atol=1e-5)
