"""The C core as JAX's custom calls: values, gradients of any order, and JAX's transformations around them."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from groupwise.core import convolution, library
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.activations import TRUTH
from tests.frameworks import BACKEND, skip_without_core, values_and_gradients
from tests.passes import PASS_NAMES, SPECS, expected, near, random_arrays, truth

if BACKEND != "jax":
    pytest.skip("the custom calls are JAX's; the backend is another", allow_module_level=True)

import jax
from jax import export, lax
from jax import numpy as jnp
from jax.test_util import check_grads

from groupwise.backends.jax import core, handlers
from tests import four_devices

skip_without_core()

EVERY_SPEC = [spec for specs in SPECS.values() for spec in specs]
ONE_EACH = [specs[1] for specs in SPECS.values()]


def run(spec: ConvSpec) -> Any:
    return lambda inputs, kernel: core.convolve(inputs, kernel, spec)


def has_large_pages() -> bool:
    """Return whether the system gives large pages where it is asked, and tells where a mapping ends (Linux 6.11)."""
    wanted = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = [int(number) for number in os.uname().release.split(".")[:2] if number.isdigit()]
    return wanted.exists() and "[never]" not in wanted.read_text() and release >= [6, 11]


@pytest.mark.skipif(not has_large_pages(), reason="the system has no large pages, or does not tell where they may lie")
def test_what_xla_computes_beside_the_core_has_large_pages_too() -> None:
    inputs, kernel = jnp.ones((16, 64, 64, 128)), jnp.ones((1, 1, 1, 128))
    convolve = run(ConvSpec.of(inputs.shape, kernel.shape, groups=128))
    step = jax.jit(lambda inputs, kernel: convolve(jnp.flip(convolve(inputs, kernel), 0), kernel)[0, 0, 0])

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step(inputs, kernel).block_until_ready()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # The flipped images alone are 8,192 pages of 4 KiB.
    assert min(faults() for _ in range(4)) < 4096


def loss(function: Any) -> Any:
    """Return a function of inputs and kernel whose gradient differs at every output."""
    return lambda *arrays: jnp.sum(jnp.sin(function(*arrays)))


def close(actual: Any, wanted: Any) -> None:
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_values_and_gradients_agree_with_the_reference(spec: ConvSpec, compiled: bool) -> None:
    inputs, kernel, gradient = arrays = random_arrays(spec)
    results = values_and_gradients(run(spec), inputs, kernel, gradient, compiled)
    for pass_, result in zip(convolution.PASSES, results, strict=True):
        near(result, *expected(pass_, spec, arrays), PASS_NAMES[pass_])


def test_the_core_runs_and_no_convolution_of_xla() -> None:
    spec = ONE_EACH[1]
    gradients = jax.jit(jax.grad(loss(run(spec)), (0, 1)))
    text = gradients.lower(*random_arrays(spec)[:2]).compile().as_text()
    assert all(name in text for name in ("gw_jax_forward", "gw_jax_input_gradient", "gw_jax_kernel_gradient"))
    assert "convolution(" not in text


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("extras", [(), ("bias",), ("residual",), ("bias", "residual")])
def test_what_follows_a_forward_pass(extras: tuple[str, ...], activation: str) -> None:
    spec = SPECS["narrow"][0]
    inputs, kernel, gradient = random_arrays(spec)
    kernel = kernel / 2  # outputs on both sides of 0 and of 6
    random = np.random.default_rng(1)
    arrays = {"bias": random.normal(size=spec.out_channels), "residual": 3 * random.normal(size=gradient.shape)}
    operands = [arrays[name].astype("float32") for name in extras]

    def function(inputs: Any, kernel: Any, *operands: Any) -> Any:
        return core.convolve(inputs, kernel, spec, **dict(zip(extras, operands, strict=True)), activation=activation)

    outputs, pull = jax.vjp(function, inputs, kernel, *operands)
    to_inputs, to_kernel, *to_extras = pull(gradient)
    total = truth(convolution.FORWARD, spec, [inputs, kernel]) + sum(arrays[name].astype("float32") for name in extras)
    close(outputs, TRUTH[activation].value(total))
    passed = gradient * TRUTH[activation].slope(total)
    close(to_inputs, truth(convolution.INPUT_GRADIENT, spec, [inputs, kernel, passed]))
    close(to_kernel, truth(convolution.KERNEL_GRADIENT, spec, [inputs, kernel, passed]))
    close(to_extras, [{"bias": passed.sum((0, 1, 2)), "residual": passed}[name] for name in extras])


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_half_precision_is_computed_in_float32(dtype: str, step: float) -> None:
    spec = replace(ONE_EACH[1], dtype=dtype)
    arrays = [array.astype(getattr(ml_dtypes, dtype, dtype)) for array in random_arrays(spec)]
    outputs, pull = jax.vjp(run(spec), *arrays[:2])
    wide = [np.asarray(array, "float64") for array in arrays]
    for pass_, result in zip(convolution.PASSES, (outputs, *pull(jnp.asarray(arrays[2]))), strict=True):
        assert result.dtype == dtype
        value, bound = expected(pass_, spec, wide)
        near(np.asarray(result, "float64"), value, bound + step * np.abs(value) + 2**-24, PASS_NAMES[pass_])


def test_an_empty_batch_stays_empty() -> None:
    spec = replace(ONE_EACH[0], input_shape=(0, *ONE_EACH[0].input_shape[1:]))
    inputs, kernel, gradient = random_arrays(spec)
    results = values_and_gradients(run(spec), inputs, kernel, gradient, compiled=True)
    for array, result in zip((gradient, inputs, kernel), results, strict=True):
        assert result.shape == array.shape
        assert not result.any()


@pytest.mark.parametrize("spec", ONE_EACH)
def test_gradients_of_gradients(spec: ConvSpec) -> None:
    arrays = random_arrays(replace(spec, input_shape=(1, *spec.input_shape[1:])))[:2]
    check_grads(run(spec), arrays, order=2, modes=["rev"], rtol=3e-2, atol=3e-2)


def test_gradients_of_gradients_are_those_of_xlas_convolution() -> None:
    spec = SPECS["narrow"][1]
    stock = lambda x, w: lax.conv_general_dilated(  # noqa: E731
        *(x, w, spec.strides, spec.explicit_padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )
    twice = lambda f: jax.grad(lambda *a: sum(jnp.sum(jnp.cos(g)) for g in jax.grad(loss(f), (0, 1))(*a)), (0, 1))  # noqa: E731
    arrays = [array / 4 for array in random_arrays(spec)[:2]]
    close(jax.jit(twice(run(spec)))(*arrays), jax.jit(twice(stock))(*arrays))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (4, None), (2, 1)])
def test_vmap_is_a_loop(axes: tuple[int | None, int | None]) -> None:
    spec = ONE_EACH[1]
    many = [[array * scale for array in random_arrays(spec, seed=scale)[:2]] for scale in (1, 2, 3)]
    one = lambda index, which: many[0 if axes[which] is None else index][which]  # noqa: E731
    stacked = [
        many[0][which] if axis is None else np.stack([arrays[which] for arrays in many], axis)
        for which, axis in enumerate(axes)
    ]
    gradients = jax.grad(loss(run(spec)), (0, 1))
    for function in (run(spec), gradients):
        loop = [function(one(index, 0), one(index, 1)) for index in range(3)]
        wanted = jax.tree.map(lambda *results: np.stack(results), *loop)
        close(jax.jit(jax.vmap(function, axes))(*stacked), wanted)
    # The gradient of the mapped function: summed over the mapped axis for an array that is not mapped.
    total = jax.grad(loss(jax.vmap(run(spec), axes)), (0, 1))(*stacked)
    parts = jax.vmap(gradients, axes)(*stacked)
    for gradient, part, axis in zip(total, parts, axes, strict=True):
        close(gradient, part.sum(0) if axis is None else jnp.moveaxis(part, 0, axis))


def test_vmap_over_inputs_is_one_call() -> None:
    spec = ONE_EACH[1]
    inputs, kernel, _ = random_arrays(spec)
    text = str(jax.make_jaxpr(jax.vmap(jax.vmap(run(spec), (0, None)), (0, None)))(np.stack([[inputs]] * 3), kernel))
    assert text.count("groupwise_pass[") == 1
    assert "scan" not in text


def one_image_at_a_time(function: Any) -> Any:
    """Return `function` of a batch as a scan over its images."""

    def scanned(inputs: Any, kernel: Any) -> Any:
        return lax.scan(lambda carry, image: (carry, function(image[None], kernel)[0]), 0, inputs)[1]

    return scanned


@pytest.mark.parametrize("around", [jax.jit, jax.checkpoint, one_image_at_a_time])
def test_transformations_change_nothing(around: Any) -> None:
    spec = ONE_EACH[2]
    arrays = random_arrays(spec)[:2]
    gradients = jax.jit(jax.grad(loss(around(run(spec))), (0, 1)))
    close(gradients(*arrays), jax.grad(loss(run(spec)), (0, 1))(*arrays))


def test_an_exported_program_takes_any_batch() -> None:
    spec = ONE_EACH[2]
    inputs, kernel, _ = random_arrays(spec)
    (batch,) = export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((batch, *inputs.shape[1:]), kernel.shape)]
    known = [export.DisabledSafetyCheck.custom_call("gw_jax_forward")]
    exported = export.export(jax.jit(run(spec)), disabled_checks=known)(*shapes)
    many = np.concatenate([inputs, 2 * inputs, inputs])
    close(exported.call(many, kernel), run(spec)(many, kernel))


def test_many_threads_at_once() -> None:
    """More of them than XLA has threads, each of which would wait forever for a task that nobody starts."""
    specs = [spec for spec in EVERY_SPEC for _ in range(4)]
    compiled = {spec: jax.jit(jax.grad(loss(run(spec)), (0, 1))) for spec in EVERY_SPEC}
    wanted = {spec: compiled[spec](*random_arrays(spec)[:2]) for spec in EVERY_SPEC}

    def work(spec: ConvSpec) -> bool:
        results = [jax.block_until_ready(compiled[spec](*random_arrays(spec)[:2])) for _ in range(20)]
        pairs = [zip(result, wanted[spec], strict=True) for result in results]
        return all(bool((one == other).all()) for pair in pairs for one, other in pair)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, specs, timeout=300))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_thousand_calls_leave_the_memory_as_it_is() -> None:
    spec = ONE_EACH[1]
    compiled = jax.jit(jax.grad(loss(run(spec)), (0, 1)))
    arrays = [jnp.asarray(array) for array in random_arrays(spec)[:2]]

    def pages(calls: int) -> int:
        for _ in range(calls):
            jax.block_until_ready(compiled(*arrays))
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = pages(200)
    assert (pages(1000) - before) * os.sysconf("SC_PAGE_SIZE") < 4 << 20


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            dict(kernel=np.ones((3, 4, 5, 12), "float32")),
            "kernel of shape (3, 4, 5, 12): must be of shape (3, 4, 5, 9)",
        ),
        (dict(inputs=np.ones((2, 11, 8, 14), "float32")), "14"),
        (dict(bias=np.ones(8, "float32")), "bias of shape (8,): must be of shape (9,)"),
        (dict(residual=np.ones((2, 6, 9, 8), "float32")), "residual of shape (2, 6, 9, 8): must be of shape"),
        (dict(activation="gelu"), "activation='gelu': must be one of linear, relu, relu6"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict, words: str) -> None:
    inputs, kernel, _ = random_arrays(ONE_EACH[1])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        core.convolve(**{"inputs": inputs, "kernel": kernel, "spec": ONE_EACH[1], **wrong})
    assert words in str(error.value)


SETTINGS = (3, 2, 1, 1, 1, 0, 3, 0)  # of ONE_EACH[1]


@pytest.mark.parametrize(
    ("operands", "result", "settings", "words"),
    [
        ([(2, 11, 8, 15)], (2, 6, 9, 9), SETTINGS, "wrong number of arguments"),
        ([(2, 11, 8, 15), (3, 4, 5, 9), (8,)], (2, 6, 9, 9), SETTINGS, "bias, residual, scale or activation"),
        ([(2, 11, 8, 15), (3, 4, 5, 9), (2, 6, 8, 9)], (2, 6, 9, 9), SETTINGS, "bias, residual, scale or activation"),
        (
            [(2, 11, 8, 15), (3, 4, 5, 9)],
            (2, 6, 9, 9),
            (*SETTINGS[:7], len(ACTIVATIONS)),
            "bias, residual, scale or activation",
        ),
        ([(2, 11, 8, 15), (3, 4, 5, 8)], (2, 6, 9, 9), SETTINGS, "contradict"),
        ([(2, 11, 8, 15), (3, 4, 5, 9)], (3, 6, 9, 9), SETTINGS, "contradict"),
        ([(2, 11, 8, 15), (3, 4, 4, 9)], (2, 6, 9, 9), SETTINGS, "contradict"),
        ([(2, 11, 8, 15), (3, 4, 5, 9)], (2, 6, 9, 9), (0, *SETTINGS[1:]), "contradict"),
        ([(2, 11, 8, 15), (3, 4, 5, 9)], (2, 6, 9, 9), (3, 0, *SETTINGS[2:]), "sizes are invalid"),
        ([(2, 11, 8, 15), (3, 4, 5, 9)], (2, 6, 9, 9), SETTINGS[:7], "and its settings"),
        ([(2, 11, 8, 15), (3, 4, 45)], (2, 6, 9, 9), SETTINGS, "arrays of rank 4"),
    ],
)
def test_a_call_that_would_touch_foreign_memory_is_refused(
    operands: list[tuple], result: tuple, settings: tuple, words: str
) -> None:
    call = jax.ffi.ffi_call("gw_jax_forward", jax.ShapeDtypeStruct(result, "float32"))
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(
            call(*(jnp.ones(shape, "float32") for shape in operands), settings=np.array(settings, "int64"))
        )


def test_other_types_are_refused_by_the_custom_call() -> None:
    call = jax.ffi.ffi_call("gw_jax_forward", jax.ShapeDtypeStruct((1, 1, 1, 1), "float32"))
    images = jnp.ones((1, 1, 1, 1), "float16"), jnp.ones((1, 1, 1, 1), "float32")
    with pytest.raises(Exception, match="float32 arrays of rank 4"):
        jax.block_until_ready(call(*images, settings=np.array((1, 1, 1, 1, 1, 0, 0, 0), "int64")))


def test_a_binding_that_does_not_load_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "path", lambda name="groupwise_core": tmp_path / f"lib{name}.so")
    with pytest.warns(RuntimeWarning, match=r"does not take the C core: .*libgroupwise_jax\.so"):
        assert not handlers._register.__wrapped__()


def test_the_core_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUPWISE_CORE", "0")
    assert not core.is_available()
    with pytest.raises(RuntimeError, match="GROUPWISE_CORE is 0"):
        run(ONE_EACH[0])(*random_arrays(ONE_EACH[0])[:2])


NEEDS = {
    "explicit": (jax.sharding, "auto_axes"),
    "max_pooling": (jax.sharding, "auto_axes"),
    "shard_map": (jax, "shard_map"),
}


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return four_devices.outcomes("tests.four_devices", tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("check", ["mesh", "explicit", "shard_map", "uneven", "max_pooling", "keras_distribution"])
def test_four_devices(check: str, on_four_devices: dict[str, str]) -> None:
    """See tests/four_devices.py: no device sends its images to another one, forward or backward."""
    if check in NEEDS and not hasattr(*NEEDS[check]):
        pytest.skip(f"JAX {jax.__version__} has no {NEEDS[check][1]}")
    assert on_four_devices[check] == "as expected"
