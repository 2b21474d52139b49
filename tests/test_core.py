"""The C core through `convolution.convolve` against the float64 reference: every family, pass and instruction set."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from groupwise.core import convolution, library
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.activations import TRUTH
from tests.passes import PASS_NAMES, SPECS, expected, near, random_arrays, truth

pytestmark = pytest.mark.once
needs_core = pytest.mark.skipif(
    not library.is_available(), reason=f"{library.path()}: the core is off, or does not load"
)
EVERY_SPEC = [(family, spec) for family, specs in SPECS.items() for spec in specs]
GUARD = 16  # floats before and behind each array


@st.composite
def drawn_spec(draw: st.DrawFn, family: str) -> ConvSpec:
    """Return a convolution that `family` can run, of few enough products for NumPy."""
    # Evenly drawn: of its own accord Hypothesis prefers single pixels and channels.
    random = draw(st.randoms(use_true_random=True))
    while True:
        spec = random_spec(random, family)
        if spec.macs * (spec.input_shape[0] or 0) < 5e6:
            return spec


def two(random: Random, low: int, high: int) -> tuple[int, int]:
    return random.randint(low, high), random.randint(low, high)


# Groups, and a group's channels in and out, that a family can compute.
DRAWN_GROUPS: dict[str, Callable[[Random], tuple[int, int, int]]] = {
    "depthwise": lambda random: (random.randint(2, 70), 1, random.choice([1, 1, 2, 3, 5])),
    "narrow": lambda random: (
        random.randint(2, 20),
        *random.choice([(2, 2), (4, 4), (8, 8), *2 * [two(random, 1, 15)]]),
    ),
    "wide": lambda random: (random.choice([1, 1, 2, 3]), *two(random, 1, 70)),
    "reference": lambda random: (random.randint(1, 5), *two(random, 1, 5)),
}


def random_spec(random: Random, family: str) -> ConvSpec:
    integer, choice = random.randint, random.choice
    groups, in_width, out_width = DRAWN_GROUPS[family](random)
    kernel_size = choice([(1, 1), (3, 3), two(random, 1, 5), two(random, 1, 5)])
    strides, dilation = choice([(1, 1), two(random, 1, 3)]), choice([(1, 1), two(random, 1, 3)])
    extent = [(size - 1) * rate + 1 for size, rate in zip(kernel_size, dilation, strict=True)]
    padding: Any = choice(["same", "valid", *2 * [tuple(two(random, 0, reach + 2) for reach in extent)]])
    least = [1 if padding == "same" else extent[axis] for axis in (0, 1)]
    if not isinstance(padding, str):
        least = [max(1, extent[axis] - sum(padding[axis])) for axis in (0, 1)]
    size = [integer(low, 33) for low in least]
    batch = choice([0, *3 * [1, 2, 3]])
    kernel_shape = (*kernel_size, in_width, groups * out_width)
    return ConvSpec.of((batch, *size, groups * in_width), kernel_shape, groups, strides, padding, dilation)


def guarded(array: np.ndarray, around: float) -> np.ndarray:
    """Return a copy that begins four bytes past an aligned address, among values that must not be used."""
    memory = np.full(array.size + 2 * GUARD + 17, around, "float32")
    start = GUARD + (-memory.ctypes.data // 4 - GUARD) % 16 + 1
    copy = memory[start : start + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def guards_hold(array: np.ndarray, around: float) -> bool:
    """Return whether nothing was written around a `guarded` array."""
    memory = array
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    return int(np.count_nonzero(memory == np.float32(around))) >= memory.size - array.size


def check(pass_: int, spec: ConvSpec, arrays: list[np.ndarray], sets: list[str], family: str, count: int) -> None:
    """Compare one pass with its truth on each instruction set; its result must also be the same bits twice."""
    first, second, result = convolution.ROLES[pass_]
    value, bound = expected(pass_, spec, arrays)
    a, b = (guarded(arrays[role], np.nan) for role in (first, second))
    poison = np.full(convolution.shapes(convolution.sizes(spec))[result], np.nan, "float32")
    library.load().gw_set_threads(count)
    for name in sets:
        library.use_instruction_set(name)
        out, again = guarded(poison, -7), guarded(poison, -7)
        convolution.convolve(pass_, spec, a, b, out=out, family=family)
        convolution.convolve(pass_, spec, a, b, out=again, family=family)
        what = f"{PASS_NAMES[pass_]}, {family}, {name}, {count} threads, {spec}"
        near(out, value, bound, what)
        assert guards_hold(out, -7), f"wrote outside of its output: {what}"
        assert np.array_equal(out, again), f"other bits the second time: {what}"


@needs_core
def test_every_family_is_tested() -> None:
    assert convolution.families() == tuple(DRAWN_GROUPS)
    assert {*convolution.families()} - {"reference"} == SPECS.keys()


@needs_core
@pytest.mark.parametrize("family", DRAWN_GROUPS)
def test_every_pass_agrees_with_the_reference(family: str, instruction_sets: list[str]) -> None:
    @hypothesis.settings(max_examples=30 if family == "reference" else 120)
    @hypothesis.given(spec=drawn_spec(family), seed=st.integers(0, 2**16), count=st.integers(1, 5))
    def agrees(spec: ConvSpec, seed: int, count: int) -> None:
        arrays = random_arrays(spec, seed)
        for pass_ in convolution.PASSES:
            check(pass_, spec, arrays, instruction_sets, family, count)

    agrees()


@needs_core
@pytest.mark.parametrize(("family", "spec"), EVERY_SPEC)
def test_the_fastest_family_runs(family: str, spec: ConvSpec) -> None:
    assert convolution.family(spec) == family
    arrays = random_arrays(spec)
    for pass_ in convolution.PASSES:
        first, second, _ = convolution.ROLES[pass_]
        near(
            convolution.convolve(pass_, spec, arrays[first], arrays[second]), *expected(pass_, spec, arrays), str(spec)
        )


@needs_core
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("family", "spec"), EVERY_SPEC)
def test_epilogue_is_the_formula(family: str, spec: ConvSpec, activation: str, instruction_sets: list[str]) -> None:
    inputs, kernel, residual = random_arrays(spec)
    bias = np.random.default_rng(1).normal(size=spec.out_channels).astype("float32")
    value, bound = expected(convolution.FORWARD, spec, [inputs, kernel, residual])
    for name in instruction_sets:
        library.use_instruction_set(name)
        for way in (family, "reference"):
            for options in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
                out = convolution.convolve(
                    convolution.FORWARD, spec, inputs, kernel, activation=activation, family=way, **options
                )
                added = sum(np.abs(array) for array in options.values())
                near(
                    out,
                    TRUTH[activation].value(value + sum(options.values())),
                    1.2 * bound + 1e-5 * added,
                    f"{way}, {name}, {[*options]}",
                )


@needs_core
def test_relu_keeps_what_is_not_a_number(instruction_sets: list[str]) -> None:
    """A training that diverges must be seen to."""
    spec = ConvSpec.of((1, 4, 5, 24), (1, 1, 24, 24), 1)
    inputs, kernel, _ = (array * np.float32(np.nan) for array in random_arrays(spec))
    for name in instruction_sets:
        library.use_instruction_set(name)
        for activation in ACTIVATIONS:
            assert np.isnan(
                convolution.convolve(convolution.FORWARD, spec, inputs, kernel, activation=activation)
            ).all()


def test_other_settings_are_refused_before_the_core_sees_them() -> None:
    for arguments, message in (
        (dict(input_shape=(1, 5, 5, 6), kernel_shape=(3, 3, 1, 4), groups=4), "groups=4: must divide the 6 input"),
        (dict(input_shape=(1, 5, 5, 4), kernel_shape=(3, 3, 2, 5), groups=2), "groups=2: must divide the 5 output"),
        (dict(input_shape=(1, 5, 5, 4), kernel_shape=(3, 3, 2, 4), groups=2, strides=0), "strides=0"),
        (dict(input_shape=(1, 5, 5, 4), kernel_shape=(3, 3, 2, 4), groups=2, dilation_rate=(1, 0)), "dilation_rate="),
        (dict(input_shape=(1, 2, 5, 4), kernel_shape=(3, 3, 2, 4), groups=2, padding="valid"), "height is smaller"),
    ):
        with pytest.raises(ValueError, match=message):
            ConvSpec.of(**arguments)


@pytest.mark.parametrize(
    ("input_shape", "kernel_shape", "settings", "message"),
    [
        ((-1, 5, 5, 4), (3, 3, 4, 4), {}, r"each must be in \[0, 2 \*\* 40\)"),
        ((2**62, 5, 5, 4), (3, 3, 4, 4), {}, r"each must be in \[0, 2 \*\* 40\)"),
        ((2**64 + 1, 5, 5, 4), (3, 3, 4, 4), {}, r"each must be in \[0, 2 \*\* 40\)"),
        ((1, 5, 5, 4), (3, 3, 4, 4), {"strides": 2**64 + 1}, r"each must be in \[0, 2 \*\* 40\)"),
        ((2**30, 2**20, 2**20, 4), (3, 3, 4, 4), {}, r"bytes must be fewer than 2 \*\* 63"),
        ((1, 5, 5, 2**31), (3, 3, 2**31, 2**31), {}, r"bytes must be fewer than 2 \*\* 63"),
        ((None, 5, 5, 4), (3, 3, 4, 4), {}, "every size must be known"),
    ],
)
def test_impossible_sizes_are_refused(input_shape: tuple, kernel_shape: tuple, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convolution.struct(convolution.sizes(ConvSpec.of(input_shape, kernel_shape, 1, **settings)))


def test_wrong_arguments_are_named() -> None:
    spec = ConvSpec.of((1, 4, 4, 2), (3, 3, 1, 2), 2)
    inputs, kernel, gradient = random_arrays(spec)
    read_only = np.zeros_like(inputs)
    read_only.flags.writeable = False
    odd = np.zeros(inputs.nbytes + 1, "uint8")[1:].view("float32").reshape(inputs.shape)
    for pass_, a, b, options, message in (
        (3, inputs, kernel, {}, "pass_=3: must be"),
        (0, inputs[:, :3], kernel, {}, r"a of shape \(1, 3, 4, 2\)"),
        (0, inputs, kernel.astype("float64"), {}, "b of shape .* type float64"),
        (0, inputs.transpose(0, 2, 1, 3), kernel, {}, "contiguous"),
        (0, odd, kernel, {}, "aligned"),
        (1, gradient, kernel, {"out": inputs[..., :1]}, "out of shape"),
        (0, inputs, kernel, {"out": read_only}, "must be writeable"),
        (0, inputs, kernel, {"bias": inputs}, r"bias of shape .* of shape \(2,\)"),
        (0, inputs, kernel, {"residual": inputs[0]}, "residual of shape"),
        (0, inputs, kernel, {"activation": "tanh"}, "activation='tanh': must be one of linear, relu, relu6"),
        (1, gradient, kernel, {"activation": "relu"}, "only FORWARD takes"),
        (0, inputs, kernel, {"out": inputs}, "out: overlaps a, which is still read"),
        (0, inputs, kernel, {"out": gradient, "residual": gradient}, "out: overlaps residual"),
    ):
        with pytest.raises(ValueError, match=message):
            convolution.convolve(pass_, spec, a, b, **options)


@needs_core
def test_a_family_that_cannot_run_it_is_refused() -> None:
    spec = ConvSpec.of((1, 4, 4, 4), (3, 3, 2, 4), 2)
    inputs, kernel, _ = random_arrays(spec)
    for name in ("depthwise", "unheard-of"):
        with pytest.raises(ValueError, match="the family does not compute this convolution"):
            convolution.convolve(convolution.FORWARD, spec, inputs, kernel, family=name)


@needs_core
def test_many_python_threads_at_once() -> None:
    cases = [(pass_, spec, random_arrays(spec)) for _, spec in EVERY_SPEC for pass_ in convolution.PASSES]

    def run(case: tuple[int, ConvSpec, list[np.ndarray]]) -> np.ndarray:
        pass_, spec, arrays = case
        return convolution.convolve(pass_, spec, *(arrays[role] for role in convolution.ROLES[pass_][:2]))

    alone = [run(case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for case, result, again in zip(cases * 10, pool.map(run, cases * 10), alone * 10, strict=True):
            assert np.array_equal(result, again), case[1]


def test_the_truth_of_passes_is_one_sum() -> None:
    """sum(outputs * gradient), by either gradient."""
    spec = SPECS["narrow"][1]
    arrays = random_arrays(spec)
    sums = [np.sum(truth(pass_, spec, arrays) * arrays[convolution.ROLES[pass_][2]]) for pass_ in convolution.PASSES]
    np.testing.assert_allclose(sums, sums[0])


@needs_core
@pytest.mark.parametrize("family", DRAWN_GROUPS)
def test_outputs_without_rows_have_a_kernel_gradient_of_zeros(family: str) -> None:
    """Python refuses such sizes; a caller of the C interface is answered, not divided by zero."""
    channels, width = 16, 1 if family == "depthwise" else 2
    sizes = (1, 2, 2, channels, 0, 2, channels, 3, 3, channels // width, 1, 1, 1, 1, 0, 1)
    inputs, gradient, kernel = (np.ones(n, "float32") for n in (4 * channels, 1, 9 * width * channels))
    a, b, out = (array.ctypes.data for array in (inputs, gradient, kernel))
    # The second has more rows than tasks can be counted over.
    for empty in (sizes, (2**20, 2, 0, channels, 2**38, 0, *sizes[6:])):
        kernel[...] = 1
        convolution.run(convolution.KERNEL_GRADIENT, empty, (a, b, out), family=family)
        assert not kernel.any()


@needs_core
@pytest.mark.parametrize("family", [*DRAWN_GROUPS][1:])
@pytest.mark.parametrize("pass_", convolution.PASSES)
def test_outputs_that_end_before_the_image_does(family: str, pass_: int) -> None:
    """Padding at the bottom and right follows from the outputs' size, below zero too: here they see padding alone."""
    sizes = (1, 4, 4, 64, 1, 1, 64, 3, 3, 16, 1, 1, 1, 1, 5, 5)
    arrays = [np.ones(shape, "float32") for shape in convolution.shapes(sizes)]
    first, second, result = (arrays[role] for role in convolution.ROLES[pass_])
    convolution.run(pass_, sizes, (first.ctypes.data, second.ctypes.data, result.ctypes.data), family=family)
    assert not result.any()


@needs_core
def test_a_stride_far_larger_than_the_image() -> None:
    spec = ConvSpec.of((2, 3, 3, 8), (2, 2, 4, 8), 2, strides=2**36)
    arrays = random_arrays(spec)
    for pass_ in convolution.PASSES:
        first, second, _ = convolution.ROLES[pass_]
        for family in convolution.families()[1:]:
            result = convolution.convolve(pass_, spec, arrays[first], arrays[second], family=family)
            near(result, *expected(pass_, spec, arrays), family)
