"""The curves of a training: accuracy, loss and learning rate by epoch."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from groupwise.report.style import FAINT, JUDGED, RATE, TRAINING, new_figure, plain, save, write_beside


def curves(metrics_csv: Path, png: Path) -> None:
    """Draw the columns of a run's metrics.csv.

    Args:
        metrics_csv: a row for each epoch: epoch, learning_rate, loss, accuracy, and test_loss and test_accuracy, or
            validation_loss and validation_accuracy.
        png: where the picture goes, of 1440 x 790 pixels.

    Raises:
        ValueError: the file has no rows.
    """
    with metrics_csv.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(f"{metrics_csv} has no rows to draw")
    judge = "validation" if "validation_loss" in rows[0] else "test"
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    figure = new_figure(10, 5.5)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    axes = [figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, :])]
    _pair(axes[0], columns, "accuracy", judge, lambda value: f"{value:.1%}")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _pair(axes[1], columns, "loss", judge, lambda value: f"{value:.3g}")
    plain(axes[2], "Learning rate")
    _line(axes[2], columns["epoch"], columns["learning_rate"], RATE)
    axes[2].set_ylim(bottom=0)
    for area in axes:
        area.set_xlabel("epoch", fontsize=9, color=FAINT)
        area.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    save(figure, png)


def _pair(axes: Axes, columns: dict[str, list[float]], quantity: str, judge: str, text: Callable[[float], str]) -> None:
    plain(axes, quantity.capitalize())
    epochs, ends = columns["epoch"], []
    for name, column, colour in (("training", quantity, TRAINING), (judge, f"{judge}_{quantity}", JUDGED)):
        _line(axes, epochs, columns[column], colour)
        ends.append((f"{name} {text(columns[column][-1])}", colour))
    low, high = axes.get_ylim()
    places = _apart(columns[quantity][-1], columns[f"{judge}_{quantity}"][-1], (high - low) * 0.06)
    for place, (label, colour) in zip(places, ends, strict=True):
        write_beside(axes, place, label, colour if colour != TRAINING else FAINT)


def _line(axes: Axes, epochs: Sequence[float], values: Sequence[float], colour: str) -> None:
    # A line through one point is invisible, so that few points are marked.
    marker = "o" if len(epochs) <= 3 else ""
    axes.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, markersize=4, solid_capstyle="round")
    axes.margins(x=0.01)


def _apart(first: float, second: float, distance: float) -> list[float]:
    """Return two places for labels near two values, so far apart that both can be read."""
    missing = distance - abs(first - second)
    if missing <= 0:
        return [first, second]
    shift = missing / 2 if first >= second else -missing / 2
    return [first + shift, second - shift]
