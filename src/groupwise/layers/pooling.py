"""Keras's pooling layers with explicit padding, and the core where it pools faster."""

from typing import Any

import keras
import numpy as np
from keras import ops

from groupwise import backends
from groupwise.backends.sums import accumulator
from groupwise.core import pooling
from groupwise.spec import knows_sizes, normalise_padding, stock_padding

_register = keras.saving.register_keras_serializable("groupwise")

ALGORITHMS = ("auto", "native", "core")
_POOL = {"max": ops.max_pool, "average": ops.average_pool}
# A gradient that so few windows add to loses less than a unit of its type.
_FEW_WINDOWS = 4


def _to_last(images: Any) -> Any:
    return ops.transpose(images, (0, 2, 3, 1))


def _to_first(images: Any) -> Any:
    return ops.transpose(images, (0, 3, 1, 2))


def _lowest(dtype: str) -> float:
    """Return what is never chosen as the maximum before a number of the type."""
    return int(np.iinfo(dtype).min) if "int" in dtype else float("-inf")


class _Pooling2D:
    """What the two pooling layers share: padding with a constant, then "valid" pooling."""

    kind: str

    def __init__(
        self, pool_size: Any = (2, 2), strides: Any = None, padding: object = "valid", *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(pool_size, strides, stock_padding(padding), *args, **kwargs)  # type: ignore[call-arg]
        padding = normalise_padding(padding)
        self.explicit = None if isinstance(padding, str) else padding

    def _padding(self: Any) -> Any:
        none = ((0, 0), (0, 0))
        sides = self.explicit or none
        return (none[0], *sides, none[0]) if self.data_format == "channels_last" else (*none, *sides)

    def _pool(self: Any, inputs: Any) -> Any:
        if self.explicit is not None:
            fill = _lowest(keras.backend.standardize_dtype(inputs.dtype)) if self.kind == "max" else 0
            inputs = ops.pad(inputs, self._padding(), constant_values=fill)
        pool = backends.active.pool if self.padding == "valid" else backends.active.pool_same
        first = self.data_format == "channels_first"
        if pool is None or (first and self.padding == "valid"):
            return _POOL[self.kind](inputs, self.pool_size, self.strides, self.padding, self.data_format)
        outputs = pool(_to_last(inputs) if first else inputs, self.kind, self.pool_size, self.strides)
        return _to_first(outputs) if first else outputs

    def compute_output_shape(self: Any, input_shape: Any) -> Any:
        padded = [None if n is None else n + sum(p) for n, p in zip(input_shape, self._padding(), strict=True)]
        return super().compute_output_shape(tuple(padded))  # type: ignore[misc]

    def get_config(self: Any) -> dict[str, Any]:
        config = super().get_config()  # type: ignore[misc]
        return {**config, "padding": self.explicit or config["padding"]}


@_register
class MaxPooling2D(_Pooling2D, keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` that also takes explicit padding, never chosen as the maximum.

    All other arguments are Keras's, with their defaults.

    Args:
        padding: "same", "valid" or ((top, bottom), (left, right)).
        algorithm: "auto" (the C core where it can), "native" (the framework's own) or "core".

    Raises:
        ValueError: where an argument is not one of its values; for "core", in a call, where the core cannot pool.

    Examples:
        >>> MaxPooling2D(3, 2, ((1, 1), (1, 1))).compute_output_shape((8, 112, 112, 64))
        (8, 56, 56, 64)
    """

    kind = "max"

    def __init__(self, *args: Any, algorithm: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm={algorithm!r}: must be one of {', '.join(ALGORITHMS)}")
        self.algorithm = algorithm

    def call(self, inputs: Any) -> Any:
        inputs = ops.convert_to_tensor(inputs)
        objection = self._objection(inputs)
        if self.algorithm == "core" and objection is not None:
            raise ValueError(f'algorithm="core": {objection}; choose "auto" or "native"')
        last = self.data_format == "channels_last"
        if objection is None and (self.algorithm == "core" or (self.algorithm == "auto" and last)):
            return self._pool_in_core(inputs)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        (height, width), (down, right) = self.pool_size, self.strides
        windows = -(-height // down) * -(-width // right)
        if windows > _FEW_WINDOWS:
            inputs = ops.cast(inputs, accumulator(dtype))
        return ops.cast(self._pool(inputs), dtype)

    def _objection(self, inputs: Any) -> str | None:
        """Return why the core cannot pool these inputs, or None."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if backends.active.max_pool is None:
            return f"on {keras.backend.backend()} the C core does not pool"
        if not knows_sizes(inputs):
            return f"input shape {tuple(inputs.shape)}: the C core must know every size"
        runtime = backends.active.runtime(inputs)
        if runtime.accelerator is not None:
            return f"the C core computes on CPUs, and the inputs are on a {runtime.place}"
        if not runtime.core:
            return "the C core is not built, does not load here, or GROUPWISE_CORE is 0"
        return pooling.objection(self.pool_size, dtype)

    def _pool_in_core(self, inputs: Any) -> Any:
        assert backends.active.max_pool is not None
        first = self.data_format == "channels_first"
        inputs = _to_last(inputs) if first else inputs
        dtype, padding = keras.backend.standardize_dtype(inputs.dtype), self.explicit or self.padding
        spec = pooling.window(tuple(inputs.shape), self.pool_size, self.strides, padding, dtype)
        outputs = backends.active.max_pool(inputs, spec)
        return _to_first(outputs) if first else outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "algorithm": self.algorithm}


@_register
class AveragePooling2D(_Pooling2D, keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D` that also takes explicit padding, whose zeros count (PyTorch's default).

    "same" padding does not count, on any backend: Keras's own on PyTorch repeats the edge of images of odd sizes.
    """

    kind = "average"

    def call(self, inputs: Any) -> Any:
        # Integers' averages are no integers.
        inputs = ops.cast(ops.convert_to_tensor(inputs), accumulator(self.compute_dtype))
        pool = self._pool_in_core if self._core_can(inputs) else self._pool
        return ops.cast(pool(inputs), self.compute_dtype)

    def _core_can(self, inputs: Any) -> bool:
        if backends.active.average_pool is None or self.data_format != "channels_last" or self.padding != "valid":
            return False
        is_float = keras.backend.standardize_dtype(inputs.dtype) == "float32"
        return is_float and knows_sizes(inputs) and backends.active.runtime(inputs).core

    def _pool_in_core(self, inputs: Any) -> Any:
        assert backends.active.average_pool is not None
        padding = self.explicit or self.padding
        return backends.active.average_pool(
            inputs, pooling.window(tuple(inputs.shape), self.pool_size, self.strides, padding)
        )
