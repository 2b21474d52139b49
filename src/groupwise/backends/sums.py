"""In which type to add, and means, in `keras.ops`."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


def accumulator(dtype: str) -> str:
    """Return the type to add numbers of a type in: float32 for half precision.

    A sum of ones would stop at 256 in bfloat16 and at 2,048 in float16, and the latter holds nothing above 65,504.
    """
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def mean(array: Any, axes: Sequence[int]) -> Any:
    """Return the mean over axes, in the array's type."""
    if keras.backend.standardize_dtype(array.dtype) != "float64":
        return ops.mean(array, axes)
    # On PyTorch and JAX Keras's own makes float32 of float64.
    return ops.sum(array, axes) / ops.sum(ops.ones_like(array), axes)
