"""Every algorithm of the convolutions against the float64 reference: values and both gradients, on drawn specs."""

import inspect
import re
from pathlib import Path
from typing import Any

import hypothesis
import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import groupwise
from groupwise import layers, ops
from groupwise.core import convolution
from groupwise.ops.algorithms import ALGORITHMS
from tests.frameworks import BACKEND, CORE_RUNS, needs_core, skip_without_core, values_and_gradients
from tests.reference import Convolution, same_padding

# |error| <= tolerance * (the same sum over absolute values); the second is for kernel gradients.
TOLERANCE = {"float32": (1e-5, 3e-5), "float16": (2e-3, 2e-3), "bfloat16": (2e-2, 2e-2)}
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@st.composite
def drawn_case(draw: st.DrawFn, algorithm: str) -> dict:
    """Return the arguments of one grouped convolution that `algorithm` can run."""
    integer = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    two = lambda low, high: (integer(low, high), integer(low, high))  # noqa: E731
    groups = integer(2, 6) if algorithm == "shifted_sum" else integer(1, 6)
    width_in = 1 if algorithm == "shifted_sum" else integer(1, 5)
    kernel_size = (1, 1) if algorithm == "matmul" else two(1, 4)
    strides, dilation = two(1, 3), two(1, 3)
    explicit = (two(0, 4), two(0, 4))
    choices = ["same", "valid"] if algorithm == "matmul" else ["same", "valid", explicit]
    padding = draw(st.sampled_from(choices))
    extent = [(kernel_size[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    size = tuple(
        integer(max(1, extent[axis] if padding == "valid" else extent[axis] - sum(explicit[axis])), 11)
        if padding != "same"
        else integer(1, 11)
        for axis in (0, 1)
    )
    return {
        "batch": integer(1, 3),
        "size": size,
        "kernel_shape": (*kernel_size, width_in, groups * integer(1, 5)),
        "groups": groups,
        "strides": strides,
        "padding": padding,
        "dilation_rate": dilation,
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
        "dtype": draw(st.sampled_from(["float32", "float32", "float16", "bfloat16"])),
        # XLA compiles every operation by itself where the whole is not compiled: far slower, and nothing more tested.
        "compiled": BACKEND == "jax" or draw(st.booleans()),
        "seed": integer(0, 2**16),
    }


def check(case: dict, algorithm: str) -> None:
    """Compare outputs and both gradients with the reference."""
    random = np.random.default_rng(case["seed"])
    size, kernel_shape, dtype = case["size"], case["kernel_shape"], case["dtype"]
    strides, dilation, padding = case["strides"], case["dilation_rate"], case["padding"]
    if padding == "same":
        padding = same_padding(size, kernel_shape[:2], strides, dilation)
    elif padding == "valid":
        padding = ((0, 0), (0, 0))
    reference = Convolution(case["groups"], strides, padding, dilation)
    draw = lambda shape: np.asarray(random.normal(size=shape), TYPES[dtype])  # noqa: E731
    inputs = draw((case["batch"], *size, kernel_shape[2] * case["groups"]))
    kernel = draw(kernel_shape)
    gradient = draw((case["batch"], *reference.output_size(inputs.shape, kernel_shape), kernel_shape[3]))
    first = case["data_format"] == "channels_first"
    to_layout = (lambda a: a.transpose(0, 3, 1, 2)) if first else (lambda a: a)
    from_layout = (lambda a: a.transpose(0, 2, 3, 1)) if first else (lambda a: a)

    def run(inputs, kernel):
        names = ("groups", "strides", "padding", "dilation_rate", "data_format")
        return ops.grouped_conv2d(inputs, kernel, algorithm=algorithm, **{name: case[name] for name in names})

    outputs, to_inputs, to_kernel = values_and_gradients(
        run, to_layout(inputs), kernel, to_layout(gradient), case["compiled"]
    )
    outputs, to_inputs = from_layout(outputs), from_layout(to_inputs)
    rounding, kernel_rounding = TOLERANCE[dtype]
    wide = [array.astype("float64") for array in (inputs, kernel, gradient)]
    absolute = [np.abs(array) for array in wide]
    near(outputs, reference.forward(*wide[:2]), rounding * reference.forward(*absolute[:2]), "outputs")
    near(to_inputs, reference.input_gradient(*wide), rounding * reference.input_gradient(*absolute), "input gradient")
    bound = kernel_rounding * reference.kernel_gradient(*absolute)
    near(to_kernel, reference.kernel_gradient(*wide), bound, "kernel gradient")


def near(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray, what: str) -> None:
    """Assert |actual - expected| <= bound, elementwise."""
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected)
    assert (error <= bound + 1e-30).all(), f"{what}: error {(error / (bound + 1e-30)).max():.2f} times the bound"


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_algorithm_agrees_with_the_reference(algorithm: str) -> None:
    skip_without_core(algorithm)

    # Compiling is nearly all of the time on JAX.
    @hypothesis.settings(max_examples=25 if BACKEND == "jax" else 40)
    @hypothesis.given(case=drawn_case(algorithm))
    def agrees(case: dict) -> None:
        check(case, algorithm)

    agrees()


@pytest.mark.parametrize("algorithm", ["auto", "native", "depthwise_sum", "split_concat", "block_diagonal", "blocks"])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_resnext_stage_agrees_with_the_reference(algorithm: str, width: int) -> None:
    """The shapes of ResNeXt-50's stages, smaller: where the framework may choose its vectorised kernels."""
    case = dict(batch=2, size=(14, 14), kernel_shape=(3, 3, width, 32 * width), groups=32, strides=(2, 2), seed=1)
    layout = dict(padding=((1, 1), (1, 1)), dilation_rate=(1, 1), data_format="channels_last", dtype="float32")
    check({**case, **layout, "compiled": True}, algorithm)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("strides", [(2, 2), (3, 1)])
def test_strided_1x1_gradients_leave_memory_alone(strides: tuple[int, int], groups: int) -> None:
    """TensorFlow's own kernel gradient crashed the process on such small shapes; PyTorch's is wrong with AVX2."""
    layout = dict(padding="valid", dilation_rate=(1, 1), data_format="channels_last", dtype="float32")
    for seed in range(30):
        height, width, wide = np.random.default_rng(seed).integers(1, 12, 3)
        shape = dict(batch=2, size=(int(height), int(width)), kernel_shape=(1, 1, int(wide), groups * 5))
        check({**shape, **layout, "groups": groups, "strides": strides, "compiled": False, "seed": seed}, "native")


@pytest.mark.parametrize("multiplier", [1, 2, 5])
def test_separable_convolution_is_the_formula(multiplier: int) -> None:
    """out[b,i,j,k] = sum x[b, s*i+di, s*j+dj, q] * dw[di,dj,q,r] * pw[0,0,q*M+r,k], also where M * in > out."""
    random = np.random.default_rng(multiplier)
    inputs, stride = random.normal(size=(2, 7, 9, 3)).astype("float32"), 2
    depthwise = random.normal(size=(3, 2, 3, multiplier)).astype("float32")
    pointwise = random.normal(size=(1, 1, 3 * multiplier, 4)).astype("float32")
    expected = np.zeros((2, 3, 4, 4))
    for i, j in np.ndindex(3, 4):
        window = inputs[:, stride * i : stride * i + 3, stride * j : stride * j + 2]
        weights = pointwise[0, 0].reshape(3, multiplier, 4)
        expected[:, i, j] = np.einsum("bdeq,deqr,qrk->bk", window, depthwise, weights, dtype="float64")
    outputs = ops.separable_conv2d(inputs, depthwise, pointwise, strides=stride, padding="valid")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs), expected, rtol=1e-4, atol=1e-4)


def positive(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape).astype("float32")


def test_both_halves_of_a_separable_convolution_obey() -> None:
    inputs, depthwise, pointwise = positive(1, 6, 6, 4), positive(3, 3, 4, 2), positive(1, 1, 8, 3)
    expected = keras.ops.convert_to_numpy(
        ops.separable_conv2d(inputs, depthwise, pointwise, padding="valid", algorithm="native")
    )
    for algorithm in (*(["core"] if CORE_RUNS else []), "depthwise_sum", "split_concat", "block_diagonal", "blocks"):
        outputs = ops.separable_conv2d(inputs, depthwise, pointwise, padding="valid", algorithm=algorithm)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r'algorithm="shifted_sum": needs one input channel a group .* not 8 channels'):
        ops.separable_conv2d(inputs, depthwise, pointwise, algorithm="shifted_sum")
    with pytest.raises(ValueError, match=r'algorithm="matmul": the kernel must be 1x1 without padding, not \(3, 3\)'):
        ops.separable_conv2d(inputs, depthwise, pointwise, algorithm="matmul")


def test_the_pointwise_half_runs_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list = []

    def watched(name, function):
        def run(inputs, kernel, spec):
            asked.append((name, spec.kernel_shape[:2]))
            return function(inputs, kernel, spec)

        return run

    for name, function in ALGORITHMS.items():
        monkeypatch.setitem(ALGORITHMS, name, watched(name, function))
    layers.SeparableConv2D(3, 3, algorithm="native")(positive(1, 6, 6, 4))
    assert asked == [("native", (3, 3)), ("native", (1, 1))]


def test_the_worked_example() -> None:
    """8 channels 0..7, two groups, multiplier 4, all weights 1: one right transform and the two common mistakes."""
    inputs = np.arange(8, dtype="float32").reshape(1, 1, 1, 8)
    right = ops.grouped_conv2d(inputs, np.ones((1, 1, 4, 8), "float32"), groups=2, algorithm="depthwise_sum")
    assert np.ravel(keras.ops.convert_to_numpy(right)).tolist() == [6, 6, 6, 6, 22, 22, 22, 22]
    every = keras.ops.convert_to_numpy(ops.depthwise_conv2d(inputs, np.ones((1, 1, 8, 4), "float32"))).ravel()
    assert every.reshape(8, 4).sum(1).tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert every.reshape(4, 8).sum(0).tolist() == [12, 12, 12, 12, 16, 16, 16, 16]
    # The second mistake is a grouped convolution of strided groups: right once the inputs are permuted to match.
    strided = ops.channel_shuffle(inputs, 4, data_format="channels_last")
    outputs = ops.grouped_conv2d(strided, np.ones((1, 1, 4, 8), "float32"), groups=2)
    assert np.ravel(keras.ops.convert_to_numpy(outputs)).tolist() == [12, 12, 12, 12, 16, 16, 16, 16]


@hypothesis.settings(max_examples=30)
@hypothesis.given(groups=st.integers(1, 6), n=st.integers(1, 6), first=st.booleans())
def test_channel_shuffle_deals_every_group_out(groups: int, n: int, first: bool) -> None:
    channels = groups * n
    inputs = np.arange(2 * 3 * channels).reshape(2, 1, 3, channels)
    expected = np.stack([inputs[..., g * n + i] for i in range(n) for g in range(groups)], axis=-1)
    data_format = "channels_first" if first else "channels_last"
    to_layout = (lambda a: a.transpose(0, 3, 1, 2)) if first else (lambda a: a)
    shuffled = ops.channel_shuffle(to_layout(inputs), groups, data_format=data_format)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(shuffled), to_layout(expected))
    back = ops.channel_shuffle(shuffled, groups, inverse=True, data_format=data_format)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(back), to_layout(inputs))


@pytest.mark.parametrize("algorithm", ["auto", "native", "depthwise_sum", "blocks"])
def test_an_empty_batch_stays_empty(algorithm: str) -> None:
    inputs, kernel = np.zeros((0, 5, 5, 6), "float32"), np.ones((3, 3, 2, 6), "float32")
    assert tuple(ops.grouped_conv2d(inputs, kernel, 3, algorithm=algorithm).shape) == (0, 5, 5, 6)


@pytest.mark.parametrize("size", [(None, None), (9, 9)])
@pytest.mark.parametrize("strides", [1, 2])
def test_symbolic_shapes_agree_with_real_ones(size: tuple, strides: int) -> None:
    inputs = keras.Input((*size, 8))
    x = ops.grouped_conv2d(inputs, np.ones((3, 3, 2, 12), "float32"), 4, strides, padding=((1, 1), (1, 1)))
    x = ops.channel_shuffle(x, 4, data_format="channels_last")
    x = ops.separable_conv2d(x, np.ones((3, 3, 12, 2), "float32"), np.ones((1, 1, 24, 5), "float32"), strides)
    outputs = keras.Model(inputs, x)(np.zeros((2, 9, 9, 8), "float32"))
    assert outputs.shape == (2, *([9, 9] if strides == 1 else [3, 3]), 5)
    for symbolic, real in zip(x.shape, outputs.shape, strict=True):
        assert symbolic in (None, real)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(groups=3), "groups=3: must divide the 8 input channels"),
        (dict(groups=4), "its third entry must be in_channels // groups = 2"),
        (dict(groups=0), "groups=0"),
        (dict(groups="4"), "groups='4': must be an integer"),
        (dict(groups=2.0), "groups=2.0: must be an integer"),
        (dict(groups=2, strides=0), "strides=0: must be at least 1"),
        (dict(groups=2, strides="two"), "strides='two'"),
        (dict(groups=2, padding="full"), "padding='full'"),
        (dict(groups=2, padding=((-1, 0), (0, 0))), "at least 0"),
        (dict(groups=2, algorithm="fast"), "algorithm='fast': must be one of auto, native"),
        (dict(groups=2, padding="valid", dilation_rate=9), "smaller than the dilated kernel"),
        (dict(groups=2, data_format="NHWC"), "data_format='NHWC'"),
        (dict(groups=2, algorithm="matmul"), "the kernel must be 1x1"),
        (dict(groups=2, algorithm="shifted_sum"), "one input channel a group"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, words: str) -> None:
    inputs, kernel = np.zeros((1, 8, 8, 8), "float32"), np.zeros((3, 3, 4, 8), "float32")
    with pytest.raises(ValueError, match=re.escape(words)):
        ops.grouped_conv2d(inputs, kernel, **arguments)


def test_shuffle_names_the_wrong_groups() -> None:
    with pytest.raises(ValueError, match="groups=3: must divide the 8 channels"):
        ops.channel_shuffle(np.zeros((1, 2, 2, 8)), 3, data_format="channels_last")
    with pytest.raises(ValueError, match="groups='4': must be an integer"):
        ops.channel_shuffle(np.zeros((1, 2, 2, 8)), "4", data_format="channels_last")


@needs_core
@pytest.mark.skipif(BACKEND != "torch", reason="the others' kernels are called by their runtime, not by Python")
@pytest.mark.parametrize("make", [lambda: layers.GroupedConv2D(8, 3, groups=2), lambda: layers.DepthwiseConv2D(3)])
def test_from_a_layer_to_the_core_in_six_functions(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    run, paths = convolution.run, []

    def recorded(*arguments: Any, **options: Any) -> None:
        package = Path(groupwise.__file__).parent
        stack = [frame.function for frame in inspect.stack() if package in Path(frame.filename).parents]
        paths.append([*reversed(stack), "run"])
        run(*arguments, **options)

    monkeypatch.setattr(convolution, "run", recorded)
    layer, images = make(), keras.random.normal((1, 8, 8, 8))
    layer.build(images.shape)
    with torch.no_grad():
        layer(images)
    assert paths == [["call", "grouped_conv2d", "convolve", "dispatch", "_fused", "run"]]
    layer(images)  # autograd asks for one of its own
    assert paths[1] == ["call", "grouped_conv2d", "convolve", "dispatch", "forward", "_fused", "run"]
