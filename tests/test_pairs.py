"""Two convolutions in one pass, the second one 1x1, on every backend: values and all gradients, against float64.

And three, an inverted residual's.
"""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends, layers, ops
from groupwise.backends.steps import Step
from groupwise.core import convolution
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.ops import pairs
from groupwise.ops.pairs import Convolution, pair_conv2d
from groupwise.spec import ConvSpec
from tests.activations import TRUTH
from tests.frameworks import needs_core, value_and_every_gradient
from tests.passes import near, truth

pytestmark = needs_core

DEPTHWISE = ConvSpec.of((2, 9, 8, 12), (3, 3, 1, 24), 12, (2, 1), ((0, 1), (1, 1)))
NARROW = ConvSpec.of((2, 7, 8, 16), (3, 3, 4, 16), 4, 1, "same", (2, 1))
WIDE = ConvSpec.of((2, 7, 8, 16), (3, 3, 16, 16), 1)
EXTRAS = ((), ("bias", "end_bias"), ("bias", "scale", "end_bias", "residual", "end_scale"), ("scale", "residual"))
# Each extra and each activation with each convolution, on either place.
CASES = [
    (spec, groups, extras, list(ACTIVATIONS)[place % 5], list(ACTIVATIONS)[(place + 2) % 5])
    for spec, groups in ((DEPTHWISE, 1), (DEPTHWISE, 3), (NARROW, 1))
    for place, extras in enumerate(EXTRAS)
]
# The same after an expansion, whose own extras are the first one's.
EXPANDED = [(spec, groups, ("before_kernel", *extras), *both) for spec, groups, extras, *both in CASES[::3]]


def pointwise_of(spec: ConvSpec, groups: int) -> ConvSpec:
    return ConvSpec.of(spec.output_shape, (1, 1, spec.out_channels // groups, 18), groups)


def arrays_of(spec: ConvSpec, groups: int, extras: tuple[str, ...]) -> dict[str, np.ndarray]:
    random, end = np.random.default_rng(0), pointwise_of(spec, groups)
    shapes: dict[str, Any] = {"inputs": spec.input_shape, "kernel": spec.kernel_shape, "end_kernel": end.kernel_shape}
    if "before_kernel" in extras:
        shapes |= {"inputs": (*spec.input_shape[:3], 5), "before_kernel": (1, 1, 5, spec.input_shape[3])}
        if "bias" in extras:
            shapes["before_bias"] = spec.input_shape[3:]
        if "scale" in extras:
            shapes["before_scale"] = spec.input_shape[3:]
        extras = extras[1:]
    channels = {"bias": spec.out_channels, "scale": spec.out_channels, "end_bias": 18, "end_scale": 18}
    shapes |= {name: end.output_shape if name == "residual" else channels[name] for name in extras}
    return {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def named(spec: ConvSpec, groups: int, first: str, second: str, given: dict[str, Any]) -> Any:
    """Return the outputs of a pair of convolutions of these arrays by their names."""
    geometry = spec.groups, spec.strides, spec.padding, spec.dilation_rate
    one = Convolution(given["kernel"], geometry, given.get("bias"), first, given.get("scale"))
    end = given["end_kernel"], (groups, 1, "valid", 1), given.get("end_bias"), second, given.get("end_scale")
    before = None
    if "before_kernel" in given:
        more = given.get("before_bias"), second, given.get("before_scale")
        before = Convolution(given["before_kernel"], (1, 1, "valid", 1), *more)
    return pair_conv2d(given["inputs"], one, Convolution(*end), given.get("residual"), expansion=before)


def exact(spec: ConvSpec, groups: int, first: str, second: str, given: dict[str, np.ndarray]) -> np.ndarray:
    """Return the outputs in float64."""
    wide = {name: array.astype("float64") for name, array in given.items()}
    image = wide["inputs"]
    if "before_kernel" in wide:
        widened = image @ wide["before_kernel"][0, 0] * wide.get("before_scale", 1) + wide.get("before_bias", 0)
        image = TRUTH[second].value(widened)
    sums = truth(convolution.FORWARD, spec, [image, wide["kernel"]])
    between = TRUTH[first].value(sums * wide.get("scale", 1) + wide.get("bias", 0))
    sums = truth(convolution.FORWARD, pointwise_of(spec, groups), [between, wide["end_kernel"]])
    outputs: np.ndarray = TRUTH[second].value(
        sums * wide.get("end_scale", 1) + wide.get("end_bias", 0) + wide.get("residual", 0)
    )
    return outputs


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[ConvSpec]:
    """Return the first convolutions of those that the core has computed in one pass, however few the pixels."""
    for name in ("FEW_PIXELS", "NARROW", "FEW_OUTPUTS"):
        monkeypatch.setattr(pairs, name, 0)
    monkeypatch.setattr(pairs, "usable_cores", lambda: 1)
    calls: list[ConvSpec] = []
    core = backends.active.core

    def separable(inputs: Any, grouped: Step, pointwise: Step, *others: Any, run: Any = core.separable) -> Any:
        _, *expansion = others
        calls.extend(step.spec for step in (*expansion, grouped))
        return run(inputs, grouped, pointwise, *others)

    monkeypatch.setattr(core, "separable", separable)
    return calls


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("spec", "groups", "extras", "first", "second"), [*CASES, *EXPANDED])
def test_values_and_gradients(
    spec: ConvSpec, groups: int, extras: tuple[str, ...], first: str, second: str, compiled: bool, passes: list[Any]
) -> None:
    arrays = arrays_of(spec, groups, extras)
    wanted = exact(spec, groups, first, second, arrays)
    gradient = np.random.default_rng(1).normal(size=wanted.shape).astype("float32")

    def by_pair(*tensors: Any) -> Any:
        return named(spec, groups, first, second, dict(zip(arrays, tensors, strict=True)))

    results = value_and_every_gradient(by_pair, list(arrays.values()), gradient, compiled)
    expands = "before_kernel" in arrays
    assert len(passes) > expands
    assert passes[int(expands)] == spec
    near(results[0], wanted, np.full(wanted.shape, 2e-5 * np.abs(wanted).max()), "outputs")
    # By central differences of the float64 outputs, along random directions.
    random = np.random.default_rng(2)
    for (name, array), found in zip(arrays.items(), results[1:], strict=True):
        for _ in range(3):
            step, direction = 1e-6, random.normal(size=array.shape)
            ends = [
                exact(spec, groups, first, second, {**arrays, name: array.astype("float64") + sign * step * direction})
                for sign in (1, -1)
            ]
            slope = ((ends[0] - ends[1]) * gradient).sum() / (2 * step)
            assert abs((found * direction).sum() - slope) <= 1e-3 * max(1.0, np.abs(found * direction).sum()), name


def test_what_the_core_cannot_join_is_computed_in_two_calls(passes: list[Any]) -> None:
    for spec, dtype in ((WIDE, "float32"), (DEPTHWISE, "float16")):
        arrays = arrays_of(spec, 1, EXTRAS[2])
        wanted = exact(spec, 1, "relu", "relu6", arrays)
        found = named(spec, 1, "relu", "relu6", {name: array.astype(dtype) for name, array in arrays.items()})
        tolerance = (2e-5 if dtype == "float32" else 3e-2) * np.abs(wanted).max()
        np.testing.assert_allclose(keras.ops.convert_to_numpy(found).astype("float64"), wanted, atol=tolerance)
    assert not passes


def test_a_separable_operation_is_one_pass(passes: list[Any]) -> None:
    images = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype("float32")
    layer = layers.SeparableConv2D(8, 3, padding="same", activation="relu", bias_initializer="random_normal")
    found = keras.ops.convert_to_numpy(layer(images))
    assert len(passes) == 1
    depthwise, pointwise, bias = layer.get_weights()
    between = ops.depthwise_conv2d(images, depthwise)
    wanted = ops.grouped_conv2d(between, pointwise, 1, bias=bias, activation="relu")
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(wanted), rtol=1e-5, atol=1e-5)
    assert len(passes) == 1


def test_few_pixels_are_two_calls(passes: list[ConvSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "FEW_PIXELS", 2 * 7 * 6 + 1)
    images, layer = np.ones((2, 7, 6, 4), "float32"), layers.SeparableConv2D(8, 3, padding="same")
    layer(images)
    assert not passes
    layer(np.ones((3, 7, 6, 4), "float32"))
    assert passes


@pytest.mark.parametrize(
    ("shape", "cores", "expands"),
    [
        ((16, 28, 28, 3), 2, True),
        ((1, 14, 14, 3), 2, True),
        ((1, 14, 14, 3), 3, False),
        ((16, 14, 14, 3), 16, True),
        ((64, 14, 13, 3), 2, False),
        ((1, 8, 15, 3), 1, False),
    ],
    ids=str,
)
def test_an_expansion_joins_where_that_is_faster(
    shape: tuple[int, ...], cores: int, expands: bool, passes: list[ConvSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 14 pixels and more, 128 outputs and more, and not half as many rows again that two threads compute."""
    for name, number in (("NARROW", 14), ("FEW_OUTPUTS", 128)):
        monkeypatch.setattr(pairs, name, number)
    monkeypatch.setattr(pairs, "usable_cores", lambda: cores)
    random = np.random.default_rng(0)
    image, wide, kernel, last = (
        random.normal(size=size).astype("float32") for size in (shape, (1, 1, 3, 8), (5, 5, 1, 8), (1, 1, 8, 4))
    )
    before, end = (Convolution(array, (1, 1, "valid", 1), activation="relu6") for array in (wide, last))
    found = pair_conv2d(image, Convolution(kernel, (8, 1, "same", 1)), end, expansion=before)
    between = ops.grouped_conv2d(image, wide, 1, activation="relu6")
    wanted = ops.grouped_conv2d(ops.grouped_conv2d(between, kernel, 8), last, 1, activation="relu6")
    found, wanted = (keras.ops.convert_to_numpy(array) for array in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert [spec.kernel_shape for spec in passes] == ([wide.shape, kernel.shape] if expands else [kernel.shape])


def test_an_image_may_be_the_residual_too(passes: list[ConvSpec]) -> None:
    """As in an inverted residual: its gradient has two parts."""
    random = np.random.default_rng(0)
    shapes = (2, 6, 5, 8), (3, 3, 1, 8), (1, 1, 8, 8)
    arrays = [random.normal(size=shape).astype("float32") for shape in shapes]
    gradient = random.normal(size=shapes[0]).astype("float32")

    def block(is_pair: bool, inputs: Any, kernel: Any, last: Any) -> Any:
        if is_pair:
            first = Convolution(kernel, (8, 1, "same", 1), activation="relu")
            return pair_conv2d(inputs, first, Convolution(last, (1, 1, "valid", 1)), inputs)
        return ops.grouped_conv2d(ops.grouped_conv2d(inputs, kernel, 8, activation="relu"), last, 1) + inputs

    found, wanted = (
        value_and_every_gradient(lambda *given, one=one: block(one, *given), arrays, gradient, compiled=False)
        for one in (True, False)
    )
    assert passes
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("few", [0, 10_000])
def test_arguments_mean_the_same_in_one_pass_and_in_two(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "FEW_PIXELS", few)
    images, depthwise, last = (np.ones(shape, "float32") for shape in ((1, 4, 4, 2), (3, 3, 2, 1), (1, 1, 2, 3)))
    bias = [1.0, 2.0, 3.0]
    found = keras.ops.convert_to_numpy(ops.separable_conv2d(images, depthwise, last, padding="valid", bias=bias))
    np.testing.assert_allclose(found[0, 0, 0], [19, 20, 21])
    symbolic = ops.separable_conv2d(images, depthwise, last, residual=keras.KerasTensor((1, 4, 4, 3)))
    assert isinstance(symbolic, keras.KerasTensor)
    for wrong, words in (
        ({"activation": "gelu"}, "activation='gelu': must be one of linear, relu"),
        ({"bias": np.ones(2, "float32")}, r"bias of shape \(2,\): must be of shape \(3,\)"),
        ({"scale": np.ones((1, 3), "float32")}, r"scale of shape \(1, 3\): must be"),
        ({"residual": np.ones((1, 1, 1, 3), "float32")}, r"residual of shape \(1, 1, 1, 3\): must be of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            ops.separable_conv2d(images, depthwise, last, **wrong)
