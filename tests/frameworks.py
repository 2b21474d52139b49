"""What the tests need of each framework beside Keras: values and gradients, eager and compiled."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
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
    outputs, to_inputs, to_kernel = value_and_every_gradient(function, [inputs, kernel], gradient, compiled)
    return outputs, to_inputs, to_kernel


def value_and_every_gradient(
    function: Callable[..., Any], arguments: Sequence[np.ndarray], gradient: np.ndarray, compiled: bool
) -> list[np.ndarray]:
    """Return function(*arguments) and the gradient to each of sum(outputs * gradient); see `values_and_gradients`."""
    dtype = keras.backend.standardize_dtype(arguments[0].dtype)
    arrays = [keras.ops.convert_to_tensor(array, dtype) for array in (*arguments, gradient)]
    results = _RUN[BACKEND](function, arrays[:-1], arrays[-1], compiled)
    to_numpy = keras.ops.convert_to_numpy
    wide = "float64" if dtype == "float64" else "float32"
    return [np.asarray(to_numpy(keras.ops.cast(result, wide)), "float64") for result in results]


def with_weights(layer: Any, **options: Any) -> Callable[..., Any]:
    """Return the function of inputs and of the layer's trainable weights that the layer computes."""

    def call(inputs: Any, *weights: Any) -> Any:
        with keras.StatelessScope(list(zip(layer.trainable_variables, weights, strict=True))):
            return layer(inputs, **options)

    return call


def in_new_process(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a new process on the same backend, from the folder above the tests."""
    variables = {**os.environ, "KERAS_BACKEND": BACKEND, **environment}
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, env=variables, cwd=root, capture_output=True, text=True, timeout=300, check=False)


def _tensorflow(function: Any, arguments: list[Any], gradient: Any, compiled: bool) -> Any:
    tf = importlib.import_module("tensorflow")

    def run(arguments: list[Any], gradient: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = function(*arguments)
        return outputs, *tape.gradient(outputs, arguments, output_gradients=gradient)

    return (tf.function(run) if compiled else run)(arguments, gradient)


def _jax(function: Any, arguments: list[Any], gradient: Any, compiled: bool) -> Any:
    jax = importlib.import_module("jax")

    def run(arguments: list[Any], gradient: Any) -> Any:
        outputs, pull = jax.vjp(function, *arguments)
        return outputs, *pull(gradient)

    return (jax.jit(run) if compiled else run)(arguments, gradient)


def _torch(function: Any, arguments: list[Any], gradient: Any, compiled: bool) -> Any:
    arguments = [argument.requires_grad_() for argument in arguments]
    outputs = function(*arguments)
    outputs.backward(gradient)
    return outputs.detach(), *(argument.grad for argument in arguments)


_RUN: dict[str, Callable[..., Any]] = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
