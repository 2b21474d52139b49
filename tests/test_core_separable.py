"""Two convolutions, or three, in one pass of the C core against float64, and what its C interface refuses."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from groupwise.core import convolution, library, separable
from groupwise.spec import ConvSpec
from tests.activations import TRUTH
from tests.passes import TOLERANCE, near, truth

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not library.is_available(), reason=f"{library.path()}: the core is off, or does not load"),
]
GROUPED = (
    ConvSpec.of((2, 9, 10, 12), (3, 3, 1, 12), 12),
    ConvSpec.of((2, 11, 8, 19), (3, 5, 1, 38), 19, 2, ((0, 2), (3, 1))),
    ConvSpec.of((1, 19, 33, 33), (3, 2, 1, 33), 33, (1, 3), "valid", (2, 1)),
    ConvSpec.of((1, 7, 7, 1040), (3, 3, 1, 1040), 1040),
    ConvSpec.of((3, 28, 30, 64), (3, 3, 4, 64), 16),
    ConvSpec.of((2, 11, 8, 15), (3, 4, 5, 9), 3, (2, 1), ((0, 2), (3, 1))),
)


def pointwise_of(grouped: ConvSpec, out_channels: int, groups: int = 1) -> ConvSpec:
    channels = grouped.output_shape[3]
    assert channels is not None
    return ConvSpec.of(grouped.output_shape, (1, 1, channels // groups, out_channels), groups)


def expansion_of(grouped: ConvSpec, in_channels: int, groups: int = 1) -> ConvSpec:
    batch, height, width, channels = grouped.input_shape
    assert channels is not None
    return ConvSpec.of((batch, height, width, in_channels), (1, 1, in_channels // groups, channels), groups)


@pytest.mark.parametrize("grouped", GROUPED, ids=str)
@pytest.mark.parametrize("out_channels", [1, 24, 70])
@pytest.mark.parametrize(
    "activations", [("linear",) * 3, ("relu6", "linear", "relu6"), ("silu", "hard_swish", "silu")], ids=str
)
@pytest.mark.parametrize("in_channels", [None, 9])
def test_all_are_the_definition(
    grouped: ConvSpec, out_channels: int, activations: tuple[str, ...], in_channels: int | None
) -> None:
    """After an expansion of so many channels, or without one."""
    pointwise = pointwise_of(grouped, out_channels)
    before = [] if in_channels is None else [expansion_of(grouped, in_channels)]
    specs, ends = [*before, grouped, pointwise], [*activations[2:][: len(before)], *activations[:2]]
    assert separable.computes(grouped, pointwise, *before)
    random = np.random.default_rng(out_channels)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype("float32")

    x = normal(*convolution.shapes(convolution.sizes(specs[0]))[0])
    kernels = [normal(*spec.kernel_shape) for spec in specs]
    biases = [normal(spec.kernel_shape[3]) for spec in specs]
    expected, bound = np.asarray(x, "float64"), np.zeros(x.shape)
    for spec, kernel, bias, activation in zip(specs, kernels, biases, ends, strict=True):
        # What is wrong with the inputs is multiplied, and twice that is more than any activation makes of it.
        magnitude = truth(0, spec, [np.abs(expected), np.abs(kernel)]) + np.abs(bias)
        bound = 2 * (truth(0, spec, [bound, np.abs(kernel)]) + TOLERANCE[0] * magnitude)
        expected = TRUTH[activation].value(truth(0, spec, [expected, kernel]) + bias)
    *expansion, first, second = zip(specs, kernels, biases, strict=True)
    near(separable.convolve(x, first, second, activations, *expansion), expected, bound, str(grouped))


def test_it_computes_what_two_passes_do() -> None:
    grouped = ConvSpec.of((2, 14, 14, 48), (3, 3, 1, 48), 48)
    pointwise = pointwise_of(grouped, 96, groups=3)
    random = np.random.default_rng(0)
    x, w, v = (
        random.normal(size=shape).astype("float32")
        for shape in ((2, 14, 14, 48), grouped.kernel_shape, pointwise.kernel_shape)
    )
    middle = convolution.convolve(convolution.FORWARD, grouped, x, w)
    expected = convolution.convolve(convolution.FORWARD, pointwise, middle, v)
    np.testing.assert_allclose(
        separable.convolve(x, (grouped, w, None), (pointwise, v, None)), expected, rtol=1e-5, atol=1e-4
    )


def test_other_convolutions_are_left_to_two_passes() -> None:
    depthwise = ConvSpec.of((1, 8, 8, 32), (3, 3, 1, 32), 32)
    wide = ConvSpec.of((1, 8, 8, 32), (3, 3, 16, 32), 2)
    assert not separable.computes(wide, pointwise_of(wide, 8))
    assert not separable.computes(depthwise, ConvSpec.of((1, 8, 8, 32), (3, 3, 32, 8), 1))
    assert not separable.computes(depthwise, ConvSpec.of((1, 8, 8, 32), (1, 1, 32, 8), 1, 2))
    assert not separable.computes(depthwise, pointwise_of(replace(depthwise, input_shape=(2, 8, 8, 32)), 8))
    for before in (expansion_of(depthwise, 8), expansion_of(depthwise, 8, 4)):
        assert separable.computes(depthwise, pointwise_of(depthwise, 8), before)
        assert not separable.computes(depthwise, pointwise_of(depthwise, 8), replace(before, strides=(2, 2)))
        assert not separable.computes(wide, pointwise_of(wide, 8), before)
    assert not separable.computes(depthwise, pointwise_of(depthwise, 8), ConvSpec.of((1, 8, 8, 4), (3, 3, 4, 32), 1))
    x, kernel = np.zeros((1, 8, 8, 32), "float32"), np.zeros((3, 3, 16, 32), "float32")
    dense = np.zeros((1, 1, 32, 8), "float32")
    with pytest.raises(ValueError, match="does not compute"):
        separable.convolve(x, (wide, kernel, None), (pointwise_of(wide, 8), dense, None))
    with pytest.raises(ValueError, match="inputs of shape"):
        separable.convolve(x[:, 1:], (wide, kernel, None), (pointwise_of(wide, 8), dense, None))


def status_of(grouped: list[int], pointwise: list[int], arrays: list[Any], before: Any = None, **fusions: Any) -> int:
    """Return what the C function says, past Python's checks.

    Args:
        arrays: inputs, both kernels, outputs. before: a `separable._Expansion`, or None.
    """
    x, w, v, y = (None if array is None else array.ctypes.data for array in arrays)
    sizes = ((ctypes.c_int64 * 16)(*numbers) for numbers in (grouped, pointwise))
    addresses = {name: ctypes.addressof(fusion) for name, fusion in fusions.items()}
    expansion = None if before is None else ctypes.addressof(before)
    both = separable._Separable(*sizes, w, v, expansion=expansion, **addresses)
    status: int = library.load().gw_convolve_separable(ctypes.byref(both), x, y, None)
    return status


def test_the_core_refuses_what_would_touch_foreign_memory() -> None:
    first, second = [1, 5, 5, 4, 5, 5, 4, 3, 3, 4, 1, 1, 1, 1, 1, 1], [1, 5, 5, 4, 5, 5, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    arrays = [np.zeros(size, "float32") for size in (100, 36, 12, 75)]
    assert status_of(first, second, arrays) == 0
    assert library.load().gw_convolve_separable(None, None, None, None) == 1
    for sizes in (first, second):
        for index in range(16):
            before, sizes[index] = sizes[index], -1
            assert status_of(first, second, [None] * 4) == 1
            sizes[index] = before
    for index in (0, 1, 2, 3):
        assert status_of(first, [*second[:index], second[index] + 1, *second[index + 1 :]], arrays) == 1
        assert status_of(first, second, [None if place == index else array for place, array in enumerate(arrays)]) == 1
    assert status_of(first, [*second[:7], 3, *second[8:]], arrays) == 2

    def fusion(**fields: Any) -> Any:
        return convolution._Fusion(**fields)

    reading = convolution.reading(*[arrays[0].ctypes.data] * 3)
    own = arrays[0].ctypes.data
    assert status_of(first, second, arrays, between=fusion(activation=-1)) == 1
    assert status_of(first, second, arrays, between=fusion(inputs=reading)) == 0
    for name, fields in (
        ("between", {"residual": own}),
        ("between", {"mean": own, "variance": own}),
        ("end", {"mean": own, "variance": own}),
        ("end", {"inputs": reading}),
    ):
        assert status_of(first, second, arrays, **{name: fusion(**fields)}) == 2, (name, fields)


def test_the_core_refuses_such_an_expansion() -> None:
    sizes = [1, 5, 5, 2, 5, 5, 4, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    first, second = [1, 5, 5, 4, 5, 5, 4, 3, 3, 4, 1, 1, 1, 1, 1, 1], [1, 5, 5, 4, 5, 5, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    arrays = [np.zeros(size, "float32") for size in (50, 36, 12, 75)]
    kernel, own = np.zeros(8, "float32"), arrays[0].ctypes.data

    def status(numbers: list[int], address: int | None = kernel.ctypes.data, fusion: Any = None, **more: Any) -> int:
        at = None if fusion is None else ctypes.addressof(fusion)
        before = separable._Expansion((ctypes.c_int64 * 16)(*numbers), address, at)
        return status_of(first, second, arrays, before, **more)

    assert status(sizes) == 0
    assert status(sizes, None) == 1
    for index in range(16):
        assert status([*sizes[:index], -1, *sizes[index + 1 :]]) == 1
    for index in (0, 4, 5, 6):  # what the grouped convolution reads is of another shape
        assert status([*sizes[:index], sizes[index] + 1, *sizes[index + 1 :]]) == 1
    assert status_of(first, second, [None, *arrays[1:]], separable._Expansion((ctypes.c_int64 * 16)(*sizes), own)) == 1
    for index in (7, 10):  # no 1x1, or not of stride 1
        assert status([*sizes[:index], 2, *sizes[index + 1 :]]) == 2
    reading = convolution.reading(own, own, own)
    assert status(sizes, fusion=convolution._Fusion(activation=-1)) == 1
    assert status(sizes, between=convolution._Fusion(inputs=reading)) == 2
    for fields in ({"residual": own}, {"mean": own, "variance": own}, {"inputs": reading}):
        assert status(sizes, fusion=convolution._Fusion(**fields)) == 2, fields
