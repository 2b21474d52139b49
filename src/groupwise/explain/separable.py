"""The page on separable convolution: the rank of a kernel, and what a depth multiplier buys."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from groupwise.explain.drawing import WIDTH, canvas, colour, heading, write
from groupwise.explain.low_rank import Approximation, Dense, approximate, errors, find_kernel, output_difference
from groupwise.explain.page import Code, Page, Picture, Section, Table
from groupwise.explain.texts import rounding, source_line
from groupwise.report.style import FAINT, GRID, INK, TRAINING, new_figure, plain

SHOWN = 6  # filters side by side
POSITIVE, NEGATIVE = "#01665e", "#8c510a"
TRIED = (1, 2, 4)  # multipliers that are drawn, and the full rank after them

FORMULA = """out[b,i,j,k] = sum over di, dj, q, r of
    x[b, i+di, j+dj, q]
    * depthwise[di, dj, q, r]
    * pointwise[0, 0, q*M + r, k]"""


def make(name: str | None) -> Page:
    """Return the page; `name` is a network or a .keras file, whose first dense k x k kernel then is the example."""
    dense = find_kernel(name)
    height, width, channels, filters = dense.kernel.shape
    multipliers = sorted({*(tried for tried in TRIED if tried < dense.full_rank), dense.full_rank})
    found = [approximate(dense.kernel, multiplier) for multiplier in multipliers]
    curve = errors(dense.kernel)
    noise = None if dense.is_random else errors(np.random.default_rng(0).normal(size=dense.kernel.shape))
    answer = (
        "`separable_conv2d` convolves each input channel with a few small filters of its own (the depthwise step), "
        "then mixes all results at each pixel with a 1x1 convolution (the pointwise step).",
        "The channel multiplier, or depth multiplier, is how many filters each input channel has. It is the rank of "
        "the dense kernel that the two steps amount to: with 1 all outputs see a channel through the same "
        f"{height}x{width} filter, with {dense.full_rank} a separable {height}x{width} can be any dense one.",
    )
    sections = (
        Section(
            "What it computes",
            (
                "For a stride of 1 and a multiplier M:",
                Code(FORMULA),
                "Summed over r first, that is a dense convolution with the kernel "
                "`sum over r of depthwise[di, dj, q, r] * pointwise[0, 0, q*M + r, k]`. For each input channel "
                "q this is a matrix of rank M at most.",
            ),
        ),
        Section(
            "The same kernel with fewer filters",
            (
                f"The example is {dense.origin}: {height}x{width}, {channels} input channels, {filters} outputs. For "
                "each input channel a singular value decomposition gives the nearest separable kernels.",
                _filters(dense, found),
                _basis(found),
            ),
        ),
        Section(
            "How near it comes", (_curve(curve, noise, dense), *_reading(curve, noise, dense), _costs(dense, found))
        ),
    )
    title = "What does separable_conv2d do, and what is its channel multiplier for?"
    return Page("separable", title, answer, sections, source_line("separable", name))


def _filters(dense: Dense, found: list[Approximation]) -> Picture:
    height, width, _, filters = dense.kernel.shape
    shown = min(SHOWN, filters)
    side, left, row = 0.72, 0.15, 1.22
    kernels = [("Dense", "", dense.kernel)]
    kernels += [(f"Multiplier {each.multiplier}", f", error {each.error:.0%}", each.product) for each in found]
    figure, axes = canvas(WIDTH, len(kernels) * row + 0.1)
    scale = float(np.abs(dense.kernel[:, :, 0, :shown]).max())
    for number, (title, note, kernel) in enumerate(kernels):
        y = 0.25 + number * row
        heading(axes, y, f"{title}{note}")
        for place in range(shown):
            x = left + place * (WIDTH - 0.3 + (0.79 - side)) / max(shown, SHOWN)
            _image(axes, x, y + 0.2, side, kernel[:, :, 0, place], scale)
    parts = [f"{title.lower()}{note}" for title, note, _ in kernels]
    alternative = (
        f"{shown} filters of {height}x{width} of the first input channel, in {len(kernels)} rows: {'; '.join(parts)}. "
        "With multiplier 1 all filters are one pattern, stronger or weaker; with larger ones they come nearer to the "
        "dense ones, and with the largest they are the same."
    )
    caption = (
        f"The first {shown} filters of the first input channel. Green is positive, brown negative. In the row of "
        "multiplier 1 there is only one pattern."
    )
    return Picture("separable_filters", figure, alternative, caption)


def _basis(found: list[Approximation]) -> Picture:
    chosen = next((each for each in found if each.multiplier == 2), found[0])
    multiplier = chosen.multiplier
    mixing = chosen.pointwise.reshape(chosen.depthwise.shape[2], multiplier, -1)[0]
    shown, side = min(SHOWN, mixing.shape[-1]), 0.95
    figure, axes = canvas(WIDTH, 0.85 + multiplier * 1.2)
    heading(axes, 0.28, f"The two steps with multiplier {multiplier}")
    write(axes, 0.15, 0.62, "depthwise", 10.5, ha="left", color=FAINT)
    write(axes, 1.5, 0.62, f"pointwise, to the first {shown} outputs", 10.5, ha="left", color=FAINT)
    scale, largest = float(np.abs(chosen.depthwise[:, :, 0]).max()), float(np.abs(mixing[:, :shown]).max())
    for filter_number in range(multiplier):
        y = 0.82 + filter_number * 1.2
        _image(axes, 0.15, y, side, chosen.depthwise[:, :, 0, filter_number], scale)
        middle = y + side / 2
        axes.plot([1.5, WIDTH - 0.15], [middle, middle], color=GRID, linewidth=0.8)
        for place in range(shown):
            value = float(mixing[filter_number, place])
            x, length = 1.62 + place * 0.56, value / largest * side * 0.36
            axes.add_patch(Rectangle((x, middle), 0.34, -length, facecolor=POSITIVE if value > 0 else NEGATIVE))
            below = middle + (0.13 if value > 0 else -0.13)
            write(axes, x + 0.17, below, f"{value:.2f}", 10, color=INK)
    alternative = (
        f"Multiplier {multiplier}: {multiplier} depthwise filters of the first input channel, and for each the factors "
        f"with which it goes into the first {shown} outputs."
    )
    caption = (
        f"What is stored for one input channel: {multiplier} filters, and for each output {multiplier} factors. An "
        "output's filter is their weighted sum."
    )
    return Picture("separable_steps", figure, alternative, caption)


def _image(axes: Axes, x: float, y: float, side: float, values: NDArray[np.float64], scale: float) -> None:
    """Draw a small image as squares, green where positive and brown where negative."""
    rows, columns = values.shape
    height, width = side / rows, side / columns
    cells = [
        Rectangle((x + column * width, y + row * height), width, height)
        for row in range(rows)
        for column in range(columns)
    ]
    # Edges in the cells' own colour: otherwise fine white lines show between them.
    collection = PatchCollection(cells, cmap="BrBG", norm=Normalize(-scale, scale), edgecolors="face", linewidths=0.3)
    collection.set_array(values.ravel())
    axes.add_collection(collection)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=GRID, linewidth=0.8))


def _curve(curve: list[float], noise: list[float] | None, dense: Dense) -> Picture:
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
    listed = ", ".join(f"{place}: {error:.0%}" for place, error in zip(places, curve, strict=True))
    caption = (
        f"How far the nearest separable kernel is from {dense.origin}, in Frobenius norm, relative to the kernel's."
    )
    return Picture("separable_error", figure, f"A falling curve. Error by depth multiplier: {listed}.", caption)


def _reading(curve: list[float], noise: list[float] | None, dense: Dense) -> tuple[str, str]:
    height, width, _, filters = dense.kernel.shape
    text = f"An error of 10% or less takes a multiplier of {_enough(curve)} of {dense.full_rank}. "
    if noise is None:
        text += "Fresh weights are noise, which has no structure to save; trained kernels are smoother."
    else:
        text += f"Noise of the same shape takes {_enough(noise)}: what saves filters is the kernel's structure."
    # channels * M * (kh * kw + filters) weights against channels * kh * kw * filters.
    cheap = (height * width * filters - 1) // (height * width + filters)
    return text, f"Up to a multiplier of {cheap} both kernels together have fewer weights than the dense one."


def _enough(curve: list[float]) -> int:
    return next(place for place, error in enumerate(curve, start=1) if error <= 0.1)


def _costs(dense: Dense, found: list[Approximation]) -> Table:
    rows = [("dense", f"{dense.kernel.size:,}", "", "")]
    for each in found:
        outputs = output_difference(dense.kernel, each)
        rows.append((f"multiplier {each.multiplier}", f"{each.parameters:,}", _percent(each.error), _percent(outputs)))
    caption = "Weights, error of the kernel, and error of the outputs on a random image, measured"
    return Table(caption, ("kernel", "weights", "kernel's error", "outputs' error"), rows)


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 5e-4 else rounding(value)
