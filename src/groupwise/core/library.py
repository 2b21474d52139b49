"""The C core as a library: where it is, whether it loads, what it can do here, and what it says of a call.

Environment variables: `GROUPWISE_CORE=0` turns the core off, `GROUPWISE_INSTRUCTION_SET` chooses another instruction
set than the machine's best, `GROUPWISE_THREADS` another number of threads than that of the cores that may be used (on
TensorFlow and NumPy; JAX and PyTorch bring threads of their own), `GROUPWISE_CORE_FOLDER` names a folder with another
build of the core; `GROUPWISE_KEEP_MEMORY=0` leaves it to XLA to give the memory of a step back at its end.
"""

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

import groupwise

_OUT_OF_MEMORY = 3
STATUS = {
    1: "sizes are invalid, an array is lacking, the activation or the filter is none, or the executor has no threads",
    2: "the family does not compute this convolution",
}
_POINTER = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "gw_convolve": (ctypes.c_int, (ctypes.c_int, *[_POINTER] * 6, ctypes.c_char_p)),
    "gw_convolve_separable": (ctypes.c_int, (_POINTER,) * 4),
    "gw_max_pool": (ctypes.c_int, (ctypes.c_int, *[_POINTER] * 5)),
    "gw_max_pool_gradient": (ctypes.c_int, (ctypes.c_int, *[_POINTER] * 5)),
    "gw_normalize": (ctypes.c_int, (ctypes.c_int, _POINTER, _POINTER)),
    "gw_shuffle": (ctypes.c_int, (*[ctypes.c_int64] * 3, *[_POINTER] * 3)),
    "gw_resize": (ctypes.c_int, (_POINTER,) * 3),
    "gw_gradient_reads_outputs": (ctypes.c_int, (ctypes.c_int64,)),
    "gw_family": (ctypes.c_char_p, (_POINTER,)),
    "gw_family_name": (ctypes.c_char_p, (ctypes.c_int64,)),
    "gw_instruction_set": (ctypes.c_char_p, ()),
    "gw_instruction_set_name": (ctypes.c_char_p, (ctypes.c_int64,)),
    "gw_use_instruction_set": (ctypes.c_int, (ctypes.c_char_p,)),
    "gw_set_threads": (None, (ctypes.c_int64,)),
    "gw_threads": (ctypes.c_int64, ()),
    "gw_cpu_limit": (ctypes.c_int64, (ctypes.c_char_p,)),
    "gw_release_memory": (None, ()),
    "gw_openmp_run": (None, (_POINTER, ctypes.c_int64, _POINTER, _POINTER)),
}


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
def load() -> Any:
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
    used = core.gw_instruction_set().decode()
    if name and name != used:
        _warn(
            f"GROUPWISE_INSTRUCTION_SET={name!r} is ignored: it must be one of "
            f"{', '.join(names(core.gw_instruction_set_name))} that this machine has; {used} is used"
        )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def release_memory() -> None:
    """Give the scratch memory that no call is using back to the system, but for 2 MB a thread; on JAX also XLA's.

    By itself that happens to what has been needed once only, when a thread ends, and to what has not been needed for
    20 seconds, at the next call: this is for a process that is about to do something else.
    """
    loaded().gw_release_memory()


def is_available() -> bool:
    """Return whether the core is wanted and there."""
    return is_enabled() and load() is not None


def loaded() -> Any:
    """Return `load()`; raise RuntimeError where there is none."""
    core = load()
    if core is None:
        raise RuntimeError(f"{path()}: the C core does not load; ask is_available() before using it")
    return core


def names(numbered: Callable[[int], bytes | None]) -> tuple[str, ...]:
    """Return what one of the core's functions names by number, from 0 on."""
    return tuple(name.decode() for name in takewhile(bool, map(numbered, count())) if name)


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that the core was built for, whether this machine has them or not, the best last."""
    return names(loaded().gw_instruction_set_name)


def instruction_set() -> str:
    """Return the instruction set that the core uses: one of `instruction_sets()`."""
    name: bytes = loaded().gw_instruction_set()
    return name.decode()


def use_instruction_set(name: str) -> bool:
    """Use another instruction set from now on; return whether this machine has it."""
    return loaded().gw_use_instruction_set(name.encode()) == 0


def raise_status(status: int, subject: str) -> None:
    """Raise what a `GwStatus` other than GW_OK means for `subject`: MemoryError or ValueError."""
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{subject}: the core found no memory to work in")
    raise ValueError(f"{subject}: the core refuses, {STATUS[status]}")


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
