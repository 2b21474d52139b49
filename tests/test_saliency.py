"""Class activation maps are Grad-CAM's, whose weights each framework's own gradients give."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.errors import UserError
from groupwise.inference import saliency
from groupwise.inference.saliency import Explainer
from groupwise.models.compact import MaximumHead
from groupwise.models.registry import PooledHead
from tests import tiny as bars
from tests.frameworks import values_and_gradients

tiny = bars.tiny
HEADS: dict[str, dict[str, Any]] = {
    "average": {},
    "average, dropout": {"head": PooledHead(dropout=0.5)},
    "maximum, scaled": {"head": MaximumHead()},
    "maximum, scaled by less than nothing": {"head": MaximumHead(scale=-2.0)},
}


def class_activation(network: keras.Model, images: np.ndarray, classes: list[int]) -> np.ndarray:
    return Explainer(network).explain(images, classes)[1]


def by_gradients(network: keras.Model, images: np.ndarray, classes: list[int]) -> np.ndarray:
    """Return section 3 of the paper, step by step: gradients, means over the pixels, the sum, its positive part."""
    pool = network.get_layer("pool")
    features = np.asarray(keras.Model(network.input, pool.input).predict(images, verbose=0))
    head = keras.Model(pool.input, network.outputs)
    chosen = np.eye(network.output_shape[-1], dtype="float32")[classes]
    one = np.ones((), "float32")
    _, gradients, _ = values_and_gradients(lambda x, factor: head(x) * factor, features, one, chosen, compiled=False)
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((weights * features).sum(axis=-1), 0)
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-30)


@pytest.mark.parametrize("head", HEADS)
def test_maps_are_those_of_the_frameworks_gradients(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.variants(), "tiny", replace(bars.VARIANT, **HEADS[head]))
    network = models.create("tiny", input_shape=(16, 24, 1))
    images = np.random.default_rng(0).normal(size=(7, 16, 24, 1)).astype("float32")
    classes = [0, 1, 2, 0, 1, 2, 0]
    maps = class_activation(network, images, classes)
    assert maps.dtype == np.float32
    assert maps.shape == (7, 4, 6)
    assert set(maps.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}
    expected = by_gradients(network, images, classes)
    assert expected.max() == 1
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_logits_and_maps_come_together_filled_up_or_not(tiny: str) -> None:
    network = models.create("tiny")
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
    logits, maps = Explainer(network).explain(images, batch_size=5)
    np.testing.assert_allclose(logits, network.predict(images, verbose=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maps, class_activation(network, images, list(logits.argmax(axis=1))), atol=1e-6)


def one_layer(kernel: list[list[float]], pool: type[keras.layers.Layer], **options: Any) -> keras.Model:
    """Return a network whose features are its images: (4, 4, 2), of which a dense layer makes two classes."""
    inputs = keras.Input((4, 4, 2))
    outputs = keras.layers.Dense(2, name="head", **options)(pool(name="pool")(inputs))
    network = keras.Model(inputs, outputs)
    network.get_layer("head").set_weights([np.array(kernel), np.zeros(2)])
    return network


@pytest.mark.parametrize("pool", saliency.POOLINGS)
def test_a_stripe_on_the_left_is_seen_on_the_left(pool: type[keras.layers.Layer]) -> None:
    images = np.zeros((2, 4, 4, 2), np.float32)
    images[0, :, 0, 0] = 4  # a stripe in the first channel, which speaks for the first class
    images[0, 1, 0, 0] = 8
    images[0, :, 3, 1] = 9  # and one in the other channel, which speaks against it
    network = one_layer([[2, 0], [-1, 3]], pool)
    stripe = np.zeros((4, 4))
    stripe[:, 0] = [0.5, 1, 0.5, 0.5]
    maps = class_activation(network, images, [0, 0])
    np.testing.assert_allclose(maps[0], stripe)
    assert not maps[1].any()  # an empty image
    other = class_activation(network, images, [1, 1])[0]
    np.testing.assert_allclose(other, np.eye(4)[[3] * 4])


def other_networks() -> dict[str, keras.Model]:
    """Return networks that end otherwise, by what is wrong with them."""
    x = keras.Input((8, 8, 2))
    pool, dense = keras.layers.GlobalAveragePooling2D, keras.layers.Dense
    pooled = pool(name="pool")(x)
    logits = dense(2, name="head")(pooled)
    kept = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    return {
        "no pooling": keras.Model(x, dense(2, name="head")(keras.layers.Flatten(name="pool")(x))),
        "no head": keras.Model(x, pooled),
        "two dense layers": keras.Model(x, dense(2, name="head")(dense(3)(pooled))),
        "activation": keras.Model(x, dense(2, "softmax", name="head")(pooled)),
        "softmax": keras.Model(x, keras.layers.Softmax()(logits)),
        "a way around": keras.Model(x, logits + dense(2)(keras.layers.Flatten()(x))),
        "two outputs": keras.Model(x, [logits, pooled]),
        "pixels kept": keras.Model(x, dense(2, name="head")(kept)),
        "a backbone": models.create("mnist_cnn", include_top=False),
        "features": models.create("mnist_cnn", features=["stem"]),
    }


def test_networks_that_end_otherwise_are_refused() -> None:
    for name, network in other_networks().items():
        with pytest.raises(UserError, match=r"does not end in a global pooling 'pool'.*use a network that"):
            pytest.fail(f"{name}: {Explainer(network)}")


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models())
def test_every_network_of_the_package_can_say_where_it_looked(name: str) -> None:
    Explainer(models.create(name))
