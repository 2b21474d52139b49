"""What the pages' pictures share: a canvas in inches, cells, dots, boxes and arrows, and a figure as inline SVG."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle, Wedge
from numpy.typing import NDArray

from groupwise.report.style import FAINT, GRID, INK, new_figure

COLOURS = ("#1d4ed8", "#d97706", "#047857", "#be185d", "#7c3aed", "#0891b2", "#854d0e", "#64748b")
"""One a group; they repeat after eight."""

WIDTH = 5.0
"""Inches, so that a point of the picture is about a pixel of a phone's screen: texts of 10 points can be read."""

Point = tuple[float, float]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose one axes fills it, measured in inches from the top left corner."""
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def colour(index: int) -> str:
    """Return the colour of a group."""
    return COLOURS[index % len(COLOURS)]


def tint(base: str, strength: float = 0.25) -> tuple[float, float, float]:
    """Return a colour mixed with white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(base))
    return red, green, blue


def write(axes: Axes, x: float, y: float, text: str, size: float = 10.5, **options: Any) -> None:
    """Write text, its middle at a point unless `ha` and `va` say otherwise."""
    options = {"ha": "center", "va": "center", "color": INK, **options}
    axes.text(x, y, text, fontsize=size, **options)


def heading(axes: Axes, y: float, text: str, note: str = "", x: float = 0.15) -> None:
    """Write a bold line at the left, and a fainter one below it."""
    write(axes, x, y, text, 12, ha="left", fontweight="bold")
    if note:
        write(axes, x, y + 0.23, note, 10.5, ha="left", color=FAINT)


def dots(axes: Axes, places: Sequence[Point], shares: NDArray[np.bool_], radius: float) -> None:
    """Draw a pie at each place.

    Args:
        places: their middles.
        shares: (places, groups): whose colours it has, in equal parts.
        radius: in inches.
    """
    for (x, y), row in zip(places, shares, strict=True):
        owners = [int(owner) for owner in np.flatnonzero(row)]
        if len(owners) < 2:
            fill = colour(owners[0]) if len(owners) else "white"
            axes.add_patch(Circle((x, y), radius, facecolor=fill, edgecolor="white", linewidth=0.6, zorder=3))
            continue
        angle = 360 / len(owners)
        for place, owner in enumerate(owners):
            start = -90 + place * angle
            axes.add_patch(Wedge((x, y), radius, start, start + angle, facecolor=colour(owner), linewidth=0, zorder=3))


def links(
    axes: Axes,
    matrix: NDArray[np.bool_],
    sources: Sequence[Point],
    targets: Sequence[Point],
    strong: NDArray[np.bool_] | None = None,
) -> None:
    """Draw a line for each true entry of a (targets, sources) matrix, dark from the sources that are `strong`."""
    strong = np.zeros(len(sources), bool) if strong is None else strong
    for chosen, shade, width, order in ((~strong, "#c4c9d1", 0.7, 1), (strong, INK, 1.3, 2)):
        pairs = np.argwhere(matrix & chosen[None])
        segments = [(sources[source], targets[target]) for target, source in pairs]
        axes.add_collection(LineCollection(segments, colors=shade, linewidths=width, zorder=order))


def matrix(
    axes: Axes, x: float, y: float, side: float, values: NDArray[np.bool_], owners: NDArray[np.intp] | Sequence[int]
) -> None:
    """Draw a square of cells, the true ones in the colour of their column's owner."""
    rows, columns = values.shape
    height, width = side / rows, side / columns
    axes.add_patch(Rectangle((x, y), side, side, facecolor="#f3f4f6", edgecolor=GRID, linewidth=0.8))
    gap = 0.06 * min(height, width)
    for owner in sorted(set(owners)):
        cells = [
            Rectangle((x + column * width + gap / 2, y + row * height + gap / 2), width - gap, height - gap)
            for row, column in np.argwhere(values)
            if owners[column] == owner
        ]
        axes.add_collection(PatchCollection(cells, facecolor=colour(owner), linewidth=0, zorder=2))


def cell(axes: Axes, corner: Point, width: float, height: float, text: str, fill: Any, size: float = 10.5) -> None:
    """Draw a small rectangle with a text in it."""
    axes.add_patch(Rectangle(corner, width, height, facecolor=fill, edgecolor="white", linewidth=1.2))
    write(axes, corner[0] + width / 2, corner[1] + height / 2, text, size)


def box(axes: Axes, x: float, y: float, width: float, text: str, fill: Any, height: float = 0.36) -> None:
    """Draw a rounded box around a text; x and y are its middle."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch(corner, width, height, style, facecolor=fill, edgecolor=FAINT, linewidth=0.8))
    write(axes, x, y, text, 10)


def arrow(axes: Axes, start: Point, end: Point) -> None:
    """Draw an arrow between two points."""
    style = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as an `<svg>` element; all its ids begin with `name`, so that a page can hold several."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text).strip()
