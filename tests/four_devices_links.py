"""Links of chains over four devices, as tests/four_devices.py: `python -m tests.four_devices_links DUMP_FOLDER`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Partition

from groupwise.backends.jax import core
from groupwise.backends.plain_links import Reading
from groupwise.backends.steps import Step
from groupwise.spec import ConvSpec
from tests.collectives import MOVES
from tests.four_devices import run_checks
from tests.links import READING, UPSTREAM, arrays_of, exact
from tests.passes import near

SPEC = ConvSpec.of((8, 9, 7, 16), (3, 3, 4, 24), 4, 2, ((1, 1), (2, 0)))
IMAGES = ("inputs", "to_outputs")


def link(inputs: Any, kernel: Any, mean: Any, scale: Any, shift: Any) -> Any:
    return core.link(inputs, kernel, SPEC, Reading(mean, scale, shift, "relu"), counts=True)


def passes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gives results, all gradients, and by how much these are not the tangent's transpose."""

    def run(arguments: Any, upstream: Any) -> Any:
        results, pull = jax.vjp(function, *arguments)
        gradients = pull(upstream)
        tangents = jax.jvp(function, arguments, arguments)[1]
        one, other = (
            [a * b for a, b in zip(*both, strict=True)] for both in ((gradients, arguments), (upstream, tangents))
        )
        across = sum(map(jnp.sum, one)) - sum(map(jnp.sum, other))
        return results, gradients, across / sum(jnp.sum(jnp.abs(part)) for part in other)

    return run


def check(mesh: Mesh, axes: Any) -> None:
    """Compile, look at what is sent, and compare with the whole batch's truth; a shard's own mean is another."""
    arrays = arrays_of(SPEC, "relu", counts=True)
    arrays["inputs"] += 16 * np.arange(8, dtype="float32").reshape(8, 1, 1, 1)
    wanted = exact(SPEC, arrays, "relu")
    placed = {
        name: jax.device_put(array, NamedSharding(mesh, Partition(axes if name in IMAGES else None)))
        for name, array in arrays.items()
    }
    names = ("inputs", "kernel", *READING)
    given = tuple(placed[name] for name in names), tuple(placed[name] for name in UPSTREAM)
    compiled = jax.jit(passes(link)).lower(*given).compile()
    assert not any(move in compiled.as_text() for move in MOVES)
    assert "all-reduce" in compiled.as_text()
    (outputs, *statistics), gradients, across = compiled(*given)
    near(np.asarray(outputs), *wanted["outputs"], "outputs")
    near(np.asarray(statistics), *wanted["statistics"], "statistics")
    for name, gradient in zip(names, gradients, strict=True):
        near(np.asarray(gradient), *wanted[name], f"gradient to {name}")
    assert abs(across) < 1e-4


def links_mesh() -> None:
    """A mesh of one axis and of two; the batch cut along one axis, then along both."""
    devices = np.array(jax.devices())
    check(Mesh(devices, ("batch",)), "batch")
    square = Mesh(devices.reshape(2, 2), ("batch", "other"))
    check(square, "batch")
    check(square, ("batch", "other"))


def links_explicit() -> None:
    """A mesh whose shardings are part of every array's type."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        check(mesh, "batch")


def pairs() -> None:
    """Two convolutions in one pass: every device computes its own images, and nothing is sent."""
    grouped = ConvSpec.of((8, 9, 7, 16), (3, 3, 1, 16), 16, 2, ((1, 1), (2, 0)))
    pointwise = ConvSpec.of(grouped.output_shape, (1, 1, 16, 6), 1)
    random = np.random.default_rng(0)
    shapes = grouped.input_shape, grouped.kernel_shape, pointwise.kernel_shape, pointwise.output_shape
    arrays = [random.normal(size=shape).astype("float32") for shape in shapes]
    ones = jnp.ones(16)

    def pair(inputs: Any, kernel: Any, last: Any, residual: Any) -> Any:
        first = Step(kernel, grouped, ones, 2 * ones, "relu")
        return core.separable(inputs, first, Step(last, pointwise), residual)

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    cuts = (Partition("batch"), Partition(), Partition(), Partition("batch"))
    placed = [jax.device_put(array, NamedSharding(mesh, cut)) for array, cut in zip(arrays, cuts, strict=True)]
    compiled = jax.jit(pair).lower(*placed).compile()
    assert "gw_jax_separable" in compiled.as_text()
    assert not any(move in compiled.as_text() for move in (*MOVES, "all-reduce"))
    between = jax.nn.relu(2 * core.convolve(arrays[0], arrays[1], grouped) + 1)
    wanted = core.convolve(between, arrays[2], pointwise) + arrays[3]
    np.testing.assert_allclose(compiled(*placed), wanted, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    run_checks([links_mesh, links_explicit, pairs])
