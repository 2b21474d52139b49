"""On whose threads the C core runs: executors for `csrc/groupwise.h`."""

import ctypes
from functools import cache
from typing import Any

from groupwise.core import library


class _OpenMp(ctypes.Structure):
    _fields_ = (("parallel", ctypes.c_void_p), ("threads", ctypes.c_int64))


class _Executor(ctypes.Structure):
    _fields_ = (("run", ctypes.c_void_p), ("state", ctypes.POINTER(_OpenMp)), ("threads", ctypes.c_int64))


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
    run = ctypes.cast(library.loaded().gw_openmp_run, ctypes.c_void_p)
    return ctypes.byref(_Executor(run, ctypes.pointer(_OpenMp(parallel, threads)), threads))
