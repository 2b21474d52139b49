"""The pieces of drawn models: a table of layers, and a table of steps of several calls. All take any image."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import groupwise.layers
from tests import drawn_parts as parts

CHANNELS = (4, 8)
_WITHOUT_WEIGHTS = ("relu", "pad", "pool", "add", "concatenate", "rescaling")


@dataclass(frozen=True)
class Step:
    """One piece of a model, drawn anew from its own seed, so that it stays what it is when others are left out."""

    kind: str
    seed: int
    inner: tuple["Step", ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.inner))})" if self.inner else self.kind


@dataclass
class Maker:
    """What the steps of one graph share.

    Attributes:
        random: of the step at work.
        habits: what is drawn into layers: "regularised", "constrained", "mixed" (a type of its own), "named".
        seen: the images that were made before, for skip connections. sides: those that become outputs too.
    """

    habits: frozenset[str]
    random: Random = field(default_factory=Random)
    seen: list[Any] = field(default_factory=list)
    sides: list[Any] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)

    def name(self, kind: str) -> str:
        """Return a name that no other layer of the graph has."""
        self._names[kind] = self._names.get(kind, 0) + 1
        return f"{kind}_no{self._names[kind]}"

    def common(self, kind: str) -> dict[str, Any]:
        """Return a layer's name, perhaps, and its type where it has one of its own."""
        drawn: dict[str, Any] = {}
        if "named" in self.habits or self.random.random() < 0.3:
            drawn["name"] = self.name(kind)
        if "mixed" in self.habits and self.random.random() < 0.3:
            choices = ["float32", "float32", keras.config.dtype_policy().name]
            drawn["dtype"] = self.random.choice(choices)
        if "mixed" in self.habits and kind in _WITHOUT_WEIGHTS and self.random.random() < 0.2:
            drawn["autocast"] = False
        return drawn

    def weighted(self, kind: str, *weights: str) -> dict[str, Any]:
        """Return `common` with regularizers and constraints for the weights that are named."""
        drawn = self.common(kind)
        pick = self.random
        for weight in weights:
            if "regularised" in self.habits and pick.random() < 0.5:
                drawn[f"{weight}_regularizer"] = _penalty(pick)
            if "constrained" in self.habits and pick.random() < 0.3:
                drawn[f"{weight}_constraint"] = pick.choice(["max_norm", "non_neg", "unit_norm"])
        if "regularised" in self.habits and kind != "norm" and _has_one_type() and pick.random() < 0.25:
            drawn["activity_regularizer"] = pick.choice(["l1", "l2"])
        return drawn

    def convolution(self, kind: str, *kernels: str) -> dict[str, Any]:
        """Return `weighted` with what all convolutions take."""
        drawn = self.weighted(kind, *kernels, "bias")
        drawn["use_bias"] = self.random.random() < 0.6
        drawn["activation"] = self.random.choice([None, None, None, "relu", "relu6", "tanh"])
        return drawn

    def window(self, x_shape: Any) -> dict[str, Any]:
        """Return a kernel size with strides, dilation and padding that leave something of the image."""
        pick, is_large = self.random, _is_large(x_shape)
        size = pick.choice([1, 3, 3, 3])
        strides = pick.choice([1, 1, 1, 2]) if is_large else 1
        dilation = pick.choice([1, 1, 2]) if size == 3 and strides == 1 else 1
        if keras.backend.backend() == "tensorflow" and keras.config.dtype_policy().name == "float64":
            dilation = 1  # of which TensorFlow has no gradient on a CPU
        padding = pick.choice(["same", "valid"]) if is_large and dilation == 1 else "same"
        return {"kernel_size": size, "strides": strides, "dilation_rate": dilation, "padding": padding}


def _penalty(pick: Random) -> Any:
    return pick.choice(["l2", "l1", keras.regularizers.L1L2(1e-3, 1e-2), parts.LogarithmicPenalty()])


def _is_large(shape: Any) -> bool:
    return all(size is not None and size >= 5 for size in shape[1:3])


def conv(make: Maker, shape: Any) -> Any:
    settings = make.convolution("conv", "kernel")
    filters, groups = make.random.choice(CHANNELS), make.random.choice([1, 1, 1, 2, 2, 4])
    kind = parts.DoubledConvolution if make.random.random() < 0.08 else layers.Conv2D
    if make.random.random() < 0.1:
        kind = groupwise.layers.GroupedConv2D
    return kind(filters, groups=groups, **make.window(shape), **settings)


def depthwise(make: Maker, shape: Any) -> Any:
    settings = make.convolution("depthwise", "depthwise")
    multiplier = make.random.choice([1, 2]) if shape[-1] == CHANNELS[0] else 1
    return layers.DepthwiseConv2D(depth_multiplier=multiplier, **make.window(shape), **settings)


def separable(make: Maker, shape: Any) -> Any:
    settings = make.convolution("separable", "depthwise", "pointwise")
    filters, multiplier = make.random.choice(CHANNELS), make.random.choice([1, 2])
    return layers.SeparableConv2D(filters, depth_multiplier=multiplier, **make.window(shape), **settings)


def norm(make: Maker, shape: Any) -> Any:
    pick = make.random
    settings = make.weighted("norm", "gamma", "beta")
    drawn = {"scale": pick.random() < 0.8, "center": pick.random() < 0.8, "momentum": pick.choice([0.99, 0.9])}
    kind = parts.ShiftedNormalization if pick.random() < 0.06 else layers.BatchNormalization
    axis = pick.choice([-1, -1, -1, 3] + [1] * (shape[1] is not None))
    return kind(axis=axis, epsilon=pick.choice([1e-3, 1e-2]), **drawn, **settings)


def relu(make: Maker, shape: Any) -> Any:
    pick = make.random
    choices: list[Callable[..., Any]] = [
        layers.ReLU,
        layers.ReLU,
        lambda **common: layers.ReLU(6.0, **common),
        lambda **common: layers.Activation("relu", **common),
        lambda **common: layers.Activation("relu6", **common),
        lambda **common: layers.ReLU(negative_slope=0.1, **common),
        layers.LeakyReLU,
    ]
    common = make.common("relu")
    if "regularised" in make.habits and _has_one_type() and pick.random() < 0.2:
        common["activity_regularizer"] = "l2"
    return pick.choice(choices)(**common)


def _has_one_type() -> bool:
    """Return whether all losses come in one type: TensorFlow cannot add them up otherwise."""
    return keras.config.dtype_policy().name == "float32"


def pad(make: Maker, shape: Any) -> Any:
    return layers.ZeroPadding2D(make.random.choice([1, ((0, 1), (0, 1)), ((1, 0), (2, 1))]), **make.common("pad"))


def pool(make: Maker, shape: Any) -> Any:
    kind = make.random.choice([layers.MaxPooling2D, layers.AveragePooling2D])
    strides = 2 if _is_large(shape) else 1
    return kind(make.random.choice([2, 3]), strides, padding="same", **make.common("pool"))


def noise(make: Maker, shape: Any) -> Any:
    pick, common = make.random, make.common("noise")
    seed = pick.choice([None, 3, 11])
    if pick.random() < 0.3:
        return layers.RandomFlip("horizontal", seed=seed, **common)
    kind = pick.choice([layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise])
    return kind(0.3, seed=seed, **common)


def rescaling(make: Maker, shape: Any) -> Any:
    common = make.common("rescaling")
    if make.random.random() < 0.5:
        return layers.Rescaling(0.5, offset=0.1, **common)
    layer = layers.Normalization(**common)
    layer.adapt(np.random.default_rng(make.random.randrange(1000)).normal(0.3, 2, (5, 3, 3, shape[-1])))
    return layer


def remembering(make: Maker, shape: Any) -> Any:
    layer = parts.Remembering(**make.common("remembering"))
    layer.adapt(np.random.default_rng(make.random.randrange(1000)).normal(size=shape[-1]))
    return layer


def penalised(make: Maker, shape: Any) -> Any:
    return parts.Penalised(make.random.choice([0.1, 0.5]), **make.common("penalised"))


def block(make: Maker, shape: Any) -> Any:
    common = make.common("block")
    if make.random.random() < 0.4:
        return parts.LateBlock(**common)
    return parts.Block(make.random.choice(CHANNELS), make.random.choice([1, 2]), **common)


def squeeze(make: Maker, shape: Any) -> Any:
    return groupwise.layers.SqueezeExcite(2, **make.common("squeeze"))


def wrapped(make: Maker, shape: Any) -> Any:
    inner = layers.Conv2D(make.random.choice(CHANNELS), 3, padding="same", groups=make.random.choice([1, 2]))
    return layers.SpectralNormalization(inner, **make.common("spectral"))


def other(make: Maker, shape: Any) -> Any:
    """A layer that no rewrite knows."""
    pick, common = make.random, make.common("other")
    choices: list[Callable[[], Any]] = [
        lambda: layers.LayerNormalization(**common),
        lambda: layers.GroupNormalization(2, **common),
        lambda: layers.PReLU(shared_axes=[1, 2], **common),
        lambda: layers.Conv2DTranspose(CHANNELS[0], 3, padding="same", **common),
        lambda: layers.Resizing(8, 6, **common),
        lambda: layers.Cropping2D(((0, 1), (1, 0)) if _is_large(shape) else 0, **common),
    ]
    return pick.choice(choices)()


LAYERS: dict[str, tuple[int, Callable[[Maker, Any], Any]]] = {
    "conv": (12, conv),
    "depthwise": (6, depthwise),
    "separable": (5, separable),
    "norm": (10, norm),
    "relu": (10, relu),
    "pad": (3, pad),
    "pool": (4, pool),
    "noise": (2, noise),
    "rescaling": (2, rescaling),
    "remembering": (1, remembering),
    "penalised": (2, penalised),
    "block": (3, block),
    "squeeze": (1, squeeze),
    "wrapped": (1, wrapped),
    "other": (3, other),
}
"""Single layers: how often, and how they are made for an image's shape."""


def single(make: Maker, kind: str, x: Any) -> Any:
    """Return what a fresh layer makes of an image."""
    return LAYERS[kind][1](make, x.shape)(x)


def unit(make: Maker, x: Any) -> Any:
    """Convolution, batch norm, activation, of which one may be left out."""
    kinds = [make.random.choice(["conv", "conv", "depthwise", "separable"]), "norm", "relu"]
    if make.random.random() < 0.4:
        kinds.pop(make.random.randrange(3))
    for kind in kinds:
        x = single(make, kind, x)
    return x


def residual(make: Maker, x: Any) -> Any:
    """A branch added to its input, in the ways that people write it, with a ReLU after it."""
    y, x = _narrow(make, x), _narrow(make, x)
    if make.random.random() < 0.7:
        y = layers.BatchNormalization(**make.weighted("norm", "gamma"))(y)
    adds: list[Callable[[Any, Any], Any]] = [
        lambda a, b: layers.Add(**make.common("add"))([a, b]),
        lambda a, b: layers.Add(**make.common("add"))([b, a]),
        lambda a, b: a + b,
        lambda a, b: ops.add(b, a),
    ]
    if x.dtype != y.dtype:
        x = ops.cast(x, y.dtype)
    y = make.random.choice(adds)(y, x)
    ends: list[Callable[[Any], Any]] = [ops.relu, ops.relu6, keras.activations.relu, lambda y: y]
    return make.random.choice([*ends, lambda y: single(make, "relu", y), lambda y: single(make, "relu", y)])(y)


def _narrow(make: Maker, x: Any, **options: Any) -> Any:
    return layers.Conv2D(CHANNELS[0], 3, padding="same", **{**make.weighted("conv", "kernel"), **options})(x)


def padded(make: Maker, x: Any) -> Any:
    """An image padded, then a convolution without padding."""
    if not _is_large(x.shape):
        return single(make, "conv", x)
    return layers.Conv2D(CHANNELS[1], 3, make.random.choice([1, 2]), **make.weighted("conv", "kernel"))(
        single(make, "pad", x)
    )


def sliced(make: Maker, x: Any) -> Any:
    """A grouped convolution by hand: slices, an equal convolution for each, a concatenation."""
    count, pick = 2, make.random
    width, is_strided, with_norms = x.shape[-1] // count, pick.random() < 0.3, pick.random() < 0.4
    slices = [x[..., i::count] if is_strided else x[..., i * width : (i + 1) * width] for i in range(count)]
    if not is_strided and pick.random() < 0.3:
        slices = list(ops.split(x, count, axis=-1))
    settings = {name: value for name, value in make.weighted("branch", "kernel").items() if name != "name"}
    ends = [layers.Conv2D(CHANNELS[0], 3, padding="same", **settings)(part) for part in slices]
    if with_norms:
        ends = [layers.BatchNormalization()(end) for end in ends]
    return layers.Concatenate(**make.common("concatenate"))(ends)


def summed(make: Maker, x: Any) -> Any:
    """A grouped convolution by hand: a depthwise one, a reshape and a sum; the groups contiguous or strided."""
    multiplier, groups, pick = 2, 2, make.random
    height, width, channels = x.shape[1:]
    if height is None:
        return single(make, "depthwise", x)
    settings = make.weighted("depthwise", "depthwise", "bias")
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=multiplier, **settings)(x)
    if pick.random() < 0.5:
        y = layers.Reshape((height, width, groups, channels // groups, multiplier))(y)
        return layers.Reshape((height, width, groups * multiplier))(ops.sum(y, axis=4))
    return ops.sum(layers.Reshape((height, width, channels // groups, groups * multiplier))(y), axis=3)


def paths(make: Maker, x: Any) -> Any:
    """A ResNeXt block in form a, b or c."""
    form, width, groups = make.random.choice("abc"), CHANNELS[0], 2
    options = {"use_bias": False, "kernel_regularizer": "l2" if "regularised" in make.habits else None}
    prefix = make.name("paths")
    suffixes = [""] if form == "c" else [f"_path{i + 1}" for i in range(groups)]
    ends = []
    for suffix in suffixes:
        own = width // len(suffixes)
        y = layers.Conv2D(own, 1, name=f"{prefix}_reduce{suffix}", **options)(x)
        y = layers.ReLU()(layers.BatchNormalization(name=f"{prefix}_norm{suffix}")(y))
        y = layers.Conv2D(own, 3, padding="same", groups=groups // len(suffixes), **options)(y)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        ends.append(layers.Conv2D(width, 1, name=f"{prefix}_expand{suffix}", **options)(y) if form == "a" else y)
    joined = ends[0] if form == "c" else layers.Add()(ends) if form == "a" else layers.Concatenate()(ends)
    if form != "a":
        joined = layers.Conv2D(width, 1, name=f"{prefix}_expand", **options)(joined)
    return layers.BatchNormalization()(joined)


def skip(make: Maker, x: Any) -> Any:
    """A concatenation with an earlier image of the same size, as in a U-Net."""
    known = [old for old in make.seen if None not in old.shape[1:] and old is not x and old.dtype == x.dtype]
    fitting = [old for old in known if old.shape[1:3] == x.shape[1:3]]
    if not fitting:
        up = layers.UpSampling2D(2)(x) if x.shape[1] is None or x.shape[1] < 8 else x
        return single(make, "conv", up)
    return _narrow(make, layers.Concatenate(**make.common("concatenate"))([make.random.choice(fitting), x]))


def shared(make: Maker, x: Any) -> Any:
    """Layers that are called twice."""
    channels = x.shape[-1]
    convolution = layers.Conv2D(channels, 3, padding="same", groups=2, **make.weighted("shared", "kernel"))
    after = [LAYERS[kind][1](make, x.shape) for kind in make.random.sample(["norm", "relu"], make.random.randint(0, 2))]
    for _ in range(2):
        x = convolution(x)
        for layer in after:
            x = layer(x)
    return x


def side(make: Maker, x: Any) -> Any:
    """An image that is an output too."""
    make.sides.append(x)
    return x


def over_time(make: Maker, x: Any) -> Any:
    """A convolution for each of several images, by a wrapper of Keras's."""
    if x.shape[1] is None:
        return x
    inner = layers.Conv2D(x.shape[-1], 3, padding="same", groups=2, **make.weighted("conv", "kernel"))
    y = layers.TimeDistributed(inner, **make.common("time"))(layers.Reshape((1, *x.shape[1:]))(x))
    return layers.Reshape(y.shape[2:])(y)


GRAPHS: dict[str, tuple[int, Callable[[Maker, Any], Any]]] = {
    "unit": (14, unit),
    "residual": (8, residual),
    "padded": (3, padded),
    "sliced": (4, sliced),
    "summed": (4, summed),
    "paths": (3, paths),
    "skip": (3, skip),
    "shared": (3, shared),
    "side": (4, side),
    "over_time": (1, over_time),
}
"""Steps of several calls: how often, and what they make of an image."""
