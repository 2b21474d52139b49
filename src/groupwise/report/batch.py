"""Images of a batch, side by side, as a training sees them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groupwise.report.style import INK, as_it_is, new_figure, of_others, save

COLUMNS, LONGEST_NAME = 8, 24


def batch(images: NDArray[np.uint8], names: Sequence[str], path: Path) -> None:
    """Write a PNG of images with a name above each.

    Args:
        images: uint8, (images, height, width, 1 or 3).
        names: one an image; long ones are cut off.
        path: of the PNG, which is written whole or not at all.
    """
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    ratio = images.shape[1] / images.shape[2]
    figure = new_figure(1.4 * columns, (1.3 * ratio + 0.3) * rows)
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        text = of_others(name)
        short = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}\u2026"
        axes.set_title(short, fontsize=6, color=INK, **as_it_is())
    save(figure, path)
