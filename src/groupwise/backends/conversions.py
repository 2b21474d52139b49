"""Keras's conversions of arrays, without its detours where there is nothing to convert."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import keras
from keras import ops


def tensors(arrays: Sequence[Any]) -> list[Any]:
    """Return arrays as the framework's tensors, a Keras variable autocast; None stays None."""
    return [None if array is None else ops.convert_to_tensor(array) for array in arrays]


def type_of(array: Any) -> str:
    """Return the name of an array's type."""
    return _name(array.dtype)


@cache
def _name(dtype: Any) -> str:
    return str(keras.backend.standardize_dtype(dtype))


def cast(array: Any, dtype: str) -> Any:
    """Return a tensor in a type; None stays None."""
    return array if array is None or type_of(array) == dtype else ops.cast(array, dtype)
