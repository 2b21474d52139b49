"""The page on grouped convolution: what is connected, and the right and the wrong sum after a depthwise one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from groupwise.explain.connectivity import reach, summing
from groupwise.explain.depthwise_sum import CHANNELS, GROUPS, Way, costs, difference, worked_example
from groupwise.explain.drawing import WIDTH, canvas, cell, colour, dots, heading, links, matrix, tint, write
from groupwise.explain.examples import grouped_layer
from groupwise.explain.page import rounding, sizes, table
from groupwise.report.style import FAINT


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a network's, whose first grouped convolution is the example."""
    layer = {} if name is None else _layer(name)
    products, grouped, ways = worked_example()
    connections, counts = _connections()
    sums = (f"{way.title}, {way.code}, gives {' '.join(f'{value:g}' for value in way.results)}" for way in ways)
    values = {
        "groups": GROUPS,
        "channels": CHANNELS,
        "last": CHANNELS - 1,
        "multiplier": products.shape[1],
        "products": products.size,
        "counts": counts,
        "right": ", ".join(f"{value:g}" for value in grouped),
        "sums": ". ".join(sums),
        "verdicts": ", ".join(way.title.split(":")[0].lower() for way in ways if way.is_right),
    }
    return values | layer, {"grouped_connections": connections, "grouped_sums": _sums(products, ways)}


def _layer(name: str) -> dict[str, Any]:
    layer, spec = grouped_layer(name)
    ways = costs(spec)
    rows = [
        ("kernel", *(sizes(way.kernel_shape) for way in ways.values())),
        ("parameters", *(f"{math.prod(way.kernel_shape):,}" for way in ways.values())),
        ("MACs", *(f"{way.macs:,}" for way in ways.values())),
        ("written", *(f"{way.written:,}" for way in ways.values())),
    ]
    caption = "Three ways to compute it, for one image; written: numbers that the convolution puts out"
    times = spec.kernel_shape[2]
    return {
        "layer": layer,
        "inputs": sizes(spec.input_shape[1:]),
        "outputs": sizes(spec.output_shape[1:]),
        "layer_groups": spec.groups,
        "kind": "depthwise: every channel is a group" if spec.is_depthwise else f"{spec.group_width} channels a group",
        "costs": table(caption, ("", *ways), rows),
        "many": f"{times} times as many" if times > 1 else "as many",
        "idle": 1 - 1 / spec.groups,
        "summed": rounding(difference(spec, "depthwise_sum")),
        "blocks": rounding(difference(spec, "block_diagonal")),
    }


def _connections() -> tuple[Figure, str]:
    """Return the picture, and how many connections each convolution has."""
    row, side, left = 2.25, 1.65, 0.3
    figure, axes = canvas(WIDTH, 3 * row + 0.1)
    owners = np.arange(CHANNELS) // (CHANNELS // GROUPS)
    colours = np.eye(GROUPS, dtype=bool)[owners]
    kinds = {"Dense": 1, f"Grouped, {GROUPS} groups": GROUPS, "Depthwise": CHANNELS}
    places = left + (np.arange(CHANNELS) + 0.5) * (2.55 / CHANNELS)
    counts = []
    for number, (title, groups) in enumerate(kinds.items()):
        y = 0.3 + number * row
        values = reach(summing(CHANNELS, groups), CHANNELS)
        counts.append(f"{title}: {values.sum()}")
        heading(axes, y, title, f"{values.sum()} weights for a 1x1 kernel")
        top, bottom = ([(float(x), y + offset) for x in places] for offset in (0.62, 1.65))
        links(axes, values, top, bottom)
        dots(axes, top, colours, 0.1)
        dots(axes, bottom, (values @ colours.astype(int)) > 0, 0.1)
        matrix(axes, WIDTH - side - 0.15, y + 0.22, side, values, owners)
    return figure, ", ".join(counts)


def _sums(products: NDArray[np.float32], ways: Sequence[Way]) -> Figure:
    left, width, height, block = 0.95, (WIDTH - 1.1) / CHANNELS, 0.3, 2.75
    figure, axes = canvas(WIDTH, len(ways) * block + 0.05)
    for number, way in enumerate(ways):
        y = 0.3 + number * block
        heading(axes, y, way.title, way.code)
        for row, name in enumerate(("channel", *(f"filter {place}" for place in range(products.shape[1])))):
            write(axes, 0.15, y + 0.6 + row * height, name, 10, ha="left", color=FAINT)
        for channel in range(CHANNELS):
            write(axes, left + (channel + 0.5) * width, y + 0.6, str(channel), 10, color=FAINT)
        for (channel, place), value in np.ndenumerate(products):
            fill = tint(colour(int(way.owners[channel, place])), 0.35)
            cell(axes, (left + channel * width, y + 0.45 + (place + 1) * height), width, height, f"{value:g}", fill)
        write(axes, 0.15, y + 2.17, "sums", 10.5, ha="left", fontweight="bold")
        for output, value in enumerate(way.results):
            cell(axes, (left + output * width, y + 2.0), width, 0.34, f"{value:g}", tint(colour(output), 0.35), 11)
    return figure
