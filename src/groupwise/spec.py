"""What one 2-D convolution is: checked once, immutable, hashable."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Pair = tuple[int, int]
Padding = str | tuple[Pair, Pair]

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The types that convolutions are computed in."""


def known_size(size: Any) -> int | None:
    """Return a size that is a number; None for one that is not known, or a symbol while a framework traces."""
    return size if type(size) is int else None


def knows_sizes(array: Any) -> bool:
    """Return whether all of an array's sizes are numbers, none of them a symbol that stands for many."""
    return None not in map(known_size, array.shape)


def pair(argument: str, value: object, minimum: int = 1) -> Pair:
    """Return `value` (an integer or two) as two integers of at least `minimum`, or raise ValueError."""
    is_one = type(value) is not tuple and (isinstance(value, str) or not isinstance(value, Sequence))
    values: Any = (value, value) if is_one else value
    try:
        first, second = map(operator.index, values)
    except (TypeError, ValueError):
        raise ValueError(f"{argument}={value!r}: must be one integer or two; pass for example 1 or (1, 1)") from None
    if min(first, second) < minimum:
        raise ValueError(f"{argument}={value!r}: must be at least {minimum} in both directions")
    return first, second


def integer(argument: str, value: object) -> int:
    """Return `value` as an integer, or raise ValueError."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{argument}={value!r}: must be an integer") from None


def normalise_padding(padding: object) -> Padding:
    """Return `"same"`, `"valid"` or `((top, bottom), (left, right))`, or raise ValueError.

    Examples:
        >>> normalise_padding("SAME")
        'same'
        >>> normalise_padding([(1, 1), (0, 2)])
        ((1, 1), (0, 2))
    """
    if isinstance(padding, str) and padding.lower() in ("same", "valid"):
        return padding.lower()
    sides = padding if isinstance(padding, Sequence) and not isinstance(padding, str) else ()
    if len(sides) == 2 and all(isinstance(side, Sequence) and len(side) == 2 for side in sides):
        return pair("padding", sides[0], minimum=0), pair("padding", sides[1], minimum=0)
    raise ValueError(f'padding={padding!r}: must be "same", "valid" or ((top, bottom), (left, right))')


def stock_padding(padding: object) -> object:
    """Return what the constructor of Keras's own layer accepts in place of `padding`."""
    return padding if isinstance(padding, str) else "valid"


def symmetric_padding(kernel_size: int | Pair) -> Padding:
    """Return the padding that PyTorch's networks use: half of the kernel on every side.

    It differs from `"same"` wherever a stride is above 1: `"same"` then pads less at the top and left.
    """
    rows, columns = pair("kernel_size", kernel_size)
    return (rows // 2, rows // 2), (columns // 2, columns // 2)


def same_padding(size: Any, extent: int, stride: int) -> tuple[Any, Any]:
    """Return what TensorFlow's "same" adds before and after an axis, so that ceil(size / stride) windows fit.

    `size` may be a symbol of a framework that traces: nothing is compared, and nothing below zero divided, which
    exporters round in their own ways.

    Args:
        size: of the axis. extent: of the (dilated) window. stride: its step.

    Examples:
        >>> same_padding(224, extent=7, stride=2), same_padding(7, extent=2, stride=3)
        ((2, 3), (0, 1))
    """
    if stride == 1:
        total: Any = extent - 1
    else:
        # Pixels from where the last window begins, and how many of them it covers: min(beyond, extent - 1).
        beyond = (size - 1) % stride
        covered = beyond if extent >= stride else sum((beyond + stride - n) // stride for n in range(1, extent))
        total = extent - 1 - covered
    return total // 2, total - total // 2


@dataclass(frozen=True)
class ConvSpec:
    """One 2-D convolution, in NHWC terms; made by `ConvSpec.of`, which checks it.

    Attributes:
        input_shape: (batch, height, width, in_channels); None where unknown, never for the channels.
        kernel_shape: (kernel height, kernel width, in_channels // groups, out_channels).
        groups: how many slices the channels are cut into; each is convolved on its own.
        strides, dilation_rate: vertical and horizontal.
        padding: `"same"` (TensorFlow's), `"valid"` or explicit.
        dtype: of inputs, kernel and outputs.
    """

    input_shape: tuple[int | None, int | None, int | None, int]
    kernel_shape: tuple[int, int, int, int]
    groups: int
    strides: Pair
    padding: Padding
    dilation_rate: Pair
    dtype: str

    @staticmethod
    def of(
        input_shape: Sequence[int | None],
        kernel_shape: Sequence[int],
        groups: int,
        strides: int | Pair = 1,
        padding: object = "same",
        dilation_rate: int | Pair = 1,
        dtype: str = "float32",
    ) -> "ConvSpec":
        """Return the checked spec of a convolution over NHWC `input_shape` with an HWIO `kernel_shape`.

        Raises:
            ValueError: naming the argument, its value, the rule and what to do.

        Examples:
            >>> ConvSpec.of((16, 56, 56, 128), (3, 3, 4, 128), groups=32).output_shape
            (16, 56, 56, 128)
        """
        normal = padding if isinstance(padding, str) else normalise_padding(padding)
        return _checked_spec(
            tuple(input_shape),
            tuple(kernel_shape),
            integer("groups", groups),
            pair("strides", strides),
            normal,
            pair("dilation_rate", dilation_rate),
            dtype,
        )

    @property
    def in_channels(self) -> int:
        return self.input_shape[3]

    @property
    def out_channels(self) -> int:
        return self.kernel_shape[3]

    @property
    def group_width(self) -> int:
        """Input channels in a group."""
        return self.kernel_shape[2]

    @property
    def is_depthwise(self) -> bool:
        """Whether every group is one input channel."""
        return self.group_width == 1 and self.groups > 1

    @property
    def explicit_padding(self) -> tuple[Pair, Pair] | None:
        """((top, bottom), (left, right)); None where "same" depends on a size not known yet."""
        sides = [self._axis_padding(axis, self.input_shape[axis + 1]) for axis in (0, 1)]
        return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])

    def padding_of(self, height: Any, width: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Return ((top, bottom), (left, right)) for an image of this size, of which this spec need not know."""
        rows, columns = self._axis_padding(0, height), self._axis_padding(1, width)
        assert rows is not None
        assert columns is not None
        return rows, columns

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel depends on one input pixel: a 1x1 kernel, nothing padded."""
        return self.kernel_shape[:2] == (1, 1) and (
            self.padding in ("same", "valid") or self.padding == ((0, 0), (0, 0))
        )

    @property
    def output_shape(self) -> tuple[int | None, int | None, int | None, int]:
        """(batch, height, width, out_channels); None where unknown."""
        return self.input_shape[0], self._output_size(0), self._output_size(1), self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-adds for one image. Raises ValueError where the image's size is not known."""
        _, height, width, channels = self.output_shape
        if height is None or width is None:
            raise ValueError(f"input_shape={self.input_shape}: height and width must be known to count MACs")
        kernel_height, kernel_width, group_width, _ = self.kernel_shape
        return height * width * channels * kernel_height * kernel_width * group_width

    def _extent(self, axis: int) -> int:
        return (self.kernel_shape[axis] - 1) * self.dilation_rate[axis] + 1

    def _axis_padding(self, axis: int, size: Any) -> tuple[Any, Any] | None:
        if self.padding == "valid":
            return 0, 0
        if not isinstance(self.padding, str):
            return self.padding[axis]
        extent, stride = self._extent(axis), self.strides[axis]
        if extent == 1:
            return 0, 0
        # Without a stride the whole padding is the kernel's reach, whatever the size.
        return None if size is None and stride > 1 else same_padding(size, extent, stride)

    def _output_size(self, axis: int) -> int | None:
        size = self.input_shape[axis + 1]
        padding = self._axis_padding(axis, size)
        if size is None or padding is None:
            return None
        return (size + sum(padding) - self._extent(axis)) // self.strides[axis] + 1


@lru_cache(maxsize=4096)
def _checked_spec(
    input_shape: tuple[int | None, ...],
    kernel_shape: tuple[int, ...],
    groups: int,
    strides: Pair,
    padding: Padding,
    dilation_rate: Pair,
    dtype: str,
) -> ConvSpec:
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    if len(input_shape) != 4 or input_shape[3] is None:
        raise ValueError(f"input shape {input_shape}: must be (batch, height, width, channels), channels known")
    if len(kernel_shape) != 4 or min(kernel_shape) < 1:
        raise ValueError(
            f"kernel shape {kernel_shape}: must be (height, width, in_channels // groups, out_channels), all positive"
        )
    in_channels, (*_, group_width, out_channels) = input_shape[3], kernel_shape
    for name, channels in (("input", in_channels), ("output", out_channels)):
        if groups < 1 or channels % groups:
            raise ValueError(
                f"groups={groups}: must divide the {channels} {name} channels; choose a divisor of {channels}"
            )
    if group_width * groups != in_channels:
        raise ValueError(
            f"kernel shape {kernel_shape}: its third entry must be in_channels // groups = {in_channels // groups} "
            f"for {in_channels} input channels in {groups} groups"
        )
    normal = normalise_padding(padding)
    spec = ConvSpec(input_shape, kernel_shape, groups, strides, normal, dilation_rate, dtype)  # type: ignore[arg-type]
    for axis, name in ((1, "height"), (2, "width")):
        size = spec.output_shape[axis]
        if size is not None and size < 1:
            raise ValueError(
                f"input shape {input_shape}: its {name} is smaller than the dilated kernel "
                f"({spec._extent(axis - 1)}) with padding={padding!r}; enlarge the image or pad more"
            )
    return spec
