"""The bar chart of docs/speed.md, from the tables of the result files: `python -m benchmarks.chart`.

python -m benchmarks.chart [--models FILE] [--kernels FILE] [--output PNG]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.tables import read_sections, read_tables
from groupwise.frameworks import FRAMEWORKS
from groupwise.report.style import FAINT, INK, JUDGED, RATE, new_figure, plain, save, write_beside

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "speed.png"
STEP = "train, batch 16"
KERNELS = "Batch 16, all passes, quick, avx2"
COLOURS = {"tensorflow": JUDGED, "jax": RATE, "torch": FAINT}

Ratios = dict[str, float]


def training(text: str) -> dict[str, Ratios]:
    """Return network and its rival -> backend -> our training speed over PyTorch's, from the text of models.md.

    Raises:
        ValueError: no row has such a step.
    """
    ratios: dict[str, Ratios] = {}
    for row in (row for table in read_tables(text) for row in table):
        library, _, where = row.get("rival", "").partition(", ")
        if row.get("step") == STEP and where.startswith("PyTorch"):
            ratios.setdefault(f"{row['network']}\nover {library}", {})[row["backend"]] = float(row["times as fast"])
    if not ratios:
        raise ValueError(f"no row has the step {STEP!r} and a rival in PyTorch; measure it with benchmarks.models")
    return ratios


def kernels(text: str) -> Ratios:
    """Return family -> the core's speed over PyTorch's, the mean of all passes, from the text of kernels.md.

    Raises:
        ValueError: there is no such section or no table of means in it.
    """
    tables = read_tables(read_sections(text).get(KERNELS, ""))
    means = next((table for table in tables if table and "over PyTorch" in table[0]), [])
    if not means:
        raise ValueError(f"no table of means below the heading {KERNELS!r}; measure it with benchmarks.kernels")
    return {
        row["family"]: float(row["over PyTorch"]) for row in means if row["pass"] == "all" and row["family"] != "all"
    }


def draw(networks: dict[str, Ratios], families: Ratios, png: Path) -> None:
    """Draw both as bars beside a line, PyTorch's speed: networks by backend, and the core's kernels by family."""
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(2.4, 1))
    plain(left, "Training speed")
    width = 0.84 / len(COLOURS)
    for index, (backend, colour) in enumerate(COLOURS.items()):
        places = [place + (index - (len(COLOURS) - 1) / 2) * width for place in range(len(networks))]
        _bars(
            left,
            places,
            [ratios.get(backend, 0.0) for ratios in networks.values()],
            width * 0.94,
            colour,
            f"on {FRAMEWORKS[backend].title}",
        )
    left.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=len(COLOURS),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=0.9,
        borderaxespad=0.0,
    )
    left.set_xticks(range(len(networks)), list(networks))
    plain(right, "The core's convolutions")
    _bars(right, range(len(families)), list(families.values()), 0.8, JUDGED, "")
    right.set_xticks(range(len(families)), list(families))
    for axes in (left, right):
        _line_at_one(axes)
    save(figure, png)


def _bars(axes: Axes, places: Sequence[float], heights: Sequence[float], width: float, colour: str, label: str) -> None:
    axes.bar(places, heights, width, color=colour, label=label)
    for place, height in zip(places, heights, strict=True):
        if height:  # the number stands at the bar's foot, where no line crosses it
            text = {"ha": "center", "va": "bottom", "fontsize": 9, "fontweight": "bold", "color": "white"}
            axes.annotate(f"{height:.2f}", (place, 0), xytext=(0, 4), textcoords="offset points", **text)


def _line_at_one(axes: Axes) -> None:
    axes.axhline(1.0, color=INK, linewidth=1.2)
    write_beside(axes, 1.0, "PyTorch = 1", INK)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelcolor=INK)
    axes.margins(x=0.02)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=RESULTS / "models.md")
    parser.add_argument("--kernels", type=Path, default=RESULTS / "kernels.md")
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    draw(training(options.models.read_text()), kernels(options.kernels.read_text()), options.output)


if __name__ == "__main__":
    main()
