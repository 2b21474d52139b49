"""The page on ResNeXt's three forms: one block in each, and how far their outputs differ."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Circle

from groupwise.explain.drawing import arrow, box, canvas, colour, heading, tint, write
from groupwise.explain.page import Code, Page, Picture, Row, Section, Table
from groupwise.explain.texts import rounding, source_line
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
ROWS = {"input": 0.85, "reduce": 1.62, "spatial": 2.4, "third": 3.18, "joined": 3.96, "norm": 4.66}

PROGRAM = """from groupwise import models

grouped = models.create("{name}")
paths = models.create(
    "{name}", form="a"
)"""


def make(name: str | None) -> Page:
    """Return the page; `name` is a network's that has forms."""
    network = name or DEFAULT
    blocks = [describe_block(network, form) for form in FORMS]
    differences = measure(network)
    largest = max(differences.values())
    block = blocks[-1]
    answer = (
        f"They add the same products in another order. A convolution over {block.cardinality} groups is "
        f"{block.cardinality} small convolutions side by side, that is form c. "
        "A 1x1 over concatenated paths is the sum of a 1x1 for each "
        f"path, that is form b. Written out, this is form a. With the same weights, on a random image, the outputs "
        f"differ by at most {largest:.5%} of the largest value: float32's rounding.",
        "Squeeze-and-excitation goes after the last batch norm and before the shortcut is added, in all three forms."
        + (" So it does in this network." if block.squeezed else ""),
    )
    sections = (
        Section(
            f"One block of {network}",
            (
                f"This is the second block of the first stage, `{UNIT}`, as the network is really built.",
                Row(tuple(_diagram(block, network) for block in blocks)),
            ),
        ),
        Section(
            "Layers, weights and costs",
            (*(_table(block) for block in blocks), _totals(blocks, differences), _same(blocks)),
        ),
        Section("Where squeeze-and-excitation goes", _squeeze(block)),
        Section("Which to use", (_advice(block), Code(PROGRAM.format(name=network)))),
    )
    title = "How are ResNeXt's figures 3a, 3b and 3c the same network, and where does SE go?"
    return Page("forms", title, answer, sections, source_line("forms", name))


def _diagram(block: Block, network: str) -> Picture:
    end = ROWS["norm"] + (0.7 if block.squeezed else 0) + 0.6
    figure, axes = canvas(WIDTH, end + 0.85)
    heading(axes, 0.3, f"Form {block.form}: {WORDS[block.form]}", x=LEFT)
    height, width, channels = block.input_shape
    box(axes, MIDDLE, ROWS["input"], RIGHT - LEFT, f"input: {height}x{width}, {channels} channels", PLAIN)
    _convolutions(axes, block)
    steps: list[tuple[str, float, Any]] = [("batch norm", ROWS["norm"], PLAIN)]
    if block.squeezed:
        text = f"squeeze-excite: {channels} → {block.squeezed} → {channels}"
        steps.append((text, ROWS["norm"] + 0.7, SQUEEZE))
    previous = ROWS["joined"] + (0.18 if block.form == "a" else 0.26)
    for text, y, fill in steps:
        arrow(axes, (MIDDLE, previous), (MIDDLE, y - 0.18))
        box(axes, MIDDLE, y, RIGHT - LEFT if text != "batch norm" else 1.5, text, fill)
        previous = y + 0.18
    arrow(axes, (MIDDLE, previous), (MIDDLE, end - 0.14))
    _shortcut(axes, end)
    alternative = f"Form {block.form} of a block of {network}. " + "; then ".join(_words(block)) + "."
    counts = sum(part.count for part in block.parts)
    caption = f"Form {block.form}: {counts} convolutions. Batch norm and ReLU follow each but the last."
    return Picture(f"forms_{block.form}", figure, alternative, caption)


def _convolutions(axes: Axes, block: Block) -> None:
    reduce, spatial, expand = block.parts
    rows = {"reduce": ROWS["reduce"], "spatial": ROWS["spatial"]}
    joined = "third" if block.form == "b" else "joined"
    if block.form == "a":
        rows["expand"] = ROWS["third"]
    paths = reduce.count > 1
    places = PATHS if reduce.count > 2 else (PATHS[0], PATHS[-1]) if paths else (MIDDLE,)
    width = 0.96 if paths else 2.2
    for x in places:
        previous = ROWS["input"] + 0.18
        for part in block.parts[: len(rows)]:
            y = rows[part.name]
            arrow(axes, (x, previous), (x, y - 0.26))
            box(axes, x, y, width, _label(part), FILLS[part.name], 0.52)
            previous = y + 0.26
        arrow(axes, (x, previous), (x, ROWS[joined] - (0.18 if block.form != "c" else 0.26)))
    if len(places) == len(PATHS):
        for y in rows.values():
            write(axes, DOTS, y, "···", 13, color=FAINT)
    if block.form == "a":
        box(
            axes,
            MIDDLE,
            ROWS["joined"],
            RIGHT - LEFT,
            f"sum of {_paths(reduce.count)}: {expand.output_shape[-1]}",
            PLAIN,
        )
        return
    if block.form == "b":
        text = f"{_paths(spatial.count)} side by side: {block.channels}"
        box(axes, MIDDLE, ROWS["third"], RIGHT - LEFT, text, PLAIN)
        arrow(axes, (MIDDLE, ROWS["third"] + 0.18), (MIDDLE, ROWS["joined"] - 0.26))
    box(axes, MIDDLE, ROWS["joined"], 2.2, _label(expand), FILLS["expand"], 0.52)


def _paths(count: int) -> str:
    return f"{count} paths" if count > 1 else "1 path"


def _label(part: Part) -> str:
    height, width = part.kernel_shape[:2]
    groups = f", {part.groups} groups" if part.groups > 1 else ""
    return f"{height}x{width}{groups}\n{part.in_channels} → {part.output_shape[-1]}"


def _shortcut(axes: Axes, end: float) -> None:
    """Draw the line around the block, the addition and the ReLU after it."""
    corner = {"color": FAINT, "linewidth": 1.0}
    axes.plot([RIGHT, SHORTCUT, SHORTCUT], [ROWS["input"], ROWS["input"], end], **corner)  # type: ignore[arg-type]
    arrow(axes, (SHORTCUT, end), (MIDDLE + 0.14, end))
    write(axes, SHORTCUT + 0.16, (ROWS["input"] + end) / 2, "shortcut", 10, rotation=270, color=FAINT)
    axes.add_patch(Circle((MIDDLE, end), 0.14, facecolor=PLAIN, edgecolor=FAINT, linewidth=0.8))
    write(axes, MIDDLE, end, "+", 12, color=INK)
    arrow(axes, (MIDDLE, end + 0.14), (MIDDLE, end + 0.4))
    write(axes, MIDDLE, end + 0.55, "ReLU", 10.5)


def _words(block: Block) -> list[str]:
    texts = []
    for part in block.parts:
        height, width = part.kernel_shape[:2]
        times = f"{part.count} convolutions" if part.count > 1 else "a convolution"
        groups = f" in {part.groups} groups" if part.groups > 1 else ""
        texts.append(f"{times} {height}x{width} from {part.in_channels} to {part.output_shape[-1]} channels{groups}")
    if block.form == "a":
        texts.append("their sum")
    squeeze = ["squeeze-and-excitation"] if block.squeezed else []
    return [*texts, "batch norm", *squeeze, "addition of the shortcut and ReLU"]


def _table(block: Block) -> Table:
    rows = [
        ("output", *("x".join(map(str, part.output_shape)) for part in block.parts)),
        ("weights", *("x".join(map(str, part.kernel_shape)) for part in block.parts)),
        ("parameters", *(f"{part.parameters:,}" for part in block.parts)),
        ("MACs", *(f"{part.macs:,}" for part in block.parts)),
    ]
    names = [f"{part.count} x {part.name}" if part.count > 1 else part.name for part in block.parts]
    caption = f"Form {block.form}, {WORDS[block.form]}. Shapes are of one convolution, numbers of all"
    return Table(caption, ("", *names), rows)


def _totals(blocks: list[Block], differences: dict[str, float]) -> Table:
    rows = [
        (block.form, f"{block.parameters:,}", f"{block.macs:,}", f"{rounding(differences[block.form])}")
        for block in blocks
    ]
    caption = "The whole block, batch norm and all; outputs measured on two blocks, relative to the largest value"
    return Table(caption, ("form", "parameters", "MACs", "differs from c by"), rows)


def _same(blocks: list[Block]) -> str:
    same = len({(block.parameters, block.macs) for block in blocks}) == 1
    verdict = "All three have the same parameters and MACs." if same else "The forms' parameters or MACs differ."
    return (
        f"{verdict} The weights are the same numbers, cut into paths: path p of a reduce or spatial kernel is slice p "
        "of form c's output channels; path p of form a's expand kernels is slice p of its input channels."
    )


def _squeeze(block: Block) -> tuple[str, ...]:
    text = (
        "It weighs the channels of the whole branch, so it needs the finished sum: after the last 1x1 and its batch "
        "norm, before the shortcut is added. Inside one path it would see only that path's channels, and the forms "
        "would no longer be equal. The same holds for the last batch norm: it follows the sum, not each path."
    )
    if block.squeezed:
        channels = block.input_shape[-1]
        return (
            text,
            f"Here it averages {channels} channels over the image, narrows them to {block.squeezed}, widens them to "
            f"{channels} again, and its sigmoid scales each channel.",
        )
    return (
        text,
        "This network has none; `groupwise explain forms seresnext50_32x4d --output FOLDER` shows one that has.",
    )


def _advice(block: Block) -> str:
    return (
        f"Form c: one grouped convolution does the work of {block.cardinality} small ones, and one call is faster. "
        "Forms a and b are for reading, for weights that were trained in them, and for frameworks that have no grouped "
        "convolution. Source: Aggregated Residual Transformations, "
        "[arXiv 1611.05431](https://arxiv.org/abs/1611.05431), figure 3 and section 3.3; "
        "Squeeze-and-Excitation Networks, [arXiv 1709.01507](https://arxiv.org/abs/1709.01507), figure 3."
    )
