"""What the pictures share: few colours, light lines, and a canvas without a window."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from groupwise.files import replace_file

INK, FAINT, GRID = "#222222", "#6b7280", "#e5e7eb"
TRAINING, JUDGED, RATE = "#9ca3af", "#1d4ed8", "#b45309"
DPI = 144


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, drawn by Agg whatever matplotlib's settings are."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, title: str) -> None:
    """Give axes a title at the left, a light grid, and no frame but the bottom."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9, length=0)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    replace_file(path, lambda partial: figure.savefig(partial, format="png"))
