"""The sum after a depthwise convolution: right, wrong and strided, run on the worked example of docs/grouped.md."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.ops import depthwise_conv2d, grouped_conv2d
from groupwise.spec import ConvSpec

CHANNELS, GROUPS = 8, 2
WIDTH = CHANNELS // GROUPS
SUMS = {
    "Right: over each group's channels": ((GROUPS, WIDTH, WIDTH), 1, "the middle axis"),
    "Wrong: over one channel's filters": ((CHANNELS, WIDTH), 1, "the last axis"),
    "Strided: other groups than were meant": ((WIDTH, CHANNELS), 0, "the first axis"),
}
"""To which shape the products go, and over which axis they are added."""


class Way(NamedTuple):
    """A way to sum the depthwise convolution's outputs: what it is, how it is written, and what comes of it.

    `results` are the sums; `owners`, (channels, multiplier), tells into which of them each product goes; `is_right`,
    whether the sums are the grouped convolution's.
    """

    title: str
    code: str
    results: NDArray[np.float32]
    owners: NDArray[np.intp]
    is_right: bool


def worked_example() -> tuple[NDArray[np.float32], NDArray[np.float32], list[Way]]:
    """Return the products (channels, multiplier), the grouped convolution's outputs, and the ways to sum.

    The active framework runs it: channels that hold 0, 1, 2, ..., and 1x1 kernels of ones.

    Examples:
        >>> worked_example()[1].astype(int).tolist()
        [6, 6, 6, 6, 22, 22, 22, 22]
    """
    x = np.arange(CHANNELS, dtype="float32").reshape(1, 1, 1, CHANNELS)
    kernel = np.ones((1, 1, WIDTH, CHANNELS), "float32")
    grouped = _numpy(grouped_conv2d(x, kernel, GROUPS, data_format="channels_last"))
    products = _numpy(depthwise_conv2d(x, kernel.reshape(1, 1, CHANNELS, WIDTH), data_format="channels_last"))
    return products.reshape(CHANNELS, WIDTH), grouped, [_run(title, products, grouped) for title in SUMS]


def _run(title: str, products: NDArray[np.float32], grouped: NDArray[np.float32]) -> Way:
    shape, axis, words = SUMS[title]

    def add(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return _numpy(keras.ops.sum(keras.ops.reshape(values, shape), axis=axis))

    results = add(products)
    # Each product alone, as a one: the output that is not zero is where it goes.
    owners = np.stack([add(row) for row in np.eye(products.size, dtype="float32")]).argmax(axis=1)
    code = f"reshape({', '.join(map(str, shape))}), sum over {words}"
    return Way(title, code, results, owners.reshape(CHANNELS, WIDTH), bool(np.array_equal(results, grouped)))


def _numpy(values: Any) -> NDArray[np.float32]:
    result: NDArray[np.float32] = keras.ops.convert_to_numpy(values).ravel()
    return result


class Cost(NamedTuple):
    """What a way to compute a grouped convolution costs for one image: multiply-adds, and the numbers written."""

    kernel_shape: tuple[int, int, int, int]
    macs: int
    written: int


def costs(spec: ConvSpec) -> dict[str, Cost]:
    """Return the costs of a convolution computed as grouped, as depthwise-and-sum, and as a dense one with zeros."""
    height, width, n, filters = spec.kernel_shape
    channels, written = spec.in_channels, math.prod(size or 0 for size in spec.output_shape[1:])
    return {
        "grouped": Cost(spec.kernel_shape, spec.macs, written),
        "depthwise and sum": Cost((height, width, channels, filters // spec.groups), spec.macs, n * written),
        "dense with zeros": Cost((height, width, channels, filters), spec.groups * spec.macs, written),
    }


def difference(spec: ConvSpec, algorithm: str) -> float:
    """Return how far an algorithm's outputs are from the grouped convolution's, relative to the largest, at random."""
    generator = np.random.default_rng(0)
    _, height, width, channels = spec.input_shape
    x = generator.normal(size=(1, min(height or 8, 8), min(width or 8, 8), channels)).astype("float32")
    kernel = generator.normal(size=spec.kernel_shape).astype("float32")
    options: dict[str, Any] = {"strides": spec.strides, "padding": spec.padding, "data_format": "channels_last"}
    expected, found = (
        _numpy(grouped_conv2d(x, kernel, spec.groups, algorithm=name, **options)) for name in ("auto", algorithm)
    )
    return float(np.abs(expected - found).max() / np.abs(expected).max())
