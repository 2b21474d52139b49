"""A convolution that reads normalised images and counts what it writes: a link of a chain (`backends.plain_links`)."""

from typing import Any

from groupwise import backends, routing
from groupwise.backends.plain_links import Reading, read, statistics
from groupwise.ops.algorithms import ALGORITHMS
from groupwise.ops.convolutions import Geometry, spec_of


def linked_conv2d(
    inputs: Any,
    kernel: Any,
    geometry: Geometry,
    algorithm: str = "auto",
    reading: Reading | None = None,
    counts: bool = False,
) -> tuple[Any, Any, Any]:
    """Convolve an image as it is read, and count the outputs' statistics, in one pass over memory where the core runs.

    Args:
        inputs, kernel, algorithm: as for `grouped_conv2d`, channels last.
        geometry: groups, strides, padding, dilation rate.
        reading: how the inputs are read; padding is zero after it. None: as they are.
        counts: whether statistics are wanted.

    Returns:
        (batch, out height, out width, out_channels); the mean and the biased variance of each of its channels, or None.

    Examples:
        >>> import numpy as np
        >>> one, x = np.ones(1, "float32"), np.array([-1.0, 3.0], "float32").reshape(1, 1, 2, 1)
        >>> kernel, reading = np.ones((1, 1, 1, 1), "float32"), Reading(one, one, one, "relu")
        >>> outputs, mean, _ = linked_conv2d(x, kernel, (1, 1, "valid", 1), reading=reading, counts=True)
        >>> np.asarray(outputs).ravel().tolist(), float(mean[0])
        ([0.0, 3.0], 1.5)
    """
    inputs, kernel = backends.active.tensors((inputs, kernel))
    if reading is not None:
        mean, scale, shift = backends.active.tensors(reading[:3])
        reading = Reading(mean, scale, shift, reading.activation)
    spec = spec_of(inputs, kernel, geometry)
    if algorithm == "auto":
        algorithm = routing.explain(spec, backends.active.runtime(inputs)).algorithm
    if algorithm == "core" and spec.dtype == "float32":
        return backends.active.core.link(inputs, kernel, spec, reading, counts)
    outputs = ALGORITHMS[algorithm](inputs if reading is None else read(inputs, reading), kernel, spec)
    return outputs, *(statistics(outputs) if counts else (None, None))
