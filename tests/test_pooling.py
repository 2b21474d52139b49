"""Max pooling by the C core, for NumPy arrays, against plain loops: both types, every instruction set."""

from random import Random
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from groupwise.core import library, pooling
from groupwise.spec import ConvSpec
from tests.poolings import ROUNDING, TYPES, images, truth

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not library.is_available(), reason=f"{library.path()}: the core is off, or does not load"),
]
GUARD = 32  # elements before and behind each array


def drawn_window(random: Random, dtype: str) -> ConvSpec:
    """Return a pooling, often a usual one: of 2x2 or 3x3 pixels, strides of 2."""
    integer = random.randint
    size = random.choice([(2, 2), (3, 3), (integer(1, 6), integer(1, 6))])
    strides = random.choice([(2, 2), (integer(1, 7), integer(1, 7))])
    padding: Any = random.choice(["same", "valid", *3 * [tuple((integer(0, n + 1), integer(0, n + 1)) for n in size)]])
    least = [1, 1] if padding == "same" else list(size)
    if not isinstance(padding, str):
        least = [max(1, n - sum(sides)) for n, sides in zip(size, padding, strict=True)]
    image = [integer(low, 20) for low in least]
    channels = random.choice([integer(1, 70), 16 * integer(1, 4)])
    return pooling.window((random.choice([0, 1, 2, 3]), *image, channels), size, strides, padding, dtype)


def guarded(shape: tuple[int, ...], dtype: str, around: float) -> np.ndarray:
    """Return an array full of `around`, that begins one element past an aligned address, among others of that value."""
    memory = np.full(np.prod(shape, dtype=int) + 2 * GUARD, around, TYPES[dtype])
    return memory[GUARD + 1 : memory.size - GUARD + 1].reshape(shape)


def guards_hold(array: np.ndarray, around: float) -> bool:
    """Return whether nothing was written around a `guarded` array."""
    memory = array.base
    assert memory is not None
    return bool(np.all(memory[: GUARD + 1] == around) and np.all(memory[memory.size - GUARD + 1 :] == around))


def check(spec: ConvSpec, seed: int, sets: list[str], threads: int) -> None:
    """Compare a pooling and its gradient with their truth on each instruction set."""
    before, after = pooling.shapes(spec)
    inputs, gradient = guarded(before, spec.dtype, 9), guarded(after, spec.dtype, np.nan)
    inputs[...], gradient[...] = images(spec, seed)
    expected = truth(spec, inputs, gradient)
    library.load().gw_set_threads(threads)
    for name in sets:
        library.use_instruction_set(name)
        what = f"{name}, {threads} threads, {spec}"
        outputs, places, total = (
            guarded(after, spec.dtype, 7),
            guarded(after, "uint8", 77),
            guarded(before, spec.dtype, 7),
        )
        pooling.max_pool(inputs, spec, outputs, places)
        pooling.max_pool_gradient(gradient, places, spec, total)
        np.testing.assert_array_equal(outputs.astype("float64"), expected.outputs, what)
        np.testing.assert_array_equal(places, np.maximum(expected.places, 0), what)
        error = np.abs(total.astype("float64") - expected.gradient)
        assert np.all(error <= ROUNDING[spec.dtype] * expected.bound), f"{error.max()}: {what}"
        assert all(guards_hold(array, value) for array, value in ((outputs, 7), (places, 77), (total, 7))), what


@pytest.mark.parametrize("dtype", pooling.ELEMENTS)
def test_drawn_poolings_agree_with_plain_loops(dtype: str, instruction_sets: list[str]) -> None:
    @hypothesis.settings(max_examples=60)
    @hypothesis.given(st.randoms(use_true_random=True), st.integers(0, 2**16), st.integers(1, 5))
    def agrees(random: Random, seed: int, threads: int) -> None:
        check(drawn_window(random, dtype), seed, instruction_sets, threads)

    agrees()


@pytest.mark.parametrize("dtype", pooling.ELEMENTS)
@pytest.mark.parametrize(("size", "padding"), [((2, 2), "valid"), ((3, 3), ((1, 1), (1, 1)))])
def test_images_that_no_cache_holds(dtype: str, size: Any, padding: Any, instruction_sets: list[str]) -> None:
    """Outputs of more than 4 MB are written past the caches, where their memory is aligned."""
    spec = pooling.window((2, 160, 80, 128), size, (2, 2), padding, dtype)
    inputs, gradient = images(spec, 1)
    expected = truth(spec, inputs, gradient)
    memory = np.empty(inputs.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    total = memory[start : start + inputs.nbytes].view(inputs.dtype).reshape(inputs.shape)
    for name in instruction_sets:
        library.use_instruction_set(name)
        outputs, places = pooling.max_pool(inputs, spec)
        pooling.max_pool_gradient(gradient, places, spec, total)
        np.testing.assert_array_equal(outputs.astype("float64"), expected.outputs)
        assert np.all(np.abs(total.astype("float64") - expected.gradient) <= ROUNDING[dtype] * expected.bound)


@pytest.mark.parametrize("dtype", pooling.ELEMENTS)
def test_threads_and_instruction_sets_give_the_same_bits(dtype: str, instruction_sets: list[str]) -> None:
    spec = pooling.window((3, 30, 31, 40), (4, 5), (2, 3), "same", dtype)
    inputs, gradient = images(spec, 2)
    results = []
    for name in instruction_sets:
        for threads in (1, 2, 5):
            library.use_instruction_set(name)
            library.load().gw_set_threads(threads)
            _, places = pooling.max_pool(inputs, spec)
            results.append(pooling.max_pool_gradient(gradient, places, spec).tobytes())
    assert len(set(results)) == 1


def test_the_last_of_several_that_are_no_numbers_is_the_maximum(instruction_sets: list[str]) -> None:
    for values, place in (
        ([1, np.nan, 2, 0], 1),
        ([np.nan, 5, np.nan, 1], 2),
        ([-np.inf] * 4, 0),
        ([-0.0, 0.0, 0, 0], 0),
    ):
        inputs = np.repeat(np.array(values, "float32"), 20).reshape(1, 2, 2, 20)
        for name in instruction_sets:
            library.use_instruction_set(name)
            outputs, places = pooling.max_pool(inputs, pooling.window(inputs.shape, (2, 2), (2, 2)))
            np.testing.assert_array_equal(outputs, inputs.reshape(1, 1, 4, 20)[:, :, place : place + 1])
            assert np.all(places == place)


def test_wrong_arrays_are_refused() -> None:
    spec = pooling.window((1, 4, 4, 3), (2, 2), (2, 2))
    inputs, gradient = images(spec, 0)
    _, places = pooling.max_pool(inputs, spec)
    for words, call in (
        ("inputs of shape (4, 4, 3)", lambda: pooling.max_pool(inputs[0], spec)),
        (
            "inputs of shape (1, 4, 4, 3) and type bfloat16",
            lambda: pooling.max_pool(inputs.astype(TYPES["bfloat16"]), spec),
        ),
        (
            "places of shape (1, 2, 2, 3) and type int8",
            lambda: pooling.max_pool(inputs, spec, places=places.view("int8")),
        ),
        ("gradient of shape (1, 4, 4, 3)", lambda: pooling.max_pool_gradient(inputs, places, spec)),
        ("out of shape (1, 2, 2, 3)", lambda: pooling.max_pool_gradient(gradient, places, spec, gradient)),
    ):
        with pytest.raises(ValueError, match="must be") as caught:
            call()
        assert words in str(caught.value)


def test_windows_of_more_places_than_a_byte_counts_are_refused() -> None:
    most, larger = (pooling.window((1, 40, 40, 2), size, (1, 1)) for size in ((16, 16), (16, 17)))
    assert pooling.objection((16, 16), "float32") is None
    assert "at most 256 pixels" in str(pooling.objection((16, 17), "float32"))
    check(most, 3, [library.instruction_set()], 2)
    with pytest.raises(ValueError, match="the core refuses"):
        pooling.max_pool(np.zeros((1, 40, 40, 2), "float32"), larger)
