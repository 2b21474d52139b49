"""The page on grouped convolution: what is connected, and the right and the wrong sum after a depthwise one."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from groupwise.errors import UserError
from groupwise.explain.connectivity import by_group, reach, summing
from groupwise.explain.drawing import WIDTH, Box, Drawing, Reached, colour, middles
from groupwise.explain.page import comparison
from groupwise.layers import DepthwiseConv2D, GroupedConv2D
from groupwise.layers.specs import specs_of
from groupwise.models import create
from groupwise.models.network import without_values
from groupwise.ops import depthwise_conv2d, grouped_conv2d
from groupwise.report.html_page import shown
from groupwise.spec import ConvSpec

CHANNELS, GROUPS, MULTIPLIER = 8, 2, 4
"""Of the example that docs/grouped.md works by hand."""

KINDS = {"Dense": 1, f"Grouped, {GROUPS} groups": GROUPS, "Depthwise": CHANNELS}
SUMS = (
    ("Right: over each group's channels", (GROUPS, MULTIPLIER, MULTIPLIER), 1, "the middle axis"),
    ("Wrong: over one channel's filters", (CHANNELS, MULTIPLIER), 1, "the last axis"),
    ("Strided: other groups than were meant", (MULTIPLIER, CHANNELS), 0, "the first axis"),
)
"""To which shape the products go, and over which axis they are added."""


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a network's, whose first grouped convolution is the example."""
    products, grouped, ways = worked_example()
    connected = {title: reach(summing(CHANNELS, groups), CHANNELS) for title, groups in KINDS.items()}
    right = [way for way in ways if np.array_equal(way.results, grouped)]
    sums = (f"{way.title}, {way.code}, gives {' '.join(f'{value:g}' for value in way.results)}" for way in ways)
    values = {
        "groups": GROUPS,
        "channels": CHANNELS,
        "last": CHANNELS - 1,
        "multiplier": MULTIPLIER,
        "products": products.size,
        "counts": ", ".join(f"{title}: {reached.sum()}" for title, reached in connected.items()),
        "right": ", ".join(f"{value:g}" for value in grouped),
        "sums": ". ".join(sums),
        "verdicts": ", ".join(way.title.split(":")[0].lower() for way in right),
    }
    figures = {"grouped_connections": _connections(connected), "grouped_sums": _sums(products, ways)}
    return values | (_layer(name) if name else {}), figures


def _layer(name: str) -> dict[str, Any]:
    layer, spec = grouped_layer(name)
    caption = "Three ways to compute it, for one image; written: numbers that the convolution puts out"
    return {
        "layer": layer,
        "inputs": shown(spec.input_shape[1:]),
        "outputs": shown(spec.output_shape[1:]),
        "layer_groups": spec.groups,
        "kind": "depthwise: every channel is a group" if spec.is_depthwise else f"{spec.group_width} channels a group",
        "costs": comparison(caption, costs(spec)),
        "many": f"{spec.group_width} times as many" if spec.group_width > 1 else "as many",
        "idle": 1 - 1 / spec.groups,
        "summed": shown(difference(spec, "depthwise_sum")),
        "blocks": shown(difference(spec, "block_diagonal")),
    }


def grouped_layer(name: str) -> tuple[str, ConvSpec]:
    """Return the name and the spec of a network's first convolution with groups, depthwise only where there is none.

    Raises:
        UserError: there is no such network, or it has dense convolutions alone.
    """
    with without_values():
        layers = create(name).layers
    grouped = [layer for layer in layers if isinstance(layer, GroupedConv2D) and layer.groups > 1]
    found = grouped or [layer for layer in layers if isinstance(layer, DepthwiseConv2D)]
    if not found:
        raise UserError(f"model {name!r}: has no grouped convolution; take another, such as resnext50_32x4d")
    (spec,) = specs_of(found[0], found[0].input.shape)
    return found[0].name, spec


class Way(NamedTuple):
    """A way to sum the depthwise convolution's outputs: what it is, how it is written, and what comes of it.

    `results` are the sums; `owners`, (channels, multiplier), tells into which of them each product goes.
    """

    title: str
    code: str
    results: NDArray[np.float32]
    owners: NDArray[np.intp]


def worked_example() -> tuple[NDArray[np.float32], NDArray[np.float32], list[Way]]:
    """Return the products (channels, multiplier), the grouped convolution's outputs, and the ways to sum.

    The active framework runs it: channels that hold 0, 1, 2, ..., and 1x1 kernels of ones.

    Examples:
        >>> worked_example()[1].astype(int).tolist()
        [6, 6, 6, 6, 22, 22, 22, 22]
    """
    x = np.arange(CHANNELS, dtype="float32").reshape(1, 1, 1, CHANNELS)
    kernel = np.ones((1, 1, MULTIPLIER, CHANNELS), "float32")
    grouped = _numpy(grouped_conv2d(x, kernel, GROUPS, data_format="channels_last"))
    products = _numpy(depthwise_conv2d(x, kernel.reshape(1, 1, CHANNELS, MULTIPLIER), data_format="channels_last"))
    # Each product alone, as a one: the output that is not zero is where it goes.
    alone = np.eye(products.size, dtype="float32")
    ways = []
    for title, shape, axis, words in SUMS:
        results, *reached = (_numpy(keras.ops.sum(row.reshape(shape), axis=axis)) for row in (products, *alone))
        owners = np.argmax(reached, axis=1).reshape(CHANNELS, MULTIPLIER)
        code = f"reshape({', '.join(map(str, shape))}), sum over {words}"
        ways.append(Way(title, code, results, owners))
    return products.reshape(CHANNELS, MULTIPLIER), grouped, ways


def _numpy(values: Any) -> NDArray[np.float32]:
    result: NDArray[np.float32] = keras.ops.convert_to_numpy(values).ravel()
    return result


def costs(spec: ConvSpec) -> dict[str, dict[str, Any]]:
    """Return what a grouped convolution costs for one image, computed as such, as depthwise-and-sum, and as dense."""
    height, width, n, filters = spec.kernel_shape
    channels, written = spec.in_channels, math.prod(size or 0 for size in spec.output_shape[1:])
    ways = {
        "grouped": (spec.kernel_shape, spec.macs, written),
        "depthwise and sum": ((height, width, channels, filters // spec.groups), spec.macs, n * written),
        "dense with zeros": ((height, width, channels, filters), spec.groups * spec.macs, written),
    }
    return {
        title: {"kernel": shape, "parameters": math.prod(shape), "MACs": macs, "written": numbers}
        for title, (shape, macs, numbers) in ways.items()
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


def _connections(connected: dict[str, Reached]) -> Figure:
    row, side = 2.25, 1.65
    drawing = Drawing(height=len(connected) * row + 0.1)
    places = middles(0.3, 2.55, CHANNELS)
    for number, (title, reached) in enumerate(connected.items()):
        y = 0.3 + number * row
        top, bottom = y + 0.62, y + 1.65
        drawing.heading(y, title, f"{reached.sum()} weights for a 1x1 kernel")
        drawing.links(places, (top, bottom), reached)
        drawing.dots(places, top, by_group(np.eye(CHANNELS, dtype=bool), GROUPS), 0.1)
        drawing.dots(places, bottom, by_group(reached, GROUPS), 0.1)
        drawing.matrix(WIDTH - side - 0.15, y + 0.22, side, reached, GROUPS)
    return drawing.figure


def _sums(products: NDArray[np.float32], ways: list[Way]) -> Figure:
    row, line, width = 2.75, 0.3, WIDTH - 1.1
    drawing = Drawing(height=len(ways) * row + 0.05)
    places = middles(0.95, width, CHANNELS)

    def cell(channel: int, y: float, value: np.float32, group: int, height: float, points: float) -> None:
        fill, size = (colour(group), 0.35), (width / CHANNELS, height)
        drawing.box(Box([places[channel]], y, f"{value:g}", fill, *size, points, edge="white", style="square,pad=0"))

    for number, way in enumerate(ways):
        y = 0.3 + number * row
        drawing.heading(y, way.title, way.code)
        drawing.note(0.15, y + 0.6, "channel")
        for channel, x in enumerate(places):
            drawing.note(x, y + 0.6, str(channel), ha="center")
        for place in range(MULTIPLIER):
            drawing.note(0.15, y + 0.9 + place * line, f"filter {place}")
        for (channel, place), value in np.ndenumerate(products):
            cell(channel, y + 0.9 + place * line, value, int(way.owners[channel, place]), line, 10.5)
        drawing.write(0.15, y + 2.17, "sums", ha="left", fontweight="bold")
        for output, value in enumerate(way.results):
            cell(output, y + 2.17, value, output, 0.34, 11)
    return drawing.figure
