"""The page on separable convolution: the rank of a kernel, and what a depth multiplier buys."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from groupwise.explain.drawing import WIDTH, canvas, colour, heading, write
from groupwise.explain.examples import Dense, find_kernel
from groupwise.explain.low_rank import Approximation, approximate, errors, output_difference
from groupwise.explain.page import rounding, table
from groupwise.report.style import FAINT, GRID, INK, TRAINING, new_figure, plain

SHOWN = 6  # filters side by side
POSITIVE, NEGATIVE = "#01665e", "#8c510a"
TRIED = (1, 2, 4)  # multipliers that are drawn, and the full rank after them


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a network or a model's file, whose first dense kernel it is."""
    dense = find_kernel(name)
    height, width, channels, filters = dense.kernel.shape
    multipliers = sorted({*(tried for tried in TRIED if tried < dense.full_rank), dense.full_rank})
    found = [approximate(dense.kernel, multiplier) for multiplier in multipliers]
    basis = next((each for each in found if each.multiplier == 2), found[0])
    kernels = {"Dense": dense.kernel}
    kernels |= {f"Multiplier {each.multiplier}, error {each.error:.0%}": each.product for each in found}
    curve = errors(dense.kernel)
    if dense.is_random:
        noise = None
        reading = "Fresh weights are noise, which has no structure to save; trained kernels are smoother."
    else:
        noise = errors(np.random.default_rng(0).normal(size=dense.kernel.shape))
        reading = f"Noise of the same shape takes {_enough(noise)}: what saves filters is the kernel's structure."
    values = {
        "size": f"{height}x{width}",
        "full": dense.full_rank,
        "origin": dense.origin,
        "channels": channels,
        "filters": filters,
        "shown": min(SHOWN, filters),
        "count": len(kernels),
        "rows": "; ".join(title.lower() for title in kernels),
        "basis": basis.multiplier,
        "errors": ", ".join(f"{multiplier}: {error:.0%}" for multiplier, error in enumerate(curve, start=1)),
        "enough": _enough(curve),
        "reading": reading,
        # channels * M * (kh * kw + filters) weights against channels * kh * kw * filters.
        "cheap": (height * width * filters - 1) // (height * width + filters),
        "costs": _costs(dense, found),
    }
    drawings = {"filters": _filters(kernels), "steps": _steps(basis), "error": _curve(curve, noise)}
    return values, {f"separable_{what}": figure for what, figure in drawings.items()}


def _enough(curve: list[float]) -> int:
    return next(multiplier for multiplier, error in enumerate(curve, start=1) if error <= 0.1)


def _costs(dense: Dense, found: list[Approximation]) -> str:
    rows: list[tuple[str, ...]] = [("dense", f"{dense.kernel.size:,}", "", "")]
    for each in found:
        shares = (each.error, output_difference(dense.kernel, each))
        percents = (f"{share:.1%}" if share >= 5e-4 else rounding(share) for share in shares)
        rows.append((f"multiplier {each.multiplier}", f"{each.depthwise.size + each.pointwise.size:,}", *percents))
    caption = "Weights, error of the kernel, and error of the outputs on a random image, measured"
    return table(caption, ("kernel", "weights", "kernel's error", "outputs' error"), rows)


def _filters(kernels: dict[str, NDArray[np.float64]]) -> Figure:
    side, left, row = 0.72, 0.15, 1.22
    figure, axes = canvas(WIDTH, len(kernels) * row + 0.1)
    scale = float(np.abs(kernels["Dense"][:, :, 0, :SHOWN]).max())
    for number, (title, kernel) in enumerate(kernels.items()):
        y = 0.25 + number * row
        heading(axes, y, title)
        for place in range(min(SHOWN, kernel.shape[-1])):
            x = left + place * (WIDTH - 0.3 + (0.79 - side)) / SHOWN
            _image(axes, x, y + 0.2, side, kernel[:, :, 0, place], scale)
    return figure


def _steps(basis: Approximation) -> Figure:
    """Draw the depthwise filters of the first input channel, and beside them the first outputs' factors as bars."""
    mixing = basis.pointwise[0, 0, : basis.multiplier, :SHOWN]
    side = 0.95
    figure, axes = canvas(WIDTH, 0.85 + basis.multiplier * 1.2)
    heading(axes, 0.28, f"The two steps with multiplier {basis.multiplier}")
    write(axes, 0.15, 0.62, "depthwise", 10.5, ha="left", color=FAINT)
    write(axes, 1.5, 0.62, f"pointwise, to the first {mixing.shape[1]} outputs", 10.5, ha="left", color=FAINT)
    scale, largest = float(np.abs(basis.depthwise[:, :, 0]).max()), float(np.abs(mixing).max())
    for number, factors in enumerate(mixing):
        y = 0.82 + number * 1.2
        _image(axes, 0.15, y, side, basis.depthwise[:, :, 0, number], scale)
        middle = y + side / 2
        axes.plot([1.5, WIDTH - 0.15], [middle, middle], color=GRID, linewidth=0.8)
        for place, value in enumerate(map(float, factors)):
            x, length = 1.62 + place * 0.56, value / largest * side * 0.36
            axes.add_patch(Rectangle((x, middle), 0.34, -length, facecolor=POSITIVE if value > 0 else NEGATIVE))
            below = middle + (0.13 if value > 0 else -0.13)
            write(axes, x + 0.17, below, f"{value:.2f}", 10, color=INK)
    return figure


def _image(axes: Axes, x: float, y: float, side: float, values: NDArray[np.float64], scale: float) -> None:
    """Draw a small image as squares, green where positive and brown where negative."""
    height, width = side / values.shape[0], side / values.shape[1]
    cells = [
        Rectangle((x + column * width, y + row * height), width, height) for row, column in np.ndindex(values.shape)
    ]
    # Edges in the cells' own colour: otherwise fine white lines show between them.
    collection = PatchCollection(cells, cmap="BrBG", norm=Normalize(-scale, scale), edgecolors="face", linewidths=0.3)
    collection.set_array(values.ravel())
    axes.add_collection(collection)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=GRID, linewidth=0.8))


def _curve(curve: list[float], noise: list[float] | None) -> Figure:
    figure = new_figure(WIDTH, 3.4)
    axes = figure.add_subplot()
    plain(axes, "Error by multiplier")
    places = np.arange(1, len(curve) + 1)
    if noise is not None:
        axes.plot(places, noise, color=TRAINING, linewidth=1.8, label="noise of the same shape")
    axes.plot(places, curve, color=colour(0), linewidth=1.8, marker="o", markersize=3.5, label="the example")
    axes.set_xlabel("depth multiplier", fontsize=10.5, color=FAINT)
    axes.tick_params(labelsize=10.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(bottom=0)
    if noise is not None:
        axes.legend(frameon=False, fontsize=10.5)
    return figure
