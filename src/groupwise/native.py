"""The C core: where it is, what it can do here, and its C interface for NumPy arrays (`csrc/groupwise.h`).

Environment variables: `GROUPWISE_CORE=0` turns the core off, `GROUPWISE_INSTRUCTION_SET` chooses another instruction
set than the machine's best, `GROUPWISE_THREADS` another number of threads than that of the cores that may be used (on
TensorFlow and NumPy; JAX and PyTorch bring threads of their own), `GROUPWISE_CORE_FOLDER` names a folder with another
build of the core.
"""

import ctypes
import math
import os
import sys
import warnings
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import groupwise
from groupwise.spec import ConvSpec, known_size

FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = PASSES = range(3)
INPUTS, KERNEL, OUTPUTS = range(3)
ROLES = ((INPUTS, KERNEL, OUTPUTS), (OUTPUTS, KERNEL, INPUTS), (INPUTS, OUTPUTS, KERNEL))
"""For each pass: what its two arguments are (themselves or their gradient), and what it returns."""
ACTIVATIONS = ("linear", "relu", "relu6")
FAMILIES = ("depthwise", "narrow", "wide", "reference")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "neon")

_MOST = 1 << 40  # the largest size, stride, dilation and padding that the core takes
_OUT_OF_MEMORY = 3
_STATUS = {
    1: "these sizes are invalid, an array is lacking, the activation is none, or the executor has no threads",
    2: "the family does not compute this convolution",
}
_POINTER = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "gw_convolve": (ctypes.c_int, (ctypes.c_int, *[_POINTER] * 6, ctypes.c_char_p)),
    "gw_max_pool": (ctypes.c_int, (ctypes.c_int, *[_POINTER] * 5)),
    "gw_max_pool_gradient": (ctypes.c_int, (ctypes.c_int, *[_POINTER] * 5)),
    "gw_normalize": (ctypes.c_int, (ctypes.c_int, _POINTER, _POINTER)),
    "gw_family": (ctypes.c_char_p, (_POINTER,)),
    "gw_instruction_set": (ctypes.c_char_p, ()),
    "gw_use_instruction_set": (ctypes.c_int, (ctypes.c_char_p,)),
    "gw_set_threads": (None, (ctypes.c_int64,)),
    "gw_threads": (ctypes.c_int64, ()),
    "gw_cpu_limit": (ctypes.c_int64, (ctypes.c_char_p,)),
    "gw_release_memory": (None, ()),
    "gw_openmp_run": (None, (_POINTER, ctypes.c_int64, _POINTER, _POINTER)),
}


class _Epilogue(ctypes.Structure):
    _fields_ = (("bias", _POINTER), ("residual", _POINTER), ("activation", ctypes.c_int64))


class _OpenMp(ctypes.Structure):
    _fields_ = (("parallel", _POINTER), ("threads", ctypes.c_int64))


class _Executor(ctypes.Structure):
    _fields_ = (("run", _POINTER), ("state", ctypes.POINTER(_OpenMp)), ("threads", ctypes.c_int64))


def path(name: str = "groupwise_core") -> Path:
    """Return where the library `name` of this installation is, or would be."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    chosen = os.environ.get("GROUPWISE_CORE_FOLDER")
    # An editable installation has two folders: its Python files are the checkout's, its libraries are not.
    places = [Path(folder) / f"lib{name}{suffix}" for folder in ([chosen] if chosen else groupwise.__path__)]
    return next(filter(Path.exists, places), places[0])


def is_enabled() -> bool:
    """Return whether the core is wanted: unless the environment variable GROUPWISE_CORE is 0."""
    return os.environ.get("GROUPWISE_CORE", "1") != "0"


@cache
def library() -> Any:
    """Return the core as a `ctypes.CDLL`, or None where it does not load; the first time, a warning says why."""
    try:
        core = ctypes.CDLL(str(path()))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(core, name)
            function.restype, function.argtypes = result, arguments
    # A library of another version lacks a function: AttributeError.
    except (OSError, AttributeError) as error:
        warnings.warn(
            f"groupwise runs without its C core, on the framework's own convolutions: {error}. To build it, install "
            "groupwise where a C++ compiler (g++) is found.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    _warn_of_settings(core)
    return core


def _warn_of_settings(core: Any) -> None:
    """Warn of what the environment asks for and the core passes over."""
    threads, name = os.environ.get("GROUPWISE_THREADS", ""), os.environ.get("GROUPWISE_INSTRUCTION_SET", "")
    if threads and not (threads.isdecimal() and int(threads) > 0):
        _warn(f"GROUPWISE_THREADS={threads!r} is ignored: it must be a positive whole number")
    if name and name != core.gw_instruction_set().decode():
        _warn(
            f"GROUPWISE_INSTRUCTION_SET={name!r} is ignored: it must be one of {', '.join(INSTRUCTION_SETS)} that this "
            f"machine has; {core.gw_instruction_set().decode()} is used"
        )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def release_memory() -> None:
    """Give the scratch memory that no call is using back to the system, but for 2 MB a thread.

    By itself that happens to what has been needed once only, when a thread ends, and to what has not been needed for
    20 seconds, at the next call: this is for a process that is about to do something else.
    """
    core().gw_release_memory()


def is_available() -> bool:
    """Return whether the core is wanted and there."""
    return is_enabled() and library() is not None


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


@lru_cache(maxsize=4096)
def convolution(sizes: tuple[int, ...]) -> Any:
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


def family(spec: ConvSpec) -> str:
    """Return the core's family that runs `spec`: one of FAMILIES.

    Raises:
        ValueError: where the core refuses the sizes. RuntimeError: where there is no core.
    """
    name: bytes | None = core().gw_family(convolution(sizes(spec)))
    if name is None:
        raise ValueError(f"{spec}: the core refuses, {_STATUS[1]}")
    return name.decode()


def instruction_set() -> str:
    """Return the instruction set that the core uses: one of INSTRUCTION_SETS."""
    name: bytes = core().gw_instruction_set()
    return name.decode()


def use_instruction_set(name: str) -> bool:
    """Use another instruction set from now on; return whether this machine has it."""
    return core().gw_use_instruction_set(name.encode()) == 0


@cache
def openmp_executor(parallel: int | None, threads: int) -> Any:
    """Return the address of a `GwExecutor` on `threads` threads of an OpenMP runtime that the process has loaded.

    Args:
        parallel: the address of the runtime's GOMP_parallel; None runs on the core's own threads.
        threads: how many; the results' bits depend on the number.

    Raises:
        ValueError: where there are no threads. RuntimeError: where there is no core.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: must be positive")
    run = ctypes.cast(core().gw_openmp_run, _POINTER)
    return ctypes.byref(_Executor(run, ctypes.pointer(_OpenMp(parallel, threads)), threads))


def activation_number(name: str) -> int:
    """Return an activation's `GwActivation`.

    Raises:
        ValueError: where it is none of ACTIVATIONS.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.index(name)


def epilogue(activation: str, bias: int | None = None, residual: int | None = None) -> Any:
    """Return the address of a `GwEpilogue`, for `run`; bias and residual are addresses too, or None."""
    return ctypes.byref(_Epilogue(bias, residual, activation_number(activation)))


def run(
    pass_: int,
    sizes: tuple[int, ...],
    a: int,
    b: int,
    out: int,
    epilogue: Any = None,
    executor: Any = None,
    family: str | None = None,
) -> None:
    """Run one pass on memory at the addresses `a`, `b` and `out`, which the caller knows to be of the right sizes.

    Args:
        epilogue, executor: the addresses of a `GwEpilogue` (see `epilogue`) and a `GwExecutor` (`openmp_executor`), or
            None.
        Others: see `convolve`.

    Raises:
        ValueError: where the core refuses. MemoryError, RuntimeError: where there is no memory or no core.
    """
    name = None if family is None else family.encode()
    status = core().gw_convolve(pass_, convolution(sizes), a, b, out, epilogue, executor, name)
    if status:
        raise_status(status, f"pass {pass_}, sizes {sizes}, family {family}")


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
            shape (out_channels,), the residual of the outputs' shape, the activation one of ACTIVATIONS.
        family: one of FAMILIES; None is the fastest.

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
    activation_number(activation)
    has_epilogue = bias is not None or residual is not None or activation != "linear"
    if has_epilogue and pass_ != FORWARD:
        raise ValueError(f"pass_={pass_}: only FORWARD takes a bias, a residual or an activation; leave them out")
    all_sizes = sizes(spec)
    convolution(all_sizes)
    first, second, result = (shapes(all_sizes)[role] for role in ROLES[pass_])
    out = np.empty(result, "float32") if out is None else out
    check("a", a, first)
    check("b", b, second)
    check("out", out, result, written=True)
    check_apart("out", out, {"a": a, "b": b, "bias": bias, "residual": residual})
    after = None
    if has_epilogue:
        check("bias", bias, shapes(all_sizes)[KERNEL][3:])
        check("residual", residual, result)
        after = epilogue(activation, *(None if array is None else array.ctypes.data for array in (bias, residual)))
    run(pass_, all_sizes, a.ctypes.data, b.ctypes.data, out.ctypes.data, after, family=family)
    return out


def core() -> Any:
    """Return `library()`; raise RuntimeError where there is none."""
    loaded = library()
    if loaded is None:
        raise RuntimeError(f"{path()}: the C core does not load; ask is_available() before using it")
    return loaded


def raise_status(status: int, subject: str) -> None:
    """Raise what a `GwStatus` other than GW_OK means for `subject`: MemoryError or ValueError."""
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{subject}: the core found no memory to work in")
    raise ValueError(f"{subject}: the core refuses, {_STATUS[status]}")


def check(
    name: str, array: np.ndarray | None, shape: tuple[int, ...], dtype: str = "float32", written: bool = False
) -> None:
    """Raise ValueError where `array` is not what the core reads or, if `written`, writes; None is good."""
    if array is None:
        return
    # Alignment to an element's bytes is what the compiler counts on; no more is needed.
    if array.shape != shape or array.dtype.name != dtype or not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(
            f"{name} of shape {array.shape} and type {array.dtype}: must be aligned contiguous {dtype} of shape {shape}"
        )
    if written and not array.flags.writeable:
        raise ValueError(f"{name}: must be writeable; pass an array of your own")


def check_apart(name: str, written: np.ndarray, read: Mapping[str, np.ndarray | None]) -> None:
    """Raise ValueError where `written` overlaps one of the arrays that are read meanwhile."""
    for other, array in read.items():
        if array is not None and np.may_share_memory(written, array):
            raise ValueError(f"{name}: overlaps {other}, which is still read while it is written; pass another array")
