"""The page on ResNeXt's three forms: one block in each, and how far their outputs differ."""

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from groupwise.explain.drawing import arrow, box, canvas, colour, heading, tint, write
from groupwise.explain.page import rounding, sizes, table
from groupwise.explain.three_forms import UNIT, Block, Part, describe_block, measure
from groupwise.models.residual import FORMS
from groupwise.report.style import FAINT, INK

DEFAULT = "resnext50_32x4d"
WORDS = {"a": "paths summed", "b": "paths concatenated", "c": "a grouped convolution"}
FILLS = {"reduce": tint(colour(0), 0.15), "spatial": tint(colour(1), 0.25), "expand": tint(colour(2), 0.2)}
PLAIN, SQUEEZE = "#ffffff", tint(colour(3), 0.2)

# Inches, of a block's picture: the paths' places, the block's two edges, and the shortcut's line.
WIDTH, LEFT, RIGHT, SHORTCUT = 4.1, 0.12, 3.42, 3.78
PATHS, DOTS, MIDDLE = (0.62, 1.66, 2.92), 2.29, (LEFT + RIGHT) / 2
INPUT, REDUCE, SPATIAL, THIRD, JOINED, NORM, SQUEEZED = 0.85, 1.62, 2.4, 3.18, 3.96, 4.66, 5.36

WITH_SQUEEZE = (
    "Here it averages {0} channels over the image, narrows them to {1}, widens them to {0} again, and its sigmoid "
    "scales each channel."
)
WITHOUT_SQUEEZE = (
    "This network has none; `groupwise explain forms seresnext50_32x4d --output FOLDER` shows one that has."
)


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a network's that has forms."""
    network = name or DEFAULT
    blocks = [describe_block(network, form) for form in FORMS]
    differences = measure(network)
    block = blocks[-1]
    same = len({(block.parameters, block.macs) for block in blocks}) == 1
    values = {
        "network": network,
        "unit": UNIT,
        "cardinality": block.cardinality,
        "largest": max(differences.values()),
        "so_here": " So it does in this network." if block.squeezed else "",
        "pictures": "\n".join(_shown(block, network) for block in blocks),
        "tables": "\n\n".join(map(_table, blocks)),
        "totals": _totals(blocks, differences),
        "same": "All three have the same parameters and MACs." if same else "The forms' parameters or MACs differ.",
        "squeeze": (WITH_SQUEEZE if block.squeezed else WITHOUT_SQUEEZE).format(block.input_shape[-1], block.squeezed),
    }
    return values, {f"forms_{block.form}": _diagram(block) for block in blocks}


def _shown(block: Block, network: str) -> str:
    """Return a picture's Markdown: what it shows, and the line below it."""
    texts = []
    for part in block.parts:
        times = f"{part.count} convolutions" if part.count > 1 else "a convolution"
        groups = f" in {part.groups} groups" if part.groups > 1 else ""
        size = sizes(part.kernel_shape[:2])
        texts.append(f"{times} {size} from {part.in_channels} to {part.output_shape[-1]} channels{groups}")
    texts += ["their sum"] if block.form == "a" else []
    texts += ["batch norm", *(["squeeze-and-excitation"] if block.squeezed else [])]
    texts += ["addition of the shortcut and ReLU"]
    count = sum(part.count for part in block.parts)
    return (
        f"![Form {block.form} of a block of {network}. {'; then '.join(texts)}.](forms_{block.form})\n"
        f"Form {block.form}: {count} convolutions. Batch norm and ReLU follow each but the last."
    )


def _table(block: Block) -> str:
    rows = [
        ("output", *(sizes(part.output_shape) for part in block.parts)),
        ("weights", *(sizes(part.kernel_shape) for part in block.parts)),
        ("parameters", *(f"{part.parameters:,}" for part in block.parts)),
        ("MACs", *(f"{part.macs:,}" for part in block.parts)),
    ]
    names = [f"{part.count} x {part.name}" if part.count > 1 else part.name for part in block.parts]
    caption = f"Form {block.form}, {WORDS[block.form]}. Shapes are of one convolution, numbers of all"
    return table(caption, ("", *names), rows)


def _totals(blocks: list[Block], differences: dict[str, float]) -> str:
    rows = [
        (block.form, f"{block.parameters:,}", f"{block.macs:,}", rounding(differences[block.form])) for block in blocks
    ]
    caption = "The whole block, batch norm and all; outputs measured on two blocks, relative to the largest value"
    return table(caption, ("form", "parameters", "MACs", "differs from c by"), rows)


class _Box(NamedTuple):
    """A box of the picture, by its middle's height."""

    y: float
    text: str
    fill: Any = PLAIN
    width: float = RIGHT - LEFT
    height: float = 0.36

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2


def _diagram(block: Block) -> Figure:
    end = (SQUEEZED if block.squeezed else NORM) + 0.6
    figure, axes = canvas(WIDTH, end + 0.85)
    heading(axes, 0.3, f"Form {block.form}: {WORDS[block.form]}", x=LEFT)
    height, width, channels = block.input_shape
    first = _Box(INPUT, f"input: {height}x{width}, {channels} channels")
    paths, joined = _convolutions(block)
    norm = [_Box(NORM, "batch norm", width=1.5)]
    if block.squeezed:
        norm.append(_Box(SQUEEZED, f"squeeze-excite: {channels} → {block.squeezed} → {channels}", SQUEEZE))
    for each in (first, joined[0]):
        box(axes, MIDDLE, each.y, each.width, each.text, each.fill, each.height)
    count = block.parts[0].count
    for x in PATHS if count > 2 else (PATHS[0], PATHS[-1]) if count > 1 else (MIDDLE,):
        _chain(axes, x, first.bottom, paths, joined[0].top)
    if count > 2:
        for each in paths:
            write(axes, DOTS, each.y, "···", 13, color=FAINT)
    _chain(axes, MIDDLE, joined[0].bottom, [*joined[1:], *norm], end - 0.14)
    _shortcut(axes, end)
    return figure


def _convolutions(block: Block) -> tuple[list[_Box], list[_Box]]:
    """Return the boxes of one path, and of what follows where the paths are joined."""
    reduce, spatial, expand = block.parts
    width = 0.96 if reduce.count > 1 else 2.2
    paths = [_convolution(REDUCE, reduce, width), _convolution(SPATIAL, spatial, width)]
    if block.form == "a":
        joined = _Box(JOINED, f"sum of {_paths(reduce.count)}: {expand.output_shape[-1]}")
        return [*paths, _convolution(THIRD, expand, width)], [joined]
    last = [_convolution(JOINED, expand, 2.2)]
    if block.form == "b":
        channels = spatial.count * spatial.output_shape[-1]
        last.insert(0, _Box(THIRD, f"{_paths(spatial.count)} side by side: {channels}"))
    return paths, last


def _convolution(y: float, part: Part, width: float) -> _Box:
    groups = f", {part.groups} groups" if part.groups > 1 else ""
    text = f"{sizes(part.kernel_shape[:2])}{groups}\n{part.in_channels} → {part.output_shape[-1]}"
    return _Box(y, text, FILLS[part.name], width, 0.52)


def _paths(count: int) -> str:
    return f"{count} paths" if count > 1 else "1 path"


def _chain(axes: Axes, x: float, start: float, boxes: list[_Box], end: float) -> None:
    """Draw boxes one below the other, and the arrows from `start` through them to `end`."""
    for each in boxes:
        arrow(axes, (x, start), (x, each.top))
        box(axes, x, each.y, each.width, each.text, each.fill, each.height)
        start = each.bottom
    arrow(axes, (x, start), (x, end))


def _shortcut(axes: Axes, end: float) -> None:
    """Draw the line around the block, the addition and the ReLU after it."""
    axes.plot([RIGHT, SHORTCUT, SHORTCUT], [INPUT, INPUT, end], color=FAINT, linewidth=1.0)
    arrow(axes, (SHORTCUT, end), (MIDDLE + 0.14, end))
    write(axes, SHORTCUT + 0.16, (INPUT + end) / 2, "shortcut", 10, rotation=270, color=FAINT)
    axes.add_patch(Circle((MIDDLE, end), 0.14, facecolor=PLAIN, edgecolor=FAINT, linewidth=0.8))
    write(axes, MIDDLE, end, "+", 12, color=INK)
    arrow(axes, (MIDDLE, end + 0.14), (MIDDLE, end + 0.4))
    write(axes, MIDDLE, end + 0.55, "ReLU", 10.5)
