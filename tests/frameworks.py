"""What the tests need of each framework beside Keras: values and gradients, eager and compiled."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends

BACKEND = keras.backend.backend()

ON_CPU = backends.active.runtime().device == "cpu"
CORE_RUNS = backends.active.runtime().core
"""Whether what Keras computes reaches the C core: it is there, and the arrays lie on a CPU."""

_WHY_NOT = "the C core is off, does not load, or Keras runs on a GPU"
on_cpu = pytest.mark.skipif(not ON_CPU, reason="there is nothing to choose from on an accelerator")
needs_core = pytest.mark.skipif(not CORE_RUNS, reason=_WHY_NOT)


def full_precision() -> None:
    """Let float32 be float32 on a GPU, where it is TF32 else, which keeps ten bits of the fraction."""
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # for the processes that tests start
    if BACKEND == "torch":
        torch = importlib.import_module("torch")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    elif BACKEND == "jax":
        importlib.import_module("jax").config.update("jax_default_matmul_precision", "highest")
    else:
        importlib.import_module("tensorflow").config.experimental.enable_tensor_float_32_execution(False)


def skip_without_core(algorithm: str = "core") -> None:
    """Skip the test, or the module, where its algorithm is the core and that does not run."""
    if algorithm == "core" and not CORE_RUNS:
        pytest.skip(_WHY_NOT, allow_module_level=True)


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
    return _jax_pass(function, compiled)(arguments, gradient)


@lru_cache(maxsize=1)  # a training calls one function many times
def _jax_pass(function: Any, compiled: bool) -> Any:
    jax = importlib.import_module("jax")

    def run(arguments: list[Any], gradient: Any) -> Any:
        outputs, pull = jax.vjp(function, *arguments)
        return outputs, *pull(gradient)

    return jax.jit(run) if compiled else run


def _torch(function: Any, arguments: list[Any], gradient: Any, compiled: bool) -> Any:
    arguments = [argument.requires_grad_() for argument in arguments]
    outputs = function(*arguments)
    outputs.backward(gradient)
    return outputs.detach(), *(argument.grad for argument in arguments)


_RUN: dict[str, Callable[..., Any]] = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
