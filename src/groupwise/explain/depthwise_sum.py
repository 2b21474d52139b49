"""The sum after a depthwise convolution: right, wrong and strided, run on the worked example of docs/grouped.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.ops import depthwise_conv2d, grouped_conv2d
from groupwise.spec import ConvSpec

CHANNELS, GROUPS = 8, 2


@dataclass(frozen=True, eq=False)
class Way:
    """One way to sum the depthwise convolution's outputs.

    Attributes:
        title, code: what it is, and how it is written.
        results: (outputs,), the sums.
        owners: (channels, multiplier), into which output each product goes.
        is_right: whether the sums are the grouped convolution's.
    """

    title: str
    code: str
    results: NDArray[np.float32]
    owners: NDArray[np.intp]
    is_right: bool


@dataclass(frozen=True, eq=False)
class Example:
    """Inputs (channels,), the products (channels, multiplier), the grouped convolution (outputs,), and the ways."""

    groups: int
    inputs: NDArray[np.float32]
    products: NDArray[np.float32]
    grouped: NDArray[np.float32]
    ways: tuple[Way, ...]


def worked_example(channels: int = CHANNELS, groups: int = GROUPS) -> Example:
    """Return the example, run by the active framework: channels that hold 0, 1, 2, ..., 1x1 kernels of ones.

    Examples:
        >>> worked_example().ways[0].results.astype(int).tolist()
        [6, 6, 6, 6, 22, 22, 22, 22]
    """
    n = m = channels // groups
    inputs = np.arange(channels, dtype="float32")
    x = inputs.reshape(1, 1, 1, channels)
    grouped = _numpy(grouped_conv2d(x, np.ones((1, 1, n, channels), "float32"), groups, data_format="channels_last"))
    every = depthwise_conv2d(x, np.ones((1, 1, channels, m), "float32"), data_format="channels_last")
    sums: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
        (
            "Right: over each group's channels",
            f"reshape({groups}, {n}, {m}), sum over the middle axis",
            lambda y: keras.ops.sum(keras.ops.reshape(y, (groups, n, m)), axis=1),
        ),
        (
            "Wrong: over one channel's filters",
            f"reshape({channels}, {m}), sum over the last axis",
            lambda y: keras.ops.sum(keras.ops.reshape(y, (channels, m)), axis=-1),
        ),
        (
            "Strided: other groups than were meant",
            f"reshape({n}, {channels}), sum over the first axis",
            lambda y: keras.ops.sum(keras.ops.reshape(y, (n, channels)), axis=0),
        ),
    )
    ways = tuple(_run(title, code, add, every, grouped) for title, code, add in sums)
    return Example(groups, inputs, _numpy(every).reshape(channels, m), grouped, ways)


def _run(title: str, code: str, add: Callable[[Any], Any], every: Any, grouped: NDArray[np.float32]) -> Way:
    results = _numpy(add(every))
    count = int(every.shape[-1])
    # Each product alone, as a one: the output that is not zero is where it goes.
    alone = [_numpy(add(keras.ops.convert_to_tensor(row))) for row in np.eye(count, dtype="float32")]
    owners = np.stack(alone).argmax(axis=1).reshape(len(grouped), -1)
    return Way(title, code, results, owners, bool(np.array_equal(results, grouped)))


def _numpy(values: Any) -> NDArray[np.float32]:
    result: NDArray[np.float32] = keras.ops.convert_to_numpy(values).ravel()
    return result


@dataclass(frozen=True)
class Cost:
    """What one way to compute a grouped convolution costs for one image.

    Attributes:
        way: its name.
        kernel_shape: of the convolution that it runs.
        macs: its multiply-adds. written: the numbers that its convolution writes.
    """

    way: str
    kernel_shape: tuple[int, int, int, int]
    macs: int
    written: int

    @property
    def parameters(self) -> int:
        """Numbers in the kernel."""
        return int(np.prod(self.kernel_shape))


def costs(spec: ConvSpec) -> tuple[Cost, Cost, Cost]:
    """Return the costs of a convolution computed as grouped, as depthwise-and-sum, and as a dense one with zeros.

    Examples:
        >>> [cost.macs for cost in costs(ConvSpec.of((1, 8, 8, 16), (3, 3, 4, 16), groups=4))]
        [36864, 36864, 147456]
    """
    height, width, n, filters = spec.kernel_shape
    channels, options = spec.in_channels, (spec.strides, spec.padding, spec.dilation_rate)
    multiplier = filters // spec.groups
    depthwise = ConvSpec.of(spec.input_shape, (height, width, 1, channels * multiplier), channels, *options)
    dense = ConvSpec.of(spec.input_shape, (height, width, channels, filters), 1, *options)
    return (
        Cost("grouped", (height, width, n, filters), spec.macs, _written(spec)),
        Cost("depthwise and sum", (height, width, channels, multiplier), depthwise.macs, _written(depthwise)),
        Cost("dense with zeros", (height, width, channels, filters), dense.macs, _written(dense)),
    )


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


def _written(spec: ConvSpec) -> int:
    _, height, width, channels = spec.output_shape
    return int(np.prod((height or 0, width or 0, channels)))
