"""The small network learns with each kind of convolution and each multiplier, where careless ones stay at 10%."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from groupwise import models
from groupwise.errors import UserError
from groupwise.models.network import without_values

KINDS = [(kind, multiplier) for kind in ("dense", "separable", "grouped") for multiplier in (1, 2, 4)]
QUICK = [("dense", 1), ("separable", 2), ("grouped", 1)]


def _accuracy(model: keras.Model, epochs: int) -> float:
    """Train on four fifths of scikit-learn's digits and return the accuracy on the others."""
    data = load_digits()
    images = (data.images[..., None] / 8 - 1).astype("float32")
    images, test_images, labels, test_labels = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=0
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=keras.backend.backend() == "jax")
    # Whole batches only: JAX would compile the training step once more for the last one.
    whole = len(images) // 32 * 32
    model.fit(images[:whole], labels[:whole], batch_size=32, epochs=epochs, verbose=0)
    return float(model.evaluate(test_images, test_labels, batch_size=360, verbose=0)[1])


@pytest.mark.parametrize(
    ("convolution", "multiplier"),
    [pytest.param(*kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS],
)
@pytest.mark.shared
def test_learns(convolution: str, multiplier: int) -> None:
    model = models.create("mnist_cnn", input_shape=(8, 8, 1), convolution=convolution, depth_multiplier=multiplier)
    assert _accuracy(model, epochs=4) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_cnn_separable", "mnist_cnn_grouped"])
def test_reaches_97_percent(name: str) -> None:
    assert _accuracy(models.create(name, input_shape=(8, 8, 1)), epochs=20) >= 0.97


def test_macs_by_hand() -> None:
    """8x8 pixels in the stem, 4x4 in stage 1, 2x2 in stage 2; then the head."""
    stem, head = 64 * 9 * 32, 128 * 10
    units = [(16, 32, 64), (16, 64, 64), (4, 64, 128), (4, 128, 128)]
    expected = {
        "mnist_cnn": sum(n * 9 * c * k for n, c, k in units),
        "mnist_cnn_separable": sum(n * c * (9 + k) for n, c, k in units),
        "mnist_cnn_grouped": sum(n * c * (9 * 8 + k) for n, c, k in units),
    }
    for name, macs in expected.items():
        with without_values():
            model = models.create(name, input_shape=(8, 8, 1))
        assert models.describe(model).macs == stem + macs + head


def test_parameters_by_hand() -> None:
    """A separable unit has a 3x3 for each input channel and multiple, a 1x1, and a batch norm's two vectors."""
    units = [(32, 64), (64, 64), (64, 128), (128, 128)]
    for multiplier in (1, 2, 4):
        own = sum(multiplier * c * (9 + k) + 2 * k for c, k in units)
        with without_values():
            model = models.create("mnist_cnn", convolution="separable", depth_multiplier=multiplier)
        assert models.describe(model).trainable_parameters == 9 * 32 + 2 * 32 + own + 128 * 10 + 10


def test_default_images_and_bad_arguments() -> None:
    with without_values():
        model = models.create("mnist_cnn")
    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 10))
    with pytest.raises(UserError, match="convolution='sparse'"):
        models.create("mnist_cnn", convolution="sparse")
    with pytest.raises(UserError, match="depth_multiplier=0"):
        models.create("mnist_cnn_separable", depth_multiplier=0)


def test_first_activations_keep_their_size() -> None:
    """The depthwise kernels' deviation is the root of 2 / 9, not of 2 / (9 x channels)."""
    model = models.create("mnist_cnn_separable")
    kernel = keras.ops.convert_to_numpy(model.get_layer("stage2_unit2_conv").depthwise_kernel)
    np.testing.assert_allclose(kernel.std(), (2 / 9) ** 0.5, rtol=0.1)
