"""What the core's C interface refuses, so that no caller makes it touch foreign memory."""

import ctypes
from typing import Any

import pytest

from groupwise.core import convolution, library, norm, threads
from groupwise.core.epilogues import ACTIVATIONS

pytestmark = pytest.mark.once
needs_core = pytest.mark.skipif(
    not library.is_available(), reason=f"{library.path()}: the core is off, or does not load"
)

SIZES = (1, 5, 5, 4, 5, 5, 4, 3, 3, 2, 1, 1, 1, 1, 1, 1)
BATCH, HEIGHT, WIDTH, IN, OUT_HEIGHT, OUT_WIDTH, OUT, ROWS, COLUMNS, GROUPS = range(10)
STRIDE_Y, STRIDE_X, DILATION_Y, DILATION_X, TOP, LEFT = range(10, 16)


@needs_core
@pytest.mark.parametrize(
    "changes",
    [
        *({index: -1} for index in range(16)),
        *({index: 0} for index in (IN, OUT, ROWS, COLUMNS, GROUPS, STRIDE_Y, STRIDE_X, DILATION_Y, DILATION_X)),
        *({index: 2**63 - 1} for index in range(16)),
        *({index: -(2**63)} for index in range(16)),
        {GROUPS: 3},
        {IN: 6, GROUPS: 4},
        {OUT: 5},
        {BATCH: 2**61, HEIGHT: 1, WIDTH: 1, IN: 2},
        {BATCH: 2**32, HEIGHT: 2**32},
        {BATCH: 2**31, OUT_HEIGHT: 2**31},
        {ROWS: 2**32, COLUMNS: 2**32},
        {IN: 2**32, OUT: 2**32},
        {STRIDE_Y: 2**62},
        {DILATION_X: 2**62},
        {OUT_HEIGHT: 2**31, STRIDE_Y: 2**33},
        {IN: 2**31, OUT: 2**31, GROUPS: 2**31},
        # No image holds memory here, but rows of it, as scratch memory copies them, could not be counted.
        {BATCH: 0, HEIGHT: 2**38, WIDTH: 2**39},
        {WIDTH: 1, IN: 2**22, OUT: 2**22, GROUPS: 2**22, DILATION_X: 2**38},
    ],
)
def test_the_core_refuses_what_would_touch_foreign_memory(changes: dict[int, int]) -> None:
    """Straight to the C function, past Python's checks; without any memory, so that believing the sizes crashes."""
    sizes = (ctypes.c_int64 * 16)(*SIZES)
    for index, size in changes.items():
        sizes[index] = size
    core = library.load()
    assert core.gw_family(sizes) is None
    for pass_ in convolution.PASSES:
        for family in (None, *(name.encode() for name in convolution.families())):
            assert core.gw_convolve(pass_, sizes, None, None, None, None, None, family) == 1


@needs_core
def test_the_core_refuses_other_passes_and_no_convolution() -> None:
    core, sizes = library.load(), (ctypes.c_int64 * 16)(*SIZES)
    assert core.gw_family(sizes) == b"narrow"
    for pass_, described in ((-1, sizes), (3, sizes), (0, None)):
        assert core.gw_convolve(pass_, described, None, None, None, None, None, None) == 1
    assert core.gw_family(None) is None


def memory(floats: int) -> Any:
    return (ctypes.c_float * floats)()


FUSIONS = (
    # By pass: the fields of GwFusion that are given and must not be, or not without others.
    *((convolution.FORWARD, fields) for fields in ([0, 1], [3], [5, 6, 7], [14], [15], [16, 17], [17])),
    *((convolution.INPUT_GRADIENT, fields) for fields in ([10], [11], [12], [14, 15], [0, 1, 2], [16, 17])),
    (convolution.INPUT_GRADIENT, [0, 1, 2, 3, 16, 17]),
    *((convolution.KERNEL_GRADIENT, fields) for fields in ([11], [14, 15], [0, 1, 2, 16, 17], [8])),
)


@needs_core
@pytest.mark.parametrize(("pass_", "fields"), FUSIONS)
def test_the_core_refuses_what_a_pass_cannot_compute_beside_its_sums(pass_: int, fields: list[int]) -> None:
    arrays, fusion, given = [memory(100) for _ in range(3)], (ctypes.c_int64 * 18)(), memory(100)
    for field in fields:
        fusion[field] = ctypes.addressof(given)
    described = (ctypes.c_int64 * 16)(*SIZES)
    assert library.load().gw_convolve(pass_, described, *arrays, fusion, None, None) == 1


@needs_core
def test_the_core_refuses_other_activations_and_arrays_that_lack() -> None:
    core, sizes = library.load(), (ctypes.c_int64 * 16)(*SIZES)
    arrays = [memory(100), memory(72), memory(100)]
    for number, status in ((-1, 1), (0, 0), (len(ACTIVATIONS) - 1, 0), (len(ACTIVATIONS), 1), (2**40, 1)):
        for place in (4, 9, 13):  # the inputs' reading, the outputs' and the end of a forward pass
            fusion = (ctypes.c_int64 * 18)()
            fusion[place] = number
            assert core.gw_convolve(convolution.FORWARD, sizes, *arrays, fusion, None, None) == status
    for missing in range(3):
        given = [None if index == missing else array for index, array in enumerate(arrays)]
        assert core.gw_convolve(convolution.FORWARD, sizes, *given, None, None, None) == 1
        assert core.gw_convolve(convolution.INPUT_GRADIENT, sizes, *given, None, None, None) == 1
    with pytest.raises(ValueError, match="an array is lacking"):
        convolution.run(convolution.FORWARD, SIZES, (0, 0, 0))


LOOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


@LOOP
def one_after_the_other(_: int, tasks: int, body: int, argument: int) -> None:
    for task in range(tasks):
        BODY(body)(argument, task)


@needs_core
@pytest.mark.parametrize("pixels", [1, 400])  # one is computed without threads, the other is not
def test_an_executor_needs_threads_and_a_loop(pixels: int) -> None:
    core = library.load()
    sizes = (ctypes.c_int64 * 16)(1, pixels, 1, 256, pixels, 1, 256, 3, 1, 256, 1, 1, 1, 1, 1, 0)
    x, w, y, places = memory(256 * pixels), memory(3 * 256), memory(256 * pixels), memory(64 * pixels)
    statistics = memory(1024)
    fields = {name: ctypes.addressof(array) for name, array in {"inputs": x, "outputs": y}.items()}
    fields |= {name: ctypes.addressof(statistics) for name in ("gamma", "beta", "mean", "variance")}
    normalization = norm._Normalization(pixels, 256, 0, 0, 1e-3, **fields)
    calls = [
        *(lambda e, n=name: core.gw_convolve(0, sizes, x, w, y, None, e, n) for name in (b"depthwise", b"reference")),
        lambda e: core.gw_max_pool(0, sizes, x, y, places, e),
        lambda e: core.gw_max_pool_gradient(0, sizes, y, places, x, e),
        lambda e: core.gw_normalize(norm.NORMALIZE, ctypes.byref(normalization), e),
    ]
    loop = ctypes.cast(one_after_the_other, ctypes.c_void_p)
    for run, count, status in ((loop, 0, 1), (loop, -(2**63), 1), (None, 4, 1), (loop, 1, 0), (loop, 2**63 - 1, 0)):
        executor = threads._Executor(run, None, count)
        assert [call(ctypes.byref(executor)) for call in calls] == [status] * len(calls), (run, count)
    with pytest.raises(ValueError, match="threads=0: must be positive"):
        threads.openmp_executor(None, 0)
