"""Batch norm in the C core: its C interface (`gw_normalize` in `csrc/groupwise.h`) for NumPy arrays and addresses.

outputs = activation((inputs - mean) * gamma / sqrt(variance + epsilon) + beta + residual), over (..., channels).
"""

import ctypes
import math
from typing import Any

import numpy as np

from groupwise.core import epilogues, library

MOMENTS, NORMALIZE, GRADIENT_SUMS, GRADIENT = PASSES = (1, 2, 4, 8)
"""inputs -> mean and biased variance; -> outputs; -> the gradients of beta and gamma; -> the inputs' gradient."""
_IMAGES = ("inputs", "residual", "outputs", "gradient", "residual_gradient", "inputs_gradient")
_CHANNELS = ("gamma", "beta", "mean", "variance")
_READ = {
    MOMENTS: ("inputs",),
    NORMALIZE: ("inputs", *_CHANNELS),
    GRADIENT_SUMS: ("inputs", "gradient", *_CHANNELS),
    GRADIENT: ("inputs", "gradient", "sums", *_CHANNELS),
}
_WRITTEN = {
    MOMENTS: ("mean", "variance"),
    NORMALIZE: ("outputs",),
    GRADIENT_SUMS: ("sums",),
    GRADIENT: ("inputs_gradient",),
}
_POINTERS = (
    *("inputs", "residual", "gamma", "beta", "mean", "variance", "outputs", "gradient", "sums", "residual_gradient"),
    "inputs_gradient",
)


class _Normalization(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("pixels", "channels", "activation", "count")),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def run(
    passes: int,
    pixels: int,
    channels: int,
    *,
    activation: str,
    epsilon: float,
    count: int = 0,
    executor: Any = None,
    **addresses: int | None,
) -> None:
    """Run passes on memory at addresses, which the caller knows to be of the right sizes.

    Args:
        passes: the sum of some of PASSES.
        pixels, channels: of the matrix; activation: one of `epilogues.ACTIVATIONS`.
        count: of how many pixels, on all devices, mean and variance are; 0 where they are constants.
        executor: as for `convolution.run`.
        addresses: the pointers of `GwNormalization` by their names.

    Raises:
        ValueError: where the core refuses. MemoryError, RuntimeError: where there is no memory or no core.
    """
    number = epilogues.number(activation)
    normalization = _Normalization(pixels, channels, number, count, epsilon, **addresses)
    status = library.loaded().gw_normalize(passes, ctypes.byref(normalization), executor)
    if status:
        library.raise_status(status, f"passes {passes}, {pixels} pixels, {channels} channels")


def normalize(
    passes: int, *, activation: str = "linear", epsilon: float = 1e-3, count: int | None = None, **arrays: np.ndarray
) -> dict[str, np.ndarray]:
    """Run passes of the core on contiguous float32 arrays, given by their names in `GwNormalization`.

    Args:
        passes: the sum of some of PASSES: MOMENTS, NORMALIZE, GRADIENT_SUMS, GRADIENT.
        activation: one of `epilogues.ACTIVATIONS`. epsilon: added to the variance.
        count: of how many pixels mean and variance are, where not of these inputs; 0 where they are constants.
        arrays: inputs, outputs, gradient (of the outputs), residual, residual_gradient, inputs_gradient of shape
            (..., channels); gamma, beta, mean, variance of shape (channels,); sums of shape (2, channels), the
            gradients of beta and gamma. What a pass writes may be left out, and is then made; residual_gradient is
            written only where it is given. The gradient passes take outputs, where the activation's gradient reads
            them, or the residual, with which they compute anew what the activation saw.

    Returns:
        All arrays, by name.

    Raises:
        ValueError: where an array lacks, or a shape or type does not fit. RuntimeError: where there is no core.

    Examples:
        >>> result = normalize(MOMENTS, inputs=np.array([[1.0], [3.0]], "float32"))
        >>> result["mean"].tolist(), result["variance"].tolist()
        ([2.0], [1.0])
    """
    epilogues.number(activation)
    if not 1 <= passes <= sum(PASSES):
        raise ValueError(f"passes={passes}: the core refuses what is not a sum of {', '.join(map(str, PASSES))}")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon}: must be at least 0, and finite")
    if count is not None and count < 0:
        raise ValueError(f"count={count}: must be at least 0, which stands for constant mean and variance")
    inputs = arrays.get("inputs")
    if inputs is None or not inputs.ndim or not inputs.shape[-1]:
        raise ValueError(f"inputs={inputs!r}: must be an array of shape (..., channels), at least one channel")
    shapes = dict.fromkeys(_IMAGES, inputs.shape) | dict.fromkeys(_CHANNELS, inputs.shape[-1:])
    shapes["sums"] = (2, inputs.shape[-1])
    arrays = dict(arrays)
    for pass_ in (pass_ for pass_ in PASSES if passes & pass_):
        missing = [name for name in _READ[pass_] if name not in arrays]
        if missing:
            raise ValueError(f"passes={passes}: {', '.join(missing)} must be given")
        arrays |= {name: np.empty(shapes[name], "float32") for name in _WRITTEN[pass_] if name not in arrays}
    written = {name for pass_ in PASSES if passes & pass_ for name in _WRITTEN[pass_]}
    if passes & GRADIENT_SUMS:
        written.add("residual_gradient")
    for name, array in arrays.items():
        if name not in shapes:
            raise ValueError(f"{name}: must be one of {', '.join(shapes)}")
        library.check(name, array, shapes[name], written=name in written)
    pixels = math.prod(inputs.shape[:-1])
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    count = pixels if count is None else count
    run(passes, pixels, inputs.shape[-1], activation=activation, epsilon=epsilon, count=count, **addresses)
    return arrays
