"""Charts as SVG within a page: lines by epoch, the confusion matrix, the reliability diagram.

Whatever says something when it is pointed at has that as `data-say`, which the page's script shows below the chart, and
as a `<title>` for browsers without scripts. Colours and widths are the page's style.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from groupwise.report.findings import Calibration
from groupwise.report.html_page import literal

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 44, 8, 10, 26
CELL, LONGEST_NAME, NUMBERED = 30, 14, 20
SQUARE = 240


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: of it.
        epochs: of its points.
        values: likewise; what is no finite number is left out.
        style: the class that colours it.
    """

    name: str
    epochs: Sequence[float]
    values: Sequence[float]
    style: str

    @property
    def points(self) -> list[tuple[float, float]]:
        """The (epoch, value) of those that can be drawn."""
        return [(x, y) for x, y in zip(self.epochs, self.values, strict=True) if math.isfinite(y)]


def lines(title: str, series: Sequence[Series], text: Callable[[float], str], from_zero: bool = False) -> str:
    """Return a chart of values by epoch.

    Args:
        title: of it.
        series: its lines.
        text: how a value is written.
        from_zero: whether the axis begins at 0.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    low, high, step = _scale(min([0.0, *ys] if from_zero else ys), max(ys))
    first, last = xs[0], max(xs[-1], xs[0] + 1)

    def across(x: float) -> float:
        return LEFT + 6 + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT - 12)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(low + number * step, up, text) for number in range(round((high - low) / step) + 1)]
    parts += [_text(across(x), HEIGHT - 8, f"{x:g}", "middle") for x in _epochs(xs)]
    for one in series:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in one.points)
        parts.append(f'<polyline class="line {one.style}" points="{path}"/>')
        if len(one.points) <= 3:  # a line through one point is invisible
            parts += [_dot(across(x), up(y), one.style) for x, y in one.points]
    parts += _pointed(xs, series, across, up, text)
    legend = "".join(f'<span><i class="{one.style}"></i>{_last(one, text)}</span>' for one in series if one.points)
    label = f"{title} by epoch"
    return _figure(
        f"<h3>{literal(title)}</h3>", _drawing(label, WIDTH, HEIGHT, parts), f'<p class="legend">{legend}</p>'
    )


def _last(series: Series, text: Callable[[float], str]) -> str:
    return f"{literal(series.name)} <b>{text(series.points[-1][1])}</b>"


def _pointed(
    xs: Sequence[float],
    series: Sequence[Series],
    across: Callable[[float], float],
    up: Callable[[float], float],
    text: Callable[[float], str],
) -> list[str]:
    """Return what shows itself where an epoch is pointed at, and says its values."""
    values = [dict(one.points) for one in series]
    middles = [(across(before) + across(after)) / 2 for before, after in pairwise(xs)]
    edges = [LEFT, *middles, WIDTH - RIGHT]
    parts = []
    for number, x in enumerate(xs):
        there = [(one, each[x]) for one, each in zip(series, values, strict=True) if x in each]
        said = f"epoch {x:g}: " + ", ".join(f"{one.name} {text(y)}" for one, y in there)
        dots = "".join(_dot(across(x), up(y), one.style) for one, y in there)
        box = f'x="{edges[number]:.1f}" y="{TOP}" width="{edges[number + 1] - edges[number]:.1f}"'
        parts.append(
            f'<g class="at" {_says(said)}<rect class="hit" {box} height="{HEIGHT - TOP - BOTTOM}"/>'
            f'<path class="guide" d="M{across(x):.1f} {TOP}V{HEIGHT - BOTTOM}"/>{dots}</g>'
        )
    return parts


def confusion_grid(confusion: NDArray[np.int64], names: Sequence[str]) -> str:
    """Return the confusion matrix: rows are classes, columns what they were taken for; the rarer mistakes are visible.

    Args:
        confusion: (classes, classes).
        names: of the classes.
    """
    count = len(names)
    totals = np.maximum(confusion.sum(axis=1), 1)
    shares = confusion / totals[:, None]
    mistakes = shares * (1 - np.eye(count))
    largest = mistakes.max() or 1.0
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    longest = max(map(len, short))
    space, is_turned = 16 + 6.6 * longest, longest > 3
    above = 16 + 5.2 * longest if is_turned else 22
    parts = []
    for number, name in enumerate(short):
        middle = CELL * number + CELL / 2
        parts.append(_text(space - 8, above + middle + 4, name, "end"))
        x, y = space + middle, above - 6
        turned = f' transform="rotate(-55 {x:.1f} {y:.1f})"' if is_turned else ""
        parts.append(_text(x, y, name, "start" if is_turned else "middle", turned))
    for row in range(count):
        for column in range(count):
            number = int(confusion[row, column])
            is_right = row == column
            depth = shares[row, column] if is_right else (shares[row, column] / largest) ** 0.5
            taken = "named rightly" if is_right else f"taken for {names[column]}"
            said = f"{names[row]} {taken}: {number:,} of {confusion[row].sum():,} ({shares[row, column]:.1%})"
            place = f'x="{space + CELL * column + 1:g}" y="{above + CELL * row + 1:g}"'
            kind = "right" if is_right else "wrong"
            size = f'width="{CELL - 2}" height="{CELL - 2}" rx="3"'
            cell = f'<rect class="{kind}" {place} {size} fill-opacity="{max(depth, 0.03):.3f}"/>'
            if number and count <= NUMBERED:
                x, y = space + CELL * (column + 0.5), above + CELL * (row + 0.5) + 4
                on = ' class="on"' if depth > 0.55 and not is_right else ""
                cell += _text(x, y, _short_number(number), "middle", on)
            parts.append(f'<g class="cell" {_says(said)}{cell}</g>')
    width = space + CELL * count + (4 * longest if is_turned else 6)
    drawing = _drawing("confusion matrix", width, above + CELL * count + 6, parts)
    # So that a cell can be met by a finger, and few do not fill the page.
    limits = f"min-width:{space + 24 * count:.0f}px;max-width:{1.4 * width:.0f}px"
    label = 'role="region" aria-label="confusion matrix" tabindex="0"'
    return _figure("", f'<div class="scroll" {label}><div style="{limits}">{drawing}</div></div>')


def _short_number(number: int) -> str:
    return str(number) if number < 10_000 else f"{number / 1000:.0f}k"


def reliability(calibration: Calibration) -> str:
    """Return the reliability diagram: how many guesses of each confidence are right."""

    def along(share: float) -> float:
        return LEFT + share * SQUARE

    def up(share: float) -> float:
        return TOP + (1 - share) * SQUARE

    most = max(one.images for one in calibration.bins)
    parts = [_grid(share, up, "{:.0%}".format, LEFT + SQUARE) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts += [_text(along(share), TOP + SQUARE + 18, f"{share:.0%}", "middle") for share in (0.0, 0.5, 1.0)]
    for one in calibration.bins:
        said = (
            f"confidence {one.low:.0%} to {one.high:.0%}: {one.images:,} image{'s' * (one.images != 1)}, "
            f"{one.accuracy:.1%} right, mean confidence {one.confidence:.1%}"
        )
        x, width = along(one.low) + 1, (one.high - one.low) * SQUARE - 2
        bar = f'<rect class="bar" x="{x:.1f}" y="{up(one.accuracy):.1f}" width="{width:.1f}" '
        bar += f'height="{one.accuracy * SQUARE:.1f}"/>'
        hit = f'<rect class="hit" x="{x - 1:.1f}" y="{TOP}" width="{width + 2:.1f}" height="{SQUARE}"/>'
        mark = f'<path class="mean" d="M{x:.1f} {up(one.confidence):.1f}h{width:.1f}"/>'
        share = f'<rect class="count" x="{x:.1f}" y="{TOP + SQUARE + 26:.1f}" width="{width:.1f}" '
        share += f'height="{max(1, 34 * one.images / most):.1f}"/>'
        parts.append(f'<g class="at" {_says(said)}{hit}{bar}{mark}{share}</g>')
    parts.append(f'<path class="diagonal" d="M{along(0)} {up(0)}L{along(1)} {up(1)}"/>')
    return _figure("", _drawing("accuracy by confidence", LEFT + SQUARE + 24, TOP + SQUARE + 64, parts))


def _figure(before: str, drawing: str, after: str = "") -> str:
    return f'<figure>{before}\n{drawing}\n{after}<output aria-live="polite">&nbsp;</output></figure>\n'


def _drawing(label: str, width: float, height: float, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {box} role="img" aria-label="{literal(label)}">' + "\n".join(parts) + "</svg>"


def _says(text: str) -> str:
    """Return the attribute of what says something, the end of its tag, and its title."""
    return f'data-say="{literal(text)}"><title>{literal(text)}</title>'


def _dot(x: float, y: float, style: str) -> str:
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def _grid(
    value: float, up: Callable[[float], float], text: Callable[[float], str], right: float = WIDTH - RIGHT
) -> str:
    line = f'<path class="grid" d="M{LEFT} {up(value):.1f}H{right:g}"/>'
    return line + _text(LEFT - 6, up(value) + 4, text(value), "end")


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{literal(text)}</text>'


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Return the ends of an axis that holds two values, and the step between its lines: 1, 2 or 5 times a power of 10.

    Examples:
        >>> _scale(0.31, 0.87)
        (0.2, 1.0, 0.2)
    """
    spread = (high - low) or abs(high) or 1.0
    rough = spread / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    begin, end = math.floor(low / step), math.ceil(high / step)
    end = max(end, begin + 1)
    return round(begin * step, 12), round(end * step, 12), round(step, 12)


def _epochs(xs: Sequence[float]) -> list[float]:
    """Return up to six of the epochs, evenly apart."""
    step = max(1, math.ceil((len(xs) - 1) / 5))
    return list(xs[::step])
