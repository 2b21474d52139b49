"""A photo with the map of where a network looked laid over it."""

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupwise.report.style import DPI, INK, as_it_is, new_figure, of_others, save

LONGEST, SHORTEST = 1024, 384  # pixels of the picture's long side
MARGIN, CAPTION = 12, 46  # pixels around the photo, and of the line below it
COLOURS = matplotlib.colormaps["inferno"]
STRONGEST = 0.75  # how much of the photo the hottest place hides


def heat_map(
    image: NDArray[np.uint8],
    heat: NDArray[np.float32],
    crop: tuple[float, float, float, float],
    caption: str,
    path: Path,
) -> None:
    """Write a PNG: the photo, dimmed outside of what the network saw, with a heat map where it looked.

    Args:
        image: uint8, (height, width, 1 or 3).
        heat: float32, (rows, columns), from 0 to 1, of the crop.
        crop: (left, top, right, bottom) of what the network saw, in the image's pixels.
        caption: the line below.
        path: of the PNG, which is written whole or not at all.
    """
    pixels = overlay(image, heat, crop)
    height, width = pixels.shape[:2]
    figure = new_figure((width + 2 * MARGIN) / DPI, (height + MARGIN + CAPTION) / DPI)
    figure.set_layout_engine("none")
    figure.figimage(pixels, MARGIN, CAPTION, origin="upper")
    place = (MARGIN / figure.bbox.width, 0.45 * CAPTION / figure.bbox.height)
    figure.text(*place, of_others(caption), color=INK, fontsize=9, va="center", **as_it_is())
    save(figure, path)


def overlay(
    image: NDArray[np.uint8],
    heat: NDArray[np.float32],
    crop: tuple[float, float, float, float],
    longest: int = LONGEST,
) -> NDArray[np.float32]:
    """Return what `heat_map` draws, without the line below: (height, width, 3), from 0 to 1.

    Args:
        image, heat, crop: as for `heat_map`.
        longest: the most pixels that the long side has; a small image grows to about 384.
    """
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale > 1:
        # Small images grow by whole numbers, so that their pixels stay squares.
        scale = max(1, SHORTEST // max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    picture = picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    return with_heat(np.asarray(picture, np.float32) / np.float32(255), heat, [round(side * scale) for side in crop])


def with_heat(pixels: NDArray[np.float32], heat: NDArray[np.float32], crop: list[int]) -> NDArray[np.float32]:
    """Return the pixels, in 0..1, dimmed outside of the crop and with the heat inside it."""
    height, width = pixels.shape[:2]
    left, top = max(0, crop[0]), max(0, crop[1])
    right, bottom = min(width, max(crop[2], left + 1)), min(height, max(crop[3], top + 1))
    grown = Image.fromarray(heat).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(grown, np.float32), 0, 1)[..., None]
    grey = pixels.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    result = 0.35 * grey + 0.55
    inside = pixels[top:bottom, left:right]
    opacity = STRONGEST * values**0.7
    result[top:bottom, left:right] = (1 - opacity) * inside + opacity * COLOURS(values[..., 0])[..., :3]
    return result
