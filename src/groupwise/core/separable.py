"""Two convolutions in one pass by the C core: one of narrow groups, and a 1x1 that reads its outputs.

Before them may come an expansion, a 1x1 whose outputs the first one reads: an inverted residual's three.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from groupwise.core import convolution, library
from groupwise.spec import ConvSpec, known_size

_FAMILIES = ("depthwise", "narrow")
_ANY = 4096


class _Separable(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64 * 16) for name in ("grouped", "pointwise")),
        *((name, ctypes.c_void_p) for name in ("grouped_kernel", "pointwise_kernel", "between", "end", "expansion")),
    )


class _Expansion(ctypes.Structure):
    _fields_ = (("convolution", ctypes.c_int64 * 16), ("kernel", ctypes.c_void_p), ("fusion", ctypes.c_void_p))


@lru_cache(maxsize=4096)
def computes(grouped: ConvSpec, pointwise: ConvSpec, expansion: ConvSpec | None = None) -> bool:
    """Return whether the core computes both in one pass: `grouped`, and `pointwise` of its outputs.

    With an `expansion` all three: `grouped` of the outputs of that. The batch, and an image's height and width, may be
    unknown.

    Raises:
        ValueError: where the core refuses a size. RuntimeError: where there is no core.

    Examples:
        >>> depthwise = ConvSpec.of((16, 56, 56, 64), (3, 3, 1, 64), groups=64, strides=2)
        >>> computes(depthwise, ConvSpec.of((16, 28, 28, 64), (1, 1, 64, 128), groups=1))
        True
    """
    if pointwise.input_shape != grouped.output_shape or not _is_plain(pointwise):
        return False
    if expansion is not None and not (grouped.input_shape == expansion.output_shape and _is_plain(expansion)):
        return False
    # Which family it is does not depend on what is unknown.
    shape = tuple(_ANY if known_size(size) is None else size for size in grouped.input_shape)
    geometry = grouped.groups, grouped.strides, grouped.padding, grouped.dilation_rate
    return convolution.family(ConvSpec.of(shape, grouped.kernel_shape, *geometry)) in _FAMILIES


def _is_plain(spec: ConvSpec) -> bool:
    return spec.kernel_shape[:2] == spec.strides == (1, 1) and spec.explicit_padding == ((0, 0),) * 2


def expansion(sizes: tuple[int, ...], kernel: int, fusion: Any = None) -> Any:
    """Return the address of a `GwExpansion`, for `run`.

    Args:
        sizes: the convolution's, as `convolution.sizes` gives them.
        kernel: its address.
        fusion: what it computes beside its sums, as `convolution.fusion` returns it, or None; no residual, no count.
    """
    struct = _Expansion(convolution.struct(sizes), kernel, _address(fusion))
    struct.kept = fusion  # an address alone keeps nothing alive
    return ctypes.byref(struct)


def _address(struct: Any) -> Any:
    return ctypes.cast(struct, ctypes.c_void_p) if struct else None


def run(
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    arrays: tuple[int, int, int, int],
    between: Any = None,
    end: Any = None,
    executor: Any = None,
    expansion: Any = None,
) -> None:
    """Run both, or all three, forward on memory, which the caller knows to be of the right sizes.

    Args:
        sizes: those of the grouped and of the pointwise convolution, as `convolution.sizes` gives them.
        arrays: the addresses of the inputs (of the first of all), the grouped kernel, the pointwise kernel, and of
            where to write.
        between, end: what each computes beside its sums, as `convolution.fusion` returns it, or None. What is between
            the two has no residual and is not counted, and the pointwise reads it as it is.
        executor: as for `convolution.run`.
        expansion: what comes before the two, as `expansion` returns it, or None.

    Raises:
        ValueError: where the core refuses. MemoryError, RuntimeError: where there is no memory or no core.
    """
    inputs, grouped_kernel, pointwise_kernel, out = arrays
    more = map(_address, (between, end, expansion))
    both = _Separable(*map(convolution.struct, sizes), grouped_kernel, pointwise_kernel, *more)
    status = library.loaded().gw_convolve_separable(ctypes.byref(both), inputs, out, executor)
    if status:
        library.raise_status(status, f"separable, sizes {sizes[0]} and {sizes[1]}")


def convolve(
    inputs: np.ndarray,
    grouped: tuple[ConvSpec, np.ndarray, np.ndarray | None],
    pointwise: tuple[ConvSpec, np.ndarray, np.ndarray | None],
    activations: Sequence[str] = ("linear",) * 3,
    before: tuple[ConvSpec, np.ndarray, np.ndarray | None] | None = None,
) -> np.ndarray:
    """Return the outputs of both on contiguous float32 arrays: activation(convolution + bias), twice, or three times.

    Args:
        inputs: of the first convolution, NHWC.
        grouped, pointwise: each one's spec, all sizes known, its kernel, HWIO, and its bias, (out channels,), or None.
        activations: what follows each, of `epilogues.ACTIVATIONS`; the expansion's last.
        before: the same of an expansion whose outputs `grouped` reads, or None.

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
    parts = [grouped, pointwise, *([] if before is None else [before])]
    sizes = [convolution.sizes(spec) for spec, _, _ in parts]
    library.check("inputs", inputs, convolution.shapes(sizes[0 if before is None else 2])[convolution.INPUTS])
    fusions = []
    for (_, kernel, bias), own, activation in zip(parts, sizes, activations, strict=False):
        shape = convolution.shapes(own)[convolution.KERNEL]
        library.check("kernel", kernel, shape)
        library.check("bias", bias, shape[3:])
        fusions.append(convolution.fusion(activation, bias=None if bias is None else bias.ctypes.data))
    out = np.empty(convolution.shapes(sizes[1])[convolution.OUTPUTS], "float32")
    addresses = (inputs.ctypes.data, grouped[1].ctypes.data, pointwise[1].ctypes.data, out.ctypes.data)
    widening = None if before is None else expansion(sizes[2], before[1].ctypes.data, fusions[2])
    run((sizes[0], sizes[1]), addresses, fusions[0], fusions[1], expansion=widening)
    return out
