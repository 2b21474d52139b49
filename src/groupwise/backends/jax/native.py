"""JAX: `lax.conv_general_dilated`."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from groupwise.backends import conversions
from groupwise.backends.jax import core, norm, pooling
from groupwise.backends.jax import distribution as distribution
from groupwise.backends.jax.devices import accelerator, device_of
from groupwise.backends.jax.prediction import Prediction
from groupwise.routing import Runtime, tuning
from groupwise.spec import ConvSpec, knows_sizes

version = jax.__version__
core_norm, max_pool, average_pool = norm, pooling.max_pool, pooling.average_pool
prediction = Prediction
batch_normalise = pool_same = step = random_state = set_random_state = over_processes = shuffle = None
tensors, reshape = conversions.tensors, jnp.reshape
# Larger windows as elementwise maxima of shifted images take XLA minutes to compile.
MOST_SHIFTS = 64


def runtime(inputs: Any = None) -> Runtime:
    """Return the runtime of the device that holds `inputs`, or of JAX's default one, where traced computations run."""
    card = accelerator(device_of(inputs))
    if card is not None:
        return Runtime("jax", "gpu", accelerator=card)
    has_core = core.is_available() and (inputs is None or knows_sizes(inputs))
    return Runtime("jax", "cpu", core=has_core, tuning=tuning.current("jax", version))


def training_step(
    convolve: Callable[[Any, Any], Any], inputs: Any, kernel: Any, gradient: Any
) -> Callable[[], tuple[Any, Any, Any]]:
    """Return a compiled function that runs `convolve` and both of its gradients, and waits for them."""

    @jax.jit
    def step(inputs: Any, kernel: Any, gradient: Any) -> tuple[Any, Any, Any]:
        outputs, pull_back = jax.vjp(convolve, inputs, kernel)
        return outputs, *pull_back(gradient)

    return lambda: jax.block_until_ready(step(inputs, kernel, gradient))


def convolve(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return XLA's convolution of NHWC `inputs` and an HWIO `kernel`."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=spec.strides,
        padding=spec.explicit_padding or "SAME",
        rhs_dilation=spec.dilation_rate,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


def pool(inputs: Any, kind: str, size: tuple[int, int], strides: tuple[int, int]) -> Any:
    """Return unpadded "max" or "average" pooling of NHWC `inputs`."""
    if kind == "max" and jax.default_backend() == "cpu" and size[0] * size[1] <= MOST_SHIFTS:
        return _max_pool(inputs, size, strides)
    window, steps = (1, *size, 1), (1, *strides, 1)
    if kind == "max":
        lowest = -jnp.inf if jnp.issubdtype(inputs.dtype, jnp.floating) else jnp.iinfo(inputs.dtype).min
        return lax.reduce_window(inputs, np.asarray(lowest, inputs.dtype), lax.max, window, steps, "VALID")
    return lax.reduce_window(inputs, 0.0, lax.add, window, steps, "VALID") / (size[0] * size[1])


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _max_pool(inputs: Any, size: tuple[int, int], strides: tuple[int, int]) -> Any:
    """Return maxima as elementwise maxima of shifted images, whose gradient XLA fuses; its own scatters one by one."""
    return reduce(jnp.maximum, (lax.slice(inputs, *bounds) for bounds in _shifts(inputs.shape, size, strides)))


@_max_pool.defjvp
def _max_pool_tangent(size: tuple[int, int], strides: tuple[int, int], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Return the maxima and their tangents; of equal maxima in a window the first one's, as in XLA's own."""
    (inputs,), (tangent,) = primals, tangents
    outputs = _max_pool(inputs, size, strides)
    total, free = jnp.zeros_like(outputs), jnp.ones_like(outputs, bool)
    for bounds in _shifts(inputs.shape, size, strides):
        chosen = free & (lax.slice(inputs, *bounds) == outputs)
        free = free & ~chosen
        total += jnp.where(chosen, lax.slice(tangent, *bounds), 0)
    return outputs, total


def _shifts(shape: tuple[int, ...], size: tuple[int, int], strides: tuple[int, int]) -> list[tuple[Any, Any, Any]]:
    """Return start, end and steps of the slice of an image that each place of the window sees."""
    batch, height, width, channels = shape
    reach = [
        (whole - part) // step * step + 1 for whole, part, step in zip((height, width), size, strides, strict=True)
    ]
    return [
        ((0, row, column, 0), (batch, row + reach[0], column + reach[1], channels), (1, *strides, 1))
        for row in range(size[0])
        for column in range(size[1])
    ]
