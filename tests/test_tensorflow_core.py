"""The C core as TensorFlow's operations: values and gradients of every family, however TensorFlow runs them."""

import gc
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise.core import convolution
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, in_new_process, skip_without_core, values_and_gradients
from tests.passes import PASS_NAMES, SPECS, expected, near, random_arrays, truth

if BACKEND != "tensorflow":
    pytest.skip("Keras runs on another backend than TensorFlow", allow_module_level=True)
tf: Any = importlib.import_module("tensorflow")
core: Any = importlib.import_module("groupwise.backends.tensorflow.core")
operations: Any = importlib.import_module("groupwise.backends.tensorflow.operations")
skip_without_core()

# "same" with strides pads differently for every size of the image: the operation settles it at each call.
STRIDED = [
    ConvSpec.of((2, 10, 7, 6), (5, 3, 1, 12), 6, (2, 1)),
    ConvSpec.of((2, 10, 7, 15), (3, 5, 3, 30), 5, 2),
    ConvSpec.of((2, 10, 7, 51), (3, 3, 17, 54), 3, (2, 3)),
]
EVERY_SPEC = [*(spec for specs in SPECS.values() for spec in specs), *STRIDED]
every_spec = pytest.mark.parametrize("spec", EVERY_SPEC)


def resized(spec: ConvSpec, batch: int | None, height: int | None, width: int | None) -> ConvSpec:
    return replace(spec, input_shape=(batch, height, width, spec.in_channels))


def run(spec: ConvSpec) -> Any:
    """Return convolve(inputs, kernel), whose sizes are those of its own inputs."""
    options = (spec.groups, spec.strides, spec.padding, spec.dilation_rate)
    return lambda x, w: core.convolve(x, w, ConvSpec.of(tuple(x.shape), tuple(w.shape), *options))


def every_pass(spec: ConvSpec, compiled: bool = False) -> Any:
    """Return the outputs and both gradients."""
    inputs, kernel, gradient = random_arrays(spec)
    return values_and_gradients(run(spec), inputs, kernel, gradient, compiled)


def check(spec: ConvSpec, results: Any) -> None:
    """Compare outputs, inputs' gradient and kernel's gradient with the float64 truth."""
    arrays = random_arrays(spec)
    for pass_, result in zip(convolution.PASSES, results, strict=True):
        near(np.asarray(result), *expected(pass_, spec, arrays), PASS_NAMES[pass_])


def test_the_strided_are_one_of_each_family() -> None:
    assert [convolution.family(spec) for spec in STRIDED] == ["depthwise", "narrow", "wide"]


@every_spec
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_values_and_gradients(spec: ConvSpec, compiled: bool) -> None:
    check(spec, every_pass(spec, compiled))


@every_spec
def test_unknown_sizes(spec: ConvSpec) -> None:
    unknown, traced = resized(spec, None, None, None), []
    convolve = run(unknown)

    @tf.function(
        input_signature=[tf.TensorSpec(shape) for shape in (unknown.input_shape, spec.kernel_shape, [None] * 4)]
    )
    def traced_passes(x: Any, w: Any, g: Any) -> Any:
        outputs = convolve(x, w)
        gradients = tf.gradients(outputs, [x, w], g)
        traced.append([tuple(array.shape) for array in (outputs, *gradients)])
        return outputs, *gradients

    for more in range(4):
        known = resized(spec, 1 + more % 2, 10 + more, 9 + more)
        check(known, traced_passes(*random_arrays(known)))
    assert traced == [[(None, None, None, spec.out_channels), unknown.input_shape, spec.kernel_shape]]


@every_spec
def test_known_sizes_are_known_while_tracing(spec: ConvSpec) -> None:
    x, w, _ = (tf.constant(array) for array in random_arrays(spec))

    @tf.function
    def trace() -> None:
        outputs = core.convolve(x, w, spec)
        shapes = [outputs.shape, *(gradient.shape for gradient in tf.gradients(outputs, [x, w]))]
        assert shapes == [spec.output_shape, spec.input_shape, spec.kernel_shape]

    trace.get_concrete_function()


def test_an_empty_batch() -> None:
    spec = resized(STRIDED[1], 0, 10, 7)
    outputs, to_inputs, to_kernel = every_pass(spec)
    assert (outputs.shape, to_inputs.shape) == (spec.output_shape, spec.input_shape)
    assert not to_kernel.any()


def test_a_gradient_that_only_the_kernel_needs() -> None:
    spec = STRIDED[1]
    x, w, g = arrays = random_arrays(spec)
    kernel = tf.Variable(w)
    with tf.GradientTape() as tape:
        outputs = core.convolve(tf.constant(x), kernel, spec)
    to_kernel = tape.gradient(outputs, kernel, g).numpy()
    near(to_kernel, *expected(convolution.KERNEL_GRADIENT, spec, arrays), "kernel gradient")


@pytest.mark.parametrize("spec", STRIDED)
def test_second_order_gradients(spec: ConvSpec) -> None:
    x, w, _ = random_arrays(spec)
    v, u, _ = random_arrays(spec, seed=1)

    def directional(x: Any, w: Any) -> Any:
        """Return the gradients of the derivative of |outputs|^2 / 2 in the direction (v, u)."""
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as inner:
                inner.watch([x, w])
                loss = tf.reduce_sum(core.convolve(x, w, spec) ** 2) / 2
            to_inputs, to_kernel = inner.gradient(loss, [x, w])
            slope = tf.reduce_sum(to_inputs * v) + tf.reduce_sum(to_kernel * u)
        return outer.gradient(slope, [x, w])

    outputs = truth(convolution.FORWARD, spec, [x, w])
    moved = truth(convolution.FORWARD, spec, [v, w]) + truth(convolution.FORWARD, spec, [x, u])
    wanted = (
        truth(convolution.INPUT_GRADIENT, spec, [x, w, moved])
        + truth(convolution.INPUT_GRADIENT, spec, [x, u, outputs]),
        truth(convolution.KERNEL_GRADIENT, spec, [x, w, moved])
        + truth(convolution.KERNEL_GRADIENT, spec, [v, w, outputs]),
    )
    for function in (directional, tf.function(directional)):
        for result, value in zip(function(tf.constant(x), tf.constant(w)), wanted, strict=True):
            np.testing.assert_allclose(result, value, rtol=0, atol=1e-5 * abs(value).max())


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-10), ("bfloat16", 2**-7), ("float64", 1e-6)])
def test_other_types_are_computed_in_float32(dtype: str, step: float) -> None:
    spec = replace(STRIDED[1], dtype=dtype)
    arrays = [tf.cast(array, dtype) for array in random_arrays(spec)]
    outputs = core.convolve(*arrays[:2], spec)
    assert outputs.dtype == dtype
    value, bound = expected(convolution.FORWARD, spec, [tf.cast(array, tf.float64).numpy() for array in arrays])
    near(tf.cast(outputs, tf.float64).numpy(), value, bound + step * abs(value), "forward")


X, W = np.ones((2, 5, 6, 8), "float32"), np.ones((3, 3, 2, 12), "float32")
GOOD: dict[str, Any] = {"groups": 4, "strides": (1, 1), "dilations": (1, 1), "padding": (0, 0, 0, 0)}


@pytest.mark.parametrize(
    ("pass_", "arguments", "attributes", "message"),
    [
        (0, (X[0], W), {}, "inputs of rank 3: must have rank 4"),
        (0, (X, W[0]), {}, "kernel of rank 3: must have rank 4"),
        (0, (X, W), {"groups": 2}, "in 2 groups: its third size must be the inputs' channels / groups"),
        (0, (X, W), {"groups": 3}, "in 3 groups: its third size must be"),
        (0, (X, W[..., :11]), {}, "groups must divide both its fourth and the inputs' channels"),
        (0, (X, W), {"groups": 0}, "groups=0: must be positive"),
        (0, (X, W), {"strides": (1, 0)}, "strides has the entry 0: must be from 1 to 2147483647"),
        (0, (X, W), {"dilations": (1 << 40, 1)}, "dilations has the entry 1099511627776: must be from 1"),
        (0, (X, W), {"padding": (0, -1, 0, 0)}, "padding has the entry -1: must be from 0"),
        (0, (X, W), {"padding": (1, 1)}, "must have two entries, padding four or none"),
        (0, (X, W), {"dilations": (1, 3)}, "smaller than the dilated kernel of shape"),
        (0, (X[:, :0], W), {"padding": ()}, "smaller than the dilated kernel of shape"),
        (0, (X, W), {"padding": (2**31 - 1,) * 4}, "too large to index"),
        (0, (X[..., :0], W[:, :, :0]), {}, "the kernel or the channels are empty"),
        (1, (X, W, [2, 5, 6, 8]), {}, r"outputs' gradient of shape \(2, 5, 6, 8\): must have .* \(2, 3, 4, 12\)"),
        (1, (X, W, [2, 5, 6]), {}, "the third argument must be a shape: four integers"),
        (1, (X, W, [2, -5, 6, 8]), {}, "sizes must be from 0"),
        (2, (X, X, [3, 3, 2, 12]), {}, r"outputs' gradient of shape \(2, 5, 6, 8\): must have"),
        (2, (X, X, [3, 3, 3, 12]), {}, "its third size must be"),
    ],
)
def test_what_is_no_convolution_is_refused(pass_: int, arguments: Any, attributes: Any, message: str) -> None:
    name = ("GroupwiseConv2D", "GroupwiseConv2DInputGradient", "GroupwiseConv2DKernelGradient")[pass_]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message) as failure:
        operations.run(name, [tf.constant(argument) for argument in arguments], None, **{**GOOD, **attributes})
    assert name in str(failure.value)


@pytest.mark.parametrize(
    ("arguments", "attributes", "message"),
    [
        (([np.ones(11, "float32")], []), {}, r"bias of shape \(11\): must be of shape \(12\)"),
        (([np.ones((12, 1), "float32")], []), {}, "bias of shape"),
        (([], [X]), {}, r"residual of shape \(2, 5, 6, 8\): must be of shape \(2, 3, 4, 12\)"),
        (([np.ones(12, "float32")], [X]), {}, "residual of shape"),
        (([np.ones(12, "float32")] * 2, []), {}, "biases=2: must be from 0 to 1"),
        (([], [X] * 2), {}, "residuals=2: must be from 0 to 1"),
        (([], []), {"activation": 5}, "activation=5: must be from 0 to 4"),
    ],
)
def test_an_epilogue_that_does_not_fit_is_refused(arguments: Any, attributes: Any, message: str) -> None:
    tensors = [tf.constant(X), tf.constant(W), *([tf.constant(array) for array in given] for given in arguments)]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        operations.run("GroupwiseFusedConv2D", [*tensors, []], None, **{**GOOD, "activation": 0, **attributes})
    with pytest.raises(ValueError, match="activation='gelu': must be one of linear, relu, relu6"):
        core.convolve(X, W, STRIDED[0], activation="gelu")


@pytest.mark.parametrize("spec", STRIDED)
def test_an_epilogue_of_unknown_sizes(spec: ConvSpec) -> None:
    unknown, traced = resized(spec, None, None, None), []
    bias = tf.constant(np.linspace(-1, 1, spec.out_channels, dtype="float32"))
    signature = [tf.TensorSpec(shape) for shape in (unknown.input_shape, spec.kernel_shape, [None] * 4)]

    @tf.function(input_signature=signature)
    def outputs_and_gradients(x: Any, w: Any, residual: Any) -> Any:
        outputs = core.convolve(x, w, unknown, bias, residual, "relu")
        gradients = tf.gradients(outputs, [x, w, bias, residual])
        traced.append([tuple(array.shape) for array in (outputs, *gradients[:3])])
        return outputs, *gradients

    for more in range(3):
        known = resized(spec, 1 + more % 2, 10 + more, 9 + more)
        x, w, residual = random_arrays(known)
        total = truth(convolution.FORWARD, known, [x, w]) + bias.numpy() + residual
        passed = np.where(total > 0, 1.0, 0)
        outputs, *gradients = outputs_and_gradients(x, w, residual)
        wanted = [
            truth(pass_, known, [x, w, passed]) for pass_ in (convolution.INPUT_GRADIENT, convolution.KERNEL_GRADIENT)
        ]
        np.testing.assert_allclose(outputs, np.maximum(total, 0), rtol=0, atol=1e-4)
        for actual, value in zip(gradients, [*wanted, passed.sum((0, 1, 2)), passed], strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-3)
    static = [(None, None, None, spec.out_channels), unknown.input_shape, spec.kernel_shape, (spec.out_channels,)]
    assert traced == [static]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_second_order_gradients_with_an_epilogue(compiled: bool) -> None:
    """Against the plain operation followed by TensorFlow's own."""
    spec = STRIDED[1]
    x, w, residual = (tf.constant(array) for array in random_arrays(spec))
    bias = tf.constant(np.linspace(-1, 1, spec.out_channels, dtype="float32"))

    def twice(convolve: Any) -> Any:
        arrays = [x, w, bias, residual]
        with tf.GradientTape() as outer:
            outer.watch(arrays)
            with tf.GradientTape() as inner:
                inner.watch(arrays)
                loss = tf.reduce_sum(convolve(*arrays) ** 2)
            slope = sum(tf.reduce_sum(tf.sin(gradient)) for gradient in inner.gradient(loss, arrays))
        return outer.gradient(slope, arrays)

    fused = lambda x, w, b, r: core.convolve(x, w, spec, b, r, "relu6")  # noqa: E731
    plain = lambda x, w, b, r: tf.nn.relu6(core.convolve(x, w, spec) + b + r)  # noqa: E731
    run = tf.function(twice) if compiled else twice
    for actual, value in zip(run(fused), run(plain), strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-3, atol=1e-4 * float(tf.reduce_max(abs(value))))


LOAD = """
import sys, numpy as np, tensorflow as tf
from groupwise.backends.tensorflow import core
assert core.is_available()
model, data = tf.saved_model.load(sys.argv[1]), np.load(sys.argv[2])
results = {}
for i, (convolve, kernel) in enumerate(zip(model.functions, model.kernels)):
    x = tf.constant(data[f"x{i}"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = convolve(x)
    gradients = tape.gradient(outputs, [x, kernel], data[f"g{i}"])
    results |= {f"{i}-{j}": result for j, result in enumerate([outputs, *gradients])}
np.savez(sys.argv[3], **results)
"""


def test_a_saved_model_in_a_new_process(tmp_path: Path) -> None:
    module, arrays = tf.Module(), {}
    module.kernels, module.functions = [], []
    for number, spec in enumerate(STRIDED):
        arrays[f"x{number}"], kernel, arrays[f"g{number}"] = random_arrays(spec)
        variable = tf.Variable(kernel)
        signature = [tf.TensorSpec((None, None, None, spec.in_channels))]
        function = partial(lambda variable, convolve, x: convolve(x, variable), variable, run(spec))
        module.kernels.append(variable)
        module.functions.append(tf.function(function, input_signature=signature))
    tf.saved_model.save(module, str(tmp_path / "model"))
    np.savez(tmp_path / "data.npz", **arrays)
    finished = in_new_process(LOAD, *(str(tmp_path / name) for name in ("model", "data.npz", "results.npz")))
    assert finished.returncode == 0, finished.stderr
    results = np.load(tmp_path / "results.npz")
    for number, spec in enumerate(STRIDED):
        check(spec, [results[f"{number}-{which}"] for which in range(3)])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_many_threads_at_once(compiled: bool) -> None:
    def bits(spec: ConvSpec) -> Any:
        return [result.tobytes() for result in every_pass(spec, compiled)]

    alone = [bits(spec) for spec in EVERY_SPEC]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(bits, EVERY_SPEC * 16))
    assert together == alone * 16


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc/self/statm tells the memory, on Linux alone")
def test_a_thousand_calls_leave_the_memory_as_it_is() -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    spec = ConvSpec.of((4, 32, 32, 32), (3, 3, 4, 32), 8)  # 0.5 MB an image array
    arrays = [tf.constant(array) for array in random_arrays(spec)]

    def call() -> None:
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            outputs = core.convolve(*arrays[:2], spec)
        tape.gradient(outputs, arrays[:2], arrays[2])

    compiled = tf.function(call)
    for function in (call, compiled):
        for _ in range(100):
            function()
        before = resident()
        for _ in range(1000):
            function()
        assert resident() - before < 32e6, "one array leaked at each call would be 500 MB"


def test_xla_refuses_the_operation_and_keras_turns_xla_off_for_a_layer_that_says_so() -> None:
    spec = ConvSpec.of((None, 6, 6, 8), (3, 3, 2, 8), 4)
    x, w = tf.ones((1, 6, 6, 8)), tf.ones((3, 3, 2, 8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="GroupwiseConv2D"):
        tf.function(lambda: core.convolve(x, w, spec), jit_compile=True)()

    class Layer(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.supports_jit = False
            self.kernel = self.add_weight(shape=spec.kernel_shape)

        def call(self, inputs: Any) -> Any:
            return core.convolve(inputs, keras.ops.convert_to_tensor(self.kernel), spec)

    model = keras.Sequential([keras.Input((6, 6, 8)), Layer(), keras.layers.GlobalAveragePooling2D()])
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("sgd", "mse", jit_compile=True)
    before = model.get_weights()[0]
    model.fit(np.ones((4, 6, 6, 8), "float32"), np.zeros((4, 8), "float32"), verbose=0)
    assert not np.array_equal(model.get_weights()[0], before)
