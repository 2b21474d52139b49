"""The truth: 2-D convolution and its two gradients in float64 NumPy, from the definition, one kernel tap at a time.

Max pooling and its gradient likewise.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Convolution:
    """A grouped convolution of NHWC inputs with an HWIO kernel, padded explicitly."""

    groups: int = 1
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)

    def forward(self, inputs: Array, kernel: Array) -> Array:
        """Return the outputs, (batch, out height, out width, out channels)."""
        height, width = self.output_size(inputs.shape, kernel.shape)
        outputs = np.zeros((inputs.shape[0], height, width, kernel.shape[3]))
        padded = self._pad(inputs)
        for tap, window in self._taps(kernel.shape, (height, width)):
            for source, target in self._slices(kernel.shape):
                outputs[..., target] += padded[window][..., source] @ kernel[tap][:, target].astype("float64")
        return outputs

    def input_gradient(self, inputs: Array, kernel: Array, gradient: Array) -> Array:
        """Return the gradient to the inputs of sum(outputs * gradient)."""
        padded = np.zeros_like(self._pad(inputs))
        for tap, window in self._taps(kernel.shape, gradient.shape[1:3]):
            for source, target in self._slices(kernel.shape):
                padded[window][..., source] += gradient[..., target].astype("float64") @ kernel[tap][:, target].T
        (top, _), (left, _) = self.padding
        return padded[:, top : top + inputs.shape[1], left : left + inputs.shape[2]]

    def kernel_gradient(self, inputs: Array, kernel: Array, gradient: Array) -> Array:
        """Return the gradient to the kernel of sum(outputs * gradient)."""
        result = np.zeros(kernel.shape)
        padded = self._pad(inputs)
        for tap, window in self._taps(kernel.shape, gradient.shape[1:3]):
            for source, target in self._slices(kernel.shape):
                result[tap][:, target] = np.einsum(
                    "nhwi,nhwo->io", padded[window][..., source], gradient[..., target].astype("float64")
                )
        return result

    def output_size(self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        """Return (out height, out width)."""
        rows, columns = (
            (input_shape[1 + axis] + sum(self.padding[axis]) - (kernel_shape[axis] - 1) * self.dilation[axis] - 1)
            // self.strides[axis]
            + 1
            for axis in (0, 1)
        )
        return rows, columns

    def _pad(self, inputs: Array) -> Array:
        return np.pad(inputs.astype("float64"), ((0, 0), *self.padding, (0, 0)))

    def _taps(
        self, kernel_shape: tuple[int, ...], size: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, int], tuple[slice, slice, slice]]]:
        for row in range(kernel_shape[0]):
            for column in range(kernel_shape[1]):
                starts = (row * self.dilation[0], column * self.dilation[1])
                rows, columns = (
                    slice(start, start + (length - 1) * stride + 1, stride)
                    for start, length, stride in zip(starts, size, self.strides, strict=True)
                )
                yield (row, column), (slice(None), rows, columns)

    def _slices(self, kernel_shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
        width_in, width_out = kernel_shape[2], kernel_shape[3] // self.groups
        for group in range(self.groups):
            yield (
                slice(group * width_in, (group + 1) * width_in),
                slice(group * width_out, (group + 1) * width_out),
            )


def same_padding(
    size: tuple[int, int], kernel_size: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return TensorFlow's "same" padding: out = ceil(size / stride), the odd zero at the bottom and right."""
    sides = []
    for axis in (0, 1):
        outputs = -(-size[axis] // strides[axis])
        needed = (outputs - 1) * strides[axis] + (kernel_size[axis] - 1) * dilation[axis] + 1
        total = max(needed - size[axis], 0)
        sides.append((total // 2, total - total // 2))
    return sides[0], sides[1]


@dataclass(frozen=True)
class Pooling:
    """Max pooling of an NHWC array and what follows from it.

    Attributes:
        outputs: the maxima; where there are several, the first, and the last value that is not a number before all.
        places: the number of each one's place in its window; -1 in windows of nothing but padding.
        gradient: to the inputs, of sum(outputs * gradient).
        bound: the gradient of sum(|outputs * gradient|).
    """

    outputs: Array
    places: Array
    gradient: Array
    bound: Array


def max_pool(
    inputs: Array,
    gradient: Array,
    size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Pooling:
    """Return the pooling of `inputs` in windows of `size`, and the gradient for outputs of the shape of `gradient`."""
    window_of = Convolution(1, strides, padding)
    values, inside = window_of._pad(inputs), window_of._pad(np.ones(inputs.shape)) == 1
    outputs, places = np.full(gradient.shape, -np.inf), np.full(gradient.shape, -1)
    total, bound = np.zeros(values.shape), np.zeros(values.shape)
    taps = list(window_of._taps((*size, 1, 1), gradient.shape[1:3]))
    for place, (_, window) in enumerate(taps):
        value = values[window]
        larger = inside[window] & ((places < 0) | (value > outputs) | np.isnan(value))
        outputs, places = np.where(larger, value, outputs), np.where(larger, place, places)
    for place, (_, window) in enumerate(taps):
        part = np.where(places == place, gradient.astype("float64"), 0)
        total[window] += part
        bound[window] += np.abs(part)
    (top, _), (left, _) = padding
    image = (slice(None), slice(top, top + inputs.shape[1]), slice(left, left + inputs.shape[2]))
    return Pooling(outputs, places, total[image], bound[image])
