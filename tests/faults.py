"""Models and data with a fault each, and healthy twins that differ in it alone: what `diagnose` must tell apart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from groupwise.layers import ChannelShuffle, DepthwiseHeNormal

CLASSES = 4


class Case(NamedTuple):
    """What `diagnose` is given."""

    model: keras.Model
    data: tuple[Any, Any] | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Fault(NamedTuple):
    """A fault: the name of its finding, how it is built, its healthy twin, and the layers that it is found at."""

    finding: str
    build: Callable[[], Case]
    healthy: Callable[[], Case]
    where: tuple[str, ...] | None = None


def chain(*middle: Any, shape: tuple[int, int, int] = (12, 12, 3), head: str | None = None) -> keras.Model:
    """Return a model of some layers, a global pooling and a dense layer "head"."""
    inputs = x = keras.Input(shape)
    for layer in middle:
        x = layer(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x) if len(x.shape) == 4 else x
    return keras.Model(inputs, layers.Dense(CLASSES, activation=head, name="head")(x), name="model")


def compiled(model: keras.Model, loss: Any = None, optimizer: Any = None) -> keras.Model:
    """Compile a model."""
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.05), loss or sparse)
    return model


def conv(name: str, filters: int = 12, **options: Any) -> layers.Conv2D:
    """Return a 3x3 convolution."""
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def data(count: int = 64, shape: tuple[int, int, int] = (12, 12, 3), scale: float = 1.0) -> tuple[Any, Any]:
    """Return images whose brightness is their class, with some noise, and their classes."""
    generator = np.random.default_rng(3)
    labels = np.arange(count) % CLASSES
    images = generator.normal(scale=0.3, size=(count, *shape))
    # A class is a pattern, so that pixels tell it.
    images += generator.normal(size=(CLASSES, *shape))[labels]
    return (scale * images).astype("float32"), labels


def norm(name: str = "norm", **options: Any) -> layers.BatchNormalization:
    """Return a batch norm."""
    return layers.BatchNormalization(name=name, **options)


def separable(count: int, norms: bool, **options: Any) -> Case:
    """Return a stack of separable convolutions of 32 channels."""
    middle: list[Any] = [conv("stem", 32)]
    for place in range(count):
        middle.append(layers.SeparableConv2D(32, 3, padding="same", name=f"separable{place}", **options))
        middle += [norm(f"norm{place}")] if norms else []
        middle.append(layers.ReLU(name=f"relu{place}"))
    return Case(chain(*middle))


def pointwise(trainable: bool, initializer: str) -> Case:
    """Return a depthwise convolution and a 1x1."""
    depthwise = layers.DepthwiseConv2D(3, depthwise_initializer=DepthwiseHeNormal(), name="depthwise")
    mixing = layers.Conv2D(12, 1, kernel_initializer=initializer, trainable=trainable, name="pointwise")
    return Case(chain(conv("stem"), depthwise, mixing, norm()))


def row(*between: Any) -> Case:
    """Return two grouped convolutions with something between."""
    return Case(chain(conv("stem"), conv("first", groups=3), layers.ReLU(), *between, conv("second", groups=3), norm()))


def summed(axis: int) -> Case:
    """Return a depthwise convolution, a reshape to (groups, channels, filters) and a sum."""
    inputs = keras.Input((12, 12, 3))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=4, name="depthwise")(conv("stem", 8)(inputs))
    x = keras.ops.sum(layers.Reshape((12, 12, 2, 4, 4))(x), axis=axis)
    x = norm()(layers.Reshape((12, 12, -1))(x))
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)), name="model"))


def by_hand(groups: int) -> layers.Layer:
    """Return a channel shuffle of 12 channels of reshapes and a transposition."""
    parts = (layers.Reshape((12, 12, groups, 12 // groups)), layers.Permute((1, 2, 4, 3)), layers.Reshape((12, 12, 12)))
    return lambda x: parts[2](parts[1](parts[0](x)))


def rectified(bias: float) -> Case:
    """Return a convolution with a bias before its ReLU."""
    first = conv("dead", bias_initializer=keras.initializers.Constant(bias), activation="relu")
    return Case(chain(conv("stem"), first, conv("last"), norm()))


def gated(scale: float) -> Case:
    """Return a sigmoid of numbers of some size."""
    large = keras.initializers.RandomNormal(stddev=scale)
    return Case(chain(conv("stem"), conv("gate", activation="sigmoid", kernel_initializer=large), conv("last"), norm()))


def deep(deviation: float, activation: str = "relu") -> Case:
    """Return ten convolutions whose weights have a deviation."""
    draw = keras.initializers.RandomNormal(stddev=deviation)
    middle = [conv(f"conv{place}", activation=activation, kernel_initializer=draw) for place in range(10)]
    return Case(chain(*middle))


def stopped(stops: bool) -> Case:
    """Return a convolution whose outputs pass through what has no gradient, or not."""
    inputs = keras.Input((12, 12, 3))
    x = conv("first")(inputs)
    x = keras.ops.stop_gradient(x) if stops else x
    x = norm()(conv("second")(x))
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)), name="model"))


def batches(size: int) -> Case:
    """Return a batch norm, and data in batches."""
    images, labels = data(8)
    parts = [(images[at : at + size], labels[at : at + size]) for at in range(0, 8, size)]
    return Case(chain(conv("stem"), norm(), layers.ReLU()), parts)  # type: ignore[arg-type]


def normed(training: bool | None = None, trainable: bool = True, **options: Any) -> Case:
    """Return a batch norm called in a mode."""
    inputs = keras.Input((12, 12, 3))
    x = norm(trainable=trainable, **options)(conv("stem")(inputs), training=training)
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)), name="model"))


def small(deviation: float) -> Case:
    """Return a batch norm that reads small numbers."""
    draw = keras.initializers.RandomNormal(stddev=deviation)
    return Case(chain(conv("stem", kernel_initializer=draw), norm(), layers.ReLU()))


def pixels(low: float, high: float, *first: Any) -> Case:
    """Return a model and pixels in a range."""
    images, labels = data()
    images = low + (high - low) * (images - images.min()) / np.ptp(images)
    return Case(chain(*first, conv("stem"), norm(), layers.ReLU()), (images.astype("float32"), labels))


def head(activation: str | None, loss: Any, *after: Any) -> Case:
    """Return a compiled model that ends in an activation."""
    model = chain(conv("stem"), norm(), layers.ReLU(), head=activation)
    x = model.output
    for layer in after:
        x = layer(x)
    return Case(compiled(keras.Model(model.input, x, name="model"), loss), data())


def nested_softmax() -> Case:
    """Return a softmax behind a model within that ends in one, and a layer that changes nothing."""
    inner = chain(conv("stem"), norm(), head="softmax")
    inputs = keras.Input((12, 12, 3))
    x = layers.Activation("linear")(layers.Softmax()(inner(inputs)))
    return Case(compiled(keras.Model(inputs, x), SPARSE()), data())


def labelled(labels: Any, units: int = CLASSES) -> Case:
    """Return a compiled model and images with other labels."""
    inputs = keras.Input((12, 12, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(norm()(conv("stem")(inputs))))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if np.ndim(labels) == 2 else None
    return Case(compiled(keras.Model(inputs, layers.Dense(units)(x), name="model"), loss), (data()[0], labels))


def learned(test: list[float]) -> Case:
    """Return a model, and how accurate it was by epoch."""
    history = {"accuracy": [0.3, 0.7, 0.98], "val_accuracy": test}
    return Case(chain(conv("stem"), norm()), data(), {"history": history})


def many(shuffled: bool) -> Case:
    """Return data whose labels belong to other images, or not."""
    images, labels = data(200)
    return Case(
        chain(conv("stem"), norm()), (images, np.random.default_rng(0).permutation(labels) if shuffled else labels)
    )


def rated(rate: float) -> Case:
    """Return a model with a learning rate, and data."""
    return Case(compiled(chain(conv("stem"), norm(), layers.ReLU()), optimizer=keras.optimizers.SGD(rate)), data())


def flagged(after: bool) -> Case:
    """Return a model that was trained for a step, and then frozen in part, or not."""
    model, (images, labels) = compiled(chain(conv("stem"), norm(), layers.ReLU())), data()
    model.train_on_batch(images[:16], labels[:16])
    model.get_layer("stem").trainable = not after
    return Case(model)


def turned(images: tuple[int, ...], model: tuple[int, int, int] = (12, 12, 3)) -> Case:
    """Return a model, and images of a shape."""
    return Case(chain(conv("stem"), norm(), shape=model), (data(8)[0].reshape(-1, *images)[:8], np.arange(8) % 4))


def first_axis(shape: tuple[int, int, int]) -> Case:
    """Return a model whose first convolution takes the last axis for the channels."""
    return Case(chain(conv("stem"), norm(), shape=shape))


def application(low: float, high: float, name: str = "vgg16") -> Case:
    """Return a network of a name of Keras Applications, as if trained, within a model, and pixels in a range."""
    learned = keras.initializers.Constant(0.01)
    backbone = keras.Sequential([keras.Input((12, 12, 3)), conv("stem", bias_initializer=learned), norm()], name=name)
    return pixels(low, high, backbone)


def photos(reshaped: bool, data_format: str = "channels_last") -> Case:
    """Return smooth images whose channels were moved by a reshape, or rightly, and a model for them."""
    coarse = np.random.default_rng(3).uniform(size=(16, 4, 4, 3))
    large = coarse.repeat(8, 1).repeat(8, 2)
    smooth = np.mean([np.roll(large, shift, axis=(1, 2)) for shift in range(8)], axis=0).astype("float32")
    first = np.moveaxis(smooth, -1, 1)
    is_last = data_format == "channels_last"
    images = (first if is_last else smooth).reshape((smooth if is_last else first).shape)
    images = images if reshaped else smooth if is_last else first
    inputs = keras.Input(images.shape[1:])
    x = norm(axis=-1 if is_last else 1)(conv("stem", data_format=data_format)(inputs))
    x = layers.GlobalAveragePooling2D(data_format=data_format)(x)
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(x), name="model"), (images, np.arange(16) % CLASSES))


SPARSE = keras.losses.SparseCategoricalCrossentropy
_GOOD = {"depthwise_initializer": keras.initializers.RandomNormal(stddev=1 / 3), "pointwise_initializer": "he_normal"}
_IN_ORDER = np.arange(64) % CLASSES

FAULTS = [
    Fault("depthwise fan-in", lambda: separable(6, norms=False), lambda: separable(6, norms=True)),
    Fault("depthwise fan-in", lambda: separable(3, norms=False), lambda: separable(3, norms=False, **_GOOD)),
    Fault("separable without normalisation", lambda: separable(6, norms=False), lambda: separable(6, norms=True)),
    Fault("separable without normalisation", lambda: separable(6, norms=False), lambda: separable(6, False, **_GOOD)),
    Fault(
        "pointwise kernel of one channel",
        lambda: pointwise(False, "ones"),
        lambda: pointwise(True, "he_normal"),
        ("pointwise",),
    ),
    Fault("frozen pointwise kernel", lambda: pointwise(False, "he_normal"), lambda: pointwise(True, "he_normal")),
    Fault(
        "multiplier of 1 on few channels",
        lambda: Case(chain(layers.SeparableConv2D(12, 3, name="first"), norm())),
        lambda: Case(chain(layers.SeparableConv2D(12, 3, depth_multiplier=8, name="first"), norm())),
        ("first",),
    ),
    Fault("groups that never meet", row, lambda: row(ChannelShuffle(3)), ("first", "second")),
    Fault("groups that never meet", row, lambda: row(layers.Conv2D(12, 1))),
    Fault("groups that never meet", lambda: row(norm("between")), lambda: row(by_hand(3))),
    Fault("sum of a channel's own filters", lambda: summed(-1), lambda: summed(-2), ("depthwise",)),
    Fault(
        "shuffle of nothing",
        lambda: row(ChannelShuffle(1, name="shuffle")),
        lambda: row(ChannelShuffle(3)),
        ("shuffle",),
    ),
    Fault("shuffle of nothing", lambda: row(by_hand(12)), lambda: row(by_hand(3))),
    Fault(
        "shuffle undone",
        lambda: row(ChannelShuffle(3), layers.ReLU(), ChannelShuffle(4, name="back")),
        lambda: row(ChannelShuffle(3), layers.ReLU(), ChannelShuffle(3, name="on")),
        ("back",),
    ),
    Fault("channels on another axis", lambda: first_axis((3, 12, 12)), lambda: first_axis((12, 12, 3)), ("stem",)),
    Fault("channels on another axis", lambda: turned((3, 12, 12)), lambda: turned((12, 12, 3))),
    Fault("images of another shape", lambda: turned((6, 24, 3)), lambda: turned((12, 12, 3))),
    Fault("dead units", lambda: rectified(-100.0), lambda: rectified(0.0), ("dead",)),
    Fault("saturated units", lambda: gated(20.0), lambda: gated(0.05), ("gate",)),
    Fault("vanishing signal", lambda: deep(0.005), lambda: deep(0.14)),
    Fault("exploding signal", lambda: deep(2.0), lambda: deep(0.14)),
    Fault("numbers that are not finite", lambda: deep(1e9), lambda: deep(0.14)),
    Fault("vanishing gradient", lambda: deep(0.14, "sigmoid"), lambda: deep(0.14)),
    Fault("exploding gradient", lambda: deep(3.0), lambda: deep(0.14)),
    Fault("no gradient", lambda: stopped(True), lambda: stopped(False), ("first",)),
    Fault("batch norm of one image", lambda: batches(1), lambda: batches(8), ("norm",)),
    Fault("batch norm that does not normalise", lambda: normed(False), normed, ("norm",)),
    Fault("batch norm that does not normalise", lambda: normed(trainable=False), normed, ("norm",)),
    Fault("batch norm that always trains", lambda: normed(True), normed, ("norm",)),
    Fault("momentum of another convention", lambda: normed(momentum=0.1), lambda: normed(momentum=0.9), ("norm",)),
    Fault("epsilon larger than the variances", lambda: small(1e-4), lambda: small(0.1), ("norm",)),
    Fault("images not normalised", lambda: pixels(0, 255), lambda: pixels(0, 1)),
    Fault("images not normalised", lambda: pixels(0, 255), lambda: pixels(-124, 151)),
    Fault("images not normalised", lambda: pixels(0, 255), lambda: pixels(0, 255, layers.Rescaling(1 / 255))),
    Fault(
        "images normalised twice",
        lambda: pixels(0, 1, layers.Rescaling(1 / 255)),
        lambda: pixels(0, 255, layers.Rescaling(1 / 255)),
    ),
    Fault("images normalised twice", lambda: pixels(0, 1 / 255), lambda: pixels(0, 1)),
    Fault("images not normalised", lambda: application(0, 255, "xception"), lambda: application(-1, 1, "xception")),
    Fault("images prepared otherwise", lambda: application(0, 255), lambda: application(6, 151)),
    Fault("images prepared otherwise", lambda: application(0, 1), lambda: application(-124, 151)),
    Fault("images prepared otherwise", lambda: application(0, 1, "xception"), lambda: application(0.1, 1, "xception")),
    Fault("images prepared otherwise", lambda: application(-124, 151, "densenet121"), lambda: application(-124, 151)),
    Fault("channels reshaped, not moved", lambda: photos(True), lambda: photos(False)),
    Fault(
        "channels reshaped, not moved",
        lambda: photos(True, "channels_first"),
        lambda: photos(False, "channels_first"),
    ),
    Fault("images all alike", lambda: pixels(0.5, 0.5), lambda: pixels(0, 1)),
    Fault("softmax twice", lambda: head("softmax", SPARSE(from_logits=True)), lambda: head("softmax", SPARSE())),
    Fault(
        "softmax twice",
        lambda: head("softmax", SPARSE(), layers.Softmax(name="again")),
        lambda: head(None, SPARSE(), layers.Softmax(name="once")),
        ("again",),
    ),
    Fault("softmax twice", nested_softmax, lambda: head("softmax", SPARSE())),
    Fault(
        "logits taken for probabilities",
        lambda: head(None, "sparse_categorical_crossentropy"),
        lambda: head("softmax", "sparse_categorical_crossentropy"),
    ),
    Fault("labels shifted by one", lambda: labelled(_IN_ORDER + 1), lambda: labelled(_IN_ORDER)),
    Fault("head of another number of classes", lambda: labelled(_IN_ORDER, units=3), lambda: labelled(_IN_ORDER)),
    Fault(
        "head of another number of classes",
        lambda: labelled(np.eye(CLASSES)[_IN_ORDER], units=3),
        lambda: labelled(_IN_ORDER),
    ),
    Fault("one class alone", lambda: labelled(np.full(64, 2)), lambda: labelled(_IN_ORDER)),
    Fault("labels of other images", lambda: learned([0.24, 0.26, 0.25]), lambda: learned([0.3, 0.6, 0.9])),
    Fault("labels that pixels do not tell", lambda: many(True), lambda: many(False)),
    Fault("learning rate too large", lambda: rated(1e3), lambda: rated(0.05)),
    Fault("learning rate too small", lambda: rated(1e-7), lambda: rated(0.05)),
    Fault("trainable set after compile", lambda: flagged(True), lambda: flagged(False), ("stem",)),
]
