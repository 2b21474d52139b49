"""What the tests need of each framework beside Keras: values and gradients, eager and compiled."""

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

BACKEND = keras.backend.backend()


def values_and_gradients(
    function: Callable[[Any, Any], Any], inputs: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, compiled: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return function(inputs, kernel) and the gradients to both of sum(outputs * gradient), as float64 arrays.

    `compiled`: under `tf.function` or `jax.jit`; PyTorch runs eagerly either way.
    """
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    arrays = [keras.ops.convert_to_tensor(array, dtype) for array in (inputs, kernel, gradient)]
    results = _RUN[BACKEND](function, *arrays, compiled)
    to_numpy = keras.ops.convert_to_numpy
    outputs, to_inputs, to_kernel = (np.asarray(to_numpy(keras.ops.cast(r, "float32")), "float64") for r in results)
    return outputs, to_inputs, to_kernel


def _tensorflow(function: Any, inputs: Any, kernel: Any, gradient: Any, compiled: bool) -> Any:
    tf = importlib.import_module("tensorflow")

    def run(inputs: Any, kernel: Any, gradient: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = function(inputs, kernel)
        return outputs, *tape.gradient(outputs, [inputs, kernel], output_gradients=gradient)

    return (tf.function(run) if compiled else run)(inputs, kernel, gradient)


def _jax(function: Any, inputs: Any, kernel: Any, gradient: Any, compiled: bool) -> Any:
    jax = importlib.import_module("jax")

    def run(inputs: Any, kernel: Any, gradient: Any) -> Any:
        outputs, pull = jax.vjp(function, inputs, kernel)
        return outputs, *pull(gradient)

    return (jax.jit(run) if compiled else run)(inputs, kernel, gradient)


def _torch(function: Any, inputs: Any, kernel: Any, gradient: Any, compiled: bool) -> Any:
    inputs, kernel = inputs.requires_grad_(), kernel.requires_grad_()
    outputs = function(inputs, kernel)
    outputs.backward(gradient)
    return outputs.detach(), inputs.grad, kernel.grad


_RUN: dict[str, Callable[..., Any]] = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
