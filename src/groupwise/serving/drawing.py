"""Where a network looked, as a picture within a page."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupwise.report import overlay

LONGEST = 640  # pixels of the long side, as a page shows it


def picture_address(
    image: NDArray[np.uint8], heat: NDArray[np.float32], crop: tuple[float, float, float, float]
) -> str:
    """Return a PNG of an image with a heat map over it, as an address that holds it: data:image/png;base64,...

    Args:
        image: uint8, (height, width, 1 or 3).
        heat: float32, (rows, columns), from 0 to 1, of the crop.
        crop: (left, top, right, bottom) of what the network saw, in the image's pixels.

    Examples:
        >>> address = picture_address(np.zeros((4, 4, 3), np.uint8), np.ones((2, 2), np.float32), (0, 0, 4, 4))
        >>> address[:22]
        'data:image/png;base64,'
    """
    pixels = np.rint(overlay(image, heat, crop, LONGEST) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
