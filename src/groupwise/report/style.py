"""What the pictures share: few colours, light lines, and a canvas without a window."""

from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font

from groupwise.texts import printable
from groupwise.writing import replace_file

INK, FAINT, GRID = "#222222", "#6b7280", "#e5e7eb"
TRAINING, JUDGED, RATE = "#9ca3af", "#1d4ed8", "#b45309"
DPI = 144
FONT = "DejaVu Sans"  # comes with matplotlib
WIDER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans", "WenQuanYi Zen Hei", "Unifont"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Segoe UI Symbol", "Nirmala UI", "Leelawadee UI"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans", "Noto Sans Arabic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Symbols2", "Noto Emoji", "Symbola"),
)
"""For characters that the font lacks; those that are installed are asked."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, drawn by Agg whatever matplotlib's settings are."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    FigureCanvasAgg(figure)
    return figure


def of_others(text: str) -> str:
    """Return somebody's text for a picture: on one line, what no font here can draw as escapes."""
    drawn = _characters()
    line = printable(text)
    return "".join(one if ord(one) in drawn else one.encode("ascii", "backslashreplace").decode() for one in line)


def as_it_is() -> dict[str, Any]:
    """Return the options of matplotlib's texts that let `$`, `_` and `^` be themselves."""
    return {"parse_math": False, "usetex": False, "family": _fonts()}


@cache
def _fonts() -> list[str]:
    installed = set(fontManager.get_font_names())
    return [FONT, *(name for name in WIDER_FONTS if name in installed)]


@cache
def _characters() -> set[int]:
    """Return the codes of all characters that the fonts can draw."""
    return {code for name in _fonts() for code in get_font(findfont(name)).get_charmap()}


def title(axes: Axes, text: str) -> None:
    """Write a title at the left."""
    axes.set_title(text, loc="left", fontsize=11, color=INK, fontweight="bold")


def plain(axes: Axes, heading: str) -> None:
    """Give axes a title at the left, a light grid, and no frame but the bottom."""
    title(axes, heading)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9, length=0)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def write_beside(axes: Axes, height: float, text: str, colour: str) -> None:
    """Write a text to the right of axes, at a height in their own numbers."""
    axes.annotate(
        text,
        (1.0, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=colour,
        annotation_clip=False,
    )


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    replace_file(path, lambda partial: figure.savefig(partial, format="png"))
