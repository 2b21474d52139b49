"""The confusion matrix as a picture, for 2 to 1000 classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from groupwise.report.style import FAINT, GRID, INK, as_it_is, new_figure, of_others, save, title

NUMBERED, NAMED = 20, 60
"""Up to so many classes the cells hold numbers, and the rows and columns names."""

LONGEST_NAME = 22
COLOURS = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#c7d7f5", "#5b84dc", "#1d4ed8", "#172554"])


def confusion(matrix: NDArray[np.int64], class_names: Sequence[str], png: Path) -> None:
    """Draw which classes are taken for which.

    Args:
        matrix: (classes, classes), images of the row's class that were taken for the column's.
        class_names: of rows and columns.
        png: where the picture goes.

    Raises:
        ValueError: the matrix is not square, or not of so many classes.
    """
    matrix = np.asarray(matrix)
    count = len(class_names)
    if matrix.shape != (count, count):
        raise ValueError(f"matrix of shape {matrix.shape}: must be {count} x {count}, as there are class names")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    side = _side(count)
    figure = new_figure(side + 1.4, side + 0.4)
    axes = figure.add_subplot()
    # The root makes the rare mistakes visible beside the diagonal.
    picture = axes.imshow(shares, cmap=COLOURS, norm=PowerNorm(0.5, 0, 1), interpolation=_interpolation(count))
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    title(axes, f"{accuracy:.1%} of {matrix.sum():,} images right")
    axes.set_xlabel("taken for", color=FAINT, fontsize=10)
    axes.set_ylabel("class", color=FAINT, fontsize=10)
    axes.tick_params(colors=INK, labelsize=_name_size(count), length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    _name(axes, class_names)
    if count <= NUMBERED:
        _number(axes, matrix, shares)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02, format=PercentFormatter(1.0, decimals=0))
    bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1.0])
    bar.set_label("share of the class's images", color=FAINT, fontsize=9)
    bar.ax.tick_params(colors=FAINT, labelsize=8, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    save(figure, png)


def _side(count: int) -> float:
    """Return the picture's side in inches."""
    if count <= NUMBERED:
        return max(3.6, 1.6 + 0.46 * count)
    return min(12.5, 3.0 + 0.2 * count)


def _name_size(count: int) -> float:
    return 10 if count <= NUMBERED else 7.5


def _interpolation(count: int) -> str:
    """Below one pixel a cell the nearest cell would stand for its neighbours; their mean should."""
    return "nearest" if count <= 400 else "antialiased"


def _name(axes: Axes, class_names: Sequence[str]) -> None:
    if len(class_names) > NAMED:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
        return
    places = range(len(class_names))
    names = [of_others(name) for name in class_names]
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    upright = max(map(len, names)) > 3
    options: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if upright else {}
    axes.set_xticks(places, names, **options, **as_it_is())
    axes.set_yticks(places, names, **as_it_is())


def _number(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    longest = len(str(matrix.max(initial=0)))
    for row, column in zip(*np.nonzero(matrix), strict=True):
        axes.text(
            column,
            row,
            f"{matrix[row, column]}",
            ha="center",
            va="center",
            fontsize=9 if longest <= 4 else 7,
            color="white" if shares[row, column] > 0.2 else INK,
        )
