"""Max pooling by the C core: its sizes, and its C interface for NumPy arrays.

A pooling is described as the depthwise convolution of its window: a `ConvSpec` whose kernel is the window's size.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from groupwise.core import convolution, library
from groupwise.spec import ConvSpec, Pair

ELEMENTS = ("float32", "bfloat16")
"""The types that the core pools, in the order of `GwElement`."""
MOST_PLACES = 256


def window(
    input_shape: tuple[int | None, ...], size: Pair, strides: Pair, padding: object = "valid", dtype: str = "float32"
) -> ConvSpec:
    """Return the pooling of NHWC `input_shape` in windows of `size`.

    Raises:
        ValueError: where an argument is none of `ConvSpec`'s, or no window fits into the padded image.

    Examples:
        >>> window((8, 112, 112, 64), (3, 3), (2, 2), ((1, 1), (1, 1))).output_shape
        (8, 56, 56, 64)
    """
    channels = input_shape[3]
    return ConvSpec.of(input_shape, (*size, 1, channels), channels or 1, strides, padding, dtype=dtype)  # type: ignore[arg-type]


def objection(size: Pair, dtype: str) -> str | None:
    """Return why the core cannot pool numbers of a type in windows of a size; None where it can.

    Examples:
        >>> objection((17, 16), "float32")
        'pool_size=(17, 16): the C core pools windows of at most 256 pixels'
    """
    if dtype not in ELEMENTS:
        return f"inputs of type {dtype}: the C core pools {' and '.join(ELEMENTS)}"
    if math.prod(size) > MOST_PLACES:
        return f"pool_size={size}: the C core pools windows of at most {MOST_PLACES} pixels"
    return None


def run(
    sizes: tuple[int, ...], dtype: str, inputs: int, outputs: int, places: int | None, executor: Any = None
) -> None:
    """Pool memory at the addresses `inputs`, `outputs` and `places`, which the caller knows to be of the right sizes.

    Args:
        sizes: those of `convolution.sizes`.
        dtype: one of ELEMENTS.
        places, executor: see `max_pool` and `convolution.run`; both may be None.

    Raises:
        ValueError: where the core refuses. RuntimeError: where there is no core.
    """
    element = ELEMENTS.index(dtype)
    status = library.loaded().gw_max_pool(element, convolution.struct(sizes), inputs, outputs, places, executor)
    if status:
        library.raise_status(status, f"max pooling, sizes {sizes}, {dtype}")


def run_gradient(
    sizes: tuple[int, ...], dtype: str, gradient: int, places: int, out: int, executor: Any = None
) -> None:
    """Write the inputs' gradient at the address `out`; all else as for `run`, and MemoryError where there is none."""
    element = ELEMENTS.index(dtype)
    status = library.loaded().gw_max_pool_gradient(element, convolution.struct(sizes), gradient, places, out, executor)
    if status:
        library.raise_status(status, f"max pooling's gradient, sizes {sizes}, {dtype}")


@lru_cache(maxsize=4096)
def shapes(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the inputs and of the outputs."""
    inputs, _, outputs = convolution.shapes(convolution.sizes(spec))
    return inputs, outputs


def max_pool(
    inputs: np.ndarray, spec: ConvSpec, outputs: np.ndarray | None = None, places: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maxima of contiguous NHWC `inputs`, and where they were.

    Of equal values the first is the maximum; values that are not numbers are larger than all others, and of several
    the last one counts. Padding is never the maximum; a window of nothing else gives -inf.

    Args:
        inputs: of the spec's shape and type, float32 or bfloat16 (that of `ml_dtypes`).
        spec: the pooling, as `window` returns it; every size must be known.
        outputs, places: where to write, no part of another argument; None makes an array.

    Returns:
        The outputs, (batch, out height, out width, channels) of the inputs' type; and, uint8 of the same shape, the
        number of each maximum's place in its window, in row-major order.

    Raises:
        ValueError: where a shape or type is not the spec's, or the core refuses. RuntimeError: where there is no core.

    Examples:
        >>> x = np.array([[1, 5], [5, 2]], "float32").reshape(1, 2, 2, 1)
        >>> outputs, places = max_pool(x, window(x.shape, (2, 2), (2, 2)))
        >>> outputs.item(), places.item()
        (5.0, 1)
    """
    before, after = shapes(spec)
    outputs = np.empty(after, inputs.dtype) if outputs is None else outputs
    places = np.empty(after, np.uint8) if places is None else places
    library.check("inputs", inputs, before, spec.dtype)
    library.check("outputs", outputs, after, spec.dtype, written=True)
    library.check("places", places, after, "uint8", written=True)
    library.check_apart("outputs", outputs, {"inputs": inputs, "places": places})
    library.check_apart("places", places, {"inputs": inputs})
    run(convolution.sizes(spec), spec.dtype, inputs.ctypes.data, outputs.ctypes.data, places.ctypes.data)
    return outputs, places


def max_pool_gradient(
    gradient: np.ndarray, places: np.ndarray, spec: ConvSpec, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the gradient to the inputs of `max_pool`: the outputs', each added at its place.

    Args:
        gradient: the outputs' gradient, of their shape and type.
        places: as `max_pool` returned them.
        spec, out, errors: as for `max_pool`.

    Examples:
        >>> gradient, places = np.full((1, 1, 1, 1), 3, "float32"), np.full((1, 1, 1, 1), 2, "uint8")
        >>> max_pool_gradient(gradient, places, window((1, 2, 2, 1), (2, 2), (2, 2))).ravel().tolist()
        [0.0, 0.0, 3.0, 0.0]
    """
    before, after = shapes(spec)
    out = np.empty(before, gradient.dtype) if out is None else out
    library.check("gradient", gradient, after, spec.dtype)
    library.check("places", places, after, "uint8")
    library.check("out", out, before, spec.dtype, written=True)
    library.check_apart("out", out, {"gradient": gradient, "places": places})
    run_gradient(convolution.sizes(spec), spec.dtype, gradient.ctypes.data, places.ctypes.data, out.ctypes.data)
    return out
