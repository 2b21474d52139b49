"""What of links is JAX's alone: custom calls, every transformation, several devices; the rest is in test_links.py."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from groupwise.backends.plain_links import Reading
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, skip_without_core
from tests.links import READING, arrays_of

if BACKEND != "jax":
    pytest.skip("the custom calls are JAX's; the backend is another", allow_module_level=True)

import jax
from jax import export
from jax import numpy as jnp

from groupwise.backends.activations import FUNCTIONS
from groupwise.backends.jax import core
from groupwise.backends.jax import native as backend
from tests import four_devices

skip_without_core()

SPEC = ConvSpec.of((2, 5, 4, 6), (3, 3, 3, 4), 2, (1, 2))
GRADIENTS = ("gw_jax_link_input_gradient", "gw_jax_link_kernel_gradient")


def link(activation: str, inputs: Any, kernel: Any, mean: Any, scale: Any, shift: Any) -> Any:
    return core.link(inputs, kernel, SPEC, Reading(mean, scale, shift, activation), counts=True)


def plain(activation: str, inputs: Any, kernel: Any, mean: Any, scale: Any, shift: Any) -> Any:
    outputs = backend.convolve(FUNCTIONS[activation]((inputs - mean) * scale + shift), kernel, SPEC)
    return outputs, outputs.mean((0, 1, 2)), outputs.var((0, 1, 2))


def operands(seed: int = 0, activation: str = "relu") -> tuple[Any, ...]:
    arrays = arrays_of(SPEC, activation, counts=False)
    random = np.random.default_rng(seed)
    return tuple(jnp.asarray(arrays[name] + 0.01 * seed * random.normal()) for name in ("inputs", "kernel", *READING))


def close(actual: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * float(np.abs(other).max()))


def every(function: Any) -> Any:
    """Return the gradient to every operand of a function of the results that differs at each of them."""
    return jax.grad(lambda *x: sum(jnp.sin(result).sum() for result in function(*x)), (0, 1, 2, 3, 4))


def gauss_newton(function: Any, x: Any, t: Any) -> Any:
    """Return the transpose of the gradient, which is the tangent again, and what it makes of that."""
    results, pull = jax.vjp(function, *x)
    return pull(jax.linear_transpose(pull, results)(t)[0])


TRANSFORMATIONS: dict[str, Any] = {
    "jvp": lambda f, x, t: jax.jvp(f, x, t),
    "jvp of the kernel": lambda f, x, t: jax.jvp(lambda kernel: f(x[0], kernel, *x[2:]), x[1:2], t[1:2]),
    "linear_transpose": gauss_newton,
    "reverse over reverse": lambda f, x, _: jax.grad(lambda *x: sum(jnp.sin(g).sum() for g in every(f)(*x)), (0, 1, 3))(
        *x
    ),
    "reverse over forward": lambda f, x, t: every(lambda *x: jax.jvp(f, x, t)[1])(*x),
    "forward over reverse": lambda f, x, t: jax.jvp(every(f), x, t)[1],
    "gradients of each": lambda f, x, t: jax.vmap(every(f), (0, None, None, 0, None))(
        *(jnp.stack([a, b]) if i in (0, 3) else a for i, (a, b) in enumerate(zip(x, t, strict=True)))
    ),
    "checkpoint": lambda f, x, _: every(jax.checkpoint(f))(*x),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_transformations(name: str, activation: str) -> None:
    x, t = operands(0, activation), operands(1, activation)
    actual, wanted = (
        jax.jit(lambda x, t, f=f: TRANSFORMATIONS[name](partial(f, activation), x, t))(x, t) for f in (link, plain)
    )
    close(actual, wanted, 2e-3 if name == "reverse over reverse" else 1e-4)


@pytest.mark.parametrize("activation", ["relu6", "relu"])
def test_forward_mode_passes_what_the_gradients_pass_where_the_slope_jumps(activation: str) -> None:
    inputs, kernel, mean, scale, shift = operands()
    edge = (jnp.zeros_like(inputs), kernel, 0 * mean, scale, 0 * shift)
    tangent = jax.jvp(partial(link, activation), edge, (inputs, 0 * kernel, mean, scale, shift))[1]
    assert not any(part.any() for part in tangent)


def test_neither_normalised_inputs_nor_what_comes_through_statistics_are_made() -> None:
    text = jax.jit(every(partial(link, "relu"))).lower(*operands()).compile().as_text()
    assert all(name in text for name in ("gw_jax_link", *GRADIENTS))
    # The images that XLA makes are sin's derivative, of the outputs' shape, and nothing of the inputs' shape.
    made = [line for line in text.splitlines() if " = f32[2,5,4,6]" in line.replace("ROOT ", "")]
    assert all("parameter(" in line or "get-tuple-element(" in line or "copy(" in line for line in made)


@pytest.mark.parametrize(
    ("wanted", "runs"), [((0,), GRADIENTS[:1]), ((1,), GRADIENTS[1:]), ((2, 3, 4), GRADIENTS[:1]), ((0, 1), GRADIENTS)]
)
def test_only_gradients_that_are_wanted_are_computed(wanted: tuple[int, ...], runs: tuple[str, ...]) -> None:
    gradients = jax.grad(lambda *x: link("relu", *x)[0].sum(), wanted)
    text = jax.jit(gradients).lower(*operands()).compile().as_text()
    assert [name for name in GRADIENTS if name in text] == [*runs]


def test_an_upstream_to_the_statistics_alone() -> None:
    x = operands()
    actual, wanted = (
        jax.grad(lambda *x, f=f: jnp.sin(f("silu", *x)[2]).sum(), (0, 1, 2, 3, 4))(*x) for f in (link, plain)
    )
    close(actual, wanted)


def test_an_exported_gradient_takes_any_batch() -> None:
    x, gradients = operands(), every(partial(link, "silu"))
    shapes = [jax.ShapeDtypeStruct(operand.shape, "float32") for operand in x]
    (batch,) = export.symbolic_shape("batch")
    known = [export.DisabledSafetyCheck.custom_call(name) for name in ("gw_jax_link", *GRADIENTS)]
    whole = jax.ShapeDtypeStruct((batch, *x[0].shape[1:]), "float32")
    exported = export.export(jax.jit(gradients), disabled_checks=known)(whole, *shapes[1:])
    close(exported.call(*x), gradients(*x))


@pytest.mark.parametrize(
    ("index", "wrong", "words"),
    [
        (0, np.ones((5, 6), "float32"), "input"),
        (1, np.ones((3, 3, 3, 5), "float32"), r"kernel of shape \(3, 3, 3, 5\)"),
        (3, np.ones(5, "float32"), r"scale of shape \(5,\).*must be of shape \(6,\)"),
        (4, np.ones(6, "int32"), "type int32: must be"),
    ],
)
def test_wrong_arguments_are_named(index: int, wrong: Any, words: str) -> None:
    arrays = [*operands()]
    arrays[index] = wrong
    with pytest.raises(ValueError, match=words):
        link("relu", *arrays)


IMAGE, KERNEL, OUTPUTS, FEW, MANY = (2, 5, 4, 6), (3, 3, 3, 4), (2, 5, 2, 4), (4,), (6,)
SIZES = (2, 1, 2, 1, 1, 1, 1)  # of SPEC


@pytest.mark.parametrize(
    ("name", "operands", "results", "settings", "words"),
    [
        ("link", [IMAGE], [OUTPUTS], (*SIZES, -1, 0), "float32 arrays of rank 4"),
        ("link", [IMAGE, KERNEL], [OUTPUTS], (*SIZES, -1), "and its settings"),
        ("link", [IMAGE, KERNEL], [IMAGE], (*SIZES, -1, 0), "contradict"),
        ("link", [IMAGE, KERNEL, MANY, MANY], [OUTPUTS], (*SIZES, 1, 0), "normalised or counted"),
        ("link", [IMAGE, KERNEL, MANY, MANY, FEW], [OUTPUTS], (*SIZES, 1, 0), "normalised or counted"),
        ("link", [IMAGE, KERNEL, MANY], [OUTPUTS], (*SIZES, -1, 0), "normalised or counted"),
        ("link", [IMAGE, KERNEL], [OUTPUTS, FEW, MANY], (*SIZES, -1, 1), "normalised or counted"),
        ("link", [IMAGE, KERNEL, MANY, MANY, MANY], [OUTPUTS], (*SIZES, 99, 0), "sizes are invalid"),
        ("link_input_gradient", [OUTPUTS, KERNEL, *[MANY] * 3], [IMAGE], (*SIZES, 1, 0), "normalised or counted"),
        (
            "link_input_gradient",
            [OUTPUTS, KERNEL, *[MANY] * 3, IMAGE],
            [IMAGE, (1, 6)],
            (*SIZES, 1, 0),
            "normalised or counted",
        ),
        (
            "link_kernel_gradient",
            [IMAGE, OUTPUTS, *[FEW] * 3, IMAGE],
            [KERNEL],
            (*SIZES, -1, 1),
            "normalised or counted",
        ),
    ],
)
def test_a_call_that_would_touch_foreign_memory_is_refused(
    name: str, operands: list[tuple], results: list[tuple], settings: tuple, words: str
) -> None:
    call = jax.ffi.ffi_call(f"gw_jax_{name}", [jax.ShapeDtypeStruct(shape, "float32") for shape in results])
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(
            call(*(jnp.ones(shape, "float32") for shape in operands), settings=np.array(settings, "int64"))
        )


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return four_devices.outcomes("tests.four_devices_links", tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("check", ["links_mesh", "links_explicit", "pairs"])
def test_four_devices(check: str, on_four_devices: dict[str, str]) -> None:
    """See tests/four_devices_links.py: statistics of the whole batch, and no image leaves its device."""
    if check == "links_explicit" and not hasattr(jax.sharding, "auto_axes"):
        pytest.skip(f"JAX {jax.__version__} has no auto_axes")
    assert on_four_devices[check] == "as expected"
