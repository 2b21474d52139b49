"""PyTorch: `F.conv2d` on channels_last memory, which is what an NHWC array is."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from groupwise import tuning
from groupwise.backends import torch_core as core
from groupwise.backends import torch_norm as core_norm
from groupwise.backends.torch_operations import is_transformed
from groupwise.backends.torch_pool import max_pool
from groupwise.routing import Runtime
from groupwise.spec import ConvSpec

__all__ = [
    "batch_normalise",
    "convolve",
    "core",
    "core_norm",
    "max_pool",
    "pool",
    "runtime",
    "training_step",
    "version",
]

version = str(torch.__version__)


def runtime(inputs: Any = None) -> Runtime:
    """Return the runtime of the device that holds `inputs`, or of Keras's default device."""
    on_cpu = inputs.device.type == "cpu" if isinstance(inputs, torch.Tensor) else not torch.cuda.is_available()
    return Runtime("torch", "cpu", core=core.is_available(), tuning=_tuning()) if on_cpu else Runtime("torch", "gpu")


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
    images, filters = inputs.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
    padding = spec.explicit_padding
    if padding is None:
        raise ValueError(f"input shape {spec.input_shape}: PyTorch needs height and width for padding='same'")
    (top, bottom), (left, right) = padding
    strides = spec.strides
    # PyTorch 2.13's kernel gradient of a strided 1x1 convolution of few channels is wrong with AVX2: stride first.
    strides_first = spec.kernel_shape[:2] == (1, 1) and strides != (1, 1)
    if (top, left) != (bottom, right) or strides_first:
        images = functional.pad(images, (left, right, top, bottom))
        top = left = 0
    if strides_first:
        images, strides = images[:, :, :: strides[0], :: strides[1]], (1, 1)
    outputs = functional.conv2d(images, filters, None, strides, (top, left), spec.dilation_rate, spec.groups)
    return outputs.permute(0, 2, 3, 1)


def batch_normalise(
    inputs: Any, gamma: Any, beta: Any, statistics: tuple[Any, Any] | None, epsilon: float
) -> tuple[Any, Any, Any]:
    """Return PyTorch's fused batch norm of NHWC `inputs`, and the statistics: constants, or the batch's."""
    if is_transformed() and not torch.compiler.is_compiling():
        return _plainly_normalise(inputs, gamma, beta, statistics, epsilon)
    images = inputs.permute(0, 3, 1, 2)
    if statistics is not None:
        outputs = functional.batch_norm(images, *statistics, gamma, beta, False, 0.0, epsilon)
        return outputs.permute(0, 2, 3, 1), *statistics
    outputs, mean, deviation = torch.native_batch_norm(images, gamma, beta, None, None, True, 0.0, epsilon)
    # The operation returns 1 / sqrt(variance + epsilon).
    variance = deviation.detach().pow(-2) - epsilon
    return outputs.permute(0, 2, 3, 1), mean.detach(), variance


def _plainly_normalise(
    inputs: Any, gamma: Any, beta: Any, statistics: tuple[Any, Any] | None, epsilon: float
) -> tuple[Any, Any, Any]:
    """Return the same by elementary operations.

    The fused one's tangents are constants to further derivatives in training, and in half precision of the wrong type.
    """
    images = inputs.to(gamma.dtype)
    mean, variance = statistics or (images.mean((0, 1, 2)), images.var((0, 1, 2), correction=0))
    outputs = (images - mean) * torch.rsqrt(variance + epsilon) * gamma + beta
    return outputs.to(inputs.dtype), mean.detach(), variance.detach()


def pool(inputs: Any, kind: str, size: tuple[int, int], strides: tuple[int, int]) -> Any:
    """Return unpadded "max" or "average" pooling of NHWC `inputs`.

    Keras's own copies them to NCHW and back: a network of small images trained at 0.6 of the speed.
    """
    function = functional.max_pool2d if kind == "max" else functional.avg_pool2d
    return function(inputs.permute(0, 3, 1, 2), size, strides).permute(0, 2, 3, 1)
