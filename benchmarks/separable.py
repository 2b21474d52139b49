"""Why does my separable convolution stop learning at 10%? The table of docs/separable.md.

    KERAS_BACKEND=torch python -m benchmarks.separable [--epochs N] [--seeds N]

Networks of ten 3x3 convolutions of 32 channels, differing in those alone, are trained on scikit-learn's 8x8 digits
(80% of them; the rest is the test). Accuracies are the mean over seeds, each with its own split.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from groupwise import models

WIDTH, DEPTH, CLASSES = 32, 10, 10
Unit = Callable[[Any], Any]


def dense(x: Any) -> Any:
    """An ordinary 3x3 convolution."""
    return keras.layers.Conv2D(WIDTH, 3, padding="same")(x)


def separable(x: Any, multiplier: int = 1, **initializers: Any) -> Any:
    """Keras's separable convolution, with its own initialisers or others."""
    return keras.layers.SeparableConv2D(WIDTH, 3, padding="same", depth_multiplier=multiplier, **initializers)(x)


def frozen_ones(x: Any, multiplier: int = 1) -> Any:
    """A depthwise convolution whose outputs are summed by a pointwise one frozen at ones."""
    x = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=multiplier)(x)
    return keras.layers.Conv2D(WIDTH, 1, kernel_initializer="ones", use_bias=False, trainable=False)(x)


def frozen_averages(x: Any, multiplier: int = 1) -> Any:
    """The same with an average in place of the sum, which keeps the signal's size."""
    x = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=multiplier)(x)
    average = keras.initializers.Constant(1 / x.shape[-1])
    return keras.layers.Conv2D(WIDTH, 1, kernel_initializer=average, use_bias=False, trainable=False)(x)


def true_fan_in(x: Any) -> Any:
    """Keras's separable convolution, the depthwise kernel of variance 1 / 9: no ReLU follows it, so no factor of 2."""
    depthwise = keras.initializers.RandomNormal(stddev=1 / 3)
    return separable(x, depthwise_initializer=depthwise, pointwise_initializer="he_normal")


def normalised(unit: Unit) -> Unit:
    """Follow a unit by batch norm."""
    return lambda x: keras.layers.BatchNormalization(momentum=0.9)(unit(x))


ROWS: dict[str, Unit] = {
    "dense": dense,
    "separable, Keras's defaults": separable,
    "separable, multiplier 4, Keras's defaults": lambda x: separable(x, 4),
    "separable, He's by Keras's fan-in": lambda x: separable(
        x, depthwise_initializer="he_normal", pointwise_initializer="he_normal"
    ),
    "separable, by the true fan-in": true_fan_in,
    "separable, Keras's defaults, batch norm": normalised(separable),
    "separable, by the true fan-in, batch norm": normalised(true_fan_in),
    "pointwise frozen at ones": frozen_ones,
    "pointwise frozen at ones, batch norm": normalised(frozen_ones),
    "pointwise frozen at 1/channels, batch norm": normalised(frozen_averages),
}


def network(unit: Unit) -> keras.Model:
    """Return ten units with ReLUs, a max pool after the fifth, an average pool and a dense layer."""
    inputs = x = keras.Input((8, 8, 1))
    for index in range(DEPTH):
        x = keras.layers.ReLU()(unit(x))
        if index == DEPTH // 2 - 1:
            x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def digits(seed: int) -> list[np.ndarray]:
    """Return training and test images from -1 to 1 (n, 8, 8, 1), training and test labels (n)."""
    data = load_digits()
    images = (data.images[..., None] / 8 - 1).astype("float32")
    return train_test_split(images, data.target, test_size=0.2, stratify=data.target, random_state=seed)


def signal(model: keras.Model) -> float:
    """Return how much the features differ between images, in training mode: batch norm normalises already."""
    features = keras.Model(model.input, model.get_layer("features").output)
    return float(np.std(keras.ops.convert_to_numpy(features(digits(0)[1], training=True)), axis=0).mean())


def accuracy(model: keras.Model, optimizer: keras.optimizers.Optimizer, epochs: int, seed: int) -> float:
    """Train the model and return its test accuracy."""
    images, test_images, labels, test_labels = digits(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    return float(model.evaluate(test_images, test_labels, verbose=0)[1])


MNIST = [("dense", 1), *((kind, multiplier) for kind in ("separable", "grouped") for multiplier in (1, 2, 4))]
OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(0.02, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.001),
}


def mean_accuracy(
    build: Callable[[], keras.Model], optimizer: Callable[[], keras.optimizers.Optimizer], epochs: int, seeds: int
) -> str:
    """Return the mean accuracy over seeds of networks, weights and split as each seed has it."""
    accuracies = []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        accuracies.append(accuracy(build(), optimizer(), epochs, seed))
    return f"{np.mean(accuracies):.1%}"


def print_convolutions(epochs: int, seeds: int) -> None:
    """Print a row for each kind of convolution in the plain network."""
    print(f"| convolution | signal before training | {' | '.join(f'accuracy, {name}' for name in OPTIMIZERS)} |")
    print(f"| --- | {' | '.join(['---:'] * (1 + len(OPTIMIZERS)))} |")
    for name, unit in ROWS.items():
        keras.utils.set_random_seed(0)
        before = signal(network(unit))
        build = partial(network, unit)
        cells = [mean_accuracy(build, optimizer, epochs, seeds) for optimizer in OPTIMIZERS.values()]
        print(f"| {name} | {before:.1g} | {' | '.join(cells)} |", flush=True)


def print_mnist_cnn(epochs: int, seeds: int) -> None:
    """Print a row for each form of this package's small network."""
    print("\n| `mnist_cnn` | parameters | MACs at 8x8 | accuracy, Adam |\n| --- | ---: | ---: | ---: |")
    for convolution, multiplier in MNIST:
        options = {"convolution": convolution, "depth_multiplier": multiplier, "input_shape": (8, 8, 1)}
        build = partial(models.create, "mnist_cnn", **options)
        costs = models.describe(build())
        cell = mean_accuracy(build, OPTIMIZERS["Adam"], epochs, seeds)
        name = convolution if convolution == "dense" else f"{convolution}, multiplier {multiplier}"
        print(f"| {name} | {costs.trainable_parameters:,} | {costs.macs:,} | {cell} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    print_convolutions(options.epochs, options.seeds)
    print_mnist_cnn(options.epochs, options.seeds)


if __name__ == "__main__":
    main()
