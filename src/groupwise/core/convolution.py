"""Convolutions by the C core: the C interface of `csrc/groupwise.h`, also for NumPy arrays."""

import ctypes
import math
from functools import lru_cache
from typing import Any

import numpy as np

from groupwise.core import epilogues, library
from groupwise.spec import ConvSpec, known_size

FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = PASSES = range(3)
INPUTS, KERNEL, OUTPUTS = range(3)
ROLES = ((INPUTS, KERNEL, OUTPUTS), (OUTPUTS, KERNEL, INPUTS), (INPUTS, OUTPUTS, KERNEL))
"""For each pass: what its two arguments are (themselves or their gradient), and what it returns."""

_MOST = 1 << 40  # the largest size, stride, dilation and padding that the core takes


class _Reading(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("mean", "scale", "shift", "summand")),
        ("activation", ctypes.c_int64),
    )


class _Fusion(ctypes.Structure):
    _fields_ = (
        ("inputs", _Reading),
        ("outputs", _Reading),
        *((name, ctypes.c_void_p) for name in ("scale", "bias", "residual")),
        ("activation", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("mean", "variance", "raw_inputs", "sums")),
    )


@lru_cache(maxsize=4096)
def sizes(spec: ConvSpec, input_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the sixteen sizes of `GwConvolution` for `spec`; `input_shape` fills in sizes that it does not know.

    Raises:
        ValueError: where a size is not known.

    Examples:
        >>> sizes(ConvSpec.of((16, 56, 56, 128), (3, 3, 4, 128), groups=32))
        (16, 56, 56, 128, 56, 56, 128, 3, 3, 32, 1, 1, 1, 1, 1, 1)
    """
    shape = spec.input_shape if input_shape is None else input_shape
    if None in map(known_size, shape):
        raise ValueError(f"input shape {shape}: every size must be known, for the C core; choose another algorithm")
    if shape != spec.input_shape:
        spec = ConvSpec.of(
            shape, spec.kernel_shape, spec.groups, spec.strides, spec.padding, spec.dilation_rate, spec.dtype
        )
    padding = spec.explicit_padding
    assert padding is not None
    (top, _), (left, _) = padding
    known = (*spec.input_shape, *spec.output_shape[1:], *spec.kernel_shape[:2], spec.groups)
    return (*known, *spec.strides, *spec.dilation_rate, top, left)  # type: ignore[return-value]


def shapes(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the inputs, the kernel and the outputs: NHWC, HWIO, NHWC."""
    inputs, outputs, (kernel_height, kernel_width, groups) = sizes[:4], (sizes[0], *sizes[4:7]), sizes[7:10]
    return inputs, (kernel_height, kernel_width, inputs[3] // groups, outputs[3]), outputs


known_shapes = lru_cache(maxsize=4096)(shapes)
"""`shapes` of sizes that are numbers, not symbols of a framework that traces."""


@lru_cache(maxsize=4096)
def struct(sizes: tuple[int, ...]) -> Any:
    """Return `sizes` as a `GwConvolution`, an array of sixteen int64.

    Raises:
        ValueError: where a size is negative or an array of these sizes would not fit into any memory.
    """
    # ctypes would cut off higher bits without a word.
    if not all(0 <= size < _MOST for size in sizes) or sizes[9] == 0:
        raise ValueError(f"sizes {sizes}: each must be in [0, 2 ** 40), and the groups (the tenth) positive")
    for shape in shapes(sizes):
        if 4 * math.prod(shape) >= 1 << 63:
            raise ValueError(f"shape {shape}: its {4 * math.prod(shape)} bytes must be fewer than 2 ** 63")
    return (ctypes.c_int64 * 16)(*sizes)


def families() -> tuple[str, ...]:
    """Return the core's families of kernels; "reference", the last, is plain loops for every convolution."""
    return library.names(library.loaded().gw_family_name)


def family(spec: ConvSpec) -> str:
    """Return the core's family that runs `spec`: one of `families()`.

    Raises:
        ValueError: where the core refuses the sizes. RuntimeError: where there is no core.
    """
    name: bytes | None = library.loaded().gw_family(struct(sizes(spec)))
    if name is None:
        raise ValueError(f"{spec}: the core refuses, {library.STATUS[1]}")
    return name.decode()


def reading(mean: int, scale: int, shift: int, summand: int | None = None, activation: str = "linear") -> Any:
    """Return a `GwReading`, for `fusion`, of addresses: activation((image - mean) * scale + shift + summand)."""
    return _Reading(mean, scale, shift, summand, epilogues.number(activation))


def fusion(activation: str = "linear", inputs: Any = None, outputs: Any = None, **addresses: int | None) -> Any:
    """Return the address of a `GwFusion`, for `run`.

    Args:
        activation: what ends a forward pass.
        inputs, outputs: how inputs and outputs' gradient are read, by `reading`; None: as they are.
        addresses: the other pointers of `GwFusion` by their names.
    """
    readings = {name: value for name, value in (("inputs", inputs), ("outputs", outputs)) if value is not None}
    return ctypes.byref(_Fusion(activation=epilogues.number(activation), **readings, **addresses))


def run(
    pass_: int,
    sizes: tuple[int, ...],
    arrays: tuple[int, int, int],
    fusion: Any = None,
    executor: Any = None,
    family: str | None = None,
) -> None:
    """Run one pass on memory, which the caller knows to be of the right sizes.

    Args:
        arrays: the addresses of the pass's two arguments and of where to write.
        fusion, executor: the addresses of a `GwFusion` (see `fusion`) and a `GwExecutor` (`openmp_executor`), or
            None.
        Others: see `convolve`.

    Raises:
        ValueError: where the core refuses. MemoryError, RuntimeError: where there is no memory or no core.
    """
    name = None if family is None else family.encode()
    status = library.loaded().gw_convolve(pass_, struct(sizes), *arrays, fusion, executor, name)
    if status:
        library.raise_status(status, f"pass {pass_}, sizes {sizes}, family {family}")


def convolve(
    pass_: int,
    spec: ConvSpec,
    a: np.ndarray,
    b: np.ndarray,
    *,
    out: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    activation: str = "linear",
    family: str | None = None,
) -> np.ndarray:
    """Run one pass of the core on contiguous float32 arrays.

    Args:
        pass_: FORWARD (inputs, kernel), INPUT_GRADIENT (outputs' gradient, kernel) or KERNEL_GRADIENT (inputs,
            outputs' gradient).
        spec: the convolution, all sizes known.
        a, b: the pass's two arguments, NHWC or HWIO.
        out: where to write, no part of another argument; None makes an array.
        bias, residual, activation: what follows a forward pass, activation(outputs + bias + residual); the bias is of
            shape (out_channels,), the residual of the outputs' shape, the activation one of `epilogues.ACTIVATIONS`.
        family: one of `families()`; None is the fastest.

    Returns:
        The outputs, the inputs' gradient or the kernel's gradient.

    Raises:
        ValueError: where a shape or type is not the spec's, or the core refuses.
        MemoryError, RuntimeError: where there is no memory or no core.

    Examples:
        >>> spec = ConvSpec.of((1, 1, 1, 2), (1, 1, 1, 2), groups=2)
        >>> x, w = np.array([[[[2.0, 3.0]]]], "float32"), np.full((1, 1, 1, 2), 10, "float32")
        >>> convolve(FORWARD, spec, x, w).ravel().tolist()
        [20.0, 30.0]
    """
    if pass_ not in PASSES:
        raise ValueError(f"pass_={pass_!r}: must be FORWARD (0), INPUT_GRADIENT (1) or KERNEL_GRADIENT (2)")
    epilogues.number(activation)
    has_epilogue = bias is not None or residual is not None or activation != "linear"
    if has_epilogue and pass_ != FORWARD:
        raise ValueError(f"pass_={pass_}: only FORWARD takes a bias, a residual or an activation; leave them out")
    all_sizes = sizes(spec)
    struct(all_sizes)
    first, second, result = (shapes(all_sizes)[role] for role in ROLES[pass_])
    out = np.empty(result, "float32") if out is None else out
    library.check("a", a, first)
    library.check("b", b, second)
    library.check("out", out, result, written=True)
    library.check_apart("out", out, {"a": a, "b": b, "bias": bias, "residual": residual})
    after = None
    if has_epilogue:
        library.check("bias", bias, shapes(all_sizes)[KERNEL][3:])
        library.check("residual", residual, result)
        addresses = (None if array is None else array.ctypes.data for array in (bias, residual))
        after = fusion(activation, **dict(zip(("bias", "residual"), addresses, strict=True)))
    run(pass_, all_sizes, (a.ctypes.data, b.ctypes.data, out.ctypes.data), after, family=family)
    return out
