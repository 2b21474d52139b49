"""Links of chains as TensorFlow's operations: second order, unknown sizes, absent gradients, what is refused."""

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from groupwise.backends.activations import FUNCTIONS
from groupwise.backends.plain_links import Reading
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.epilogues import POINTWISE
from tests.frameworks import BACKEND, skip_without_core
from tests.links import READING, arrays_of, exact
from tests.passes import near

if BACKEND != "tensorflow":
    pytest.skip("Keras runs on another backend than TensorFlow", allow_module_level=True)
tf: Any = importlib.import_module("tensorflow")
core: Any = importlib.import_module("groupwise.backends.tensorflow.core")
operations: Any = importlib.import_module("groupwise.backends.tensorflow.operations")
skip_without_core()

# One of each family; "same" with strides pads differently for every size of the image.
SPECS = [
    ConvSpec.of((2, 10, 7, 6), (5, 3, 1, 12), 6, (2, 1)),
    ConvSpec.of((2, 10, 7, 15), (3, 5, 3, 30), 5, 2),
    ConvSpec.of((2, 10, 7, 20), (3, 3, 20, 18), 1, (2, 3)),
]
compiled = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
Tensors = dict[str, Any]


def tensors_of(spec: ConvSpec, activation: str | None, counts: bool, dtype: str = "float32") -> Tensors:
    return {name: tf.constant(array, dtype) for name, array in arrays_of(spec, activation, counts).items()}


def parts(tensors: Tensors) -> tuple[list[Any], list[Any]]:
    """Return the arguments, in their order, and the gradients to the results."""
    names = [name for name in tensors if not name.startswith("to_")]
    return [tensors[name] for name in names], [tensors[name] for name in tensors if name not in names]


def linked(spec: ConvSpec, activation: str | None, inputs: Any, kernel: Any, *reading: Any, counts: bool) -> list[Any]:
    """Return the results that there are."""
    mean, scale, shift = reading or [None] * 3
    read = Reading(mean, scale, shift, activation) if activation else None
    return [result for result in core.link(inputs, kernel, spec, read, counts) if result is not None]


def plain(spec: ConvSpec, activation: str | None, inputs: Any, kernel: Any, *reading: Any, counts: bool) -> list[Any]:
    """Return the results by TensorFlow's elementary operations, one tap of the kernel at a time."""
    if activation:
        mean, scale, shift = reading
        inputs = FUNCTIONS[activation]((inputs - mean) * scale + shift)
    assert spec.explicit_padding is not None
    padded = tf.pad(inputs, ((0, 0), *spec.explicit_padding, (0, 0)))
    batch, height, width, channels = spec.output_shape
    outputs = tf.zeros(spec.output_shape, inputs.dtype)
    for row, column in np.ndindex(spec.kernel_shape[:2]):
        top, left = row * spec.dilation_rate[0], column * spec.dilation_rate[1]
        window = padded[:, top :: spec.strides[0], left :: spec.strides[1]][:, :height, :width]
        window = tf.reshape(window, (batch, height, width, spec.groups, -1))
        tap = tf.reshape(kernel[row, column], (-1, spec.groups, channels // spec.groups))
        outputs += tf.reshape(tf.einsum("nhwgi,igo->nhwgo", window, tap), outputs.shape)
    if not counts:
        return [outputs]
    # The second derivative of tf.nn.moments takes the mean within the variance for a constant.
    average = tf.reduce_mean(outputs, (0, 1, 2))
    return [outputs, average, tf.reduce_mean((outputs - average) ** 2, (0, 1, 2))]


def second_order(function: Any, spec: ConvSpec, activation: str | None, tensors: Tensors) -> list[Any]:
    """Return the derivatives of a sum of the gradients' squares, by all arguments and all gradients to results."""
    sources, upstream = parts(tensors)
    with tf.GradientTape() as outer:
        outer.watch([*sources, *upstream])
        with tf.GradientTape() as inner:
            inner.watch(sources)
            results = function(spec, activation, *sources, counts=len(upstream) > 1)
        first = inner.gradient(results, sources, upstream)
        total = tf.add_n([tf.reduce_mean(part**2) for part in first])
    gradients: list[Any] = outer.gradient(
        total, [*sources, *upstream], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return gradients


SECOND_ORDER = [
    *((SPECS[number % 3], activation, True) for number, activation in enumerate(ACTIVATIONS)),
    (SPECS[0], None, True),
    (SPECS[1], "silu", False),
]


@compiled
@pytest.mark.parametrize(("spec", "activation", "counts"), SECOND_ORDER)
def test_second_order_agrees_with_tensorflow_in_float64(
    spec: ConvSpec, activation: str | None, counts: bool, compiled: bool
) -> None:
    run = partial(second_order, linked, spec, activation)
    found = (tf.function(run) if compiled else run)(tensors_of(spec, activation, counts))
    wanted = second_order(plain, spec, activation, tensors_of(spec, activation, counts, "float64"))
    for actual, value in zip(found, wanted, strict=True):
        size = float(tf.reduce_max(abs(value)))
        np.testing.assert_allclose(actual, value, rtol=0, atol=1e-4 * size + 1e-30)


@pytest.mark.parametrize("spec", SPECS)
def test_unknown_sizes(spec: ConvSpec) -> None:
    unknown, traced = replace(spec, input_shape=(None, None, None, spec.in_channels)), []
    known = {"inputs": unknown.input_shape, "kernel": spec.kernel_shape, "to_outputs": [None] * 4}
    signature = {
        name: tf.TensorSpec(known.get(name, array.shape)) for name, array in arrays_of(spec, "relu", True).items()
    }

    @tf.function(input_signature=[signature])
    def results(tensors: Tensors) -> Any:
        sources, upstream = parts(tensors)
        found = linked(unknown, "relu", *sources, counts=True)
        gradients = tf.gradients(found, sources, upstream)
        traced.append([tuple(array.shape) for array in (*found, *gradients)])
        return found, gradients

    for more in range(3):
        resized = replace(spec, input_shape=(1 + more % 2, 10 + more, 9 + more, spec.in_channels))
        arrays = arrays_of(resized, "relu", True)
        wanted = exact(resized, arrays, "relu")
        found, gradients = results({name: tf.constant(array) for name, array in arrays.items()})
        near(found[0].numpy(), *wanted["outputs"], "outputs")
        near(np.stack(found[1:]), *wanted["statistics"], "statistics")
        for name, gradient in zip(("inputs", "kernel", *READING), gradients, strict=True):
            near(gradient.numpy(), *wanted[name], name)
    into, out = (spec.in_channels,), (spec.out_channels,)
    static = [(None, None, None, *out), out, out, unknown.input_shape, spec.kernel_shape, into, into, into]
    assert traced == [static]


@compiled
@pytest.mark.parametrize("wanted", [("kernel",), ("shift",), ("inputs", "kernel")], ids=str)
def test_gradients_of_some_arguments_by_some_results(wanted: tuple[str, ...], compiled: bool) -> None:
    spec, tensors = SPECS[1], tensors_of(SPECS[1], "relu", True)
    sources, upstream = parts(tensors)

    def gradients(result: int) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch([tensors[name] for name in wanted])
            chosen = linked(spec, "relu", *sources, counts=True)[result]
        found: list[Any] = tape.gradient(chosen, [tensors[name] for name in wanted], upstream[result])
        return found

    arrays = arrays_of(spec, "relu", True)
    for result, name in enumerate(("to_outputs", "to_mean", "to_variance")):
        alone = {key: array * (key == name or not key.startswith("to_")) for key, array in arrays.items()}
        truth = exact(spec, alone, "relu")
        for key, gradient in zip(wanted, (tf.function(gradients) if compiled else gradients)(result), strict=True):
            near(gradient.numpy(), *truth[key], f"gradient to {key} by {name}")


@compiled
def test_an_empty_batch(compiled: bool) -> None:
    spec = replace(SPECS[0], input_shape=(0, *SPECS[0].input_shape[1:]))
    arrays = arrays_of(SPECS[0], "silu", True)
    sources, _ = parts({name: tf.constant(array) for name, array in arrays.items()})
    sources[0] = sources[0][:0]

    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(sources)
            results = linked(spec, "silu", *sources, counts=True)
        return [*results, *tape.gradient(results, sources)]

    found = (tf.function(run) if compiled else run)()
    assert [tuple(array.shape) for array in found[:1]] == [spec.output_shape]
    assert not any(array.numpy().any() for array in found)


IMAGE, KERNEL, OUTPUTS = np.ones((2, 5, 6, 8), "float32"), np.ones((3, 3, 2, 12), "float32"), np.ones((2, 3, 4, 12))
EIGHT, TWELVE = np.ones(8), np.ones(12)


@pytest.mark.parametrize(
    ("name", "arguments", "attributes", "message"),
    [
        ("", (IMAGE, KERNEL, [TWELVE], [EIGHT], [EIGHT]), {}, r"mean of shape \(12\): must be of shape \(8\)"),
        ("", (IMAGE, KERNEL, [EIGHT], [EIGHT], [EIGHT[:, None]]), {}, r"shift of shape \(8, 1\)"),
        ("", (IMAGE, KERNEL, [EIGHT] * 2, [EIGHT] * 2, [EIGHT] * 2), {}, "readings=2: must be from 0 to 1"),
        ("", (IMAGE, KERNEL, [], [], []), {"counts": 2}, "counts=2: must be from 0 to 1"),
        ("", (IMAGE, KERNEL, [], [], []), {"activation": 5}, "activation=5: must be from 0 to 4"),
        ("", (IMAGE, KERNEL, [], [], []), {"groups": 2}, "in 2 groups: its third size must be"),
        ("InputGradient", (OUTPUTS, KERNEL, IMAGE.shape, *[[EIGHT]] * 3, [OUTPUTS], *[[]] * 4), {}, "inputs of shape"),
        ("InputGradient", (OUTPUTS, KERNEL, IMAGE.shape, *[[]] * 4, [IMAGE], *[[TWELVE]] * 3), {}, "outputs of shape"),
        ("KernelGradient", (IMAGE, OUTPUTS, KERNEL.shape, *[[]] * 3, [OUTPUTS], *[[EIGHT]] * 3), {}, "mean of shape"),
        ("KernelGradient", (IMAGE, IMAGE, KERNEL.shape, *[[]] * 7), {}, "outputs' gradient of shape"),
    ],
)
def test_what_is_no_link_is_refused(name: str, arguments: Any, attributes: Any, message: str) -> None:
    options: dict[str, Any] = {"groups": 4, "strides": (1, 1), "dilations": (1, 1), "padding": (0, 0, 0, 0)}
    options |= {"activation": 0} if name else {"activation": 0, "counts": 0}

    def tensor(argument: Any) -> Any:
        if isinstance(argument, list):
            return [tensor(one) for one in argument]
        return tf.constant(argument, "int32" if isinstance(argument, tuple) else "float32")

    with pytest.raises(tf.errors.InvalidArgumentError, match=f"GroupwiseLink: .*{message}"):
        operations.operations()[f"GroupwiseLink{name}"](*map(tensor, arguments), **{**options, **attributes})


def test_xla_refuses_it() -> None:
    sources, _ = parts(tensors_of(POINTWISE, "relu", True))
    with pytest.raises(tf.errors.InvalidArgumentError, match="GroupwiseLink"):
        tf.function(lambda: linked(POINTWISE, "relu", *sources, counts=True), jit_compile=True)()
