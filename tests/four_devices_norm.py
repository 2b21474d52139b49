"""Batch norm over four devices, as tests/four_devices.py: `python -m tests.four_devices_norm DUMP_FOLDER`."""

from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Partition

from groupwise import layers
from groupwise.backends.jax import norm
from tests.collectives import MOVES
from tests.four_devices import check_compiled, run_checks, texts_of_compiled
from tests.normalizations import EPSILON, random_arrays, truth

SHAPE = (8, 6, 5, 7)
NAMES = ("inputs", "gamma", "beta", "residual", "gradient")


def passes(inputs: Any, gamma: Any, beta: Any, residual: Any, gradient: Any) -> Any:
    """Return outputs, statistics, all gradients, and by how much what they say of a tangent is not the tangent."""

    def function(inputs: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        outputs, *statistics = norm.normalise(inputs, gamma, beta, None, EPSILON, residual, "relu")
        return outputs, statistics

    arguments, directions = (inputs, gamma, beta, residual), (residual, beta, gamma, inputs)
    outputs, pull, statistics = jax.vjp(function, *arguments, has_aux=True)
    tangent = jax.jvp(lambda *arguments: function(*arguments)[0], arguments, directions)[1]
    gradients = pull(gradient)
    across = sum(jnp.sum(a * b) for a, b in zip(gradients, directions, strict=True)) - jnp.sum(gradient * tangent)
    return outputs, *statistics, *gradients, across / jnp.sum(jnp.abs(gradient * tangent))


def check_mesh(mesh: Mesh, axes: Any) -> None:
    """Compile, look at what is sent, and compare with the whole batch's truth; a shard's own mean is another."""
    arrays = random_arrays(SHAPE)
    arrays["inputs"] += np.arange(8, dtype="float32").reshape(8, 1, 1, 1)
    exact = truth(arrays, "relu", True)
    placed = [
        jax.device_put(arrays[name], NamedSharding(mesh, Partition(axes if arrays[name].ndim == 4 else None)))
        for name in NAMES
    ]
    compiled = jax.jit(passes).lower(*placed).compile()
    assert not any(move in compiled.as_text() for move in MOVES)
    assert "all-reduce" in compiled.as_text()
    wanted = (
        *(exact[name] for name in ("outputs", "mean", "variance", "inputs_gradient")),
        *exact["sums"][::-1],
        exact["residual_gradient"],
        np.zeros(()),
    )
    for result, value in zip(compiled(*placed), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(result), value, rtol=1e-4, atol=1e-4 * (1 + abs(value).max()))


def norm_mesh() -> None:
    """A mesh of one axis and of two; the batch cut along one axis, then along both."""
    devices = np.array(jax.devices())
    check_mesh(Mesh(devices, ("batch",)), "batch")
    square = Mesh(devices.reshape(2, 2), ("batch", "other"))
    check_mesh(square, "batch")
    check_mesh(square, ("batch", "other"))


def norm_explicit() -> None:
    """A mesh whose shardings are part of every array's type."""
    devices = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(devices):
        check_mesh(devices, "batch")


def train() -> list[Any]:
    """Return the losses of four steps of a small model, and its moving statistics."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(SHAPE[1:])
    norm = layers.BatchNormalization(activation="relu")
    outputs = keras.layers.GlobalAveragePooling2D()(norm(inputs, residual=inputs))
    model = keras.Model(inputs, keras.layers.Dense(5)(outputs))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    images = random_arrays(SHAPE)["inputs"] + np.arange(8, dtype="float32").reshape(8, 1, 1, 1)
    losses = [float(model.train_on_batch(images, images[:, 0, 0, :5])) for _ in range(4)]
    return [losses, *norm.get_weights()]


def norm_keras_distribution() -> None:
    """`keras.distribution.DataParallel`: losses and statistics as on one device, and no images sent."""
    for path in texts_of_compiled():
        path.unlink()
    alone = train()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=keras.distribution.list_devices()))
    for one, other in zip(train(), alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    check_compiled("gw_jax_gradient_sums")


if __name__ == "__main__":
    run_checks([norm_mesh, norm_explicit, norm_keras_distribution])
