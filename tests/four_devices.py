"""Data parallelism over four devices, in a process that has them: `python -m tests.four_devices DUMP_FOLDER`.

`outcomes` starts it. Every step is awaited: steps that are not, with a sum over devices in each, can lock XLA's few
threads up.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Partition

from groupwise.backends.jax import core, pooling
from groupwise.core import convolution
from groupwise.spec import ConvSpec
from tests import poolings
from tests.collectives import MOVES
from tests.passes import PASS_NAMES, expected, near, random_arrays
from tests.reference import Pooling

SPEC = ConvSpec.of((8, 9, 7, 16), (3, 3, 4, 24), 4, 2, ((1, 1), (2, 0)))


def outcomes(module: str, folder: Path) -> dict[str, str]:
    """Run the checks of a module in one process, and return how each ended: "as expected", or its traceback.

    Args:
        module: "tests.four_devices" or "tests.four_devices_norm".
        folder: an empty one, for XLA's own texts of what it compiles.

    Raises:
        RuntimeError: the process ended before its last check did.
    """
    flags = f"--xla_force_host_platform_device_count=4 --xla_dump_to={folder} --xla_dump_hlo_as_text"
    finished = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{finished.stdout}\n{finished.stderr[-3000:]}")
    return dict(json.loads(line) for line in finished.stdout.splitlines())


def run_checks(checks: Iterable[Callable[[], None]]) -> None:
    """Run checks, and print a line of JSON for each: its name and how it ended."""
    assert len(jax.devices()) == 4
    for check in checks:
        try:
            check()
            outcome = "as expected"
        except Exception:  # it is the test's, and the others still tell how they end
            outcome = traceback.format_exc()
        print(json.dumps([check.__name__, outcome]), flush=True)


def texts_of_compiled() -> list[Path]:
    """Return XLA's texts of all that it has compiled, or of what it has since these were deleted."""
    return list(Path(sys.argv[1]).glob("*after_optimizations.txt"))


def check_compiled(operation: str) -> list[str]:
    """Return the texts for four devices that hold an operation of the core; none sends images."""
    texts = [path.read_text() for path in texts_of_compiled()]
    found = [text for text in texts if operation in text and "num_partitions=4" in text]
    assert found
    assert not any(move in text for move in MOVES for text in found)
    return found


def convolve(inputs: Any, kernel: Any) -> Any:
    return core.convolve(inputs, kernel, SPEC)


def passes(function: Any) -> Any:
    """Return a function of inputs, kernel and outputs' gradient that gives the outputs, both gradients and a tangent.

    The tangent is that along inputs and kernel themselves: twice the outputs, which are linear in each.
    """

    def run(inputs: Any, kernel: Any, gradient: Any) -> Any:
        outputs, pull = jax.vjp(function, inputs, kernel)
        tangent = jax.jvp(function, (inputs, kernel), (inputs, kernel))[1]
        return outputs, *pull(gradient), tangent / 2

    return run


def check_passes(function: Any, placed: list[Any], arrays: list[np.ndarray], stays: bool = True) -> None:
    """Compile forward and all passes, look at what they send, and compare with the reference."""
    forward, whole = jax.jit(function).lower(*placed[:2]).compile(), jax.jit(passes(function)).lower(*placed).compile()
    if stays:
        assert not any(move in text for move in MOVES for text in (forward.as_text(), whole.as_text()))
        assert "all-reduce" not in forward.as_text()
        assert "all-reduce" in whole.as_text()  # the kernel's gradient
    near(np.asarray(forward(*placed[:2])), *expected(convolution.FORWARD, SPEC, arrays), "forward alone")
    for pass_, result in zip((*convolution.PASSES, convolution.FORWARD), whole(*placed), strict=True):
        near(np.asarray(result), *expected(pass_, SPEC, arrays), PASS_NAMES[pass_])


def place(mesh: Mesh, arrays: list[np.ndarray], axes: Any) -> list[Any]:
    """Cut the images' batches along `axes`; the kernel is whole on every device."""
    shardings = [NamedSharding(mesh, Partition(cut)) for cut in (axes, None, axes)]
    return [jax.device_put(array, sharding) for array, sharding in zip(arrays, shardings, strict=True)]


def mesh() -> None:
    """A mesh of one axis and of two; the batch cut along one axis, then along both."""
    arrays, devices = random_arrays(SPEC), np.array(jax.devices())
    check_passes(convolve, place(Mesh(devices, ("batch",)), arrays, "batch"), arrays)
    square = Mesh(devices.reshape(2, 2), ("batch", "other"))
    check_passes(convolve, place(square, arrays, "batch"), arrays)
    check_passes(convolve, place(square, arrays, ("batch", "other")), arrays)
    bias = np.zeros(SPEC.out_channels, "float32")
    check_passes(
        lambda x, w: core.convolve(x, w, SPEC, bias), place(Mesh(devices, ("batch",)), arrays, "batch"), arrays
    )


def explicit() -> None:
    """A mesh whose shardings are part of every array's type."""
    arrays = random_arrays(SPEC)
    devices = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(devices):
        check_passes(convolve, place(devices, arrays, "batch"), arrays)


def shard_map() -> None:
    """A function mapped over the devices, with and without its types checked."""
    arrays, devices = random_arrays(SPEC), Mesh(np.array(jax.devices()), ("batch",))
    specs = dict(mesh=devices, in_specs=(Partition("batch"), Partition()), out_specs=Partition("batch"))
    for options in ({}, {"check_vma": False}):
        check_passes(jax.shard_map(convolve, **specs, **options), place(devices, arrays, "batch"), arrays)


def uneven() -> None:
    """A batch that four devices cannot share evenly: it may move, but what XLA pads it with must not be summed."""
    devices, arrays = Mesh(np.array(jax.devices()), ("batch",)), random_arrays(SPEC)
    few = [array[:6] if array.ndim == 4 and array.shape[0] == 8 else array for array in arrays]
    inputs, kernel, gradient = place(devices, arrays, "batch")
    results = jax.jit(lambda x, w, g: passes(convolve)(x[:6], w, g[:6]))(inputs, kernel, gradient)
    for pass_, result in zip((*convolution.PASSES, convolution.FORWARD), results, strict=True):
        near(np.asarray(result), *expected(pass_, SPEC, few), PASS_NAMES[pass_])


def max_pooling() -> None:
    """Max pooling and its gradient: every device pools its own images, and nothing is sent."""
    spec = poolings.SPECS[1]
    inputs, gradient = (np.concatenate([array] * 4) for array in poolings.images(spec))
    expected = poolings.truth(spec, inputs, gradient)

    def place(mesh: Any) -> list[Any]:
        return [jax.device_put(array, NamedSharding(mesh, Partition("batch"))) for array in (inputs, gradient)]

    def pool(inputs: Any) -> Any:
        return pooling.max_pool(inputs, spec)

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    check_pooling(pool, place(mesh), expected)
    mapped = jax.shard_map(pool, mesh=mesh, in_specs=Partition("batch"), out_specs=Partition("batch"))
    check_pooling(mapped, place(mesh), expected)
    explicit = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit):
        check_pooling(pool, place(explicit), expected)


def check_pooling(function: Any, placed: list[Any], expected: Pooling) -> None:
    def run(inputs: Any, gradient: Any) -> Any:
        outputs, pull = jax.vjp(function, inputs)
        return outputs, *pull(gradient), jax.jvp(function, (inputs,), (inputs,))[1]

    compiled = jax.jit(run).lower(*placed).compile()
    assert not any(move in compiled.as_text() for move in (*MOVES, "all-reduce"))
    outputs, gradient, tangent = compiled(*placed)
    np.testing.assert_array_equal(outputs, expected.outputs)
    np.testing.assert_array_equal(tangent, expected.outputs)
    np.testing.assert_allclose(gradient, expected.gradient, rtol=1e-5, atol=1e-5)


class Convolution(keras.layers.Layer):
    """The core's convolution with a kernel of its own."""

    def build(self, input_shape: Any) -> None:
        initializer = keras.initializers.RandomNormal(seed=1)
        self.kernel = self.add_weight(shape=SPEC.kernel_shape, initializer=initializer)

    def call(self, inputs: Any) -> Any:
        spec = ConvSpec.of(inputs.shape, SPEC.kernel_shape, SPEC.groups, SPEC.strides, SPEC.padding)
        return core.convolve(inputs, keras.ops.convert_to_tensor(self.kernel), spec)


def train() -> list[float]:
    """Return the losses of four steps of a small model."""
    keras.utils.set_random_seed(3)
    layers = [keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
    model = keras.Sequential([Convolution(), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    inputs = random_arrays(SPEC)[0]
    targets = inputs[:, 0, 0, :5]
    return [float(model.train_on_batch(inputs, targets)) for _ in range(4)]


def keras_distribution() -> None:
    """`keras.distribution.DataParallel`: the same losses, and no images sent in anything that Keras compiled."""
    for path in texts_of_compiled():
        path.unlink()
    alone = train()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=keras.distribution.list_devices()))
    np.testing.assert_allclose(train(), alone, rtol=1e-4)
    assert alone[-1] < alone[0]
    assert all("all-reduce" in text for text in check_compiled("gw_jax_kernel_gradient"))


if __name__ == "__main__":
    # The distribution is Keras's for all that follows, and so it comes last.
    run_checks([mesh, explicit, shard_map, uneven, max_pooling, keras_distribution])
