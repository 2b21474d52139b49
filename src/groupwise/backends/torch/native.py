"""PyTorch: `F.conv2d` on channels_last memory, which is what an NHWC array is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import keras
import numpy as np
import torch
from keras import ops
from torch.nn import functional

from groupwise.backends import conversions, plain_norm
from groupwise.backends.torch import core, devices, norm, pooling
from groupwise.backends.torch import distribution as distribution
from groupwise.backends.torch.operations import is_transformed
from groupwise.backends.torch.process_norm import over_processes as over_processes
from groupwise.backends.torch.step import Step
from groupwise.routing import Runtime, tuning
from groupwise.spec import ConvSpec, knows_sizes, same_padding

version = str(torch.__version__)
core_norm, max_pool, average_pool, reshape, step = norm, pooling.max_pool, None, torch.reshape, Step
prediction = shuffle = None

# The types that oneDNN does not compute in here: PyTorch's own kernels add the gradients in them.
_ADDED_IN_THEMSELVES = tuple(
    name
    for name, is_supported in (
        ("float16", torch.ops.mkldnn._is_mkldnn_fp16_supported),
        ("bfloat16", torch.ops.mkldnn._is_mkldnn_bf16_supported),
    )
    if not is_supported()
)


_HOME = ops.convert_to_tensor(0).device
"""Keras's default device."""


def tensors(arrays: Sequence[Any]) -> list[Any]:
    """Return what `conversions.tensors` does, and leave alone what is where Keras would bring it."""
    arrays = [array.value if isinstance(array, keras.Variable) else array for array in arrays]
    if all(array is None or (isinstance(array, torch.Tensor) and array.device == _HOME) for array in arrays):
        return arrays
    return conversions.tensors(arrays)


def runtime(inputs: Any = None) -> Runtime:
    """Return the runtime of the device that holds `inputs`, or of Keras's default device."""
    device = inputs.device if isinstance(inputs, torch.Tensor) else _default_device()
    if device.type != "cpu":
        return Runtime("torch", "gpu", accelerator=devices.accelerator(device))
    has_core = core.is_available() and (inputs is None or knows_sizes(inputs))
    return _on_cpu(has_core, _tuning())


@cache
def _on_cpu(core: bool, tuning: tuning.Tuning | None) -> Runtime:
    return Runtime("torch", "cpu", core=core, tuning=tuning)


def _default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@torch.compiler.assume_constant_result
def _tuning() -> tuning.Tuning | None:
    """Return what is stored; torch.compile asks once, and does not trace into the reading."""
    return tuning.current("torch", version)


def training_step(
    convolve: Callable[[Any, Any], Any], inputs: Any, kernel: Any, gradient: Any
) -> Callable[[], tuple[Any, Any, Any]]:
    """Return a function that runs `convolve` and both of its gradients."""

    def step() -> tuple[Any, Any, Any]:
        leaves = [tensor.detach().requires_grad_() for tensor in (inputs, kernel)]
        outputs = convolve(*leaves)
        return outputs.detach(), *torch.autograd.grad(outputs, leaves, gradient)

    return step


def convolve(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return `F.conv2d` of NHWC `inputs` and an HWIO `kernel`; the permutations are views, not copies."""
    if inputs.device.type == "cpu" and spec.dtype in _ADDED_IN_THEMSELVES:
        outputs = convolve(inputs.float(), kernel.float(), replace(spec, dtype="float32"))
        return outputs.to(inputs.dtype)
    (top, bottom), (left, right) = spec.padding_of(*inputs.shape[1:3])
    strides = spec.strides
    # PyTorch 2.13's kernel gradient of a strided 1x1 convolution of few channels is wrong with AVX2: stride first.
    strides_first = spec.kernel_shape[:2] == (1, 1) and strides != (1, 1)
    # Sizes that are traced are not compared: the answer would be that of the example.
    is_traced = spec.explicit_padding is None or torch.compiler.is_compiling()
    varies = is_traced and spec.padding == "same" and strides != (1, 1)
    if varies or (top, left) != (bottom, right) or strides_first:
        inputs = functional.pad(inputs, (0, 0, left, right, top, bottom))
        top = left = 0
    if strides_first:
        inputs, strides = inputs[:, :: strides[0], :: strides[1]].contiguous(), (1, 1)
    images, filters = inputs.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
    outputs = functional.conv2d(images, filters, None, strides, (top, left), spec.dilation_rate, spec.groups)
    return outputs.permute(0, 2, 3, 1)


def batch_normalise(
    inputs: Any, gamma: Any, beta: Any, statistics: tuple[Any, Any] | None, epsilon: float
) -> tuple[Any, Any, Any]:
    """Return PyTorch's fused batch norm of NHWC `inputs`, and the statistics: constants, or the batch's."""
    if is_transformed() and not torch.compiler.is_compiling():
        # The fused one's tangents are constants to further derivatives in training, and of the wrong type in half.
        outputs, mean, variance = plain_norm.normalise(inputs.to(gamma.dtype), gamma, beta, statistics, epsilon)
        return outputs.to(inputs.dtype), mean.detach(), variance.detach()
    images = inputs.permute(0, 3, 1, 2)
    if statistics is not None:
        outputs = functional.batch_norm(images, *statistics, gamma, beta, False, 0.0, epsilon)
        return outputs.permute(0, 2, 3, 1), *statistics
    outputs, mean, deviation = torch.native_batch_norm(images, gamma, beta, None, None, True, 0.0, epsilon)
    # The operation returns 1 / sqrt(variance + epsilon).
    variance = deviation.detach().pow(-2) - epsilon
    return outputs.permute(0, 2, 3, 1), mean.detach(), variance


def pool(inputs: Any, kind: str, size: tuple[int, int], strides: tuple[int, int]) -> Any:
    """Return unpadded "max" or "average" pooling of NHWC `inputs`.

    Keras's own copies them to NCHW and back: a network of small images trained at 0.6 of the speed.
    """
    function = functional.max_pool2d if kind == "max" else functional.avg_pool2d
    return function(inputs.permute(0, 3, 1, 2), size, strides).permute(0, 2, 3, 1)


def random_state() -> dict[str, np.ndarray]:
    """Return the states of PyTorch's random numbers, the CPU's and, where one is in use, the card's."""
    states = zip(("cpu", "card"), devices.random_state(), strict=True)
    return {name: state.cpu().numpy() for name, state in states if state is not None}


def set_random_state(states: Mapping[str, np.ndarray]) -> None:
    """Let PyTorch draw as it did from `random_state` on."""
    card = states.get("card")
    devices.set_random_state((torch.from_numpy(states["cpu"]), None if card is None else torch.from_numpy(card)))


def pool_same(inputs: Any, kind: str, size: tuple[int, int], strides: tuple[int, int]) -> Any:
    """Return "max" or "average" pooling of NHWC `inputs` with "same" padding, which does not count.

    Keras's own repeats the edge of images of odd sizes, and compares sizes, which may be traced.
    """
    images = inputs.permute(0, 3, 1, 2)
    (top, bottom), (left, right) = map(same_padding, images.shape[2:], size, strides)
    is_max, sides = kind == "max", (left, right, top, bottom)
    lowest = float("-inf") if images.is_floating_point() else torch.iinfo(images.dtype).min
    padded = functional.pad(images, sides, value=lowest if is_max else 0)
    outputs = (functional.max_pool2d if is_max else functional.avg_pool2d)(padded, size, strides)
    if not is_max:
        ones = functional.pad(torch.ones_like(images[:1, :1]), sides)
        outputs = outputs / functional.avg_pool2d(ones, size, strides)
    return outputs.permute(0, 2, 3, 1)
