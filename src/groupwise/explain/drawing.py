"""What the pages' pictures share: a canvas in inches, cells, dots, boxes and arrows, and a figure as inline SVG."""

import io
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle, Wedge
from numpy.typing import NDArray

from groupwise.report.style import FAINT, GRID, INK, new_figure

COLOURS = ("#1d4ed8", "#d97706", "#047857", "#be185d", "#7c3aed", "#0891b2", "#854d0e", "#64748b")
"""One a group; they repeat after eight."""

EMPTY, PALE = "#f3f4f6", "#c4c9d1"

WIDTH = 5.0
"""Inches, so that a point of the picture is about a pixel of a phone's screen: texts of 10 points can be read."""

Reached = NDArray[np.bool_]
"""(outputs, inputs) or (outputs, groups): what comes where."""


def colour(index: int) -> str:
    """Return the colour of a group."""
    return COLOURS[index % len(COLOURS)]


def middles(left: float, width: float, count: int) -> list[float]:
    """Return the middles of so many equal parts of a line."""
    return [left + (place + 0.5) * width / count for place in range(count)]


class Box(NamedTuple):
    """A box around a text, with its middle at `y` and at each of `places`."""

    places: Sequence[float]
    y: float
    text: str
    fill: Any = "white"
    width: float = 0.5
    height: float = 0.36
    size: float = 10
    edge: str = FAINT
    style: str = "round,pad=0,rounding_size=0.05"


class Drawing:
    """A figure that is measured in inches from the top left corner."""

    def __init__(self, height: float, width: float = WIDTH) -> None:
        """Make an empty one."""
        self.figure = new_figure(width, height)
        self.figure.set_layout_engine("none")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def write(self, x: float, y: float, text: str, size: float = 10.5, **options: Any) -> None:
        """Write text, its middle at a point unless `ha` and `va` say otherwise."""
        self.axes.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center", "color": INK, **options})

    def note(self, x: float, y: float, text: str, **options: Any) -> None:
        """Write a fainter text, its left end at a point."""
        self.write(x, y, text, **{"ha": "left", "color": FAINT, **options})

    def heading(self, y: float, text: str, below: str = "", x: float = 0.15) -> None:
        """Write a bold line at the left, and a note below it."""
        self.write(x, y, text, 12, ha="left", fontweight="bold")
        self.note(x, y + 0.23, below)

    def dots(self, places: Iterable[float], y: float, shares: Reached, radius: float) -> None:
        """Draw a pie at each place of a line; `shares`, (places, groups), are whose colours it has, in equal parts."""
        for x, row in zip(places, shares, strict=True):
            self.axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor="white", linewidth=0.6, zorder=3))
            owners = np.flatnonzero(row).tolist()
            for owner, (start, end) in zip(owners, pairwise(np.linspace(-90, 270, len(owners) + 1)), strict=True):
                self.axes.add_patch(Wedge((x, y), radius, start, end, facecolor=colour(owner), linewidth=0, zorder=3))

    def links(self, places: Sequence[float], ends: tuple[float, float], matrix: Reached, strong: Any = False) -> None:
        """Draw a line between two heights for each true entry of (lower, upper), dark where the upper is `strong`."""
        for chosen, shade, width, order in ((np.logical_not(strong), PALE, 0.7, 1), (strong, INK, 1.3, 2)):
            pairs = np.argwhere(matrix & chosen)
            segments = [[(places[upper], ends[0]), (places[lower], ends[1])] for lower, upper in pairs]
            self.axes.add_collection(LineCollection(segments, colors=shade, linewidths=width, zorder=order))

    def cells(self, x: float, y: float, side: float, values: NDArray[Any], **options: Any) -> None:
        """Draw a square of cells in a thin frame, coloured as by `Axes.pcolormesh`; x and y are its top left corner."""
        rows, columns = (np.linspace(0, side, count + 1) for count in values.shape[:2])
        self.axes.pcolormesh(x + columns, y + rows, values, **options)
        self.axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=GRID, linewidth=0.8))

    def matrix(self, x: float, y: float, side: float, values: Reached, groups: int) -> None:
        """Draw a square of cells, the true ones in the colour of their column's group."""
        count = values.shape[1]
        colours = np.repeat([to_rgb(colour(group)) for group in range(groups)], count // groups, axis=0)
        filled = np.where(values[..., None], colours, to_rgb(EMPTY))
        # Lines between the cells, in points: a twentieth of a cell.
        self.cells(x, y, side, filled, edgecolors=EMPTY, linewidth=72 / 20 * side / count)

    def box(self, box: Box) -> None:
        """Draw a box at each of its places."""
        for x in box.places:
            corner, size = (x - box.width / 2, box.y - box.height / 2), (box.width, box.height)
            self.axes.add_patch(FancyBboxPatch(corner, *size, box.style, fc=box.fill, ec=box.edge, lw=0.8))
            self.write(x, box.y, box.text, box.size)

    def flow(self, boxes: Sequence[Box]) -> None:
        """Draw boxes one below the other, and the arrows between them."""
        for box in boxes:
            self.box(box)
        for above, below in pairwise(boxes):
            for x in max(above.places, below.places, key=len):
                self.arrow((x, above.y + above.height / 2), (x, below.y - below.height / 2))

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw an arrow between two points."""
        style = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        self.axes.annotate("", xy=end, xytext=start, arrowprops=style)


def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as an `<svg>` element; all its ids begin with `name`, so that a page can hold several."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub("<metadata>.*?</metadata>|<!--.*?-->\n?", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text).strip()
