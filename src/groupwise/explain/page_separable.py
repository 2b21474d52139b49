"""The page on separable convolution: the rank of a kernel, and what a depth multiplier buys."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from groupwise.errors import UserError
from groupwise.explain.drawing import WIDTH, Drawing, colour
from groupwise.keras_private import layers_within
from groupwise.models import create
from groupwise.models.network import without_values
from groupwise.models.reading import ENDINGS, load_model
from groupwise.ops import grouped_conv2d, separable_conv2d
from groupwise.report.html_page import literal, table
from groupwise.report.style import FAINT, GRID, TRAINING, new_figure, plain
from groupwise.rewrite.kernels import dense_of_separable, separable_of_dense

SIDE, CHANNELS, FILTERS = 5, 3, 32  # of the kernel that is made here
SHOWN = 6  # filters side by side
TRIED = (1, 2, 4)  # multipliers that are drawn, and the full rank after them
IMAGES: dict[str, Any] = {"cmap": "BrBG", "edgecolors": "face", "linewidth": 0.3}  # other edges leave fine white lines
POSITIVE, NEGATIVE = "#01665e", "#8c510a"

Kernel = NDArray[np.float64]


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a network or a model's file, whose first dense kernel it is."""
    kernel, origin, is_random = find_kernel(name)
    height, width, channels, filters = kernel.shape
    full = height * width
    found = {rank: approximate(kernel, rank) for rank in (*(tried for tried in TRIED if tried < full), full)}
    basis = 2 if 2 in found else min(found)
    kernels = {"Dense": kernel}
    for rank, (depthwise, pointwise, error) in found.items():
        kernels[f"Multiplier {rank}, error {error:.0%}"] = dense_of_separable(depthwise, pointwise)
    curve, noise = errors(kernel), []
    reading = "Fresh weights are noise, which has no structure to save; trained kernels are smoother."
    if not is_random:
        noise = errors(np.random.default_rng(0).normal(size=kernel.shape))
        reading = f"Noise of the same shape takes {_enough(noise)}: what saves filters is the kernel's structure."
    values = {
        "size": f"{height}x{width}",
        "full": full,
        "origin": origin,
        "channels": channels,
        "filters": filters,
        "shown": min(SHOWN, filters),
        "count": len(kernels),
        "rows": "; ".join(kernels).lower(),
        "basis": basis,
        "errors": ", ".join(f"{rank}: {error:.0%}" for rank, error in enumerate(curve, start=1)),
        "enough": _enough(curve),
        "reading": reading,
        # channels * M * (kh * kw + filters) weights against channels * kh * kw * filters.
        "cheap": (full * filters - 1) // (full + filters),
        "costs": _costs(kernel, found),
    }
    drawings = {"filters": _filters(kernels), "steps": _steps(*found[basis][:2]), "error": _curve(curve, noise)}
    return values, {f"separable_{what}": figure for what, figure in drawings.items()}


def find_kernel(name: str | None) -> tuple[Kernel, str, bool]:
    """Return a dense kernel (kernel height, kernel width, in, out), what it is, and whether it is random.

    It is the default one, a network's first dense k x k one with fresh weights, or a model file's.

    Raises:
        UserError: there is no such network or file, or it has no dense convolution larger than 1x1.
    """
    if name is None:
        return _edge_filters(), f"{FILTERS} filters of edges and stripes", False
    is_file = Path(name).suffix in ENDINGS
    if is_file:
        layers = layers_within(load_model(Path(name)))
    else:
        with without_values():
            layers = create(name).layers
    dense = (layer for layer in layers if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1)
    layer = next((layer for layer in dense if max(layer.kernel_size) > 1), None)
    if layer is None:
        raise UserError(f"{name}: has no dense convolution larger than 1x1; take another, such as resnet18")
    if is_file:
        kernel, origin = layer.kernel, f"the trained layer {literal(layer.name)} of {literal(name)}"
    else:  # only this layer's weights are needed, not the whole network's
        kernel = layer.kernel_initializer(tuple(layer.kernel.shape), dtype="float32")
        origin = f"the layer {layer.name} of {name}, fresh weights"
    return keras.ops.convert_to_numpy(kernel).astype(np.float64), origin, not is_file


def _edge_filters() -> Kernel:
    """Return a smooth kernel, like a trained first layer's: edges and stripes of many directions (Gabor functions)."""
    drawn = np.random.default_rng(1).random((FILTERS, 1 + CHANNELS)).T
    angles, lengths, phases = np.pi * np.arange(FILTERS) / 8, SIDE * (0.8 + 0.8 * drawn[0]), 2 * np.pi * drawn[1:]
    y, x = (np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2)[..., None, None]
    along = x * np.cos(angles) + y * np.sin(angles)
    waves: Kernel = np.cos(2 * np.pi * along / lengths + phases)
    return waves * np.exp(-(x**2 + y**2) / (2 * (SIDE / 4) ** 2))


def approximate(kernel: Kernel, multiplier: int) -> tuple[Kernel, Kernel, float]:
    """Return the depthwise and pointwise kernels nearest to a dense one, and their error, as `separable_of_dense`.

    The depthwise filters of each input channel are orthonormal: all strength is in the pointwise factors.
    """
    depthwise, pointwise, error = separable_of_dense(kernel, multiplier)
    norms = np.linalg.norm(depthwise, axis=(0, 1))
    return depthwise / np.where(norms == 0, 1, norms), pointwise * norms.reshape(-1, 1), error


def errors(kernel: Kernel) -> list[float]:
    """Return the error of every multiplier from 1 to kernel height * kernel width."""
    return [separable_of_dense(kernel, rank)[2] for rank in range(1, kernel.shape[0] * kernel.shape[1] + 1)]


def output_difference(kernel: Kernel, depthwise: Kernel, pointwise: Kernel) -> float:
    """Return how far `separable_conv2d` is from the dense convolution on a random image, relative to its norm."""
    image = np.random.default_rng(0).normal(size=(1, 24, 24, kernel.shape[2])).astype("float32")
    dense, first, second = (part.astype("float32") for part in (kernel, depthwise, pointwise))
    expected = keras.ops.convert_to_numpy(grouped_conv2d(image, dense, 1, data_format="channels_last"))
    found = keras.ops.convert_to_numpy(separable_conv2d(image, first, second, data_format="channels_last"))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _enough(curve: list[float]) -> int:
    return next(rank for rank, error in enumerate(curve, start=1) if error <= 0.1)


def _costs(kernel: Kernel, found: dict[int, tuple[Kernel, Kernel, float]]) -> str:
    rows: list[tuple[object, ...]] = [("dense", kernel.size, "", "")]
    for rank, (depthwise, pointwise, error) in found.items():
        shares = (error, output_difference(kernel, depthwise, pointwise))
        percents = (f"{share:.1%}" if share >= 5e-4 else share for share in shares)
        rows.append((f"multiplier {rank}", depthwise.size + pointwise.size, *percents))
    caption = "Weights, error of the kernel, and error of the outputs on a random image, measured"
    return table(caption, ("kernel", "weights", "kernel's error", "outputs' error"), rows)


def _filters(kernels: dict[str, Kernel]) -> Figure:
    row = 1.22
    drawing = Drawing(height=len(kernels) * row + 0.1)
    scale = np.abs(kernels["Dense"][:, :, 0, :SHOWN]).max()
    for number, (title, kernel) in enumerate(kernels.items()):
        y = 0.25 + number * row
        drawing.heading(y, title)
        for place in range(min(SHOWN, kernel.shape[-1])):
            corner = (0.15 + place * 0.795, y + 0.2)
            drawing.cells(*corner, 0.72, kernel[:, :, 0, place], vmin=-scale, vmax=scale, **IMAGES)
    return drawing.figure


def _steps(depthwise: Kernel, pointwise: Kernel) -> Figure:
    """Draw the depthwise filters of the first input channel, and beside them the first outputs' factors as bars."""
    images = np.moveaxis(depthwise[:, :, 0], -1, 0)
    factors = pointwise[0, 0, : len(images), :SHOWN]
    side, row = 0.95, 1.2
    drawing = Drawing(height=0.85 + len(images) * row)
    drawing.heading(0.28, f"The two steps with multiplier {len(images)}")
    drawing.note(0.15, 0.62, "depthwise")
    drawing.note(1.5, 0.62, f"pointwise, to the first {factors.shape[1]} outputs")
    scale, lengths = np.abs(images).max(), 0.36 * side * factors / np.abs(factors).max()
    for number, image in enumerate(images):
        y = 0.82 + number * row
        middle = y + side / 2
        drawing.cells(0.15, y, side, image, vmin=-scale, vmax=scale, **IMAGES)
        drawing.axes.plot([1.5, WIDTH - 0.15], [middle, middle], color=GRID, linewidth=0.8)
        for place, (value, length) in enumerate(zip(factors[number], lengths[number], strict=True)):
            x = 1.62 + place * 0.56
            fill, below = (POSITIVE, 0.13) if value > 0 else (NEGATIVE, -0.13)
            drawing.axes.add_patch(Rectangle((x, middle), 0.34, -length, facecolor=fill))
            drawing.write(x + 0.17, middle + below, f"{value:.2f}", 10)
    return drawing.figure


def _curve(curve: list[float], noise: list[float]) -> Figure:
    figure = new_figure(WIDTH, 3.4)
    axes = figure.add_subplot()
    plain(axes, "Error by multiplier")
    places = range(1, len(curve) + 1)
    if noise:
        axes.plot(places, noise, color=TRAINING, linewidth=1.8, label="noise of the same shape")
    axes.plot(places, curve, color=colour(0), linewidth=1.8, marker="o", markersize=3.5, label="the example")
    if noise:
        axes.legend(frameon=False, fontsize=10.5)
    axes.set_xlabel("depth multiplier", fontsize=10.5, color=FAINT)
    axes.tick_params(labelsize=10.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(bottom=0)
    return figure
