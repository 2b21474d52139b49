"""The page on ResNeXt's three forms: one block in each, and how far their outputs differ."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure

from groupwise.errors import UserError
from groupwise.explain.drawing import COLOURS, Box, Drawing
from groupwise.explain.page import comparison
from groupwise.layers import BatchNormalization, SqueezeExcite
from groupwise.layers.specs import specs_of
from groupwise.models import create, find
from groupwise.models.costs import layer_macs
from groupwise.models.network import Network, without_values
from groupwise.models.residual import FORMS
from groupwise.report.html_page import shown, table
from groupwise.report.style import FAINT
from groupwise.rewrite import to_form
from groupwise.spec import ConvSpec

UNIT = "stage1_unit2"
"""The block shown: the first whose shortcut is the input itself, as in the paper's figure 3."""

SMALL = 16  # pixels of the first stage, on the image that the outputs are compared on
DEFAULT = "resnext50_32x4d"
WORDS = {"a": "paths summed", "b": "paths concatenated", "c": "a grouped convolution"}
FILLS = {"reduce": (COLOURS[0], 0.15), "spatial": (COLOURS[1], 0.25), "expand": (COLOURS[2], 0.2)}
SQUEEZE = (COLOURS[3], 0.2)

# Inches, of a block's picture: its two edges, the shortcut's line, the paths' places, and the dots between them.
WIDTH, LEFT, RIGHT, SHORTCUT = 4.1, 0.12, 3.42, 3.78
PATHS, DOTS, MIDDLE = (0.62, 1.66, 2.92), 2.29, (LEFT + RIGHT) / 2

WITH_SQUEEZE = (
    "Here it averages {0} channels over the image, narrows them to {1}, widens them to {0} again, and its sigmoid "
    "scales each channel."
)
WITHOUT_SQUEEZE = (
    "This network has none; <code>groupwise explain forms seresnext50_32x4d --output FOLDER</code> shows one that has."
)


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a network's that has forms."""
    network = name or DEFAULT
    blocks = {form: describe_block(network, form) for form in FORMS}
    differences = measure(network)
    block = blocks["c"]
    _, spatial, expand = block.parts
    same = len({(each.parameters, each.macs) for each in blocks.values()}) == 1
    caption = "The whole block, batch norm and all; outputs measured on two blocks, relative to the largest value"
    rows = [(form, each.parameters, each.macs, differences[form]) for form, each in blocks.items()]
    values = {
        "network": network,
        "unit": UNIT,
        "cardinality": spatial.spec.groups,
        "largest": max(differences.values()),
        "so_here": " So it does in this network." if block.squeezed else "",
        "counts": {form: sum(part.copies for part in each.parts) for form, each in blocks.items()},
        "shown": {form: _in_words(each) for form, each in blocks.items()},
        "tables": "\n".join(map(_table, blocks.values())),
        "totals": table(caption, ("form", "parameters", "MACs", "differs from c by"), rows),
        "same": "All three have the same parameters and MACs." if same else "The forms' parameters or MACs differ.",
        "squeeze": (WITH_SQUEEZE if block.squeezed else WITHOUT_SQUEEZE).format(
            expand.spec.out_channels, block.squeezed
        ),
    }
    return values, {f"forms_{form}": _diagram(each) for form, each in blocks.items()}


class Part(NamedTuple):
    """A convolution of the block, or as many equal ones as there are paths: `spec` is one's."""

    name: str
    copies: int
    spec: ConvSpec


class Block(NamedTuple):
    """The block in one form, its convolutions, the narrow width of its squeeze-and-excitation, and all its costs."""

    form: str
    parts: tuple[Part, ...]
    squeezed: int | None
    parameters: int
    macs: int


def describe_block(name: str, form: str) -> Block:
    """Return the block of a network, in one of the forms.

    Raises:
        UserError: there is no such network, or it has no forms.

    Examples:
        >>> describe_block("resnext50_32x4d", "a").parts[0].spec.kernel_shape
        (1, 1, 256, 4)
    """
    with without_values():
        network = _two_blocks(name, form=form)
    layers = [layer for layer in network.layers if layer.name.startswith(UNIT)]
    parts = []
    for part in FILLS:
        one, *others = (layer for layer in layers if layer.name.endswith(f"_{part}_conv"))
        parts.append(Part(part, 1 + len(others), *specs_of(one, one.input.shape)))
    squeezed = next((layer.reduce.units for layer in layers if isinstance(layer, SqueezeExcite)), None)
    parameters = sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_variables)
    return Block(form, tuple(parts), squeezed, parameters, sum(map(layer_macs, layers)))


def measure(name: str) -> dict[str, float]:
    """Return, for each form, how far its outputs are from form c's on a random image, relative to the largest one.

    The weights are form c's, carried over; batch norm's are random, so that none of them is idle.

    Raises:
        UserError: as `describe_block`.
    """
    # ImageNet's stems make an image 4 times smaller, CIFAR's leave it.
    side = SMALL if find(name).reduction < 32 else 4 * SMALL
    network = _two_blocks(name, form="c", input_shape=(side, side, 3))
    generator = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    image = generator.normal(size=(1, side, side, 3)).astype("float32")
    expected = _outputs(network, image)
    differences = {form: np.abs(_outputs(to_form(network, form), image) - expected).max() for form in FORMS}
    return {form: float(difference / np.abs(expected).max()) for form, difference in differences.items()}


def _two_blocks(name: str, **options: Any) -> Network:
    """Create a network that ends after its first two blocks."""
    variant = find(name)
    if not variant.takes("form"):
        raise UserError(
            f"model {name!r}: has no forms a, b and c; take a ResNeXt, SE-ResNeXt or SENet such as resnext50_32x4d"
        )
    depth: dict[str, Any] = {"depths": [2]} if variant.takes("depths") else {"blocks": 2}
    return create(name, features=["stage1"], **depth, **options)


def _outputs(network: Network, image: Any) -> Any:
    return keras.ops.convert_to_numpy(network(image, training=False)["stage1"])


def _in_words(block: Block) -> str:
    texts = []
    for _, copies, spec in block.parts:
        times = f"{copies} convolutions" if copies > 1 else "a convolution"
        groups = f" in {spec.groups} groups" if spec.groups > 1 else ""
        size = shown(spec.kernel_shape[:2])
        texts.append(f"{times} {size} from {spec.in_channels} to {spec.out_channels} channels{groups}")
    texts += ["their sum"] if block.form == "a" else []
    texts += ["batch norm", "squeeze-and-excitation"] if block.squeezed else ["batch norm"]
    return "; then ".join([*texts, "addition of the shortcut and ReLU"])


def _table(block: Block) -> str:
    columns = {
        f"{copies} x {name}" if copies > 1 else name: {
            "output": spec.output_shape[1:],
            "weights": spec.kernel_shape,
            "parameters": copies * math.prod(spec.kernel_shape),
            "MACs": copies * spec.macs,
        }
        for name, copies, spec in block.parts
    }
    caption = f"Form {block.form}, {WORDS[block.form]}. Shapes are of one convolution, numbers of all"
    return comparison(caption, columns)


def _diagram(block: Block) -> Figure:
    boxes = _boxes(block)
    first, addition = boxes[0].y, boxes[-2].y
    drawing = Drawing(addition + 0.85, WIDTH)
    drawing.heading(0.3, f"Form {block.form}: {WORDS[block.form]}", x=LEFT)
    drawing.flow(boxes)
    for box in boxes:
        if len(box.places) > 2:
            drawing.note(DOTS, box.y, "···", size=13, ha="center")
    drawing.axes.plot([RIGHT, SHORTCUT, SHORTCUT], [first, first, addition], color=FAINT, linewidth=1.0)
    drawing.arrow((SHORTCUT, addition), (MIDDLE + 0.14, addition))
    drawing.note(SHORTCUT + 0.16, (first + addition) / 2, "shortcut", size=10, ha="center", rotation=270)
    return drawing.figure


def _boxes(block: Block) -> list[Box]:
    """Return a block's boxes from its input to the ReLU, by their heights in inches."""
    reduce, spatial, expand = block.parts
    _, height, width, channels = reduce.spec.input_shape
    paths = f"{reduce.copies} paths" if reduce.copies > 1 else "1 path"
    joined = {
        "a": [_convolution(3.18, expand), _wide(3.96, f"sum of {paths}: {channels}")],
        "b": [_wide(3.18, f"{paths} side by side: {expand.spec.in_channels}"), _convolution(3.96, expand)],
        "c": [_convolution(3.96, expand)],
    }
    boxes = [_wide(0.85, f"input: {height}x{width}, {channels} channels")]
    boxes += [_convolution(1.62, reduce), _convolution(2.4, spatial), *joined[block.form]]
    boxes += [Box([MIDDLE], 4.66, "batch norm", width=1.5)]
    if block.squeezed:
        boxes += [_wide(5.36, f"squeeze-excite: {channels} → {block.squeezed} → {channels}", SQUEEZE)]
    end = boxes[-1].y + 0.6
    addition = Box([MIDDLE], end, "+", width=0.28, height=0.28, size=12, style="circle,pad=0")
    return [*boxes, addition, Box([MIDDLE], end + 0.55, "ReLU", height=0.3, size=10.5, edge="none")]


def _wide(y: float, text: str, fill: Any = "white") -> Box:
    return Box([MIDDLE], y, text, fill, RIGHT - LEFT)


def _convolution(y: float, part: Part) -> Box:
    spec = part.spec
    groups = f", {spec.groups} groups" if spec.groups > 1 else ""
    text = f"{shown(spec.kernel_shape[:2])}{groups}\n{spec.in_channels} → {spec.out_channels}"
    places = PATHS if part.copies > 2 else PATHS[::2] if part.copies > 1 else [MIDDLE]
    return Box(places, y, text, FILLS[part.name], 0.96 if part.copies > 1 else 2.2, 0.52)
