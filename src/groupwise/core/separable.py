"""Two convolutions in one pass by the C core: one of narrow groups, and a 1x1 that reads its outputs."""

import ctypes
from functools import lru_cache
from typing import Any, cast

import numpy as np

from groupwise.core import convolution, library
from groupwise.spec import ConvSpec, known_size

_FAMILIES = ("depthwise", "narrow")
_ANY = 4096


class _Separable(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64 * 16) for name in ("grouped", "pointwise")),
        *((name, ctypes.c_void_p) for name in ("grouped_kernel", "pointwise_kernel", "between", "end")),
    )


@lru_cache(maxsize=4096)
def computes(grouped: ConvSpec, pointwise: ConvSpec) -> bool:
    """Return whether the core computes both in one pass: `grouped`, and `pointwise` of its outputs.

    The batch, and an image's height and width, may be unknown.

    Raises:
        ValueError: where the core refuses a size. RuntimeError: where there is no core.

    Examples:
        >>> depthwise = ConvSpec.of((16, 56, 56, 64), (3, 3, 1, 64), groups=64, strides=2)
        >>> computes(depthwise, ConvSpec.of((16, 28, 28, 64), (1, 1, 64, 128), groups=1))
        True
    """
    follows = pointwise.input_shape == grouped.output_shape
    is_plain = pointwise.kernel_shape[:2] == pointwise.strides == (1, 1) and pointwise.explicit_padding == ((0, 0),) * 2
    if not follows or not is_plain:
        return False
    # Which family it is does not depend on what is unknown.
    shape = tuple(_ANY if known_size(size) is None else size for size in grouped.input_shape)
    geometry = grouped.groups, grouped.strides, grouped.padding, grouped.dilation_rate
    return convolution.family(ConvSpec.of(shape, grouped.kernel_shape, *geometry)) in _FAMILIES


def run(
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    arrays: tuple[int, int, int, int],
    between: Any = None,
    end: Any = None,
    executor: Any = None,
) -> None:
    """Run both forward on memory, which the caller knows to be of the right sizes.

    Args:
        sizes: those of the grouped and of the pointwise convolution, as `convolution.sizes` gives them.
        arrays: the addresses of the inputs, the grouped kernel, the pointwise kernel, and of where to write.
        between, end: what each computes beside its sums, as `convolution.fusion` returns it, or None. What is between
            the two has no residual and is not counted, and the pointwise reads it as it is.
        executor: as for `convolution.run`.

    Raises:
        ValueError: where the core refuses. MemoryError, RuntimeError: where there is no memory or no core.
    """
    inputs, grouped_kernel, pointwise_kernel, out = arrays
    fusions = (ctypes.cast(fusion, ctypes.c_void_p) if fusion else None for fusion in (between, end))
    both = _Separable(*map(convolution.struct, sizes), grouped_kernel, pointwise_kernel, *fusions)
    status = library.loaded().gw_convolve_separable(ctypes.byref(both), inputs, out, executor)
    if status:
        library.raise_status(status, f"separable, sizes {sizes[0]} and {sizes[1]}")


def convolve(
    inputs: np.ndarray,
    grouped: tuple[ConvSpec, np.ndarray, np.ndarray | None],
    pointwise: tuple[ConvSpec, np.ndarray, np.ndarray | None],
    activations: tuple[str, str] = ("linear", "linear"),
) -> np.ndarray:
    """Return the outputs of both on contiguous float32 arrays: activation(convolution + bias), twice.

    Args:
        inputs: of the grouped convolution, NHWC.
        grouped, pointwise: each one's spec, all sizes known, its kernel, HWIO, and its bias, (out channels,), or None.
        activations: what follows each, of `epilogues.ACTIVATIONS`.

    Raises:
        ValueError: where a shape or type is not the specs', or the core refuses (see `computes`).
        MemoryError, RuntimeError: where there is no memory or no core.

    Examples:
        >>> depthwise = ConvSpec.of((1, 1, 1, 2), (1, 1, 1, 2), groups=2)
        >>> dense = ConvSpec.of((1, 1, 1, 2), (1, 1, 2, 1), groups=1)
        >>> x, w = np.array([[[[2.0, -3.0]]]], "float32"), np.full((1, 1, 1, 2), 10, "float32")
        >>> ones = np.ones((1, 1, 2, 1), "float32")
        >>> convolve(x, (depthwise, w, None), (dense, ones, None), ("relu", "linear")).ravel().tolist()
        [20.0]
    """
    sizes = tuple(convolution.sizes(spec) for spec, _, _ in (grouped, pointwise))
    library.check("inputs", inputs, convolution.shapes(sizes[0])[convolution.INPUTS])
    fusions = []
    for (_, kernel, bias), own, activation in zip((grouped, pointwise), sizes, activations, strict=True):
        shape = convolution.shapes(own)[convolution.KERNEL]
        library.check("kernel", kernel, shape)
        library.check("bias", bias, shape[3:])
        fusions.append(convolution.fusion(activation, bias=None if bias is None else bias.ctypes.data))
    out = np.empty(convolution.shapes(sizes[1])[convolution.OUTPUTS], "float32")
    addresses = (inputs.ctypes.data, grouped[1].ctypes.data, pointwise[1].ctypes.data, out.ctypes.data)
    run(cast("tuple[tuple[int, ...], tuple[int, ...]]", sizes), addresses, *fusions)
    return out
