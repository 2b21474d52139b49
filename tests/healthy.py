"""Models and data that are healthy, however they look: of each some rule of `diagnose` could think ill."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.faults import CLASSES, Case, application, chain, compiled, conv, data, norm

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small(units: int, activation: str | None, loss: Any, labels: Any) -> Case:
    """Return a small network with another head, compiled, and images with labels."""
    inputs = keras.Input((12, 12, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(norm()(conv("stem")(inputs))))
    return Case(compiled(keras.Model(inputs, layers.Dense(units, activation)(x)), loss), (data()[0], labels))


def features() -> Case:
    """Return a head on features that were computed before."""
    inputs = keras.Input((4, 4, 512))
    return Case(keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(norm()(conv("conv")(inputs))))))


def zeros() -> Case:
    """Return a branch that starts at zero, and a head that does."""
    inputs = keras.Input((12, 12, 3))
    x = norm("stem_norm")(conv("stem")(inputs))
    branch = conv("second")(layers.ReLU()(norm("first_norm")(conv("first")(x))))
    x = layers.Add()([x, norm("last", gamma_initializer="zeros")(branch)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return Case(keras.Model(inputs, layers.Dense(CLASSES, kernel_initializer="zeros")(x)))


def scaled_branch() -> Case:
    """Return a branch that is scaled down."""
    inputs = keras.Input((12, 12, 3))
    x = norm("stem_norm")(conv("stem")(inputs))
    x = layers.Add()([x, layers.Rescaling(0.05)(norm("branch_norm")(conv("branch")(x)))])
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))), data())


def adapted() -> Case:
    """Return a model that learnt the mean of its pixels."""
    images, labels = data(scale=40.0)
    images = np.clip(images + 128, 0, 255)
    first = layers.Normalization(name="normalization")
    first.adapt(images)
    return Case(chain(first, conv("stem"), norm(), layers.ReLU()), (images, labels))


def trained_here() -> Case:
    """Return a network of a published one's name that has learnt of images of its own."""
    case = application(0, 1, "xception")
    compiled(case.model).train_on_batch(*(case.data or data()))
    return case


def adapter() -> Case:
    """Return a network of a published one behind a convolution that learns what it is to read."""
    case = application(0, 1, "xception")
    network = case.model.get_layer("xception")
    return Case(chain(layers.Conv2D(3, 1, name="adapter"), network, layers.ReLU()), case.data)


def noisy() -> Case:
    """Return a published network's images as it wants them, with noise while it learns."""
    case = application(-1, 1, "xception")
    return Case(chain(layers.GaussianNoise(0.1), case.model.get_layer("xception"), layers.ReLU()), case.data)


def rows() -> Case:
    """Return grey images in three channels that change from row to row alone, but for some noise."""
    generator = np.random.default_rng(0)
    stripes = generator.uniform(size=(64, 32, 1, 1)) + 0.01 * generator.normal(size=(64, 32, 32, 1))
    images = stripes.repeat(3, axis=-1).astype("float32")
    return Case(chain(conv("stem"), norm(), layers.ReLU(), shape=(32, 32, 3)), (images, np.arange(64) % CLASSES))


def first_norm() -> Case:
    """Return a model that begins with a batch norm."""
    images, labels = data(scale=40.0)
    return Case(chain(norm("first"), conv("stem"), norm(), layers.ReLU()), (np.clip(images + 128, 0, 255), labels))


def blurred() -> Case:
    """Return a frozen filter beside the image."""
    inputs = keras.Input((12, 12, 3))
    filtered = layers.DepthwiseConv2D(3, padding="same", trainable=False, name="blur")(inputs)
    x = norm()(conv("stem")(layers.Concatenate()([inputs, filtered])))
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))))


def kept_backbone() -> Case:
    """Return a backbone that is always called without training, and batches of one image."""
    backbone = chain(conv("stem"), norm())
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 0.1)
    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, layers.Dense(CLASSES)(backbone(inputs, training=False)))
    images, labels = data(4)
    return Case(model, [(images[at : at + 1], labels[at : at + 1]) for at in range(4)])  # type: ignore[arg-type]


def averaged() -> Case:
    """Return a batch norm behind the pooling, and noise, of which pooling leaves little."""
    inputs = keras.Input((96, 96, 3))
    x = layers.GlobalAveragePooling2D()(conv("stem", activation="relu")(inputs))
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(norm()(x))))


def tuned() -> Case:
    """Return a trained model, compiled anew with a fine-tuning's rate."""
    model, (images, labels) = compiled(chain(conv("stem"), norm(), layers.ReLU())), data()
    model.fit(images, labels, verbose=0)
    return Case(compiled(model, optimizer=keras.optimizers.Adam(1e-5)), (images, labels))


def attending() -> Case:
    """Return a small transformer's block, compiled, on words."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.Dense(8, activation="relu")(layers.GlobalAveragePooling1D()(x))
    words = np.random.default_rng(0).integers(0, 20, (64, 6))
    model = compiled(keras.Model(inputs, layers.Dense(2)(x)), optimizer=keras.optimizers.Adam(1e-3))
    return Case(model, (words, words[:, 0] % 2))


def two_inputs() -> Case:
    """Return a model of two inputs and two outputs by name, and weights of the examples."""
    first, second = keras.Input((12, 12, 3), name="a"), keras.Input((4,), name="b")
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(norm()(conv("stem")(first))), second])
    outputs = {"p": layers.Dense(CLASSES, name="p")(x), "q": layers.Dense(1, name="q")(x)}
    model = keras.Model({"a": first, "b": second}, outputs)
    model.compile("adam", {"p": SPARSE, "q": "mse"})
    images, labels = data()
    return Case(model, ({"a": images, "b": np.ones((64, 4), "float32")}, {"p": labels, "q": labels[:, None] * 1.0}))


def growing() -> Case:
    """Return images of several sizes, and a loss below zero."""
    model = chain(conv("stem"), norm(), shape=(None, None, 3))  # type: ignore[arg-type]
    model.compile("sgd", keras.losses.CosineSimilarity())
    generator = np.random.default_rng(0)
    batches = [generator.normal(size=(8, side, side, 3)).astype("float32") for side in (16, 24)]
    return Case(model, [(images, np.eye(CLASSES)[np.arange(8) % CLASSES]) for images in batches])  # type: ignore[arg-type]


def recurrent() -> Case:
    """Return an LSTM."""
    inputs = keras.Input((5, 3))
    model = compiled(keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(inputs))))
    return Case(model, (np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32"), np.arange(16) % 2))


_CORNERS = np.random.default_rng(1).uniform(size=(64, 4)).astype("float32") + np.array([0, 0, 2, 5], "float32")
_TAGS = np.concatenate([np.ones((64, 1)), np.random.default_rng(2).integers(0, 2, (64, 3))], axis=1)

HEALTHY: dict[str, Callable[[], Case]] = {
    "features": features,
    "ages": lambda: small(1, None, "mse", np.random.default_rng(0).integers(18, 80, 64)),
    "boxes": lambda: small(4, None, "mse", _CORNERS),
    "tags": lambda: small(4, "sigmoid", "binary_crossentropy", _TAGS),
    "zeros": zeros,
    "scaled branch": scaled_branch,
    "adapted": adapted,
    "first norm": first_norm,
    "trained here": trained_here,
    "adapter": adapter,
    "noisy": noisy,
    "grey rows": rows,
    "blurred": blurred,
    "kept backbone": kept_backbone,
    "averaged": averaged,
    "tuned": tuned,
    "attending": attending,
    "two inputs": two_inputs,
    "growing": growing,
    "recurrent": recurrent,
}
