"""The page on grouped convolution: what is connected, and the right and the wrong sum after a depthwise one."""

import numpy as np

from groupwise.errors import UserError
from groupwise.explain.connectivity import reach, summing
from groupwise.explain.depthwise_sum import CHANNELS, GROUPS, Example, costs, difference, worked_example
from groupwise.explain.drawing import WIDTH, canvas, cell, colour, dots, heading, links, matrix, tint, write
from groupwise.explain.page import Code, Page, Picture, Section, Table
from groupwise.explain.texts import rounding, source_line
from groupwise.layers import DepthwiseConv2D, GroupedConv2D
from groupwise.models import create, find
from groupwise.models.network import without_values
from groupwise.report.style import FAINT
from groupwise.spec import ConvSpec

EMULATION = """import tensorflow as tf

def grouped(x, kernel, groups):
    # kernel: (kh, kw, n, out)
    kh, kw, n, out = kernel.shape
    m = out // groups
    k = tf.reshape(kernel,
                   (kh, kw, n, groups, m))
    k = tf.transpose(k, (0, 1, 3, 2, 4))
    k = tf.reshape(k, (kh, kw, groups * n, m))
    y = tf.nn.depthwise_conv2d(
        x, k, (1, 1, 1, 1), "SAME")
    _, h, w, _ = y.shape
    y = tf.reshape(y, (-1, h, w, groups, n, m))
    y = tf.reduce_sum(y, axis=4)
    return tf.reshape(y, (-1, h, w, out))"""
"""Run by the tests, on TensorFlow."""

PROGRAM = """from groupwise.ops import grouped_conv2d

y = grouped_conv2d(x, kernel, groups=32)

# the same sums, the long way
y = grouped_conv2d(
    x, kernel, groups=32,
    algorithm="depthwise_sum",
)"""


def make(name: str | None) -> Page:
    """Return the page; `name` is a network's, whose first grouped convolution then stands as the example."""
    layer = None if name is None else grouped_layer(name)
    example = worked_example()
    answer = (
        "Emulate it exactly with three operations: a depthwise convolution with multiplier out_channels / groups, a "
        "reshape of its channels to (groups, in_channels / groups, out_channels / groups), and a sum over the middle "
        "axis.",
        "That is exact, but slow: it writes every product before it adds. `groupwise.ops.grouped_conv2d` and "
        "`groupwise.layers.GroupedConv2D` compute the same sums the fast way on TensorFlow, JAX and PyTorch.",
    )
    sections = [
        Section("In TensorFlow", (Code(EMULATION), "With groupwise it is one call:", Code(PROGRAM))),
        Section(
            "What is connected",
            (
                f"A dense convolution carries every input channel to every output. A grouped one cuts the channels "
                f"into groups, here {GROUPS}, and each output sees its own group alone. A depthwise one is the "
                "extreme: each group is a single channel.",
                _connections(),
            ),
        ),
        Section("The right sum and the two wrong ones", (*_sum_texts(example), _sums(example))),
    ]
    if name is not None and layer is not None:
        sections.append(Section(f"A grouped layer of {name}", _layer(*layer)))
    title = "How do I emulate a grouped convolution in TensorFlow?"
    return Page("grouped", title, answer, tuple(sections), source_line("grouped", name))


def grouped_layer(name: str) -> tuple[str, ConvSpec]:
    """Return the name and the spec of a network's first convolution with groups, depthwise only where there is none.

    Raises:
        UserError: there is no such network, or it has dense convolutions alone.
    """
    find(name)
    with without_values():
        layers = create(name).layers
        chosen = [layer for layer in layers if isinstance(layer, GroupedConv2D) and layer.groups > 1]
        chosen += [layer for layer in layers if isinstance(layer, DepthwiseConv2D)]
        if not chosen:
            raise UserError(f"model {name!r}: has no grouped convolution; take another, such as resnext50_32x4d")
        layer = chosen[0]
        shape = tuple(layer.input.shape)
        height, width, inputs, outputs = (int(size) for size in layer.kernel.shape)
        if isinstance(layer, GroupedConv2D):
            groups = layer.groups
        else:
            groups, inputs, outputs = shape[-1], 1, inputs * outputs
    spec = ConvSpec.of(
        shape, (height, width, inputs, outputs), groups, layer.strides, layer.padding, layer.dilation_rate
    )
    return layer.name, spec


def _connections() -> Picture:
    row, side, left = 2.25, 1.65, 0.3
    figure, axes = canvas(WIDTH, 3 * row + 0.1)
    owners = np.arange(CHANNELS) // (CHANNELS // GROUPS)
    colours = np.eye(GROUPS, dtype=bool)[owners]
    counts = []
    for number, (title, groups) in enumerate(
        (("Dense", 1), (f"Grouped, {GROUPS} groups", GROUPS), ("Depthwise", CHANNELS))
    ):
        y = 0.3 + number * row
        values = reach(summing(CHANNELS, groups), CHANNELS)
        counts.append(f"{title}: {values.sum()}")
        heading(axes, y, title, f"{values.sum()} weights for a 1x1 kernel")
        places = left + (np.arange(CHANNELS) + 0.5) * (2.55 / CHANNELS)
        top, bottom = ([(float(x), y + offset) for x in places] for offset in (0.62, 1.65))
        seen = (values @ colours.astype(int)) > 0
        links(axes, values, top, bottom)
        dots(axes, top, colours, 0.1)
        dots(axes, bottom, seen, 0.1)
        matrix(axes, WIDTH - side - 0.15, y + 0.22, side, values, owners)
    alternative = (
        f"Lines and matrices from {CHANNELS} input channels to {CHANNELS} outputs. Connections: {', '.join(counts)}. "
        "The dense matrix is full, the grouped one has two blocks on its diagonal, the depthwise one only the diagonal."
    )
    caption = (
        "Upper dots are inputs, lower ones outputs, with the colours of the inputs that reach them. In the matrices "
        "rows are outputs and columns inputs."
    )
    return Picture("grouped_connections", figure, alternative, caption)


def _sum_texts(example: Example) -> tuple[str, ...]:
    channels, multiplier = example.products.shape
    right = ", ".join(f"{value:g}" for value in example.grouped)
    return (
        f"{channels} channels hold 0 to {channels - 1}, {example.groups} groups, a 1x1 kernel whose weights are all 1. "
        f"The grouped convolution gives [{right}]. The depthwise convolution with multiplier {multiplier} gives "
        f"{example.products.size} products, {multiplier} of each channel. What is left is to add the right ones.",
    )


def _sums(example: Example) -> Picture:
    channels, multiplier = example.products.shape
    left, width, height, block = 0.95, (WIDTH - 1.1) / channels, 0.3, 2.75
    figure, axes = canvas(WIDTH, len(example.ways) * block + 0.05)
    for number, way in enumerate(example.ways):
        y = 0.3 + number * block
        heading(axes, y, way.title, way.code)
        for row, name in enumerate(("channel", *(f"filter {place}" for place in range(multiplier)))):
            write(axes, 0.15, y + 0.6 + row * height, name, 10, ha="left", color=FAINT)
        for channel in range(channels):
            x = left + channel * width
            write(axes, x + width / 2, y + 0.6, str(channel), 10, color=FAINT)
            for place in range(multiplier):
                fill = tint(colour(int(way.owners[channel, place])), 0.35)
                text = f"{example.products[channel, place]:g}"
                cell(axes, x, y + 0.45 + (place + 1) * height, width, height, text, fill)
        write(axes, 0.15, y + 2.17, "sums", 10.5, ha="left", fontweight="bold")
        for output, value in enumerate(way.results):
            fill = tint(colour(output), 0.35)
            cell(axes, left + output * width, y + 2.0, width, 0.34, f"{value:g}", fill, 11)
    texts = [
        f"{way.title}, {way.code}, gives {' '.join(f'{value:g}' for value in way.results)}" for way in example.ways
    ]
    verdicts = [way.title.split(":")[0].lower() for way in example.ways if way.is_right]
    caption = (
        "Cells of one colour are added; their sum has that colour below. "
        f"Compared with the grouped convolution itself, only this one is equal: {', '.join(verdicts)}."
    )
    return Picture("grouped_sums", figure, ". ".join(texts) + ".", caption)


def _layer(name: str, spec: ConvSpec) -> tuple[str | Table, ...]:
    ways = costs(spec)
    rows = [
        ("kernel", *("x".join(map(str, way.kernel_shape)) for way in ways)),
        ("parameters", *(f"{way.parameters:,}" for way in ways)),
        ("MACs", *(f"{way.macs:,}" for way in ways)),
        ("written", *(f"{way.written:,}" for way in ways)),
    ]
    shapes = ["x".join(map(str, shape[1:])) for shape in (spec.input_shape, spec.output_shape)]
    kind = "depthwise: every channel is a group" if spec.is_depthwise else f"{spec.group_width} channels a group"
    summed, blocks = (rounding(difference(spec, algorithm)) for algorithm in ("depthwise_sum", "block_diagonal"))
    times = ways[1].written // ways[0].written
    many = f"{times} times as many" if times > 1 else "as many"
    return (
        f"The layer `{name}` goes from {shapes[0]} to {shapes[1]} in {spec.groups} groups ({kind}).",
        Table(
            "Three ways to compute it, for one image; written: numbers that the convolution puts out",
            ("", *(way.way for way in ways)),
            rows,
        ),
        f"The depthwise way writes {many} numbers as the grouped one; the dense way multiplies "
        f"{spec.groups} times as much, {1 - 1 / spec.groups:.0%} of it by zero. "
        f"Run on random numbers, the outputs differ from the grouped convolution's by {summed} and {blocks} of the "
        "largest.",
    )
