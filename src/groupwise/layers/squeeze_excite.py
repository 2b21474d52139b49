"""Squeeze-and-excitation, as a Keras layer."""

from typing import Any

import keras
from keras import ops

from groupwise.backends.sums import accumulator, mean
from groupwise.ops.arguments import checked_data_format

Shape = tuple[int | None, ...]


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


@keras.saving.register_keras_serializable("groupwise")
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
