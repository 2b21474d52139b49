"""Keras layers that override only the operation: drop-ins for Keras's own, plus explicit padding.

Arguments, weights' shapes and their order are Keras's: `get_weights` and `set_weights` interchange. `padding` also
takes `((top, bottom), (left, right))`, and `algorithm` names how the convolution is computed (`groupwise.ops`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
from keras import ops

from groupwise import backends
from groupwise.algorithms import finish
from groupwise.batch_norm import CORE_ACTIVATIONS
from groupwise.batch_norm import BatchNormalization as BatchNormalization
from groupwise.hdf5 import check_hdf5
from groupwise.ops import (
    channel_shuffle,
    checked_algorithm,
    checked_data_format,
    depthwise_conv2d,
    grouped_conv2d,
    separable_conv2d,
)
from groupwise.permuting import PermuteChannels as PermuteChannels
from groupwise.pooling_layers import AveragePooling2D as AveragePooling2D
from groupwise.pooling_layers import MaxPooling2D as MaxPooling2D
from groupwise.spec import ConvSpec, Padding, normalise_padding, stock_padding
from groupwise.sums import accumulator, mean

Shape = tuple[int | None, ...]
_register = keras.saving.register_keras_serializable("groupwise")


class _Convolution2D:
    """What the three convolution layers share: explicit padding, the algorithm's name, what follows, output shapes."""

    padding: Padding
    algorithm: str

    def _set_padding(self: Any, padding: object, algorithm: str) -> None:
        self.padding, self.algorithm = normalise_padding(padding), checked_algorithm(algorithm)
        if not backends.xla_compiles():
            # Keras then runs the model without XLA, and says so.
            self.supports_jit = False

    def _options(self) -> dict[str, Any]:
        names = ("strides", "padding", "dilation_rate", "data_format", "algorithm")
        return {name: getattr(self, name) for name in names}

    def _run(self: Any, operation: Callable[..., Any], residual: Any, then: str | None, zeros: Any) -> Any:
        """Return activation(`operation` + bias + residual), in one call where the operation knows the activation."""
        activation = then or CORE_ACTIVATIONS.get(self.activation)
        options = {**self._options(), **({} if zeros is None else {"padding": zeros})}
        bias = self.bias if self.use_bias else None
        outputs = operation(**options, bias=bias, residual=residual, activation=activation)
        return outputs if activation or self.activation is None else self.activation(outputs)

    def compute_output_shape(self: Any, input_shape: Shape) -> Shape:
        first = self.data_format == "channels_first"
        batch, *rest = input_shape
        height, width, channels = (*rest[1:], rest[0]) if first else rest
        assert channels is not None  # Keras's layers refuse unknown channels before this
        filters = getattr(self, "filters", None) or channels * self.depth_multiplier
        groups = getattr(self, "groups", 1)
        spec = ConvSpec.of(
            (batch, height, width, channels),
            (*self.kernel_size, channels // groups, filters),
            groups,
            self.strides,
            self.padding,
            self.dilation_rate,
        )
        batch, height, width, filters = spec.output_shape
        return (batch, filters, height, width) if first else (batch, height, width, filters)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return {**config, "algorithm": self.algorithm}


def _finish(outputs: Any, bias: Any, residual: Any, activation: str | None, data_format: str, **_: Any) -> Any:
    """Return what follows a convolution that is computed already."""
    if bias is not None:
        bias = ops.reshape(bias, (1, -1, 1, 1) if data_format == "channels_first" else (1, 1, 1, -1))
    return finish(outputs, bias, residual, activation or "linear")


@_register
class GroupedConv2D(_Convolution2D, keras.layers.Conv2D):
    """`keras.layers.Conv2D`, whose grouped form never goes through a forced XLA compilation.

    Args:
        padding: "same", "valid" or ((top, bottom), (left, right)).
        algorithm: as for `groupwise.ops.grouped_conv2d`.
        All other arguments: Keras's, with their defaults.

    Shapes: (batch, height, width, channels) to (batch, out height, out width, filters); channels first likewise. `call`
    also takes `residual`, of the outputs' shape, or None: activation(convolution + bias + residual). With ReLU, ReLU6
    or no activation the C core computes it in one call. For one call, `then` ("relu", "relu6") stands for a layer's own
    linear activation, and `zeros`, ((top, bottom), (left, right)), for its padding.

    Raises:
        ValueError: where groups does not divide the channels, or an argument is not one of its values.

    Examples:
        >>> GroupedConv2D(128, 3, groups=32, padding=((1, 1), (1, 1))).compute_output_shape((16, 56, 56, 128))
        (16, 56, 56, 128)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: object = "valid",
        *args: Any,
        algorithm: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, strides, stock_padding(padding), *args, **kwargs)
        self._set_padding(padding, algorithm)

    def call(self, inputs: Any, residual: Any = None, then: str | None = None, zeros: Any = None) -> Any:
        if type(self).convolution_op is GroupedConv2D.convolution_op:
            return self._run(partial(grouped_conv2d, inputs, self.kernel, self.groups), residual, then, zeros)
        # A subclass's own, as Keras's documentation shows it for weight standardisation.
        return self._run(partial(_finish, self.convolution_op(inputs, self.kernel)), residual, then, None)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return grouped_conv2d(inputs, kernel, self.groups, **self._options())


@_register
class DepthwiseConv2D(_Convolution2D, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with explicit padding and a choice of algorithm.

    Args, shapes and errors: Keras's; `padding`, `algorithm` and `residual` as for `GroupedConv2D`. Output channel
    `q * depth_multiplier + r` is filter r of input channel q. The default initialiser is Keras's, whose fan-in is
    kh * kw * channels where the truth is kh * kw; pass `depthwise_initializer=DepthwiseHeNormal()` for the truth.

    Examples:
        >>> DepthwiseConv2D(3, depth_multiplier=2, padding="same").compute_output_shape((1, 8, 8, 3))
        (1, 8, 8, 6)
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: object = "valid",
        *args: Any,
        algorithm: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(kernel_size, strides, stock_padding(padding), *args, **kwargs)
        self._set_padding(padding, algorithm)

    def call(self, inputs: Any, residual: Any = None, then: str | None = None, zeros: Any = None) -> Any:
        return self._run(partial(depthwise_conv2d, inputs, self.kernel), residual, then, zeros)


@_register
class SeparableConv2D(_Convolution2D, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with explicit padding and a choice of algorithm; any depth multiplier.

    Args, shapes and errors: Keras's; `padding` as for `GroupedConv2D`, for the depthwise step; `algorithm` likewise,
    for both steps; `residual` after the second.

    Examples:
        >>> SeparableConv2D(4, 3, depth_multiplier=4).compute_output_shape((1, 8, 8, 3))
        (1, 6, 6, 4)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: object = "valid",
        *args: Any,
        algorithm: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, strides, stock_padding(padding), *args, **kwargs)
        self._set_padding(padding, algorithm)

    def call(self, inputs: Any, residual: Any = None, then: str | None = None, zeros: Any = None) -> Any:
        operation = partial(separable_conv2d, inputs, self.depthwise_kernel, self.pointwise_kernel)
        return self._run(operation, residual, then, zeros)


@_register
class ChannelShuffle(keras.layers.Layer):
    """ShuffleNet's channel shuffle as a layer: `groupwise.ops.channel_shuffle`.

    Args:
        groups: a divisor of the channels. inverse: whether to undo the shuffle.
        data_format: "channels_last", "channels_first" or None for Keras's setting.

    Examples:
        >>> ChannelShuffle(3).compute_output_shape((1, 28, 28, 240))
        (1, 28, 28, 240)
    """

    def __init__(self, groups: int, inverse: bool = False, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups, self.inverse = groups, inverse
        self.data_format = checked_data_format(data_format)

    def call(self, inputs: Any) -> Any:
        return channel_shuffle(inputs, self.groups, self.inverse, self.data_format)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        own = {"groups": self.groups, "inverse": self.inverse, "data_format": self.data_format}
        return {**super().get_config(), **own}


def reduced_width(channels: int, ratio: int, divisor: int = 1) -> int:
    """Return channels / ratio, rounded to the nearest multiple of `divisor` (halves up) and at least one of it.

    Examples:
        >>> reduced_width(64, 16), reduced_width(64, 16, divisor=8)
        (4, 8)
    """
    return max(divisor, (2 * channels + divisor * ratio) // (2 * divisor * ratio) * divisor)


class _Dense(keras.layers.Dense):
    """A dense layer that computes in float32 where its policy says half, and in float64 on every framework.

    A bias's gradient is a sum over the batch, which bfloat16 would end at 256.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, autocast=False, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        wide = accumulator(self.compute_dtype)
        kernel, bias = (ops.cast(weight, wide) for weight in (self.kernel, self.bias))
        # Not ops.matmul, which on PyTorch makes float32 of float64.
        return self.activation(ops.cast(inputs, wide) @ kernel + bias)


@_register
class SqueezeExcite(keras.layers.Layer):
    """Weigh every channel by what the whole image says of it.

    Global average pool, 1x1 layer to channels / ratio, ReLU, 1x1 layer back, sigmoid, scale.

    Args:
        ratio: how many times narrower the middle is.
        divisor: the middle width is rounded to a multiple of it (timm: 8; the paper and others: 1).
        data_format: "channels_last", "channels_first" or None for Keras's setting.

    Shapes: (batch, height, width, channels) to the same.

    Source: Squeeze-and-Excitation Networks, arXiv 1709.01507, section 3.

    Examples:
        >>> SqueezeExcite(ratio=16).compute_output_shape((1, 56, 56, 256))
        (1, 56, 56, 256)
    """

    def __init__(self, ratio: int = 16, divisor: int = 1, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ratio < 1 or divisor < 1:
            raise ValueError(f"ratio={ratio}, divisor={divisor}: both must be at least 1")
        self.ratio, self.divisor = ratio, divisor
        self.data_format = checked_data_format(data_format)

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is None:
            raise ValueError(f"input shape {input_shape}: the channels must be known")
        width = reduced_width(channels, self.ratio, self.divisor)
        self.reduce = _Dense(width, activation="relu", name="reduce", dtype=self.dtype_policy)
        self.expand = _Dense(channels, activation="sigmoid", name="expand", dtype=self.dtype_policy)
        self.reduce.build((input_shape[0], channels))
        self.expand.build((input_shape[0], width))

    def call(self, inputs: Any) -> Any:
        spatial = (1, 2) if self.data_format == "channels_last" else (2, 3)
        # The weights' gradient is a sum over the image, in the type of the product.
        inputs = ops.cast(inputs, accumulator(self.compute_dtype))
        weights = self.expand(self.reduce(mean(inputs, spatial)))
        outputs = inputs * ops.expand_dims(ops.expand_dims(weights, spatial[0]), spatial[1])
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        own = {"ratio": self.ratio, "divisor": self.divisor, "data_format": self.data_format}
        return {**super().get_config(), **own}


@_register
class DepthwiseHeNormal(keras.initializers.HeNormal):
    """He's normal initialiser with a depthwise kernel's true fan-in, kh * kw.

    Keras takes kh * kw * channels, so that the first activations come out too small by the root of the channels.

    Source: arXiv 1502.01852, section 2.2.

    Examples:
        >>> tuple(DepthwiseHeNormal(seed=0)((3, 3, 16, 1)).shape)
        (3, 3, 16, 1)
    """

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        deviation = (2.0 / (shape[0] * shape[1])) ** 0.5
        return keras.random.normal(shape, stddev=deviation, dtype=dtype or keras.config.floatx(), seed=self.seed)


STOCK: dict[type, type] = {
    GroupedConv2D: keras.layers.Conv2D,
    DepthwiseConv2D: keras.layers.DepthwiseConv2D,
    SeparableConv2D: keras.layers.SeparableConv2D,
    MaxPooling2D: keras.layers.MaxPooling2D,
    AveragePooling2D: keras.layers.AveragePooling2D,
}
"""Each drop-in and the Keras layer that it stands for."""


def load_keras_weights(model: keras.Model, path: Any) -> None:
    """Load a `.weights.h5` that a stock Keras model wrote into its twin made of our layers.

    Keras keys that file by class name, so a Conv2D's weights do not find a GroupedConv2D. They are loaded into a
    copy of `model` made of stock layers, and handed over.

    Args:
        model: functional or sequential, of the architecture that wrote the file.
        path: the `.weights.h5` file.

    Raises:
        ValueError: where the file's weights do not fit the model, or lie in other files.
    """
    with h5py.File(path, "r") as file:
        check_hdf5(Path(path), file)
    twin = keras.models.clone_model(model, clone_function=stock_twin, recursive=True)
    twin.load_weights(path)
    model.set_weights(twin.get_weights())


def stock_twin(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a fresh layer of Keras's own in place of one of ours: a `clone_function` for `clone_model`.

    Its weights have the same shapes; explicit padding, which Keras does not have, becomes "same". A batch norm keeps
    its residual and activation, but runs Keras's own operations; a convolution's twin takes no residual.
    """
    stock: Any = STOCK.get(type(layer))
    config = layer.get_config()
    if isinstance(layer, BatchNormalization):
        return BatchNormalization.from_config({**config, "fused": False})
    if stock is None:
        return layer.__class__.from_config(config)
    config.pop("algorithm", None)
    if "padding" in config:
        # Keras knows no explicit padding; without any, a small image could become empty.
        config["padding"] = "same"
    return stock.from_config(config)
