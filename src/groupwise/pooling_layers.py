"""Keras's pooling layers with explicit padding, and the core where it pools faster."""

from typing import Any

import keras
from keras import ops

from groupwise import backends, pooling
from groupwise.spec import ConvSpec, normalise_padding, stock_padding

_register = keras.saving.register_keras_serializable("groupwise")


class _Pooling2D:
    """What the two pooling layers share: explicit padding with a constant, then "valid" pooling."""

    kind: str
    fill: float

    def __init__(self, pool_size: Any = (2, 2), strides: Any = None, padding: object = "valid", **kwargs: Any) -> None:
        super().__init__(pool_size, strides, stock_padding(padding), **kwargs)  # type: ignore[call-arg]
        padding = normalise_padding(padding)
        self.explicit = None if isinstance(padding, str) else padding

    def _padding(self: Any) -> Any:
        none = ((0, 0), (0, 0))
        sides = self.explicit or none
        return (none[0], *sides, none[0]) if self.data_format == "channels_last" else (*none, *sides)

    def call(self: Any, inputs: Any) -> Any:
        if self.explicit is not None:
            inputs = ops.pad(inputs, self._padding(), constant_values=self.fill)
        if backends.active.pool is None or self.padding != "valid" or self.data_format != "channels_last":
            return super().call(inputs)  # type: ignore[misc]
        return backends.active.pool(ops.convert_to_tensor(inputs), self.kind, self.pool_size, self.strides)

    def compute_output_shape(self: Any, input_shape: Any) -> Any:
        padded = [None if n is None else n + sum(p) for n, p in zip(input_shape, self._padding(), strict=True)]
        return super().compute_output_shape(tuple(padded))  # type: ignore[misc]

    def get_config(self: Any) -> dict[str, Any]:
        config = super().get_config()  # type: ignore[misc]
        return {**config, "padding": self.explicit or config["padding"]}


@_register
class MaxPooling2D(_Pooling2D, keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` that also takes explicit padding, never chosen as the maximum."""

    kind, fill = "max", float("-inf")

    def call(self, inputs: Any) -> Any:
        inputs, pool = ops.convert_to_tensor(inputs), backends.active.max_pool
        spec = self._core_spec(inputs)
        return super().call(inputs) if pool is None or spec is None else pool(inputs, spec)

    def _core_spec(self, inputs: Any) -> ConvSpec | None:
        """Return what the core is to pool; None where it cannot, or is not there."""
        known = self.data_format == "channels_last" and None not in inputs.shape
        if not known or not backends.active.runtime(inputs).core:
            return None
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        padding = self.explicit or self.padding
        spec = pooling.window(tuple(inputs.shape), self.pool_size, self.strides, padding, dtype)
        return spec if pooling.is_supported(spec) else None


@_register
class AveragePooling2D(_Pooling2D, keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D` that also takes explicit padding, whose zeros count (PyTorch's default).

    "same" padding does not count, on any backend: Keras's own on PyTorch repeats the edge of images of odd sizes.
    """

    kind, fill = "average", 0.0

    def call(self, inputs: Any) -> Any:
        if self.padding != "same" or keras.backend.backend() != "torch":
            return super().call(inputs)
        inputs = ops.convert_to_tensor(inputs)
        axes = (1, 2) if self.data_format == "channels_last" else (2, 3)
        sides = [(0, 0)] * 4
        for axis, size, stride in zip(axes, self.pool_size, self.strides, strict=True):
            length = int(inputs.shape[axis])  # traced for ONNX, -length // stride would be rounded up
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            sides[axis] = (total // 2, total - total // 2)
        options = {"strides": self.strides, "padding": "valid", "data_format": self.data_format}
        counts = ops.average_pool(ops.pad(ops.ones_like(inputs[:1]), sides), self.pool_size, **options)
        return ops.average_pool(ops.pad(inputs, sides), self.pool_size, **options) / counts
